r"""Effects that differ between the levels of a modifier: cell lines, cell types, patients.

On a target gene, the height of the dose-response curve of a drug in level l is a common part and a deviation,

.. math:: E_l = E + D_l, \qquad E \sim N(0, s^2), \qquad D_l \sim N(0, \tau^2 s^2),

with the slab variance :math:`s^2`. Given the shape of the curve all is Gaussian, so that E and D are summed out and the share
:math:`\tau^2` is fitted with the rest of the prior; where levels agree no better without it, it is zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scgim.interventions._curves import hill_curve, on_grid

if TYPE_CHECKING:
    from scgim._priors import ShiftPrior
    from scgim.interventions._interventions import Interventions
    from scgim.interventions._transfer import Transfer

LEVEL_SHARES = (0.03, 0.1, 0.3, 1.0)  # of the slab variance that deviations are tried with
MIN_GAIN = 5.0  # nats that deviations must bring: convention
_ACTIVE, _PSEUDO_LEVELS = (
    0.8,
    10,
)  # share of the levels in which a target is one, and how many levels that is worth: conventions
_MIN_SHARE = 0.05  # of the height that a curve reached where it was measured, else errors have no bound: convention
_TINY = 1e-12  # guard of quotients
_N_ROUNDS = 10  # of the fit of that share: it moves by less than a hundredth then


@dataclass(frozen=True)
class LevelEffects:
    """What drugs do in each level, for Q drugs, L levels and d genes.

    Parameters
    ----------
    target_probs, emax, emax_sd
        As in :class:`~scgim.interventions._interventions.Interventions`, of each level, (Q, L, d).
    background
        The same, at m doses, (Q, L, m, d).
    height, information
        Estimate of `emax` by the cells of the level alone, and its precision, 0 where there are none, (Q, L, d).
    """

    target_probs: Tensor
    emax: Tensor
    emax_sd: Tensor
    background: Tensor
    height: Tensor
    information: Tensor

    def rows(self, index: Tensor) -> LevelEffects:
        """Chosen drugs."""
        return LevelEffects(*(getattr(self, name)[index] for name in LEVEL_FIELDS))

    def at_top(self, found: Interventions) -> tuple[Tensor, Tensor]:
        """Estimates of the effect at the largest dose by the cells of the level alone, and their precision, (Q, L, d)."""
        top = share_at_top(found)[:, None]
        return self.height * top, self.information / top.square()

    @property
    def known(self) -> Tensor:
        """Where a drug was measured, boolean (Q, L)."""
        return self.information.amax(2) > 0

    @staticmethod
    def alike(found: Interventions, n_levels: int) -> LevelEffects:
        """What is known of drugs is true of all levels."""
        probs, emax, emax_sd, background = (
            t[:, None].expand(-1, n_levels, *t.shape[1:])
            for t in (found.target_probs, found.emax, found.emax_sd, found.background)
        )
        nothing = torch.zeros(emax.shape, dtype=torch.float64)
        return LevelEffects(probs, emax, emax_sd, background, nothing, nothing)

    @staticmethod
    def stack(parts: list[LevelEffects]) -> LevelEffects:
        """Drugs of several, one after the other."""
        return LevelEffects(*(torch.cat([getattr(part, name) for part in parts]) for name in LEVEL_FIELDS))


LEVEL_FIELDS = tuple(LevelEffects.__dataclass_fields__)
OF_ONE_LEVEL = LEVEL_FIELDS[:4]  # those that interventions have as well


class Told(NamedTuple):
    """What the contexts of each level say of the height of a curve: precision a and precision times estimate b.

    Both are (..., L); the axes before are drugs, genes, and curves.
    """

    precision: Tensor
    weighted: Tensor

    @staticmethod
    def by_level(weight: Tensor, shift: Tensor, curves: Tensor, member: Tensor) -> Told:
        """From precision and estimates of contexts (G, k, d), curves (G, k, S) and levels (G, k, L) as 0/1; shapes are (G, d, S, L)."""
        square = torch.einsum("gkd,gks,gkl->gdsl", weight, curves.square(), member)
        return Told(square, torch.einsum("gkd,gks,gkl->gdsl", weight * shift, curves, member))

    @staticmethod
    def of_curve(weight: Tensor, shift: Tensor, curves: Tensor, chosen: Tensor, member: Tensor) -> Told:
        """The same of one curve a gene, `chosen` (G, d), of which shapes are (G, d, L)."""
        own = curves.gather(2, chosen[:, None].expand(-1, curves.shape[1], -1))  # (G, k, d)
        square = torch.einsum("gkd,gkl->gdl", weight * own.square(), member)
        return Told(square, torch.einsum("gkd,gkl->gdl", weight * shift * own, member))

    def gain(self, slab_var: float, level_var: float) -> tuple[Tensor, Tensor, Tensor]:
        """Log evidence of the curve against none, and mean and variance of the common height; without the last axis."""
        weighted, own = (torch.zeros_like(self.precision[..., 0]) for _ in range(2))
        precision = torch.full_like(own, 1 / slab_var)
        for told, moment in zip(self.precision.unbind(-1), self.weighted.unbind(-1), strict=True):  # few: for time
            spread = 1 + told * level_var
            share = moment / spread
            precision += told / spread
            weighted += share
            own += 0.5 * (level_var * moment * share - spread.log())
        mean = weighted / precision
        return own + 0.5 * mean * weighted - 0.5 * (precision * slab_var).log(), mean, 1 / precision

    def heights(self, mean: Tensor, variance: Tensor, level_var: float) -> tuple[Tensor, Tensor]:
        """Mean and variance of the height in each level, (..., L)."""
        spread = 1 + self.precision * level_var
        height = (mean[..., None] + level_var * self.weighted) / spread
        return height, level_var / spread + variance[..., None] / spread.square()

    def speaks_for(self, slab_var: float, level_var: float) -> Tensor:
        """Log evidence that a gene is a target in each level as in the others, against that it is none there; (..., L)."""
        spread = 1 + self.precision * level_var
        told, weighted = self.precision / spread, self.weighted / spread
        rest = told.sum(-1, keepdim=True) - told + 1 / slab_var
        mean = (weighted.sum(-1, keepdim=True) - weighted) / rest
        # the height there, given the others, is normal; with the level's own data summed out
        prior_var = 1 / rest + level_var
        a, b = self.precision, self.weighted
        scale = 1 + a * prior_var
        return 0.5 * (prior_var * b.square() + 2 * mean * b - a * mean.square()) / scale - 0.5 * scale.log()


def levels_of(found: Interventions, told: Told, prior: ShiftPrior) -> LevelEffects:
    """Targets and heights in each level, by what contexts say of the curves `found`; backgrounds are the common ones.

    Where levels agree, they are the common ones.
    """
    height = told.weighted / told.precision.clamp_min(_TINY)
    alike = replace(
        LevelEffects.alike(found, told.precision.shape[-1]), height=height.mT, information=told.precision.mT
    )
    if not prior.level_share:
        return alike
    level_var = prior.level_share * prior.slab_var
    _, mean, variance = told.gain(prior.slab_var, level_var)
    heights, spread = told.heights(mean, variance, level_var)
    # the curve that is kept is the mean over curves: deviations go on top of its height
    emax = found.emax[..., None] + heights - mean[..., None]
    active = active_levels(told.speaks_for(prior.slab_var, level_var), found.target_probs, told.precision > 0)
    probs = found.target_probs[..., None] * active
    return replace(alike, target_probs=probs.mT, emax=emax.mT, emax_sd=spread.sqrt().mT)


def share_at_top(found: Interventions) -> Tensor:
    """Share of its largest effect that a drug has at the largest dose, (Q, d)."""
    return hill_curve(found.grid[-1], found.log_ec50, found.hill).clamp_min(_MIN_SHARE)


def level_weights(transfer: Transfer, known: Tensor) -> Tensor:
    """Weights of levels in which drugs are `known` (Q, L) in what they do in each, (Q, L, L): 1 for its own, shares of others'."""
    carried = torch.stack([transfer.weights(k) for k in known])
    carried = carried / carried.sum(2, keepdim=True).clamp_min(_TINY)
    return torch.where(known[:, :, None], torch.eye(known.shape[1], dtype=carried.dtype), carried)


def completed(levels: LevelEffects, found: Interventions, transfer: Transfer, known: Tensor) -> LevelEffects:
    """Effects in all levels, those where drugs are not `known` (Q, L) weighted means of the others."""
    top = share_at_top(found)[:, None]
    weights = level_weights(transfer, known)
    carried = {
        "target_probs": torch.einsum("qlk,qkd->qld", weights, levels.target_probs).clamp(0.0, 1.0),
        "emax": torch.einsum("qlk,qkd->qld", weights, levels.emax),
        "emax_sd": (found.emax_sd[:, None].square() + transfer.error / top.square()).sqrt().expand_as(levels.emax),
        "background": torch.einsum("qlk,qkmd->qlmd", weights, levels.background),
    }
    is_known = known[:, :, None]
    return replace(
        levels,
        **{
            name: torch.where(is_known if value.dim() == 3 else is_known[..., None], getattr(levels, name), value)
            for name, value in carried.items()
        },
    )


def of_new_drugs(
    found: Interventions, activity: Tensor | None, deviation: Tensor | None, transfer: Transfer, measured: Tensor
) -> LevelEffects:
    """What drugs that are known by their features do in each level.

    In those that were `measured` (L,) the same, but for the share of it that they have there (`activity`, (Q, L)), and a `deviation` of the
    background (Q, l, m, d), l being the measured ones and more.
    """
    alike = LevelEffects.alike(found, len(measured))
    if activity is not None:
        probs, background = alike.target_probs * activity[..., None], alike.background * activity[..., None, None]
        alike = replace(alike, target_probs=probs, background=background)
    if deviation is not None:
        background = alike.background.clone()
        background[:, : deviation.shape[1]] += deviation
        alike = replace(alike, background=background)
    doubt = (alike.emax_sd.square() + transfer.error / share_at_top(found)[:, None].square()).sqrt()
    known = measured.expand(len(found.emax), -1)
    return completed(replace(alike, emax_sd=doubt), found, transfer, known)


def with_targets(found: Interventions, target_probs: Tensor) -> Interventions:
    """Interventions with other probabilities of targets (Q, d); those of levels change in proportion."""
    levels = found.levels
    if levels is not None:
        active = levels.target_probs / found.target_probs.clamp_min(_TINY)[:, None]
        levels = replace(levels, target_probs=(target_probs[:, None] * active).clamp(0.0, 1.0))
    return replace(found, target_probs=target_probs, levels=levels)


def with_programmes(
    levels: LevelEffects, found: Interventions, programme: Tensor, where: tuple[Tensor, Tensor, Tensor]
) -> LevelEffects:
    """Backgrounds of levels: the common ones and what programmes (K, d) do there beside what they do in all.

    `where` is drug, level and log dosage of each context, each (K,).
    """
    group, level, log_dosage = where
    (n_drugs, n_levels), grid = levels.emax.shape[:2], found.grid
    own = on_grid(programme, group * n_levels + level, log_dosage, grid, n_drugs * n_levels)
    own = own.unflatten(0, (n_drugs, n_levels)) - on_grid(programme, group, log_dosage, grid, n_drugs)[:, None]
    return replace(levels, background=found.background[:, None] + own * levels.known[..., None, None])


def active_levels(log_evidence: Tensor, target_probs: Tensor, told: Tensor) -> Tensor:
    """Probability that a target is one in each level, (..., L), from evidence (..., L); `target_probs` (...) weigh the genes.

    The share of the levels in which targets are active is fitted along; `told` (..., L) marks levels with data.
    """
    share, weight = _ACTIVE, target_probs[..., None] * told
    for _ in range(_N_ROUNDS):
        probs = torch.sigmoid(log_evidence + torch.logit(torch.tensor(share, dtype=torch.float64)))
        share = float(((weight * probs).sum() + _PSEUDO_LEVELS * _ACTIVE) / (weight.sum() + _PSEUDO_LEVELS))
    return probs
