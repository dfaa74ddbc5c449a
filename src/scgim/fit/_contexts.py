"""What contexts need beside, so that cells drawn for them have the means that are known of them.

Effects are estimated given the observed values of a gene's parents. Drawn cells have drawn parents, and where mechanisms are not quite
right, or hold for controls but not for treated cells, the means of drawn cells drift along the network. For contexts that were measured
it is known by how much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from scgim.fit._baselines import HALF_A_COUNT, draw_effects
from scgim.fit._shrinkage import drawn_between, shrunken
from scgim.fit._statistics import to_device
from scgim.module._matching import log_typical, match_means, means_of
from scgim.nn._likelihood import parent_features

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.module import GIMModule
    from scgim.train import BatchLoader

# Drawn in all, unless contexts are many, and at a time: for time and memory
_N_VALUES, _BLOCK_VALUES = 40_000_000, 8_000_000
_N_CELLS = (20, 400)  # of a context, at least and at most: conventions
_MIN_VAR = 1e-6  # of an error: guard of a quotient
_MIN_DRAWN, _MAX_CONTROLS = 4000, 4000  # of control cells: conventions


class Means(NamedTuple):
    """Log means of genes per unit of size factor in each context, and their standard errors, both (K, d)."""

    log_mean: Tensor
    error: Tensor


class Drift(NamedTuple):
    """What measured contexts need beside and the variance of its error, both (K, d), and the log means that they then have."""

    added: Tensor
    error_var: Tensor
    means: Means


def drifts(module: GIMModule) -> bool:
    """Whether means of drawn cells may drift: those of counts, on whose logarithms parents act."""
    return module.likelihood != "normal"


@torch.no_grad()
def match_contexts(module: GIMModule, loader: BatchLoader) -> Drift:
    """Change of the log mean of each gene in each treated context by which drawn cells get the means of observed ones.

    Observed means are shrunk, by their errors, towards what the network says they are and towards those of controls
    (:func:`~scgim.fit._shrinkage.drawn_between`). Nothing is changed, and errors are
    infinite, in contexts of controls and those without cells.
    """
    shape = (len(module.group), len(module.centre))
    found = [torch.zeros(shape, dtype=torch.float64) for _ in range(4)]
    found[3] += torch.inf
    context = loader.context.cpu()
    treated = torch.nonzero(module.treated.cpu())[:, 0]
    n = cells_each(shape[1], len(treated))
    order = torch.randperm(len(context), generator=torch.Generator().manual_seed(0))
    in_order = context[order]
    rows = [order[in_order == k][:n] for k in treated.tolist()]
    known = [(k, own) for k, own in zip(treated.tolist(), rows, strict=True) if len(own)]
    step, controls = max(1, _BLOCK_VALUES // (n * shape[1])), _controls(module, loader)
    for start in range(0, len(known), step):
        codes, cells = zip(*known[start : start + step], strict=True)
        for part, value in zip(found, _match_observed(module, loader, list(cells), n, controls), strict=True):
            part[list(codes)] = value
    added, error_var, *means = found
    drift = Drift(added, error_var, Means(*means))
    return _shared_by_levels(module, drift) if module.knowledge.levels_agree else drift


def _shared_by_levels(module: GIMModule, drift: Drift) -> Drift:
    """Drift of levels whose effects are the same: they share it, but for what they differ in beyond their errors."""
    known = module.knowledge
    rows = torch.nonzero(module.treated.cpu() & (drift.means.error.amin(1) < torch.inf))[:, 0]
    where = torch.stack([known.group.cpu().double(), known.context_log_dosage().cpu()], 1)[rows]
    _, pair, n_levels = torch.unique(where, dim=0, return_inverse=True, return_counts=True)
    weight = 1 / drift.error_var[rows].clamp_min(_MIN_VAR)

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(len(n_levels), values.shape[1]).index_add_(0, pair, values)[pair]

    common = total(weight * drift.added[rows]) / total(weight)
    # a level is part of the mean that it is compared with
    noise = (1 / weight - 1 / total(weight)).clamp_min(_MIN_VAR)
    several = n_levels[pair] > 1
    own = drift.added[rows] - common
    moved = torch.zeros_like(own)
    moved[several] = shrunken(own[several], noise[several]) - own[several]
    added, log_mean = drift.added.clone(), drift.means.log_mean.clone()
    added[rows] += moved
    log_mean[rows] += moved
    return Drift(added, drift.error_var, Means(log_mean, drift.means.error))


def cells_each(n_genes: int, n_contexts: int) -> int:
    """Cells that are drawn for each of some contexts."""
    return int(min(max(_N_VALUES / (n_genes * max(1, n_contexts)), _N_CELLS[0]), _N_CELLS[1]))


def _match_observed(
    module: GIMModule, loader: BatchLoader, rows: list[Tensor], n: int, controls: Controls
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Drift of contexts of which some cells are given and its error variance, log means and their errors, each (G, d); about n cells are drawn of each.

    Means are compared by those of log1p, which a few large counts do not sway, and beside what drawn and observed control cells differ by in
    the same: a likelihood that is not quite that of the data is no effect of a drug.
    """
    n_own = torch.tensor([len(own) for own in rows], dtype=torch.float64)[:, None]
    times = [-(-n // len(own)) for own in rows]  # of few cells each is drawn several times, and read once
    own_cells = to_device(loader.take(torch.cat(rows)), module.device)
    places = torch.arange(int(n_own.sum())).split([len(own) for own in rows])
    again = torch.cat([place.repeat(k) for place, k in zip(places, times, strict=True)])
    cells = {name: value[again.to(value.device)] for name, value in own_cells.items()}
    n_drawn = torch.tensor([k * len(own) for k, own in zip(times, rows, strict=True)])
    context = torch.repeat_interleave(torch.arange(len(rows)), n_drawn)
    enough = HALF_A_COUNT / n_own
    features = parent_features(cells["x"], cells["log_size"], module.likelihood)
    mean, square = means_of(features, context), means_of(features.square(), context)
    level = module.knowledge.context_level()
    own = slice(0, 1) if level is None else level[own_cells["context"].cpu()[torch.stack([p[0] for p in places])]]
    observed = log_typical((mean - (controls.observed - controls.drawn)[own]).clamp_min(0.0), enough)
    unchanged = log_typical(controls.drawn[own], enough)
    error = _error(mean, square, n_own, enough)
    without = _means_without_effects(module, cells, context, enough)

    def wanted(drawn: Tensor, genes: Tensor, features: Tensor) -> Tensor:
        mean, spread = means_of(features, context), means_of(features.square(), context)
        # few cells without a count of a rare gene look surer than they are: if there is no drift, they are as far apart as drawn ones
        own = torch.maximum(error[:, genes], _error(mean, spread, n_own, enough)).square()
        noise = own * (1 + n_own / n_drawn[:, None])  # of the observed cells, and of those that are drawn
        typical = log_typical(mean, enough)
        between = drawn_between(observed[:, genes], typical, unchanged[:, genes].expand_as(typical), noise)
        error_var[:, genes] = between.error_var
        # back to no change by what is expected: what the counts of few drawn cells are by chance would be taken for a drift
        return drawn + between.kept * (observed[:, genes] - typical) + between.back * (without[:, genes] - drawn)

    error_var = torch.zeros_like(error)
    effects = draw_effects(module, cells["context"].cpu())
    drift, log_mean = match_means(module, cells, context, effects, wanted, enough)
    return drift, error_var, log_mean, error


def _means_without_effects(module: GIMModule, cells: dict[str, Tensor], context: Tensor, enough: Tensor) -> Tensor:
    """Log means that cells would have without effects, as expected given their parents, of each context, (G, d)."""
    nothing, rng = torch.zeros_like(cells["x"], dtype=torch.float32), torch.Generator(module.device).manual_seed(2)
    _, expected = module.sample_cells(nothing, nothing.bool(), cells["covariates"], cells["log_size"], rng)
    return torch.log(means_of(expected, context) / means_of(cells["log_size"].exp(), context) + enough)


class Controls(NamedTuple):
    """Means of log1p of observed and of drawn control cells of each level of the effect modifier, both (L, d)."""

    observed: Tensor
    drawn: Tensor


def _controls(module: GIMModule, loader: BatchLoader) -> Controls:
    """Control cells beside as many drawn ones; a few cells are drawn several times."""
    context, level = loader.context.cpu(), module.knowledge.context_level()
    means = []
    for k in range(max(1, module.knowledge.n_levels)):
        own = ~module.treated.cpu()[context]
        rows = torch.nonzero(own if level is None else own & (level[context] == k))[:, 0]
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_MAX_CONTROLS]]
        again = torch.arange(len(rows)).repeat(-(-_MIN_DRAWN // len(rows)))
        cells = {
            name: value[again.to(value.device)] for name, value in to_device(loader.take(rows), module.device).items()
        }
        nothing, rng = torch.zeros_like(cells["x"], dtype=torch.float32), torch.Generator(module.device).manual_seed(1)
        drawn, _ = module.sample_cells(nothing, nothing.bool(), cells["covariates"], cells["log_size"], rng)
        both = (parent_features(x, cells["log_size"], module.likelihood) for x in (cells["x"], drawn))
        means.append([features.double().mean(0).cpu() for features in both])
    observed, drawn = zip(*means, strict=True)
    return Controls(torch.stack(observed), torch.stack(drawn))


def _error(mean: Tensor, square: Tensor, n: Tensor, enough: Tensor) -> Tensor:
    """Standard error of the log of typical values of n cells (G, 1) whose log1p has means and mean squares (G, d); of few, no less than usual.

    Few cells that lack the tail of a distribution have a small mean and a small spread at once.
    """
    relative = (square - mean.square() + enough.square()).clamp_min(0.0).sqrt() * mean.exp() / (mean.expm1() + enough)
    return torch.maximum(relative, relative.median(0).values) / n.sqrt()
