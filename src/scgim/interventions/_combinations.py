r"""Drugs given together: what combinations say of their members, and what they do beside.

In a context k of several drugs the effect on a gene, given its parents, is the sum of what its members do alone and an interaction,

.. math:: y_k = \sum_{m \in k} \theta_m + \delta_k + \epsilon_k

with what a drug at a dosage does alone, :math:`\theta_m \sim N(0, p_m)`, and :math:`\delta_k \sim N(0, \tau^2 + q_k)`. All is Gaussian
for given variances: p is that of the spike, or of the slab where the gene is a target, and q, an interaction, is large where a
combination departs from the sum. Both probabilities are found in turn with the effects (a few rounds). What is then known of each member,
its own prior taken out, is what its own cells say of it, as if it had been measured alone in all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scgim.interventions._curves import AT_ANY_DOSE
from scgim.interventions._interventions import Interventions

if TYPE_CHECKING:
    from scgim._priors import ShiftPrior

_N_ROUNDS = 4  # of probabilities and effects in turn: convention
_INTERACTS = 0.02  # share of genes that a pair is thought to interact on beforehand: convention
_MEDIAN_SQUARE = 0.4549  # of a standard normal variable
_MIN_TOLD = 1e-3  # precision, a standard error of 30: nothing is known
_MIN_VAR, _TINY = 1e-6, 1e-12  # of effects beforehand, and a guard of quotients
_BLOCK_VALUES = 2**22  # of matrices of combinations, of some genes at a time: for memory, results do not depend on it


class Shared(NamedTuple):
    """What is known of drugs alone, and of interactions.

    Parameters
    ----------
    shift, precision
        Estimates of what each of E drugs (at a dosage) does alone and their precision, both (E, d).
    interaction, variance
        Departure of each of C combinations from the sum of its members, by all other cells, and the variance that it has where there is
        no interaction, both (C, d).
    """

    shift: Tensor
    precision: Tensor
    interaction: Tensor
    variance: Tensor


def share(shift: Tensor, precision: Tensor, members: Tensor, drug: Tensor, prior: ShiftPrior) -> Shared:
    """Split what combinations do among their members.

    Parameters
    ----------
    shift, precision
        Estimates of effects, those of E drugs alone first, then those of C combinations, and their precision, both (E + C, d). A precision
        of zero is that of a drug that was not measured alone.
    members
        Which of the E each combination holds, 0/1, (C, E).
    drug
        Which drug each of the E is, (E,): its dosages have the same targets.
    prior
        Prior of the effects; what is known of targets is that of each drug.
    """
    e, x = members.shape[1], members.double()
    odds = prior.target_log_odds(int(drug.max()) + 1, torch.arange(shift.shape[1]))
    weight, weighted = precision[:e], precision[:e] * shift[:e]
    noise, slab, spike = 1 / precision[e:].clamp_min(_TINY), prior.slab_var, prior.spike_var + _MIN_VAR
    spread = torch.full_like(weight, slab + spike)
    interacts, usual = torch.zeros_like(noise), torch.zeros((), dtype=torch.float64)
    blocks = torch.arange(shift.shape[1]).split(max(1, _BLOCK_VALUES // members.numel()))
    for _ in range(_N_ROUNDS):
        own = noise + usual + interacts * slab
        data = (weight, weighted, shift[e:], own, spread)
        parts = [_solve(x, *(part[:, genes] for part in data)) for genes in blocks]
        mean, variance, departure, error = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        told = (1 / variance.clamp_min(_TINY) - 1 / spread).clamp_min(_MIN_TOLD)
        estimate = mean / variance.clamp_min(_TINY) / told
        target = torch.sigmoid(odds + _by_drug(_evidence(estimate, told, spike, slab), drug, len(odds)))[drug]
        spread = spike + target * slab
        error = (error - interacts * slab).clamp_min(_TINY)
        usual = _usual_misfit(departure, (error - usual).clamp_min(_TINY))
        prior_odds = torch.logit(torch.tensor(_INTERACTS, dtype=torch.float64))
        interacts = torch.sigmoid(prior_odds + _evidence(departure, 1 / error, 0.0, slab))
    alone = ~members.any(0)[:, None]  # of drugs that are in no combination nothing is new
    estimate, told = torch.where(alone, shift[:e], estimate), torch.where(alone, precision[:e], told)
    return Shared(estimate, told, departure, error)


def _solve(
    x: Tensor, weight: Tensor, weighted: Tensor, of_pairs: Tensor, noise: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Effects of drugs and their variance, (E, g), and of each combination left out its departure and the variance of that, (C, g).

    Of some genes, all variances given: precision of what drugs alone show (E, g), and that times the estimates, estimates of combinations and
    their variance (C, g), and variance of effects beforehand (E, g).
    """
    alone = 1 / (weight + 1 / spread)  # variance of each drug by its own cells
    total = (x * alone.T[:, None]) @ x.T + torch.diag_embed(noise.T)  # (g, C, C)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(total))
    dual = torch.einsum("gcf,fg->cg", inverse, of_pairs - x @ (alone * weighted))
    variance = alone - alone.square() * ((inverse @ x) * x).sum(1).T
    of_each = inverse.diagonal(dim1=1, dim2=2).T
    return alone * (weighted + x.T @ dual), variance, dual / of_each, 1 / of_each


def _evidence(estimate: Tensor, precision: Tensor, spike: float, slab: float) -> Tensor:
    """Log evidence of a slab on top of a spike against the spike alone."""
    off, on = 1 + precision * spike, 1 + precision * (spike + slab)
    return 0.5 * precision * estimate.square() * (1 / off - 1 / on) - 0.5 * (on / off).log()


def _by_drug(values: Tensor, drug: Tensor, n: int) -> Tensor:
    return values.new_zeros(n, values.shape[1]).index_add_(0, drug, values)


def _usual_misfit(departure: Tensor, variance: Tensor) -> Tensor:
    """Variance that departures have beyond their errors in most genes and combinations; few interactions do not count."""
    growth = (departure.square() / variance).median() / _MEDIAN_SQUARE
    return (growth - 1).clamp_min(0.0) * variance.median()


def together(
    members: Interventions, log_dosage: Tensor, arm: Tensor, n: int, beside: Tensor | None = None
) -> Interventions:
    """What n combinations do at the dosages of their members: targets are united, and effects add up.

    Parameters
    ----------
    members
        What is known of each drug given, P rows.
    log_dosage, arm
        Log dosage of each, and the combination it belongs to, both (P,).
    n
        Number of combinations.
    beside
        What they do beside, (n, d); None for nothing.
    """

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(n, values.shape[1]).index_add_(0, arm, values)

    missed = summed(torch.log1p(-members.target_probs.clamp_max(1 - _TINY)))
    probs = -torch.expm1(missed)
    effect, variance = summed(members.direct(log_dosage)), summed(members.sd(log_dosage).square())
    emax = effect / probs.clamp_min(_TINY)
    spread = (variance + effect.square()) / probs.clamp_min(_TINY) - emax.square()
    background = summed(members.background_at(log_dosage))
    background = background if beside is None else background + beside
    return Interventions(
        target_probs=probs,
        emax=emax,
        emax_sd=spread.clamp_min(0.0).sqrt(),
        log_ec50=torch.full_like(emax, AT_ANY_DOSE),
        log_ec50_sd=torch.zeros_like(emax),
        hill=torch.ones_like(emax),
        background=background[:, None].expand(-1, len(members.grid), -1).clone(),
        background_sd=summed(members.background_sd.square()).sqrt(),
        grid=members.grid,
    )
