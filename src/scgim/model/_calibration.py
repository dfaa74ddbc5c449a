"""Baselines under which drawn cells have the means of the training cells.

Each gene is fitted given the observed values of its parents. Drawn cells have drawn parents, and where the model is not
quite right small errors add up along the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scgim.nn._likelihood import parent_features

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.module import GIMModule
    from scgim.train import BatchLoader

_MAX_CELLS, _MAX_VALUES = 10_000, 1_000_000
_N_ROUNDS = 4
_MAX_STEP = 0.5
_NEGLIGIBLE = 0.05  # difference of means, in standard deviations of the cells


@torch.no_grad()
def calibrate(module: GIMModule, loader: BatchLoader) -> None:
    """Find the baselines, on a sample of the training cells; for counts, whose mechanisms are not linear in them."""
    module.calibration.zero_()
    if module.likelihood == "normal" or module.measurement == "latent":
        return
    n = min(_MAX_CELLS, max(1000, _MAX_VALUES // len(module.centre)))
    order = torch.randperm(loader.n, generator=torch.Generator().manual_seed(0))
    cells = loader.take(order.repeat(-(-n // loader.n))[:n])  # of few cells, each several times
    x, context, covariates, log_size = (cells[k].to(module.device) for k in ("x", "context", "covariates", "log_size"))
    observed = parent_features(x, log_size, module.likelihood).mean(0)
    shift, targets = _draw_effects(module, context.cpu())
    base = module.intercept + covariates @ module.covariate_effect + shift
    h, generator = torch.zeros_like(shift), torch.Generator(module.device).manual_seed(0)
    for layer in module.layers():
        genes = torch.tensor(layer, device=module.device)
        for _ in range(_N_ROUNDS):
            own = base[:, genes] + module.calibration[genes]
            values, *_ = module.draw_genes(genes, own, h, targets, log_size, generator)
            drawn = parent_features(values, log_size, module.likelihood)
            h[:, genes] = (drawn - module.centre[genes]) / module.spread[genes]
            module.calibration[genes] += _step(observed[genes], drawn)


def _draw_effects(module: GIMModule, context: Tensor) -> tuple[Tensor, Tensor]:
    """Direct effects and targets of cells, drawn anew for each; none for control cells."""
    shift = torch.zeros(len(context), len(module.centre), dtype=torch.float64)
    targets = torch.zeros_like(shift, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    known, group, log_dosage = module.interventions(), module.group.cpu(), module.log_dosage.cpu()
    for k in torch.unique(context).tolist():
        cells = torch.nonzero(context == k)[:, 0]
        if group[k] >= 0:
            effects, on = known.rows(group[k : k + 1]).sample(log_dosage[k : k + 1], len(cells), generator)
            shift[cells], targets[cells] = effects[0], on[0]
    return shift.float().to(module.device), targets.to(module.device)


def _step(observed: Tensor, drawn: Tensor) -> Tensor:
    """Change of the log means that brings the mean of log1p to the one observed; none where it is nearly there."""
    difference, spread = observed - drawn.mean(0), drawn.std(0)
    clear = (1 - (_NEGLIGIBLE * spread / difference.abs().clamp_min(1e-12)).square()).clamp_min(0.0)
    slope = (1 - torch.exp(-drawn)).mean(0).clamp_min(0.05)  # of log1p(x) in log x
    return (clear * difference / slope).clamp(-_MAX_STEP, _MAX_STEP)
