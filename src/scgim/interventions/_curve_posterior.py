"""Posterior of targets and dose-response curves at a given prior.

Height, midpoint and steepness of each curve are inferred together: the height in closed form, the other two on a grid. The probability of a
target is the evidence for a curve against the evidence for none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scgim.interventions._curves import groups_of
from scgim.interventions._interventions import Interventions
from scgim.interventions._levels import Told, levels_of

if TYPE_CHECKING:
    from scgim._priors import ShiftPrior
    from scgim.interventions._curves import CurveGrid

_MAX_LOG_ODDS = 12.0  # a probability of 6e-6 to be wrong, less than any model is
_BLOCK_VALUES = 2**21  # 16 MB at a time: for memory, results do not depend on it
_N_POINTS = 12  # of dose, at which curves are compared with their mean
_MIN_SHARE = 0.05  # of the height that a curve reached where it was measured, else errors have no bound: convention


def effects_left_out(
    shift: Tensor,
    information: Tensor,
    group: Tensor,
    log_dosage: Tensor,
    grid: CurveGrid,
    prior: ShiftPrior,
    member: Tensor | None = None,
) -> Tensor:
    """Expected direct effect in each context, from the curves that the other doses of its drug give, shape (K, d).

    The doses of each drug are left out in turn, several drugs at once; arguments are those of :func:`~scgim.interventions._effects.estimate_interventions`,
    programmes taken out. NaN where a drug has one dose.
    """
    log_dosage = log_dosage.double()
    fold, several = torch.empty_like(group), torch.zeros_like(group, dtype=torch.bool)
    for rows in groups_of(group):
        doses, fold[rows] = torch.unique(log_dosage[rows], return_inverse=True)
        several[rows] = len(doses) > 1
    expected = torch.full_like(shift, torch.nan)
    for f in range(int(fold.max()) + 1 if several.any() else 0):
        out = several & (fold == f)
        rest = torch.nonzero(~out)[:, 0]
        of_rest = None if member is None else member[rest]
        known = summaries(shift[rest], 1 / information[rest], group[rest], log_dosage[rest], grid, prior, of_rest)
        chosen = known.rows(group[out])
        chosen = chosen if member is None else chosen.at_level(member[out].argmax(1))
        expected[out] = chosen.direct(log_dosage[out])
    return expected


def summaries(
    shift, variance, group, log_dosage, grid: CurveGrid, prior: ShiftPrior, member: Tensor | None = None
) -> Interventions:
    """What is known of direct effects at a given prior; with levels of contexts as 0/1 (K, L), also in each."""
    curves = grid.values(log_dosage)
    odds = prior.target_log_odds(int(group.max()) + 1, torch.arange(shift.shape[1]))
    n_levels = 1 if member is None else member.shape[1]
    blocks = blocks_of(group, shift.shape[1] * curves.shape[1] * n_levels)
    order = torch.argsort(torch.cat([units for units, _ in blocks]))
    parts, told = [], []
    for units, rows in blocks:
        data = (shift[rows], variance[rows], curves[rows])
        levels = None if member is None else member[rows]
        summary, chosen = _summarise(*data, grid, prior, odds[units], levels)
        parts.append(Interventions(*summary))
        if levels is not None:
            told.append(Told.of_curve(1 / (data[1] + prior.spike_var), data[0], data[2], chosen, levels))
    found = Interventions.stack(parts).rows(order)
    if member is None:
        return found
    everything = Told(*(torch.cat(part)[order] for part in zip(*told, strict=True)))
    return replace(found, levels=levels_of(found, everything, prior))


def blocks_of(group: Tensor, values: int) -> list[tuple[Tensor, Tensor]]:
    """Perturbations (G,) with as many contexts each, and their contexts (G, k); few enough to work on at once.

    `values` is the number of values that each perturbation takes.
    """
    counts = torch.bincount(group)
    rows = torch.argsort(group, stable=True).split(counts.tolist())
    blocks = []
    for k in torch.unique(counts[counts > 0]).tolist():
        for units in torch.nonzero(counts == k)[:, 0].split(max(1, _BLOCK_VALUES // values)):
            blocks.append((units, torch.stack([rows[u] for u in units.tolist()])))
    return blocks


def _evidence(
    shift: Tensor, variance: Tensor, curves: Tensor, prior: ShiftPrior, member: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log evidence of each curve against none, and mean and variance of its height, that all levels share; each (G, d, S)."""
    weight = 1 / (variance + prior.spike_var)  # (G, k, d)
    if member is not None and prior.level_share:
        return Told.by_level(weight, shift, curves, member).gain(prior.slab_var, prior.level_share * prior.slab_var)
    precision = weight.mT @ curves.square() + 1 / prior.slab_var
    mean = ((weight * shift).mT @ curves) / precision
    log_evidence = 0.5 * mean.square() * precision - 0.5 * (precision * prior.slab_var).log()
    return log_evidence, mean, 1 / precision


def _posterior(shift, variance, curves, grid: CurveGrid, prior: ShiftPrior, odds: Tensor, member: Tensor | None):
    """Log odds of a target (G, d), probability of each curve, mean and variance of its height, each (G, d, S)."""
    log_evidence, mean, spread = _evidence(shift, variance, curves, prior, member)
    joint = log_evidence + grid.log_prior
    total = joint.logsumexp(-1)
    return total + odds, (joint - total[..., None]).exp(), mean, spread


def _tempered(log_odds: Tensor) -> Tensor:
    """Log odds that grow ever more slowly beyond a limit: no model is surer, and ranks survive rounding to 1."""
    excess = (log_odds - _MAX_LOG_ODDS).clamp_min(0.0)
    return torch.minimum(log_odds, torch.full_like(log_odds, _MAX_LOG_ODDS)) + torch.log1p(excess)


def moments(shift, variance, curves, grid: CurveGrid, prior: ShiftPrior, odds: Tensor, member: Tensor | None):
    """Target probability, mean square of the height if target, log evidence; each (G, d)."""
    log_odds, weight, mean, spread = _posterior(shift, variance, curves, grid, prior, odds, member)
    noise = variance + prior.spike_var
    off = -0.5 * (shift.square() / noise + noise.log()).sum(1)
    evidence = off + torch.nn.functional.softplus(log_odds) - torch.nn.functional.softplus(odds)
    return torch.sigmoid(log_odds), (weight * (mean.square() + spread)).sum(-1), evidence


def _summarise(shift, variance, curves, grid: CurveGrid, prior: ShiftPrior, odds: Tensor, member: Tensor | None):
    """The curve of the grid that lies closest to the posterior mean curve, and its uncertainty, and which it is; each (G, d)."""
    log_odds, weight, mean, spread = _posterior(shift, variance, curves, grid, prior, odds, member)
    probs = torch.sigmoid(_tempered(log_odds))
    low, high = float(grid.log_ec50.min()), float(grid.log_ec50.max())
    # a flat curve, of a screen without doses, is at its height wherever it is looked at
    flat = torch.zeros(1, dtype=torch.float64)
    span = torch.linspace(low, high, _N_POINTS, dtype=torch.float64) if high > low else flat
    shapes = grid.values(span)  # (m, S)
    average = (weight * mean) @ shapes.T  # (G, d, m)
    norm = shapes.square().sum(0)  # (S,)
    height = average @ shapes / norm
    # the curve of a gene that is no target is unknown: the likeliest beforehand
    best = torch.where(probs > 0.5, (height.square() * norm).argmax(-1), grid.log_prior.argmax())
    emax = height.gather(-1, best[..., None])[..., 0]
    # spread of the effect where it was measured, carried to the height of the chosen curve
    top = curves.max(1).values  # (G, S)
    effect = (weight * mean * top[:, None]).sum(-1)
    square = (weight * (mean.square() + spread) * top[:, None].square()).sum(-1)
    emax_sd = (square - effect.square()).clamp_min(0.0).sqrt() / top.gather(1, best).clamp_min(_MIN_SHARE)
    log_ec50_mean = weight @ grid.log_ec50
    log_ec50_sd = (weight @ grid.log_ec50.square() - log_ec50_mean.square()).clamp_min(0.0).sqrt()
    return (probs, emax, emax_sd, grid.log_ec50[best], log_ec50_sd, grid.hill[best]), best
