"""How deeply cells were sequenced, where the user does not say and counts of control cells have a common scale."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from scgim.fit._statistics import MAX_SAMPLED_CELLS
from scgim.structure._depth import MIN_DEPTH_VAR, DepthCells, find_depth
from scgim.structure._search import CELLS_A_GENE
from scgim.structure._watch import SearchWatch
from scgim.train import BatchLoader

if TYPE_CHECKING:
    import numpy as np

    from scgim.module import GIMModule
    from scgim.structure._depth import DepthModel
    from scgim.train import Cells

logger = logging.getLogger(__name__)

_MIN_GENES = 8  # of fewer, depth and a network cannot be told apart
_MAX_GENES = 60  # of more, searches take too long, and totals tell depth well
_PART = 2  # of the time that the search may take: convention
_BATCH_SIZE = 4096  # cells at a time: for memory, results do not depend on it


def can_tell_depth(module: GIMModule, n_cells: int) -> bool:
    """Whether a network and the depth of cells can be found together."""
    d = len(module.centre)
    enough = _MIN_GENES <= d <= _MAX_GENES and n_cells >= CELLS_A_GENE * d
    return enough and module.measurement == "direct" and not module.knowledge.n_levels


@torch.no_grad()
def estimate_depth(
    module: GIMModule, cells: Cells, variance: float, seed: int, max_seconds: float | None
) -> DepthModel | None:
    """Model of the depth of cells; None where it does not differ. `variance` is what the counts of control cells betray of log depth."""
    if variance < MIN_DEPTH_VAR:
        return None
    group = module.group.cpu()
    rows = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))[:MAX_SAMPLED_CELLS]
    some = BatchLoader(cells, _BATCH_SIZE, shuffle=False).take(rows)
    options: dict[str, Any] = {
        "edge_log_odds": module.knowledge.edge_log_odds.cpu().numpy(),
        "regulators": module.knowledge.told_regulators(),
        "known_targets": module.knowledge.known_targets(),
        "seed": seed,
    }
    watch = SearchWatch(None if max_seconds is None else max_seconds / _PART)
    sample = DepthCells(some["x"].double(), some["context"], some["covariates"].double())
    model = find_depth(sample, group, variance, watch, **options)
    if model is None:
        logger.info("Counts have a common scale that a network explains: size factors are 1.")
    else:
        logger.info("Size factors are estimated together with a network (variance of their log %.3f).", model.variance)
    return model


@torch.no_grad()
def read_depth(module: GIMModule, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Log size factors of cells and their standard deviations, both (N,), by the model of depth that the module holds."""
    found = []
    for raw in BatchLoader(cells, _BATCH_SIZE, shuffle=False):
        batch = {name: value.to(module.device) for name, value in raw.items()}
        found.append(torch.cat(module.depth.read(batch), 1).cpu())
    log_size, sd = torch.cat(found).numpy().T
    return log_size, sd
