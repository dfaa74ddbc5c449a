"""Baselines under which drawn control cells have the mean expression of the observed ones.

Each gene is fitted given the observed values of its parents. Drawn cells have drawn parents, and where the model is not
quite right small errors add up along the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scgim.module._matching import MAX_STEP, CellsToDraw, down_the_network

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.module import GIMModule
    from scgim.train import BatchLoader

# Drawn at most, cells and values: 50 MB; means are then known to half a percent.
_N_CELLS, _N_VALUES = 40_000, 12_000_000
_FEW_CONTROLS = 100  # fewer, as on a plate, are too noisy to be matched by themselves: convention
_TOLERANCE = 0.04  # difference of log means that is let pass, or so many standard errors if that is less: conventions
_N_ERRORS = 2
HALF_A_COUNT = 0.5  # so that means of no counts have a logarithm


@torch.no_grad()
def match_baselines(module: GIMModule, loader: BatchLoader) -> None:
    """Find the baselines, for counts, whose mechanisms are not linear in them.

    Drawn control cells get the means of the observed ones. With few of these, drawn cells of all contexts but combinations, whose effects
    need not add up, get those of the training cells.
    """
    module.baseline_offset.zero_()
    if module.likelihood == "normal":
        return
    every = loader.context.cpu()
    rows = torch.nonzero(~module.treated.cpu()[every])[:, 0]
    if len(rows) < _FEW_CONTROLS:
        rows = torch.nonzero(~torch.isin(every, module.knowledge.combined))[:, 0]
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    n = min(_N_CELLS, _N_VALUES // len(module.centre))
    cells = loader.take(order.repeat(-(-n // len(order)))[:n])  # of few cells, each several times
    x, context, covariates, log_size = (cells[k].to(module.device) for k in ("x", "context", "covariates", "log_size"))
    enough = HALF_A_COUNT / min(len(rows), n)  # so that a gene without counts is not driven to nothing
    depth = log_size.exp().double().sum()
    observed = torch.log(x.double().sum(0) / depth + enough)
    error = x.double().std(0) / (x.double().mean(0) + enough) / min(len(rows), n) ** 0.5
    tolerance = (_N_ERRORS * error).clamp_max(_TOLERANCE)
    shift, targets = draw_effects(module, context.cpu())

    def move(_: int, genes: Tensor, mean: Tensor, __: Tensor) -> bool:
        step = observed[genes] - torch.log(mean.double().sum(0) / depth + enough)
        step = step - step.clamp(-tolerance[genes], tolerance[genes])
        module.baseline_offset[genes] += step.clamp(-MAX_STEP, MAX_STEP).to(module.baseline_offset)
        return bool(step.any())

    cells_to_draw = CellsToDraw(covariates, log_size, shift, targets)
    down_the_network(module, cells_to_draw, lambda genes: module.baseline_offset[genes], move)


def draw_effects(module: GIMModule, context: Tensor) -> tuple[Tensor, Tensor]:
    """Direct effects and targets of cells, drawn anew for each; none for control cells."""
    shift = torch.zeros(len(context), len(module.centre), dtype=torch.float64)
    targets = torch.zeros_like(shift, dtype=torch.bool)
    rng = torch.Generator().manual_seed(0)
    known, group, log_dosage = module.knowledge.interventions(), module.group.cpu(), module.knowledge.log_dosage.cpu()
    level = module.knowledge.context_level()
    for k in torch.unique(context).tolist():
        cells = torch.nonzero(context == k)[:, 0]
        if group[k] >= 0:
            own = known.rows(group[k : k + 1]) if level is None else known.rows(group[k : k + 1]).at_level(level[k])
            effects, on = own.sample(log_dosage[k : k + 1], len(cells), rng)
            shift[cells], targets[cells] = effects[0], on[0]
    return shift.float().to(module.device), targets.to(module.device)
