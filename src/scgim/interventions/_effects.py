"""Posterior of the direct effects of measured perturbations, from their estimates in each context.

Height, midpoint and steepness of each dose-response curve are inferred together: the height in closed form, the other
two on a grid. The probability of a target is the evidence for a curve against the evidence for none.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from scgim._departures import MAX_DEPARTURE_VAR, MIN_GAIN, likeliest_misfit
from scgim.interventions._curves import groups_of
from scgim.interventions._interventions import Interventions
from scgim.interventions._levels import LEVEL_SHARES, Told, levels_of
from scgim.interventions._levels import MIN_GAIN as MIN_LEVEL_GAIN
from scgim.interventions._multiples import Multiples
from scgim.interventions._programmes import effective_genes, initial_loadings, price, programme_of, update_loadings

if TYPE_CHECKING:
    from scgim._priors import ShiftPrior
    from scgim.interventions._curves import CurveGrid
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
_MAX_LOG_ODDS = 12.0  # a probability of 6e-6 to be wrong, less than any model is
_BLOCK_VALUES = 2**21  # 16 MB at a time: for memory, results do not depend on it
# Limits of the fitted prior, far from what is usual: conventions. A target has a standard deviation of at least 0.2 and
# twice that of other genes, else it could not be told from them.
_MIN_TARGET_PROB, _MAX_TARGET_PROB = 1e-4, 0.3
_MIN_SLAB, _MAX_SPIKE = 0.04, 0.25
# Hyperpriors, weak and conventions: one target among the genes of two drugs, of this number where genes are fewer; and
# so many targets that have the slab as it was before.
_MIN_COUNTED_GENES, _PSEUDO_TARGETS = 10, 2
_N_POINTS = 12  # of dose, at which curves are compared with their mean
_MIN_SHARE = 0.05  # of the height that a curve reached where it was measured, else errors have no bound: convention
_TINY, _MIN_INFORMATION = 1e-9, 1e-6  # guards of quotients


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
    n_programmes
        Number of programmes.
    """

    interventions: Interventions
    prior: ShiftPrior
    programme: Tensor
    evidence: float
    variance: Tensor
    support: Tensor | None = None
    n_programmes: int = 0


def estimate_interventions(
    shift: Tensor,
    information: Tensor,
    group: Tensor,
    log_dosage: Tensor,
    grid: CurveGrid,
    prior: ShiftPrior,
    passage: Passage | None = None,
    member: Tensor | None = None,
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
    """
    shift, variance = shift.double(), 1 / information.double().clamp_min(_MIN_INFORMATION)
    coarse = grid.coarse()
    curves = coarse.values(log_dosage.double())  # (K, S)
    blocks = _blocks(group, shift.shape[1] * curves.shape[1] * (1 if member is None else member.shape[1]))
    data = _Data(shift, variance, group, blocks, curves, coarse, passage, member)
    prior = replace(prior, level_share=0.0)
    fit, n_programmes = cast("_Fit", _fit(data._replace(passage=None), prior, 0)), 0  # never None without programmes
    if member is not None:
        trials = [
            cast("_Fit", _fit(data._replace(passage=None), replace(prior, level_share=s), 0)) for s in LEVEL_SHARES
        ]
        best = max(trials, key=lambda trial: trial.evidence)
        if best.evidence > fit.evidence + MIN_LEVEL_GAIN:
            fit, prior = best, replace(prior, level_share=best.prior.level_share)
    if passage is not None:
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
    fit = _fit_own_variances(data, prior, n_programmes, fit)
    variance, prior, programme = fit.variance, fit.prior, fit.beside
    found = _summaries(shift - programme, variance, group, log_dosage.double(), grid, prior, member)
    return Estimate(found, prior, programme, fit.evidence, variance, fit.support, n_programmes)


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

    The doses of each drug are left out in turn, several drugs at once; arguments are those of :func:`estimate_interventions`,
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
        known = _summaries(shift[rest], 1 / information[rest], group[rest], log_dosage[rest], grid, prior, of_rest)
        chosen = known.rows(group[out])
        chosen = chosen if member is None else chosen.at_level(member[out].argmax(1))
        expected[out] = chosen.direct(log_dosage[out])
    return expected


def _summaries(
    shift, variance, group, log_dosage, grid: CurveGrid, prior: ShiftPrior, member: Tensor | None = None
) -> Interventions:
    """What is known of direct effects at a given prior; with levels of contexts as 0/1 (K, L), also in each."""
    curves = grid.values(log_dosage)
    odds = prior.target_log_odds(int(group.max()) + 1, torch.arange(shift.shape[1]))
    n_levels = 1 if member is None else member.shape[1]
    blocks = _blocks(group, shift.shape[1] * curves.shape[1] * n_levels)
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


def _blocks(group: Tensor, values: int) -> list[tuple[Tensor, Tensor]]:
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
    """Log evidence, prior, what contexts do beside direct effects (K, d), its variance (K, d) and support of edges (d, d)."""

    evidence: float
    prior: ShiftPrior
    beside: Tensor
    variance: Tensor
    support: Tensor | None


def _fit(data: _Data, prior: ShiftPrior, n_programmes: int) -> _Fit | None:
    """Programmes and departures from mechanisms by expectation-maximisation; None if a programme is one of too few genes."""
    shift, variance, group, passage = data.shift, data.variance, data.group, data.passage
    programme, transported, departures = torch.zeros_like(shift), torch.zeros_like(shift), None
    multiples = Multiples.ones(int(group.max()) + 1, shift.shape[1])
    if passage is None:
        prior = replace(prior, misfit=0.0, departure_var=0.0)
    if not n_programmes and passage is None:
        _, prior, multiples, evidence = _fit_prior(data, shift, variance, prior, multiples, _MAX_ROUNDS)
        return _Fit(evidence, prior, programme, multiples.widened(variance, prior.spike_var, group), None)
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
    return _Fit(evidence, prior, programme + transported, widened, support)


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
    return fit.prior.target_prob < _MAX_TARGET_PROB


def _fit_prior(
    data: _Data, shift: Tensor, variance: Tensor, prior: ShiftPrior, multiples: Multiples, max_rounds: int
) -> tuple[Tensor, ShiftPrior, Multiples, float]:
    """Target probabilities (U, d), the prior and the multiples of variance that fit them, and the log evidence before their last update."""
    blocks, curves, grid = data.blocks, data.curves, data.grid
    moments = shift.new_empty(5, sum(len(units) for units, _ in blocks), shift.shape[1])
    for _ in range(max_rounds):
        widened = multiples.widened(variance, prior.spike_var, data.group)
        odds = prior.target_log_odds(moments.shape[1], torch.arange(shift.shape[1]))
        for units, rows in blocks:
            member = None if data.member is None else data.member[rows]
            found = _moments(shift[rows], widened[rows], curves[rows], grid, prior, odds[units], member)
            square = shift[rows].square()
            left = (square - variance[rows]).mean(1), (square / (variance[rows] + prior.spike_var)).mean(1)
            moments[:, units] = torch.stack([*found, *left])
        target_probs, mean_square, by_gene, misfit, relative = moments
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


def _moments(shift, variance, curves, grid: CurveGrid, prior: ShiftPrior, odds: Tensor, member: Tensor | None):
    """Target probability, mean square of the height if target, log evidence; each (G, d)."""
    log_odds, weight, mean, spread = _posterior(shift, variance, curves, grid, prior, odds, member)
    noise = variance + prior.spike_var
    off = -0.5 * (shift.square() / noise + noise.log()).sum(1)
    evidence = off + torch.nn.functional.softplus(log_odds) - torch.nn.functional.softplus(odds)
    return torch.sigmoid(log_odds), (weight * (mean.square() + spread)).sum(-1), evidence


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
        target_prob=min(max(target_prob, _MIN_TARGET_PROB), _MAX_TARGET_PROB),
        slab_var=max(slab, _MIN_SLAB),
        spike_var=min(spike, _MAX_SPIKE * slab),
    )


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
