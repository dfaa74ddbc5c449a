"""What the search and the start need of the cells: scales, sufficient statistics, and a sample of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scgim._priors import CELLS_A_GENE
from scgim.nn._likelihood import parent_features
from scgim.structure._functions import SampledCells
from scgim.structure._statistics import ContextStatistics, StatisticsAccumulator, of_half_cells

if TYPE_CHECKING:
    from scgim.module import GIMModule
    from scgim.module._knowledge import Knowledge
    from scgim.train import BatchLoader

MAX_SAMPLED_CELLS = 20_000  # that regressions go through: for time
_MIN_SPREAD = 1e-3  # of a gene that varies among controls; others keep their scale
_MAX_FEATURE = 3.0  # root mean square over all cells: convention
_HALF_A_COUNT = 0.5  # so that a gene without counts has a log mean


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A minibatch on a device."""
    return {name: value.to(device) for name, value in batch.items()}


@torch.no_grad()
def set_scales(module: GIMModule, loader: BatchLoader) -> None:
    """Centre and spread of parent features, and the log mean, over the control cells.

    A gene that is hardly seen in controls and answers to drugs has a larger spread, so that its feature is of the order of one in
    treated cells too: it could not be told how steeply it acts, nor could the descent find its way, in units of next to nothing.
    The unit of continuous values is said in :func:`_unit_of_values`.
    """
    d = len(module.centre)
    n, total, square, values, sizes = 0, *(torch.zeros(d, dtype=torch.float64) for _ in range(3)), 0.0
    of_levels, every, every_square = _LevelSums(module.knowledge), torch.zeros_like(total), torch.zeros_like(total)
    for batch in loader:
        h = parent_features(batch["x"], batch["log_size"], module.likelihood).double()
        every, every_square = every + h.sum(0), every_square + h.square().sum(0)
        control = ~module.treated.cpu()[batch["context"]]
        x, log_size = batch["x"][control], batch["log_size"][control]
        h = h[control]
        n += len(h)
        total, square, values = total + h.sum(0), square + h.square().sum(0), values + x.double().sum(0)
        sizes += float(log_size.exp().sum())
        of_levels.add(x if module.likelihood != "normal" else h, batch["context"][control], log_size)
    centre = total / n
    spread = (square / n - centre.square()).clamp_min(0.0).sqrt()
    if module.likelihood == "normal":
        of_all = (every_square / loader.n - (every / loader.n).square()).clamp_min(0.0).sqrt()
        spread = _unit_of_values(spread, of_all, loader.n)
    else:
        about = (every_square - 2 * centre * every) / loader.n + centre.square()
        spread = torch.maximum(spread, about.clamp_min(0.0).sqrt() / _MAX_FEATURE)
    module.centre.copy_(centre)
    module.spread.copy_(torch.where(spread > _MIN_SPREAD, spread, torch.ones_like(spread)))
    if module.likelihood != "normal":
        module.intercept_loc.copy_(((values + _HALF_A_COUNT) / sizes).log())
    module.intercept.copy_(module.intercept_loc)
    of_levels.note(module)


def _unit_of_values(of_controls: Tensor, of_all: Tensor, n_cells: int) -> Tensor:
    """Unit of continuous values: their standard deviation among controls; the fewer wells there are a gene, the more that among all.

    A plate has tens of control wells. What is usual for a gene, and so what a target must stand out from, is told better by all wells, in
    most of which it is no target.
    """
    share = min(1.0, n_cells / (CELLS_A_GENE * len(of_controls)))
    return torch.where(
        of_controls > _MIN_SPREAD, (share * of_controls.square() + (1 - share) * of_all.square()).sqrt(), of_controls
    )


class _LevelSums:
    """Mean of the controls in each level of the effect modifier, in one pass."""

    def __init__(self, knowledge: Knowledge):
        self.level = knowledge.context_level()
        self.sums = torch.zeros(max(1, knowledge.n_levels), len(knowledge.regulators) + 1, dtype=torch.float64)

    def add(self, x: Tensor, context: Tensor, log_size: Tensor) -> None:
        """Add control cells."""
        if self.level is not None:
            size = torch.cat([x.double(), log_size.double().exp()], 1)
            self.sums.index_add_(0, self.level[context], size)

    def note(self, module: GIMModule) -> None:
        """Write means per unit of size factor to the module; of continuous values in standard deviations."""
        if self.level is not None:
            little = 0.0 if module.likelihood == "normal" else _HALF_A_COUNT  # so that all means have a logarithm
            mean = (self.sums[:, :-1] + little) / self.sums[:, -1:]
            if module.likelihood == "normal":
                mean = (mean - module.centre.cpu()) / module.spread.cpu()
            module.knowledge.level_mean.copy_(mean)


@torch.no_grad()
def _basis(h: Tensor, is_linear: bool) -> list[Tensor]:
    """Functions of the features that the search regresses on. Mechanisms saturate, and so do these.

    One odd and one even: convention; others are in the tables `sensitivity-gnw` and `-nonlinear` of docs/benchmarks.md.
    """
    return [h] if is_linear else [h, h.tanh(), h.tanh().square()]


def gather_statistics(module: GIMModule, loader: BatchLoader) -> ContextStatistics:
    """Statistics of the training cells; nonlinear mechanisms are searched for with nonlinear functions as well.

    Where depth is estimated, each cell enters as two half cells, a standard deviation to either side: what is open of its depth is not taken
    for expression.
    """
    d, is_linear = len(module.centre), module.mechanism.is_linear
    n_basis = len(_basis(module.centre, is_linear))
    accumulator = StatisticsAccumulator(
        module.group,
        d,
        d * n_basis,
        module.covariate_effect.shape[0],
        by_group=module.intervention == "hard",
        level=module.knowledge.level,
    )
    for raw in loader:
        batch = to_device(raw, module.device)
        for log_size in _likely_log_sizes(module, batch):
            h = module.parent_features(batch["x"], log_size).double()
            accumulator.update(torch.cat(_basis(h, is_linear), 1), batch["context"], batch["covariates"].double())
    statistics = accumulator.finalise()
    return of_half_cells(statistics) if module.depth.is_known else statistics


def _likely_log_sizes(module: GIMModule, batch: dict[str, Tensor]) -> list[Tensor]:
    """Log size factors, (B, 1): as given, or a standard deviation to either side of what was estimated."""
    log_size = batch["log_size"]
    if not module.depth.is_known:
        return [log_size]
    _, sd = module.depth.read(batch, known=True)
    return [(log_size - sd).to(log_size), (log_size + sd).to(log_size)]


@torch.no_grad()
def sample_cells(module: GIMModule, loader: BatchLoader) -> SampledCells:
    """Random training cells that regressions can go through; contexts of which none is drawn are left out."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.randperm(loader.n, generator=rng)[:MAX_SAMPLED_CELLS]
    cells = {name: value.to(module.device) for name, value in loader.take(rows).items()}
    h = module.parent_features(cells["x"], cells["log_size"]).double().cpu()
    measured, context = torch.unique(cells["context"].cpu(), return_inverse=True)
    return SampledCells(
        h=h,
        x=cells["x"].double().cpu(),
        context=context,
        covariates=cells["covariates"].double().cpu(),
        log_size=cells["log_size"].double().cpu()[:, 0],
        group=module.group.cpu()[measured],
        likelihood=module.likelihood,
    )
