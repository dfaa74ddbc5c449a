r"""How what a gene's parents pass on to it between contexts may differ from what its mechanism says.

The slope of a mechanism is found on cells of a context, where parents vary by little and are measured with error; perturbations move them
by much more, and a line no longer holds. Between contexts the parents i of a gene therefore pass on

.. math:: \sum_i m_i (w_i + \delta_{i1} + \delta_{i2} |u_i| + \delta_{i3} u_i^4), \qquad \delta \sim N(0, \tau^2),

with the movement m of a parent's mean against the control and u the same in units of the largest: a line of another slope, one that
bends, for saturation, and a threshold. Or each departure is a share of the slope,

.. math:: \sum_i m_i w_i (1 + \delta_{i1} + \delta_{i2} |u_i| + \delta_{i3} u_i^4),

so that nothing passes along an edge that cells of a context show nothing of: many weak parents can then not explain together why a gene
moves that is a target. The search is made with either, and the graph of the higher score is kept. What is left beside has a variance that grows with what has passed, by the square of the misfit
rho: a mechanism that is wrong is wrong in proportion.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scgim._priors import ShiftPrior

N_BENDS = 3
# mechanisms are taken to be wrong until the data say how far they are right
_FIRST_MISFIT, _FIRST_DEPARTURE_VAR = 0.3, 0.3
MAX_DEPARTURE_VAR = 1.0  # slopes within contexts say something, or there is nothing to depart from
MIN_GAIN = 10.0  # nats that speak for wrong mechanisms; with few perturbations targets and departures can take each other's place
MISFITS = (0.0, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # to choose from
_MIN_MOVEMENT = 1e-9


def first_departures(prior: ShiftPrior, *, proportional: bool) -> ShiftPrior:
    """The prior with mechanisms that are wrong to start with, in one way or the other."""
    return replace(prior, misfit=_FIRST_MISFIT, departure_var=_FIRST_DEPARTURE_VAR, proportional=proportional)


def bends(moved: Tensor) -> Tensor:
    """Functions of movements (..., K) by which mechanisms may be wrong, (3, ..., K)."""
    u = (moved / moved.abs().amax(-1, keepdim=True).clamp_min(_MIN_MOVEMENT)).abs()
    return torch.stack([moved, moved * u, moved * u**4])


def likeliest_misfit(residuals: Tensor, error: Tensor, passed: Tensor, off: Tensor) -> tuple[float, float]:
    """Misfit, and variance of the spike, under which the displacements of genes that are no targets are likeliest.

    Parameters
    ----------
    residuals, error
        Displacements and the variance of their errors, shape (d, K).
    passed
        Square of what parents pass on, shape (d, K).
    off
        Probability that a gene is no target, shape (d, K).
    """
    found = []
    for misfit in MISFITS:
        variance = error + misfit**2 * passed
        # the median over genes: a few genes with wrong parents must not widen the spike for all
        spike = ((off * (residuals.square() - variance)).sum(1) / off.sum(1).clamp_min(1e-9)).median().clamp_min(0.0)
        variance = variance + spike
        found.append((-float((off * (residuals.square() / variance + variance.log())).sum()), misfit, float(spike)))
    return max(found, key=lambda f: f[0])[1:]
