"""Hidden states of given cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scgim.train import BatchLoader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgim.module import GIMModule
    from scgim.train import Cells

_BATCH_SIZE = 2048  # cells at a time: for memory, results do not depend on it


@torch.inference_mode()
def cell_states(module: GIMModule, cells: Cells) -> NDArray[np.float64]:
    """Posterior means of the states of each cell, shape (N, n); NaN in contexts that were not measured in training."""
    out = []
    for raw in BatchLoader(cells, _BATCH_SIZE, shuffle=False):
        b = {name: value.to(module.device) for name, value in raw.items()}
        h = module.parent_features(b["x"], b["log_size"])
        scores = module.states.scores(h, b["context"].clamp_min(0), b["covariates"])
        out.append(torch.where(b["context"][:, None] >= 0, scores, torch.nan).double().cpu().numpy())
    return np.concatenate(out)
