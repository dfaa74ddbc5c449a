"""Log-likelihood of given cells under their drug and dosage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import logsumexp

from scgim.train import BatchLoader

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from scgim.interventions._interventions import Interventions
    from scgim.module import GIMModule
    from scgim.train import Cells

_BATCH_SIZE = 2048  # cells at a time: for memory, results do not depend on it


def context_effects(
    interventions: Interventions | None,
    log_dosage: Tensor | None,
    treated: NDArray[np.int64],
    shape: tuple[int, int, int],
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Draws of direct effects and targets in each context, both of the `shape` (n, K, d).

    Interventions and log dosages are those of the contexts that are `treated` (positions); None where no context is.
    """
    shift, targets = torch.zeros(shape, dtype=torch.float32), torch.zeros(shape, dtype=torch.bool)
    if interventions is not None and log_dosage is not None:
        drawn, on = interventions.sample(log_dosage, shape[0], torch.Generator().manual_seed(seed))
        shift[:, treated], targets[:, treated] = drawn.transpose(0, 1).float(), on.transpose(0, 1)
    return shift, targets


@torch.inference_mode()
def cell_log_likelihoods(module: GIMModule, cells: Cells, shift: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """Log-likelihood of each cell, averaged over draws of effects and targets, both (n, K, d); shape (N,)."""
    shift, targets = shift.to(module.device), targets.to(module.device)
    out = []
    for raw in BatchLoader(cells, _BATCH_SIZE, shuffle=False):
        b = {name: value.to(module.device) for name, value in raw.items()}
        draws = [
            module.log_likelihood(b["x"], b["covariates"], b["log_size"], s[b["context"]], t[b["context"]]).sum(1)
            for s, t in zip(shift, targets, strict=True)
        ]
        out.append(logsumexp(torch.stack(draws).double().cpu().numpy(), axis=0) - np.log(len(draws)))
    return np.concatenate(out)
