"""Posterior of the direct effects of measured perturbations, from their estimates in each context.

Height, midpoint and steepness of each dose-response curve are inferred together: the height in closed form, the other
two on a grid. The probability of a target is the evidence for a curve against the evidence for none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scgim.nn._intervention import Interventions, hill_curve
from scgim.nn._score import ShiftPrior

_EXPONENTS = (0.5, 0.8, 1.1, 1.5, 2.0, 2.7, 3.6, 5.0)
_LOG_EXPONENT_LOC, _LOG_EXPONENT_SD = math.log(1.5), 0.6
_N_MIDPOINTS = 21
_MAX_ROUNDS = 30
_MIN_CLEAR = 50
_CHI2_MEDIAN = 0.4549  # of one degree of freedom


@dataclass(frozen=True)
class CurveGrid:
    """Shapes of dose-response curves and their log prior, over measured log dosages from `low` to `high`."""

    log_ec50: Tensor
    exponent: Tensor
    log_prior: Tensor

    @staticmethod
    def over(low: float, high: float) -> CurveGrid:
        """Midpoints from well below to well above the measured range, and usual exponents."""
        midpoints = torch.linspace(low - 1.5, high + 1.5, _N_MIDPOINTS, dtype=torch.float64)
        exponents = torch.tensor(_EXPONENTS, dtype=torch.float64)
        log_ec50, exponent = (t.flatten() for t in torch.meshgrid(midpoints, exponents, indexing="ij"))
        centre, spread = 0.5 * (low + high), max(0.7, 0.5 * (high - low))
        log_prior = -0.5 * ((log_ec50 - centre) / spread).square()
        log_prior = log_prior - 0.5 * ((exponent.log() - _LOG_EXPONENT_LOC) / _LOG_EXPONENT_SD).square()
        return CurveGrid(log_ec50, exponent, log_prior - log_prior.logsumexp(0))

    @staticmethod
    def flat() -> CurveGrid:
        """The same effect at any dosage above zero: screens without doses."""
        one = torch.ones(1, dtype=torch.float64)
        return CurveGrid(-50.0 * one, one, 0.0 * one)

    def coarse(self) -> CurveGrid:
        """A sixth of the curves, enough to fit the prior."""
        keep = slice(1, None, 6) if len(self.log_ec50) > 6 else slice(None)
        log_prior = self.log_prior[keep]
        return CurveGrid(self.log_ec50[keep], self.exponent[keep], log_prior - log_prior.logsumexp(0))

    def values(self, log_dosage: Tensor) -> Tensor:
        """Curves at log dosages (K,), shape (K, S)."""
        return hill_curve(log_dosage[:, None], self.log_ec50, self.exponent)


def estimate_interventions(
    shift: Tensor,
    information: Tensor,
    group: Tensor,
    log_dosage: Tensor,
    grid: CurveGrid,
    prior: ShiftPrior,
    propagated: Tensor | None = None,
) -> tuple[Interventions, ShiftPrior]:
    """Infer targets and dose-response curves; the prior is fitted along (empirical Bayes).

    Parameters
    ----------
    shift
        Estimate of the direct effect in each treated context, shape (K, d).
    information
        Its precision, shape (K, d).
    group
        Perturbation of each context, shape (K,).
    log_dosage
        Log dosage of each context, shape (K,).
    grid
        Curves to choose from.
    prior
        Prior to start from, on the scale of the effects.
    propagated
        What parents contribute in each context less what they contribute in controls, shape (K, d). Mechanisms are
        never quite right, and what they get wrong grows with this, so it widens what is taken for no direct effect.
    """
    shift, variance = shift.double(), 1 / information.double().clamp_min(1e-6)
    if propagated is not None:
        variance = variance + mechanism_error(shift, variance, propagated.double()) * propagated.double().square()
    rows = [torch.nonzero(group == u)[:, 0] for u in range(int(group.max()) + 1)]
    coarse = grid.coarse()
    curves = coarse.values(log_dosage.double())  # (K, S)
    for _ in range(_MAX_ROUNDS):
        moments = [_moments(shift, variance, r, curves, coarse, prior) for r in rows]
        target_probs, mean_square, misfit = (torch.stack([m[i] for m in moments]) for i in range(3))
        updated = _update(prior, target_probs, mean_square, misfit)
        change = abs(math.log(updated.slab_var / prior.slab_var)) + abs(updated.log_odds - prior.log_odds)
        change += abs(updated.spike_var - prior.spike_var) / (1e-4 + prior.spike_var)
        prior = updated
        if change < 0.02:
            break
    curves = grid.values(log_dosage.double())
    parts = [_summarise(shift, variance, r, curves, grid, prior) for r in rows]
    return Interventions.stack(parts), prior


def mechanism_error(shift: Tensor, variance: Tensor, propagated: Tensor) -> float:
    """Typical square of a direct effect relative to that of the propagated change, noise taken out.

    Zero where mechanisms carry changes rightly. Taken as a median over the context-gene pairs whose propagated change
    stands clear of noise, most of which are not targets.
    """
    clear = propagated.square() > 4 * variance
    if int(clear.sum()) < _MIN_CLEAR:
        return 0.0
    ratio = (shift.square() - _CHI2_MEDIAN * variance)[clear] / propagated.square()[clear]
    return float((ratio.median() / _CHI2_MEDIAN).clamp_min(0.0))


def _evidence(shift: Tensor, variance: Tensor, curves: Tensor, prior: ShiftPrior) -> tuple[Tensor, Tensor, Tensor]:
    """Log evidence of each curve against none, and mean and variance of its height; each (d, S)."""
    weight = 1 / (variance + prior.spike_var)  # (k, d)
    precision = weight.T @ curves.square() + 1 / prior.slab_var
    mean = ((weight * shift).T @ curves) / precision
    log_evidence = 0.5 * mean.square() * precision - 0.5 * (precision * prior.slab_var).log()
    return log_evidence, mean, 1 / precision


def _posterior(shift: Tensor, variance: Tensor, rows: Tensor, curves: Tensor, grid: CurveGrid, prior: ShiftPrior):
    log_evidence, mean, spread = _evidence(shift[rows], variance[rows], curves[rows], prior)
    joint = log_evidence + grid.log_prior
    total = joint.logsumexp(1)
    return torch.sigmoid(total + prior.log_odds), (joint - total[:, None]).exp(), mean, spread


def _moments(shift: Tensor, variance: Tensor, rows: Tensor, curves: Tensor, grid: CurveGrid, prior: ShiftPrior):
    """Target probability, mean square of the height if target, mean misfit if not; each (d,)."""
    probs, weight, mean, spread = _posterior(shift, variance, rows, curves, grid, prior)
    misfit = (shift[rows].square() - variance[rows]).mean(0)
    return probs, (weight * (mean.square() + spread)).sum(1), misfit


def _update(prior: ShiftPrior, target_probs: Tensor, mean_square: Tensor, misfit: Tensor) -> ShiftPrior:
    """Maximise the expected log posterior over the prior's parameters; weak hyperpriors keep them off the borders."""
    n, d = target_probs.numel(), target_probs.shape[1]
    on = target_probs.sum()
    target_prob = float((on + 1.0) / (n + 2.0 * max(d, 10)))
    slab = float(((target_probs * mean_square).sum() + 2 * prior.slab_var) / (on + 2))
    off = 1 - target_probs
    # the median over genes: a few genes that fit badly must not widen the spike for all
    spike = float(((off * misfit).sum(0) / off.sum(0).clamp_min(1e-9)).median().clamp_min(0.0))
    return ShiftPrior(min(max(target_prob, 1e-4), 0.3), max(slab, 0.04), min(spike, 0.25 * slab))


def _summarise(shift, variance, rows, curves, grid: CurveGrid, prior: ShiftPrior) -> Interventions:
    """One perturbation: the curve of the grid that lies closest to the posterior mean curve, and its uncertainty."""
    probs, weight, mean, spread = _posterior(shift, variance, rows, curves, grid, prior)
    low, high = float(grid.log_ec50.min()), float(grid.log_ec50.max())
    span = torch.linspace(low, high, 12 if high > low else 1, dtype=torch.float64).clamp_min(-20.0)
    shapes = grid.values(span)  # (m, S)
    average = (weight * mean) @ shapes.T  # (d, m)
    norm = shapes.square().sum(0)  # (S,)
    height = average @ shapes / norm
    best = (height.square() * norm + 1e-12 * weight).argmax(1)
    emax = height.gather(1, best[:, None])[:, 0]
    # spread of the effect where it was measured, carried to the height of the chosen curve
    top = curves[rows].max(0).values  # (S,)
    effect = (weight * mean * top).sum(1)
    square = (weight * (mean.square() + spread) * top.square()).sum(1)
    emax_sd = (square - effect.square()).clamp_min(0.0).sqrt() / top[best].clamp_min(0.05)
    log_ec50_mean = weight @ grid.log_ec50
    log_ec50_sd = (weight @ grid.log_ec50.square() - log_ec50_mean.square()).clamp_min(0.0).sqrt()
    return Interventions(
        *(t[None] for t in (probs, emax, emax_sd, grid.log_ec50[best], log_ec50_sd, grid.exponent[best]))
    )
