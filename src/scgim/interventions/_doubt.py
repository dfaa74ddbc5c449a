"""How far the generator goes astray on drugs that it has not seen, found by leaving measured drugs out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scgim.interventions._curves import hill_curve
from scgim.interventions._generator import FeatureGenerator
from scgim.interventions._interventions import Interventions

if TYPE_CHECKING:
    from scgim.interventions._curves import CurveGrid

_FEW, _N_FOLDS = 40, (10, 5)  # of few drugs, each counts: more folds leave more of them in; the usual numbers of folds
_MAX_DRUGS = 500  # beyond this a single part is left out: the fit is slow, and many drugs are left to judge by
_MAX_LEFT_OUT = 100  # of these, enough for one number
# Prior of the log factor, of weight where hardly any gene is a target: about two, give or take a factor of three.
# Convention.
_LOG_INFLATION_LOC, _LOG_INFLATION_SD = 0.7, 1.0
_MAX_LOG_INFLATION, _N_STEPS = 5.0, 101  # a factor of 148 at most, in steps of 5 %
_TINY = 1e-6  # variances must not be zero


@dataclass(frozen=True)
class Doubt:
    """What is to be added to the uncertainty of drugs that are known by their features only.

    The generator takes its own settings and the errors that it has estimated for granted, and describes curves by their
    usual shape, so that it is too sure of itself.

    Parameters
    ----------
    inflation
        Variance of effects on targets over what the generator says.
    bends
        How the dose-response curves of the measured targets differ from the mean of these: log EC50 and log Hill exponent,
        shape (B, 2).
    """

    inflation: float
    bends: Tensor

    def draw_bends(self, shape: torch.Size, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Changes of log EC50 and log Hill exponent, each pair that of one measured curve; both of the given shape."""
        if not len(self.bends):
            nothing = torch.zeros(shape, dtype=torch.float64)
            return nothing, nothing
        chosen = self.bends[torch.randint(len(self.bends), tuple(shape), generator=rng)]
        return chosen[..., 0], chosen[..., 1]


def estimate_doubt(
    features: Tensor, interventions: Interventions, shapes: CurveGrid, log_dosages: tuple[float, float]
) -> Doubt:
    """Predict measured drugs by the others and compare; arguments are those of the generator."""
    on = interventions.target_probs > 0.5
    curves = torch.stack([interventions.log_ec50[on], interventions.hill[on].log()], 1).double()
    bends = curves - curves.mean(0) if len(curves) else curves
    n = len(features)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    folds = [order[:_MAX_LEFT_OUT]] if n > _MAX_DRUGS else order.tensor_split(_N_FOLDS[n > _FEW])
    left_out = [part for part in folds if len(part)]
    predicted, measured = [], []
    for part in left_out if n > 2 else []:
        rest = torch.ones(n, dtype=torch.bool).index_fill_(0, part, value=False)
        generator = FeatureGenerator(features[rest], interventions.rows(rest), shapes, log_dosages)
        predicted.append(generator(features[part]))
        measured.append(interventions.rows(part))
    if not predicted:
        return Doubt(float(torch.tensor(_LOG_INFLATION_LOC).exp()), bends)
    inflation = variance_inflation(Interventions.stack(predicted), Interventions.stack(measured), log_dosages[1])
    return Doubt(inflation, bends)


def variance_inflation(predicted: Interventions, measured: Interventions, log_dosage: float) -> float:
    """Likeliest factor, at least 1, of the predicted variances, by the effects on genes that both call targets.

    Effects are compared at one dosage. A prior around 2 holds where hardly any gene is a target.
    """
    (mean, variance), (seen, error) = (_at(i, log_dosage) for i in (predicted, measured))
    weight = predicted.target_probs * measured.target_probs
    grid = torch.linspace(0.0, _MAX_LOG_INFLATION, _N_STEPS, dtype=torch.float64)
    square = (seen - mean).square()
    score = []
    for log_factor in grid:
        total = log_factor.exp() * variance + error + _TINY
        fit = -0.5 * (weight * (square / total + total.log())).sum()
        score.append(fit - 0.5 * ((log_factor - _LOG_INFLATION_LOC) / _LOG_INFLATION_SD) ** 2)
    return float(grid[torch.stack(score).argmax()].exp())


def _at(interventions: Interventions, log_dosage: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of the effects on targets at a dosage, both (Q, d)."""
    curve = hill_curve(log_dosage, interventions.log_ec50, interventions.hill)
    return interventions.emax * curve, (interventions.emax_sd * curve).square()
