r"""Draws of whole parameter sets: what could be true of drugs and mechanisms, given what is known of them.

Predicted cells differ because cells do; the mean over them is uncertain because targets, effects and weights are. Here
each draw is one world: a gene is a target of a drug or not, its effect has one size, every edge one weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scgim.interventions._curves import hill_curve, interpolation

if TYPE_CHECKING:
    from scgim.interventions._doubt import Doubt
    from scgim.interventions._interventions import Interventions

_MIN_SHARE = 0.05  # of the largest effect: what was measured below it does not say how far the curve rises: convention


def draw_effects(
    interventions: Interventions,
    log_top: Tensor,
    drug: Tensor,
    log_dosage: Tensor,
    rng: torch.Generator,
    new: Tensor | None = None,
    doubt: Doubt | None = None,
    baseline_error: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Direct effects in one draw of targets and dose-response curves; the doses of a drug share its curve.

    The posterior is that of the effect at the largest measured dosage. A draw of the curve bends it around that point,
    so that the effect is less certain at smaller and at larger dosages.

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
    rng
        Source of randomness.
    new
        Drugs that are known by their features only, boolean (Q,); none by default.
    doubt
        What is to be added to the uncertainty of these.
    baseline_error
        Errors of the genes' baselines, shape (d,). Effects are differences from the baseline: where it is drawn too high
        they are too low.

    Returns
    -------
    Effects and 0/1 targets, both (P, d).
    """
    known = interventions
    shape, log_top = known.emax.shape, log_top[:, None]
    targets = torch.rand(shape, generator=rng, dtype=torch.float64) < known.target_probs
    noise, bend = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
    sd, log_ec50, hill = known.emax_sd, known.log_ec50 + known.log_ec50_sd * bend, known.hill
    if new is not None and doubt is not None:
        by_features = new[:, None]
        moved, steeper = doubt.draw_bends(shape, rng)
        sd = torch.where(by_features, sd * doubt.inflation**0.5, sd)
        log_ec50 = torch.where(by_features, known.log_ec50 + moved, log_ec50)
        hill = torch.where(by_features, hill * steeper.exp(), hill)
    at_top = (known.emax + sd * noise) * hill_curve(log_top, known.log_ec50, known.hill)
    at_top = at_top if baseline_error is None else at_top - baseline_error
    largest = targets * at_top / hill_curve(log_top, log_ec50, hill).clamp_min(_MIN_SHARE)
    effects = largest[drug] * hill_curve(log_dosage[:, None], log_ec50[drug], hill[drug])
    rows = known.rows(drug)
    shared = rows.background_at(log_dosage)
    if known.background_sd.any():
        off = torch.randn(shape, generator=rng, dtype=torch.float64)
        given = interpolation(log_dosage, known.grid).sum(
            1, keepdim=True
        )  # less where doses are smaller than any measured
        shared = shared + off[drug] * rows.background_sd * given
    return effects + shared, targets[drug]
