"""Direct effects of measured perturbations, from their estimates in each context.

The prior of targets, programmes that perturbations share, departures from mechanisms and variances of genes and perturbations are fitted around the
posterior of targets and curves (:mod:`scgim.interventions._curve_posterior`) by expectation-maximisation, and the evidence says which of them
there are.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from scgim._departures import MAX_DEPARTURE_VAR, MIN_GAIN, likeliest_misfit
from scgim._priors import MAX_TARGET_PROB
from scgim.interventions._curve_posterior import blocks_of, moments, summaries
from scgim.interventions._levels import LEVEL_SHARES
from scgim.interventions._levels import MIN_GAIN as MIN_LEVEL_GAIN
from scgim.interventions._multiples import Multiples
from scgim.interventions._programmes import effective_genes, initial_loadings, price, programme_of, update_loadings

if TYPE_CHECKING:
    from scgim._priors import ShiftPrior
    from scgim.interventions._curves import CurveGrid
    from scgim.interventions._interventions import Interventions
    from scgim.interventions._passage import Passage

_MAX_ROUNDS = 30  # of expectation-maximisation, unless changes are small sooner, as said below
# Change of the prior, 2 %, that ends it; variance that a spike is compared to where it is nothing.
_SETTLED, _SMALL_SPIKE = 0.02, 1e-4
_STILL = 1e-3  # change of programmes, in logarithms, that ends it
_MAX_PROGRAMMES = 4  # more would take the place of targets: convention
_MIN_GENES = 5.0  # effective number of genes of a programme; fewer are shared targets: convention
# Nats that a programme must bring beyond its price: strong evidence. Convention; others are in the tables
# `sensitivity-*` of docs/benchmarks.md.
_MARGIN = 10.0
# Limits of the fitted prior, far from what is usual: conventions. A target has a standard deviation of at least 0.2 and
# twice that of other genes, else it could not be told from them.
_MIN_TARGET_PROB = 1e-4
_MIN_SLAB, _MAX_SPIKE = 0.04, 0.25
# Hyperpriors, weak and conventions: one target among the genes of two drugs, of this number where genes are fewer; and
# so many targets that have the slab as it was before.
_MIN_COUNTED_GENES, _PSEUDO_TARGETS = 10, 2
_TINY, _MIN_INFORMATION = 1e-9, 1e-6  # guards of quotients


class Form(NamedTuple):
    """What there is beside direct effects.

    Parameters
    ----------
    departs
        Whether mechanisms are wrong between contexts.
    n_programmes
        Number of programmes that perturbations share.
    are_alike
        Whether all genes and perturbations are off by as much.
    level_share
        Share of the variance of effects in which levels of the effect modifier differ.
    """

    departs: bool = False
    n_programmes: int = 0
    are_alike: bool = True
    level_share: float = 0.0


class Estimate(NamedTuple):
    """What measured drugs do.

    Parameters
    ----------
    interventions, prior
        Direct effects, and their prior.
    programme
        What contexts do beside: programmes, and what reaches genes through parents other than their mechanisms say, (K, d).
    evidence
        Log evidence.
    variance
        Variance of what each context may show of a gene that is no target, the spike left out, (K, d).
    support
        Log evidence for edges by what passes between contexts beside the mechanism, (d, d); None without :class:`Passage`.
    form
        What there is beside direct effects.
    """

    interventions: Interventions
    prior: ShiftPrior
    programme: Tensor
    evidence: float
    variance: Tensor
    support: Tensor | None = None
    form: Form = Form()


def estimate_interventions(
    shift: Tensor,
    information: Tensor,
    group: Tensor,
    log_dosage: Tensor,
    grid: CurveGrid,
    prior: ShiftPrior,
    passage: Passage | None = None,
    member: Tensor | None = None,
    form: Form | None = None,
) -> Estimate:
    """Infer targets, dose-response curves and programmes; the prior is fitted along (empirical Bayes).

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
    passage
        What reaches genes through their parents; None if mechanisms say it all.
    member
        Level of the effect modifier of each context as 0/1, shape (K, L); None if effects are the same in all.
    form
        What there is beside direct effects; None to choose by the evidence, as is done where it has a programme of too few genes.
    """
    shift, variance = shift.double(), 1 / information.double().clamp_min(_MIN_INFORMATION)
    coarse = grid.coarse()
    curves = coarse.values(log_dosage.double())  # (K, S)
    blocks = blocks_of(group, shift.shape[1] * curves.shape[1] * (1 if member is None else member.shape[1]))
    data = _Data(shift, variance, group, blocks, curves, coarse, passage, member)
    fit = (None if form is None else _fit_of_form(data, prior, form)) or _likeliest_fit(data, prior)
    variance, prior, programme = fit.variance, fit.prior, fit.beside
    found = summaries(shift - programme, variance, group, log_dosage.double(), grid, prior, member)
    return Estimate(found, prior, programme, fit.evidence, variance, fit.support, fit.form)


class _Data(NamedTuple):
    """Estimates and their variance, contexts in blocks of perturbations, curves at each context."""

    shift: Tensor
    variance: Tensor
    group: Tensor
    blocks: list[tuple[Tensor, Tensor]]
    curves: Tensor
    grid: CurveGrid
    passage: Passage | None
    member: Tensor | None
    are_alike: bool = True  # whether all genes and perturbations are off by as much


class _Fit(NamedTuple):
    """Log evidence, prior, what contexts do beside direct effects (K, d), its variance (K, d), support of edges (d, d), and form."""

    evidence: float
    prior: ShiftPrior
    beside: Tensor
    variance: Tensor
    support: Tensor | None
    form: Form = Form()


def _likeliest_fit(data: _Data, prior: ShiftPrior) -> _Fit:
    """Fit of the form that the evidence is for."""
    prior = replace(prior, level_share=0.0)
    fit, n_programmes = cast("_Fit", _fit(data._replace(passage=None), prior, 0)), 0  # never None without programmes
    if data.member is not None:
        trials = [
            cast("_Fit", _fit(data._replace(passage=None), replace(prior, level_share=s), 0)) for s in LEVEL_SHARES
        ]
        best = max(trials, key=lambda trial: trial.evidence)
        if best.evidence > fit.evidence + MIN_LEVEL_GAIN:
            fit, prior = best, replace(prior, level_share=best.prior.level_share)
    if data.passage is not None:
        loose = cast("_Fit", _fit(data, prior, 0))
        if loose.evidence > fit.evidence + MIN_GAIN:
            fit = loose
        else:
            data = data._replace(passage=None)
    while n_programmes < _MAX_PROGRAMMES:
        trial = _fit(data, prior, n_programmes + 1)
        if trial is None or trial.evidence < fit.evidence + _MARGIN:
            break
        fit, n_programmes = trial, n_programmes + 1
    # last, as variances of their own would make up for mechanisms and programmes that are left out
    return _fit_own_variances(data, prior, n_programmes, fit)


def _fit_of_form(data: _Data, prior: ShiftPrior, form: Form) -> _Fit | None:
    """Fit of a form that was chosen; None if a programme is one of too few genes."""
    data = data._replace(passage=data.passage if form.departs else None, are_alike=form.are_alike)
    return _fit(data, replace(prior, level_share=form.level_share), form.n_programmes)


def _fit(data: _Data, prior: ShiftPrior, n_programmes: int) -> _Fit | None:
    """Programmes and departures from mechanisms by expectation-maximisation; None if a programme is one of too few genes."""
    shift, variance, group, passage = data.shift, data.variance, data.group, data.passage
    programme, transported, departures = torch.zeros_like(shift), torch.zeros_like(shift), None
    multiples = Multiples.ones(int(group.max()) + 1, shift.shape[1])
    form = Form(passage is not None, n_programmes, data.are_alike, prior.level_share)
    if passage is None:
        prior = replace(prior, misfit=0.0, departure_var=0.0)
    if not n_programmes and passage is None:
        _, prior, multiples, evidence = _fit_prior(data, shift, variance, prior, multiples, _MAX_ROUNDS)
        return _Fit(evidence, prior, programme, multiples.widened(variance, prior.spike_var, group), None, form)
    if min(shift.shape) <= n_programmes:
        return None
    loadings = initial_loadings(shift, variance, n_programmes) if n_programmes else None
    noise, passed_var = variance + prior.spike_var, torch.zeros_like(shift)
    precision = 1 / noise
    for _ in range(_MAX_ROUNDS):  # genes taken for targets at first are released as the programme explains them
        before = programme + transported
        # programmes first: what they explain at one go is not to be explained gene by gene
        if loadings is not None:
            programme = programme_of(shift - transported, noise, loadings)
        if passage is not None:
            departures = passage.fit(shift - programme, precision, prior.departure_var, proportional=prior.proportional)
            transported, passed_var = departures.transported, prior.misfit**2 * departures.passed
        left = shift - programme - transported
        probs, prior, multiples, evidence = _fit_prior(data, left, variance + passed_var, prior, multiples, 1)
        if departures is not None:
            off = 1 - probs[group]
            misfit, _ = likeliest_misfit(left.T, variance.T, departures.passed.T, off.T)
            departure_var = min(prior.departure_var * departures.growth, MAX_DEPARTURE_VAR)
            prior = replace(prior, misfit=misfit, departure_var=departure_var)
            passed_var = misfit**2 * departures.passed
        widened = multiples.widened(variance + passed_var, prior.spike_var, group)
        noise = widened + prior.spike_var
        precision = (1 - probs[group]) / noise + probs[group] / (noise + prior.slab_var)
        noise = noise + probs[group] * prior.slab_var
        if loadings is not None:
            loadings = update_loadings(shift - transported, noise, loadings)
        if (programme + transported - before).abs().max() < _STILL:
            break
    if loadings is not None and effective_genes(shift - transported, noise, loadings) < _MIN_GENES:
        return None
    if loadings is not None:
        evidence -= price(shift - transported, noise, loadings)
    if departures is not None:
        evidence += departures.log_volume
    support = None if departures is None else departures.support
    return _Fit(evidence, prior, programme + transported, widened, support, form)


def _fit_own_variances(data: _Data, prior: ShiftPrior, n_programmes: int, before: _Fit) -> _Fit:
    """Fit in which genes and perturbations have variances of their own, which may explain what departures were found for.

    `before` is the fit without. Of those with and without departures the likelier is taken, but none that leaves as many genes for targets as the
    prior can say, as no screen has, if another or `before` does not.
    """
    data = data._replace(are_alike=False)
    fits = [_fit(data, prior, n_programmes)]
    if data.passage is not None:
        fits.append(_fit(data._replace(passage=None), prior, n_programmes))
    found = [fit for fit in fits if fit is not None]
    sparse = [fit for fit in found if _is_sparse(fit)]
    if not sparse and _is_sparse(before):
        return before
    return max(sparse or found, key=lambda fit: fit.evidence, default=before)


def _is_sparse(fit: _Fit) -> bool:
    return fit.prior.target_prob < MAX_TARGET_PROB


def _fit_prior(
    data: _Data, shift: Tensor, variance: Tensor, prior: ShiftPrior, multiples: Multiples, max_rounds: int
) -> tuple[Tensor, ShiftPrior, Multiples, float]:
    """Target probabilities (U, d), the prior and the multiples of variance that fit them, and the log evidence before their last update."""
    blocks, curves, grid = data.blocks, data.curves, data.grid
    of_each = shift.new_empty(5, sum(len(units) for units, _ in blocks), shift.shape[1])
    for _ in range(max_rounds):
        widened = multiples.widened(variance, prior.spike_var, data.group)
        odds = prior.target_log_odds(of_each.shape[1], torch.arange(shift.shape[1]))
        for units, rows in blocks:
            member = None if data.member is None else data.member[rows]
            found = moments(shift[rows], widened[rows], curves[rows], grid, prior, odds[units], member)
            square = shift[rows].square()
            left = (square - variance[rows]).mean(1), (square / (variance[rows] + prior.spike_var)).mean(1)
            of_each[:, units] = torch.stack([*found, *left])
        target_probs, mean_square, by_gene, misfit, relative = of_each
        evidence = float(by_gene.sum()) + multiples.log_prior
        updated = _update(prior, target_probs, mean_square, misfit)
        if not data.are_alike:
            multiples = multiples.updated(relative, 1 - target_probs)
        change = abs(math.log(updated.slab_var / prior.slab_var)) + abs(updated.log_odds - prior.log_odds)
        change += abs(updated.spike_var - prior.spike_var) / (_SMALL_SPIKE + prior.spike_var)
        prior = updated
        if change < _SETTLED:
            break
    return target_probs.clone(), prior, multiples, evidence


def _update(prior: ShiftPrior, target_probs: Tensor, mean_square: Tensor, misfit: Tensor) -> ShiftPrior:
    """Maximise the expected log posterior over the prior's parameters; weak hyperpriors keep them off the borders."""
    free = prior.is_open(target_probs)
    target_prob = float(
        ((free * target_probs).sum() + 1.0) / (free.sum() + 2.0 * max(target_probs.shape[1], _MIN_COUNTED_GENES))
    )
    on = target_probs.sum()
    slab = float(((target_probs * mean_square).sum() + _PSEUDO_TARGETS * prior.slab_var) / (on + _PSEUDO_TARGETS))
    off = 1 - target_probs
    # the median over genes: a few genes that fit badly must not widen the spike for all
    spike = float(((off * misfit).sum(0) / off.sum(0).clamp_min(_TINY)).median().clamp_min(0.0))
    return replace(
        prior,
        target_prob=min(max(target_prob, _MIN_TARGET_PROB), MAX_TARGET_PROB),
        slab_var=max(slab, _MIN_SLAB),
        spike_var=min(spike, _MAX_SPIKE * slab),
    )
