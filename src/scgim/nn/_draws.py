r"""Draws of whole parameter sets: what could be true of drugs and mechanisms, given what is known of them.

Predicted cells differ because cells do; the mean over them is uncertain because targets, effects and weights are. Here
each draw is one world: a gene is a target of a drug or not, its effect has one size, every edge one weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scgim.nn._intervention import Interventions, hill_curve

_MIN_SHARE = 0.05  # of the largest effect: what was measured below it does not say how far the curve rises


def draw_effects(
    interventions: Interventions, log_top: Tensor, drug: Tensor, log_dosage: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Direct effects in one draw of targets and dose-response curves; the doses of a drug share its curve.

    The posterior is that of the effect at the largest measured dosage. A draw of the midpoint bends the curve around
    that point, so that the effect is less certain at smaller and at larger dosages.

    Parameters
    ----------
    interventions
        What is known of each drug, Q rows.
    log_top
        Largest log dosage at which each drug was measured, shape (Q,).
    drug
        Rows of `interventions` that are asked for, shape (P,).
    log_dosage
        Log dosage of each of them, shape (P,); -inf for none.
    generator
        Source of randomness.

    Returns
    -------
    Effects and 0/1 targets, both (P, d).
    """
    known = interventions
    uniform = torch.rand(known.emax.shape, generator=generator, dtype=known.emax.dtype)
    noise, bend = (torch.randn(known.emax.shape, generator=generator, dtype=known.emax.dtype) for _ in range(2))
    targets = uniform < known.target_probs
    at_top = (known.emax + known.emax_sd * noise) * hill_curve(log_top[:, None], known.log_ec50, known.exponent)
    log_ec50 = known.log_ec50 + known.log_ec50_sd * bend
    share = hill_curve(log_top[:, None], log_ec50, known.exponent).clamp_min(_MIN_SHARE)
    curve = hill_curve(log_dosage[:, None], log_ec50[drug], known.exponent[drug])
    return (targets * at_top / share)[drug] * curve, targets[drug]


@torch.no_grad()
def draw_mechanisms(mechanism: nn.Module, fitted: nn.Module, weight_sd: Tensor, generator: torch.Generator) -> None:
    """Move the weights of `mechanism` from those of `fitted` by one draw of their errors, shape (d, d)."""
    linear, centre = (getattr(m, "linear", m).weight for m in (mechanism, fitted))
    noise = torch.randn(weight_sd.shape, generator=generator, dtype=torch.float64)
    linear.copy_(centre + (noise.to(weight_sd) * weight_sd).to(centre))


def without_sampling_noise(draws: Tensor, noise_var: Tensor) -> Tensor:
    """Draws of a mean over cells as they would be with very many cells in each.

    The spread of the draws is that of the parameters plus that of the finite number of cells. It is shrunk around the
    mean of the draws to the former, plus the error of that mean itself.

    Parameters
    ----------
    draws
        Means over cells, shape (R, ...), one for each parameter set.
    noise_var
        Their variance by the choice of cells, the same shape.
    """
    centre, noise = draws.mean(0), noise_var.mean(0)
    total = draws.var(0).clamp_min(1e-30)
    kept = (1 - noise / total).clamp_min(0.0) + noise / total / len(draws)
    return centre + (draws - centre) * kept.clamp_max(1.0).sqrt()
