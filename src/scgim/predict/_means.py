"""How sure the model is of a mean: draws of whole parameter sets."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from scgim.nn._mechanism import draw_weights
from scgim.predict._sampler import enough_samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from scgim.interventions._doubt import Doubt
    from scgim.module import GIMModule
    from scgim.predict._arms import Arms
    from scgim.predict._drugs import Drugs
    from scgim.predict._sampler import Sampler

MIN_MEAN = 1e-6  # counts: genes that are never seen have a logarithm all the same
N_CONTROLS = 2000  # drawn to find the means of controls: to 2 % of a standard deviation
_TINY = 1e-30  # variances of draws must not be zero
_BLOCK = 500  # arms whose draws are held in memory together
# Draws of which standard deviations are found, to a sixth or to a tenth, and cells in each: at least and at most, conventions for time
_N_DRAWS, _N_CELLS = (20, 50), (20, 200)
_MAX_VALUES = 10_000_000  # values of cells held in memory together


class PosteriorMeans(NamedTuple):
    """Draws of what is true of each arm; every tensor is (draws, arms, d)."""

    mean: Tensor
    """Mean over cells: counts per unit of size factor, or continuous values."""
    effect: Tensor
    """Change of the mean against control cells: natural-log fold change, or standard deviations."""
    direct: Tensor
    """Direct effect."""


@dataclass(frozen=True)
class Draws:
    """How many draws are made, and of what cells.

    Parameters
    ----------
    n
        Draws of parameter sets.
    n_samples
        Cells that a mean is taken over in each.
    seed
        Seed.
    covariates
        Values of the covariates for all cells; None for those of control cells.
    """

    n: int
    n_samples: int
    seed: int
    covariates: Any = None

    def check(self) -> None:
        """Raise for numbers of which no spread can be found."""
        for name, n in (("n_draws", self.n), ("n_samples", self.n_samples)):
            if n < 2:
                raise ValueError(f"`{name}` must be at least 2, found {n}.")


def posterior_means(sampler: Sampler, drugs: Drugs, arms: Arms, draws: Draws) -> Iterator[PosteriorMeans]:
    """Means and effects in each draw of the parameters, for a block of arms at a time."""
    draws.check()
    rng = torch.Generator().manual_seed(draws.seed)
    doubt = drugs.doubt if arms.is_new.any() else None
    baseline_sd, once = baseline_errors(sampler, drugs, rng), sampler.of_means()
    for start in range(0, len(arms), _BLOCK):
        block = arms.take(range(start, min(start + _BLOCK, len(arms))))
        drawn = [_draw_means(sampler, block, doubt, baseline_sd, draws, rng, once) for _ in range(draws.n)]
        yield _contrasts(sampler.module, *(torch.stack(values) for values in zip(*drawn, strict=True)))


def effect_sds(sampler: Sampler, drugs: Drugs, arms: Arms, own_sd: Tensor, covariates: Any = None) -> Tensor:
    """Posterior standard deviation of the change of each mean against control cells, (arms, d).

    Cells are the same in each draw of the parameters (common random numbers), so that changes differ by these alone. Of a gene's own effect
    the error `own_sd` (arms, d) is known: few draws seldom hold a target that is unlikely.
    """
    d = len(sampler.genes)
    n = enough_samples(_N_DRAWS[0] * len(arms) * d, *_N_CELLS)
    n_draws = enough_samples(n * len(arms) * d, *_N_DRAWS)
    rng = torch.Generator().manual_seed(0)
    baseline_sd, shares = baseline_errors(sampler, drugs, rng), sampler.level_shares(covariates)
    rows = torch.arange(len(arms)).split(max(1, _MAX_VALUES // (n * d)))
    sums = torch.zeros(
        2, 2, len(arms), d, dtype=torch.float64
    )  # of changes and of direct effects, and of their squares
    for _ in range(n_draws):
        drawn, effects, targets = _draw_parameters(sampler, arms, None, baseline_sd, rng)
        changes = torch.cat([_coupled_changes(drawn, effects[k], targets[k], n, covariates) for k in rows])
        values = torch.stack([changes, torch.einsum("ald,l->ad", effects, shares)])
        sums += torch.stack([values, values.square()])
    change, direct = (sums[1] - sums[0].square() / n_draws) / (n_draws - 1)
    return ((change - direct).clamp_min(0.0) + own_sd.square()).sqrt()


def _coupled_changes(sampler: Sampler, effects: Tensor, targets: Tensor, n: int, covariates: Any) -> Tensor:
    """Changes of means over n cells of each arm, the same cells at each call, (arms, d); effects and targets are (arms, levels, d)."""
    n_rows = n * (len(effects) + 1)  # those of the control come last
    level = sampler.levels_of(n_rows, 0, covariates).clamp_max(effects.shape[1] - 1)
    arm = torch.arange(n_rows) // n
    shift, on = (torch.cat([values, torch.zeros_like(values[:1])])[arm, level] for values in (effects, targets))
    means = sampler.coupled_means(n_rows, 0, covariates)(shift, on).unflatten(0, (-1, n)).mean(1)
    if sampler.is_continuous:
        return (means[:-1] - means[-1]) / sampler.module.spread.double().cpu()
    return ((means[:-1] + MIN_MEAN) / (means[-1] + MIN_MEAN)).log()


def _draw_means(
    sampler: Sampler,
    arms: Arms,
    doubt: Doubt | None,
    baseline_sd: Tensor,
    draws: Draws,
    rng: torch.Generator,
    once: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """One draw: means over cells, their variances, and direct effects; in the first two, the last arm is the control."""
    drawn, effects, targets = _draw_parameters(sampler, arms, doubt, baseline_sd, rng)
    shift = torch.cat([effects, torch.zeros_like(effects[:1])])
    targets = torch.cat([targets, torch.zeros_like(targets[:1])])
    means = drawn.means(shift, targets, draws.n_samples, rng, draws.covariates, once)
    return (*means, torch.einsum("ald,l->ad", effects, sampler.level_shares(draws.covariates)))


def _draw_parameters(
    sampler: Sampler, arms: Arms, doubt: Doubt | None, baseline_sd: Tensor, rng: torch.Generator
) -> tuple[Sampler, Tensor, Tensor]:
    """One draw of the parameters: a sampler of its module, and effects and targets of the arms, both (arms, levels, d)."""
    fitted, d = sampler.module, len(sampler.genes)
    module = copy.deepcopy(
        fitted, {id(part): part for part in (fitted.knowledge, fitted.adjacency)}
    )  # large, and no draw changes them
    draw_weights(module.mechanism, fitted.mechanism, fitted.knowledge.weight_sd, rng)
    error = baseline_sd * torch.randn(d, generator=rng, dtype=torch.float64)
    module.intercept.data += error.to(module.intercept)
    return (replace(sampler, module=module), *arms.draw(rng, doubt, error))


def _contrasts(module: GIMModule, means: Tensor, noise: Tensor, direct: Tensor) -> PosteriorMeans:
    """Means and changes against the last arm, freed of the noise of finite numbers of cells."""
    own = direct.var(0)  # of a gene's own effect, whatever its parents do
    if module.likelihood == "normal":
        spread = module.spread.double().cpu()
        mean = without_sampling_noise(means[:, :-1], noise[:, :-1], own * spread.square())
        scaled, noise = means / spread, noise / spread.square()
    else:
        scaled, noise = (means + MIN_MEAN).log(), noise / (means + MIN_MEAN).square()
        mean = without_sampling_noise(scaled[:, :-1], noise[:, :-1], own).exp()
    effect = without_sampling_noise(scaled[:, :-1] - scaled[:, -1:], noise[:, :-1] + noise[:, -1:], own)
    return PosteriorMeans(mean, effect, direct)


def without_sampling_noise(draws: Tensor, noise_var: Tensor, least_var: Tensor) -> Tensor:
    """Draws of a mean over cells as they would be with very many cells in each.

    The spread of the draws is that of the parameters plus that of the finite number of cells. It is shrunk around the
    mean of the draws to the former, plus the error of that mean itself. Where that noise is much the larger, what is left of the spread is as
    good as chance, and part of it is known better.

    Parameters
    ----------
    draws
        Means over cells, shape (R, ...), one for each parameter set.
    noise_var
        Their variance by the choice of cells, the same shape.
    least_var
        Variance by the parameters that there is at least, shape (...).
    """
    centre, noise = draws.mean(0), noise_var.mean(0)
    total = draws.var(0).clamp_min(_TINY)
    kept = (1 - noise / total).clamp_min(least_var / total) + noise / total / len(draws)
    return centre + (draws - centre) * kept.clamp_max(1.0).sqrt()


def control_mean(sampler: Sampler, rng: torch.Generator) -> Tensor:
    """Mean of drawn control cells per unit of size factor, (d,)."""
    nothing = torch.zeros(1, 1, len(sampler.genes), dtype=torch.float64)
    return sampler.means(nothing, nothing.bool(), N_CONTROLS, rng)[0][0]


def baseline_errors(sampler: Sampler, drugs: Drugs, rng: torch.Generator) -> Tensor:
    """Standard error of the intercepts, shape (d,): by control cells, and by treated ones of the screen where genes are no targets."""
    module = sampler.module
    spread = torch.exp(-module.log_scale.detach().double().cpu())  # overdispersion, or the variance itself
    noise = spread
    if not sampler.is_continuous:
        overdispersed = module.likelihood == "nb" or module.measurement == "latent"
        noise = 1 / control_mean(sampler, rng).clamp_min(MIN_MEAN) + spread * overdispersed
    n_cells = torch.full((len(spread),), float(len(sampler.pool["log_size"])), dtype=torch.float64)
    if module.measurement != "latent" and not sampler.of_pool:
        n_cells += cells_without_effect(module, drugs, noise)
    return (noise / n_cells).sqrt()


def cells_without_effect(module: GIMModule, drugs: Drugs, noise: Tensor) -> Tensor:
    """Number of control cells that the treated cells are worth, where genes are no targets, shape (d,)."""
    treated = torch.tensor(drugs.n_cells.to_numpy(dtype=float))[:, None]
    n_contexts = torch.bincount(module.group.cpu()[module.treated.cpu()])[:, None]
    spike = float(module.knowledge.prior[2])
    # the small effects that genes have without being targets do not average out within a context
    worth = treated / (1 + treated / n_contexts * spike / noise)
    return ((1 - module.knowledge.interventions().target_probs) * worth).sum(0)
