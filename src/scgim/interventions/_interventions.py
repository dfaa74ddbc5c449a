"""Distribution over interventions: targets, Hill curves of the effects on them, and what a drug does beside (GIM paper, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from scgim.interventions._curves import hill_curve, interpolation
from scgim.interventions._levels import OF_ONE_LEVEL, LevelEffects

_UNLIMITED = 50.0  # log dosage that nobody gives
_MAX_GROWTH = 2.0  # of effects beyond the measured doses: twice, as from half to all of a curve; convention
_TINY = 1e-9  # probabilities must not be 0 or 1


@dataclass(frozen=True)
class Interventions:
    """Distribution over direct targets and effects, for Q drugs and d genes; tensors are (Q, d) where nothing else is said.

    Parameters
    ----------
    target_probs
        Probability that the drug acts on the gene directly.
    emax
        Mean of the largest effect (log fold change given the parents) if it does.
    emax_sd
        Standard deviation of that effect.
    log_ec50
        Log of the dosage of half the effect.
    log_ec50_sd
        Standard deviation of that.
    hill
        Hill exponent.
    background
        What the drug does beside its direct effects, at the doses of `grid`, shape (Q, m, d): shared programmes, and what
        alike drugs and doses do (:mod:`scgim.interventions._responses`). None for nothing.
    background_sd
        Standard deviation of that, (Q, d); None for zero.
    grid
        Log dosages of `background`, increasing, to the largest that was measured, shape (m,); None for no limit.
    levels
        What differs between levels of the effect modifier; None where effects are the same in all.
    """

    target_probs: Tensor
    emax: Tensor
    emax_sd: Tensor
    log_ec50: Tensor
    log_ec50_sd: Tensor
    hill: Tensor
    background: Tensor = None  # type: ignore[assignment]  # these are set below
    background_sd: Tensor = None  # type: ignore[assignment]
    grid: Tensor = None  # type: ignore[assignment]
    levels: LevelEffects | None = None

    def __post_init__(self) -> None:
        q, d = self.emax.shape
        if self.grid is None:
            object.__setattr__(self, "grid", self.emax.new_full((1,), _UNLIMITED))
        if self.background is None:
            object.__setattr__(self, "background", self.emax.new_zeros(q, len(self.grid), d))
        if self.background_sd is None:
            object.__setattr__(self, "background_sd", self.emax.new_zeros(q, d))

    @property
    def of_targets(self) -> Tensor:
        """All that is known of direct effects, shape (6, Q, d)."""
        return torch.stack([getattr(self, name) for name in DIRECT_FIELDS])

    def rows(self, index: Tensor) -> Interventions:
        """Chosen drugs."""
        levels = None if self.levels is None else self.levels.rows(index)
        return Interventions(**{name: getattr(self, name)[index] for name in _BY_DRUG}, grid=self.grid, levels=levels)

    def at_level(self, level: Tensor | int) -> Interventions:
        """What drugs do in a level of the effect modifier, one or one a drug (Q,)."""
        if self.levels is None:
            return self
        own = self.levels
        every = torch.arange(len(self.emax))
        chosen = {name: getattr(own, name)[every, level] for name in OF_ONE_LEVEL}
        return replace(self, **chosen, levels=None)

    def rows_at(self, index: Tensor, level: Tensor | None) -> Interventions:
        """Chosen drugs, each in one level of the effect modifier (Q,), or None for what levels have in common; nothing is copied beside."""
        common = replace(self, levels=None)
        if level is None or self.levels is None:
            return common.rows(index)
        own = {name: getattr(self.levels, name)[index, level] for name in OF_ONE_LEVEL}
        shared = {name: getattr(self, name)[index] for name in _BY_DRUG if name not in own}
        return replace(common, **shared, **own)

    @staticmethod
    def stack(parts: list[Interventions]) -> Interventions:
        """Drugs of several distributions with the same grid, one after the other."""
        together = {name: torch.cat([getattr(part, name).double() for part in parts]) for name in _BY_DRUG}
        levels = [part.levels for part in parts if part.levels is not None]
        return Interventions(**together, grid=parts[0].grid, levels=LevelEffects.stack(levels) if levels else None)

    def curve(self, log_dosage: Tensor) -> Tensor:
        """Share of the largest effect at each drug's log dosage (Q,), shape (Q, d).

        Beyond the measured doses it grows by no more than a factor of two: how far a curve goes on that had hardly begun to rise,
        its measured part does not say.
        """
        at_dosage = hill_curve(log_dosage.reshape(-1, 1), self.log_ec50, self.hill)
        return torch.minimum(at_dosage, _MAX_GROWTH * hill_curve(self.grid[-1], self.log_ec50, self.hill))

    def direct(self, log_dosage: Tensor) -> Tensor:
        """Expected effect on targets, whether target or not summed out, (Q, d)."""
        return self.target_probs * self.emax * self.curve(log_dosage)

    def background_at(self, log_dosage: Tensor) -> Tensor:
        """Background at each drug's log dosage, (Q, d)."""
        return torch.einsum("qm,qmd->qd", interpolation(log_dosage, self.grid), self.background)

    def mean(self, log_dosage: Tensor) -> Tensor:
        """Expected effect given the parents, direct effects and background, (Q, d)."""
        return self.direct(log_dosage) + self.background_at(log_dosage)

    def sd(self, log_dosage: Tensor) -> Tensor:
        """Standard deviation of the direct effect, whether target or not summed out, (Q, d)."""
        second = self.target_probs * (self.emax.square() + self.emax_sd.square())
        variance = second - (self.target_probs * self.emax).square()
        return variance.clamp_min(0.0).sqrt() * self.curve(log_dosage)

    def exceeds(self, log_dosage: Tensor, size: float) -> Tensor:
        """Probability that the direct effect at each drug's log dosage is larger than a size, up or down, (Q, d)."""
        curve = self.curve(log_dosage)
        mean, sd = self.emax * curve, (self.emax_sd * curve).clamp_min(_TINY)
        beyond = torch.special.ndtr((mean - size) / sd) + torch.special.ndtr((-mean - size) / sd)
        return self.target_probs * beyond

    def sample(self, log_dosage: Tensor, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw targets and effects anew for each of n cells: effects and 0/1 targets, both (Q, n, d).

        Draws are stratified over the cells of a drug: the share of cells in which a gene is a target is its probability, and their mean
        effect the expected one, as nearly as n cells allow.
        """
        return self.drawn(log_dosage, self.strata(n, rng))

    @property
    def possible_targets(self) -> Tensor:
        """Genes that may be targets of any of the drugs, (g,)."""
        return torch.nonzero((self.target_probs > 0).any(0))[:, 0]

    def strata(self, n: int, rng: torch.Generator) -> Strata:
        """Random numbers of :meth:`drawn` for n cells of each drug."""
        genes = self.possible_targets
        shape = (len(self.emax), n, len(genes))
        uniform = _stratified(shape, rng)
        return Strata(genes, uniform, torch.special.ndtri(_stratified(shape, rng).clamp(_TINY, 1 - _TINY)))

    def drawn(self, log_dosage: Tensor, strata: Strata) -> tuple[Tensor, Tensor]:
        """Effects and targets that go with random numbers, as in :meth:`sample`."""
        genes = strata.genes
        shape = (*strata.uniform.shape[:2], self.emax.shape[1])
        targets, noise = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=self.emax.dtype)
        targets[..., genes] = strata.uniform.to(self.emax) < self.target_probs[:, None, genes]
        noise[..., genes] = strata.normal.to(self.emax)
        effects = targets * (self.emax[:, None] + self.emax_sd[:, None] * noise) * self.curve(log_dosage)[:, None]
        return effects + self.background_at(log_dosage)[:, None], targets


class Strata(NamedTuple):
    """Random numbers for the genes (g,) that may be targets: uniform and normal ones, both (Q, n, g), spread evenly over the n cells."""

    genes: Tensor
    uniform: Tensor
    normal: Tensor


def _stratified(shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Uniform numbers (Q, n, d) of which each n lie in as many equal parts of the unit interval, in random order."""
    order = torch.rand(shape, generator=rng, dtype=torch.float64).argsort(1)
    return (order + torch.rand(shape, generator=rng, dtype=torch.float64)) / shape[1]


_BY_DRUG = tuple(name for name in Interventions.__dataclass_fields__ if name not in ("grid", "levels"))
DIRECT_FIELDS = _BY_DRUG[:6]
