r"""Score of a gene given its parents, with the interventions summed out.

Within contexts a gene follows a linear regression on its parents. Between contexts its mean may also move because a
perturbation acts on it directly: the displacement of context k has the spike-and-slab prior

.. math:: (1 - \pi) N(0, \tau_0^2) + \pi N(0, \tau_0^2 + \tau^2),

with one indicator for all doses of a perturbation. Its variance grows with what reached the gene through its parents, and slopes
between contexts depart from those within (:mod:`scgim._departures`). Displacement, departures and indicator are summed out, so
no Monte Carlo is needed (in place of the Gumbel sampling of the GIM paper, section 4). A wrong direction shows as many
displacements where few suffice, which is what identifies direction even in Gaussian data of equal scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scgim._departures import MAX_DEPARTURE_VAR, N_BENDS, bends, likeliest_misfit
from scgim._priors import MAX_TARGET_PROB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgim._priors import ShiftPrior
    from scgim.structure._statistics import ContextStatistics

_MIN_NOISE = 1e-6  # of the spread in controls; genes that do not vary, or copies of others, must not divide by zero
_RIDGE = 1e-8  # of normal equations, so that parents that are copies of each other can be solved for
_TINY = 1e-9  # sums of squares and of weights must not be zero
_N_ITERATIONS = 10  # of expectation-maximisation where nothing else is said: convention
# Limits of the fitted prior, far from what is usual, for screens where hardly anything is a target: a quarter of a target a drug, and effects of
# 0.3 control standard deviations to 30, as knock-outs have of genes that hardly vary in controls. Conventions.
_MIN_TARGETS = 0.25
_SLAB_LIMITS = (0.1, 1000.0)
_MIN_DEPARTURE_VAR = 1e-4  # less does not show: of a parent that moves by 20 standard deviations, a fifth of one
_INTERCEPT_PRECISION = 1e-2  # a prior standard deviation of 10: means of standardised values are hardly shrunk
_PRECISION_LIMITS = (1e-3, 1e6)  # of fitted weights: from flat to a family that is left out
_MIN_DETERMINED = 1e-3  # weights that data determine, in a family of which they say nothing


@dataclass(frozen=True)
class GeneFit:
    """Regressions of a batch of (gene, parents) pairs.

    Parameters
    ----------
    log_evidence
        Log marginal likelihood at the best weights, shape (B,).
    weights
        Regression weights, intercept last, shape (B, p * n_basis + 1).
    target_probs
        Posterior probability of a direct effect, shape (B, U).
    noise_var
        Variance within contexts given the parents, shape (B,).
    residuals
        Displacement of each context mean from the regression, shape (B, K).
    passed
        Square of what each context's parents pass on, summed over parents, shape (B, K).
    departures
        What slopes between contexts add to those within, or by what share of them, shape (B, 3, p).
    determined
        How many of these the data say, not their prior, shape (B,); NaN where it was not asked.
    transported
        What departures add in each context, shape (B, K).
    by_perturbation
        Part of the evidence that the cells of each perturbation bring, shape (B, U).
    """

    log_evidence: Tensor
    weights: Tensor
    target_probs: Tensor
    noise_var: Tensor
    residuals: Tensor
    passed: Tensor
    departures: Tensor
    determined: Tensor
    transported: Tensor
    by_perturbation: Tensor

    def row(self, k: int) -> GeneFit:
        """The fit of one pair, by itself."""
        return GeneFit(*(getattr(self, name)[k : k + 1].clone() for name in self.__dataclass_fields__))

    @classmethod
    def joined(cls, fits: Sequence[GeneFit], n_basis: int = 1) -> GeneFit:
        """Fits of several batches, those of fewer parents filled up with zeros; weights are of `n_basis` functions a parent."""
        width = max(fit.departures.shape[-1] for fit in fits)

        def filled(fit: GeneFit, name: str) -> Tensor:
            value, missing = getattr(fit, name), width - fit.departures.shape[-1]
            if name == "departures":
                return torch.nn.functional.pad(value, (0, missing))
            if name == "weights":  # the intercept stays last
                slopes = torch.nn.functional.pad(value[:, :-1], (0, missing * n_basis))
                return torch.cat([slopes, value[:, -1:]], 1)
            return value

        return cls(*(torch.cat([filled(fit, name) for fit in fits]) for name in cls.__dataclass_fields__))


def fit_genes(
    statistics: ContextStatistics,
    genes: Tensor,
    parents: Tensor,
    mask: Tensor,
    prior: ShiftPrior,
    *,
    intervention: str = "shift",
    n_iterations: int = _N_ITERATIONS,
    families: Tensor | None = None,
    determined: bool = True,
) -> GeneFit:
    """Fit and score genes given parents by expectation-maximisation over the target indicators.

    Parameters
    ----------
    statistics
        Statistics of the cells.
    genes
        Index of the gene of each pair, shape (B,).
    parents
        Indices of its parents, padded, shape (B, p).
    mask
        1 where `parents` holds a parent and 0 where it holds padding, shape (B, p).
    prior
        Prior of the direct effects.
    intervention
        "shift" moves the mean given the parents, "hard" replaces the mechanism and cuts the parents.
    n_iterations
        Iterations of expectation-maximisation.
    families
        Family of each parent, 0, 1, ..., shape (p,); None for flat weights, whose number the caller has to pay for. Weights of a
        family have a common normal prior, whose precision is fitted, and are integrated out of the evidence.
    determined
        Whether to find how many departures the data say, which the prior is fitted with and scores are not; it takes time.
    """
    s = statistics
    columns = s.columns(parents)  # (B, q)
    column_mask = mask.repeat_interleave(s.n_basis, dim=1)
    pairs = column_mask[:, :, None] * column_mask[:, None, :]
    y = s.by_column[genes]  # (B, K)
    x = torch.cat([s.by_column[columns] * column_mask[:, :, None], torch.ones_like(y)[:, None]], 1)  # (B, q + 1, K)
    scatter = _Scatter(s, genes, columns, column_mask, pairs, hard=intervention == "hard")
    relevance = None if families is None else _Relevance(families, len(genes))
    if relevance:  # functions of any form have nothing to depart from
        prior = replace(prior, misfit=0.0, departure_var=0.0)
    may_be_wrong = prior.misfit > 0 or prior.departure_var > 0
    slopes = scatter.slopes(column_mask) if prior.proportional and prior.departure_var else None
    passage = _Passage(x[:, :-1], s, 1 if relevance else parents.shape[1], prior.departure_var, may_be_wrong, slopes)
    # weights of the mechanism, intercept, departures
    z = torch.cat([x, passage.columns], 1) if prior.departure_var else x
    ridge = torch.diag_embed(
        torch.cat([1 - column_mask + _RIDGE, _RIDGE + 0 * y[:, :1], 1 + 0 * passage.columns[:, :, 0]], 1)
    )
    q, width = x.shape[1], z.shape[1] - x.shape[1] + 1

    log_odds = prior.target_log_odds(s.n_groups, genes).T
    target_probs = torch.sigmoid(log_odds)
    noise_var = (scatter.total_yy / scatter.dof).clamp_min(_MIN_NOISE)
    v0 = s.variance_of_means(noise_var, genes) + prior.spike_var
    hard, fill = intervention == "hard", torch.nn.functional.pad
    if not hard:  # departures and intercept have no scatter
        xx, xy, yy, dof = fill(scatter.xx, (0, width, 0, width)), fill(scatter.xy, (0, width)), scatter.yy, scatter.dof
    passed, departures = torch.zeros_like(y), passage.bent[:, :, 0]
    free = y.new_ones(len(y), s.n_groups + 1)  # the last of controls, which are never targets
    for _ in range(n_iterations):
        torch.sub(1, target_probs, out=free[:, :-1])
        if hard:
            xx, xy, yy, dof = scatter.weighted(free)
            xx, xy = fill(xx, (0, width, 0, width)), fill(xy, (0, width))
            precision = free[:, scatter.group] / v0
        else:
            precision = torch.lerp((v0 + prior.slab_var).reciprocal(), v0.reciprocal(), free[:, scatter.group])
        weighted = z * precision[:, None]
        a = torch.baddbmm(xx / noise_var[:, None, None] + ridge, weighted, z.mT)
        b = torch.baddbmm((xy / noise_var[:, None])[:, :, None], weighted, y[:, :, None])[:, :, 0]
        solved = torch.linalg.solve(a, b) if relevance is None else relevance.solve(a, b)
        weights = solved[:, :q]
        residuals = torch.baddbmm(y[:, None], solved[:, None], z, alpha=-1)[:, 0]
        noise_var = (_rss(solved, xx, xy, yy) / dof).clamp_min(_MIN_NOISE)
        v0 = s.variance_of_means(noise_var, genes) + prior.spike_var
        if may_be_wrong:
            departures = passage.departures(solved[:, q:], precision * residuals)
            passed = passage.passed(weights[:, :-1], departures)
            v0 = v0 + prior.misfit**2 * passed
        target_probs = torch.sigmoid(scatter.log_ratio(weights, noise_var, residuals, y, v0, prior) + log_odds)
    off, on = scatter.group_evidence(weights, noise_var, residuals, y, v0, prior)
    moved = torch.nn.functional.softplus(on - off + log_odds) - torch.nn.functional.softplus(log_odds)
    evidence = scatter.baseline(weights, noise_var, residuals, v0) + moved.sum(1)
    evidence = evidence + (passage.log_volume(solved[:, q:], precision) if relevance is None else relevance.log_volume)
    found = passage.found(departures, a, determined=determined)
    return GeneFit(evidence, weights, target_probs, noise_var, residuals, passed, *found, off + moved)


class _Passage:
    """What reaches genes through their parents between contexts; departures are in units of their prior's standard deviation.

    Contexts may be fewer than departures. What these do to them together is then that of as many columns as there are contexts.
    """

    def __init__(
        self,
        x: Tensor,
        s: ContextStatistics,
        n_parents: int,
        departure_var: float,
        may_be_wrong: bool,
        slopes: Tensor | None,
    ):
        self.moved = x - x[:, :, s.group < 0].mean(2, keepdim=True) if may_be_wrong else x[:, :0]  # (B, q, K)
        self.n_parents, self.sd = n_parents, departure_var**0.5
        own = self.moved if slopes is None else self.moved * slopes.abs()[:, :, None]  # (B, q, K)
        own = own.unflatten(1, (n_parents, -1))[:, :, 0] if departure_var else self.moved[:, :0]
        self.bent = self.sd * torch.cat([*bends(own)], 1)  # (B, 3 p, K)
        self.is_wide = self.bent.shape[1] > s.n_contexts
        self.columns = torch.linalg.qr(self.bent, mode="r").R if self.is_wide else self.bent

    def departures(self, of_columns: Tensor, pull: Tensor) -> Tensor:
        """Departures (B, 3 p) at the mode; `pull` (B, K) are the residuals there times their precision."""
        return (self.bent @ pull[:, :, None])[:, :, 0] if self.is_wide else of_columns

    def passed(self, weights: Tensor, departures: Tensor) -> Tensor:
        """Square of what is passed on, summed over parents, shape (B, K)."""
        by_parent = (weights[:, :, None] * self.moved).unflatten(1, (self.n_parents, -1)).sum(2)
        if self.sd:
            by_parent = by_parent + (departures[:, :, None] * self.bent).unflatten(1, (N_BENDS, -1)).sum(1)
        return by_parent.square().sum(1)

    def log_volume(self, of_columns: Tensor, precision: Tensor) -> Tensor:
        """What integrating over the departures adds to the evidence at their mode, shape (B,)."""
        if not self.sd:
            return torch.zeros(len(self.moved), dtype=precision.dtype)
        own = torch.bmm(self.columns * precision[:, None, :], self.columns.transpose(1, 2))
        factor = torch.linalg.cholesky(own + torch.eye(own.shape[1], dtype=own.dtype))
        return -factor.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * of_columns.square().sum(1)

    def found(self, departures: Tensor, a: Tensor, *, determined: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Departures (B, 3, p), how many are determined (B,), where this is asked, and what they add in each context (B, K)."""
        transported = (departures[:, :, None] * self.bent).sum(1)
        if not self.sd:
            nothing = self.moved.new_zeros(len(self.moved), N_BENDS, self.n_parents)
            return nothing, nothing[:, 0, 0], transported
        own = self.sd * departures.unflatten(1, (N_BENDS, -1))
        if not determined:
            return own, torch.full_like(transported[:, 0], torch.nan), transported
        variance = torch.linalg.inv(a).diagonal(dim1=1, dim2=2)[:, -self.columns.shape[1] :]
        return own, (1 - variance).sum(1), transported


def empirical_prior(statistics: ContextStatistics, fit: GeneFit, prior: ShiftPrior) -> ShiftPrior:
    """Prior of the direct effects from the displacements of the fitted graph, by moments."""
    treated = statistics.group >= 0
    probs = fit.target_probs[:, statistics.group[treated]]  # (d, contexts)
    if not len(probs) or not probs.numel():
        return prior
    error = statistics.variance_of_means(fit.noise_var)[:, treated]
    square = fit.residuals[:, treated].square() - error
    on, off = probs, 1 - probs
    passed = fit.passed[:, treated] * (prior.departure_var > 0)
    misfit, spike = likeliest_misfit(fit.residuals[:, treated], error, passed, off)
    slab = ((on * square).sum() / on.sum().clamp_min(_TINY)).clamp(*_SLAB_LIMITS)
    free = prior.is_open(fit.target_probs.T).T
    mean = (free * fit.target_probs).sum() / free.sum().clamp_min(1.0)
    target_prob = float(mean.clamp(_MIN_TARGETS / statistics.n_genes, MAX_TARGET_PROB))
    departure_var = float(fit.departures.square().sum() / fit.determined.sum().clamp_min(_MIN_DETERMINED))
    return replace(
        prior,
        target_prob=target_prob,
        slab_var=float(slab),
        spike_var=spike,
        misfit=misfit,
        departure_var=min(departure_var, MAX_DEPARTURE_VAR) if departure_var > _MIN_DEPARTURE_VAR else 0.0,
    )


def _rss(weights: Tensor, xx: Tensor, xy: Tensor, yy: Tensor) -> Tensor:
    """Residual sum of squares from normal equations, shape (B,)."""
    gap = torch.baddbmm(xy[:, :, None], xx, weights[:, :, None], beta=-2)[:, :, 0]
    return (yy + (weights * gap).sum(1)).clamp_min(_TINY)


class _Relevance:
    """Normal prior of the weights, one precision a family, fitted as it goes (MacKay's fixed point)."""

    def __init__(self, families: Tensor, n_pairs: int):
        n_families = int(families.max()) + 1 if len(families) else 0
        # the intercept, last, is a family of its own whose precision stays
        self.of_column = torch.nn.functional.pad(families, (0, 1), value=n_families)
        self.member = torch.nn.functional.one_hot(self.of_column).T.double()  # (F, q + 1)
        self.precision = torch.ones(n_pairs, len(self.member), dtype=torch.float64)
        self.precision[:, -1] = _INTERCEPT_PRECISION
        self.log_volume = torch.zeros(n_pairs, dtype=torch.float64)

    def solve(self, a: Tensor, b: Tensor) -> Tensor:
        """Weights at the mode; notes what integrating over them adds to the evidence, then fits the precisions."""
        prior = self.precision[:, self.of_column]
        factor = torch.linalg.cholesky(a + torch.diag_embed(prior))
        weights = torch.cholesky_solve(b[:, :, None], factor)[:, :, 0]
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        self.log_volume = 0.5 * (prior.log().sum(1) - log_det - (prior * weights.square()).sum(1))
        variance = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)
        determined = ((1 - prior * variance) @ self.member.T).clamp_min(_MIN_DETERMINED)
        fitted = (determined / (weights.square() @ self.member.T).clamp_min(_TINY)).clamp(*_PRECISION_LIMITS)
        self.precision = torch.cat([fitted[:, :-1], self.precision[:, -1:]], 1)
        return weights


def _log_normal(residuals: Tensor, variance: Tensor) -> Tensor:
    """Log density less its constant."""
    return -0.5 * (residuals.square() / variance + variance.log())


class _Scatter:
    """Scatter within contexts of genes and parents, and the evidence that rests on it.

    For shifts the scatter is the same whether a gene is a target or not; for hard interventions the cells of a target
    tell nothing of the mechanism, so scatter is kept by perturbation.
    """

    def __init__(self, s: ContextStatistics, genes: Tensor, columns: Tensor, mask: Tensor, pairs: Tensor, hard: bool):
        self.s, self.hard = s, hard
        self.group = s.group % (s.n_groups + 1)  # -1, controls, is the last
        if hard:
            gram = s.gram_by_group  # (U + 1, P, P)
            if gram is None:
                raise ValueError("Hard interventions need statistics that were gathered with `by_group=True`.")
            self.xx = gram[:, columns[:, :, None], columns[:, None, :]].transpose(0, 1) * pairs[:, None]
            self.xy = gram[:, columns, genes[:, None]].transpose(0, 1) * mask[:, None]
            self.yy = gram[:, genes, genes].T  # (B, U + 1)
            count = torch.zeros(s.n_groups + 1, dtype=gram.dtype).index_add_(0, self.group, s.n_cells - 1)
            self.group_dof = count.clamp_min(0.0)
            self.total_yy, self.dof = self.yy.sum(1), self.group_dof.sum().clamp_min(1.0)
        else:
            self.xx = s.gram[columns[:, :, None], columns[:, None, :]] * pairs
            self.xy = s.gram[columns, genes[:, None]] * mask
            self.total_yy = self.yy = s.gram[genes, genes]
            self.dof = s.residual_dof

    def slopes(self, mask: Tensor) -> Tensor:
        """Slopes within contexts, whether the gene is a target there or not; 1 in `mask` (B, q) are parents. Shape (B, q)."""
        xx, xy, _, _ = self.weighted(torch.ones(len(mask), self.s.n_groups + 1, dtype=mask.dtype))
        return torch.linalg.solve(xx + torch.diag_embed(1 - mask + _RIDGE), xy)

    def weighted(self, free: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
        """Scatter of the cells that follow the mechanism; `free` (B, U + 1) is the probability that they do."""
        if not self.hard:
            return self.xx, self.xy, self.yy, self.dof
        xx = torch.einsum("bu,bupq->bpq", free, self.xx)
        xy = torch.einsum("bu,bup->bp", free, self.xy)
        return xx, xy, (free * self.yy).sum(1), (free @ self.group_dof).clamp_min(1.0)

    def _group_rss(self, weights: Tensor) -> Tensor:
        """Residual sum of squares by perturbation, shape (B, U + 1)."""
        w = weights[:, :-1]
        quadratic = torch.einsum("bp,bupq,bq->bu", w, self.xx, w)
        return (self.yy - 2 * torch.einsum("bp,bup->bu", w, self.xy) + quadratic).clamp_min(_TINY)

    def log_ratio(self, weights, noise_var, residuals, y, v0, prior) -> Tensor:
        """Log evidence of each perturbation's cells if the gene is its target less that if it is not, (B, U)."""
        if self.hard:
            off, on = self.group_evidence(weights, noise_var, residuals, y, v0, prior)
            return on - off
        share = prior.slab_var / (v0 + prior.slab_var)
        return self._by_group(0.5 * (residuals.square() * share / v0 + torch.log1p(-share)))

    def group_evidence(self, weights, noise_var, residuals, y, v0, prior) -> tuple[Tensor, Tensor]:
        """Log evidence of each perturbation's cells if the gene is not, and if it is, its target; (B, U) each."""
        off = self._by_group(_log_normal(residuals, v0))
        if not self.hard:
            return off, self._by_group(_log_normal(residuals, v0 + prior.slab_var))
        dof, own = self.group_dof[:-1], self.yy[:, :-1]
        off = off - 0.5 * (self._group_rss(weights)[:, :-1] / noise_var[:, None] + dof * noise_var[:, None].log())
        # One pseudo-observation keeps it positive.
        own_var = ((own + noise_var[:, None]) / (dof + 1)).clamp_min(_MIN_NOISE)
        context_var = torch.cat([own_var, noise_var[:, None]], 1)[:, self.group]  # (B, K); controls unused
        displaced = _log_normal(y - weights[:, -1:], context_var / self.s.n_cells + prior.slab_var)
        cost = 0.5 * (dof + 1).log()  # of the variance, a parameter of its own
        return off, self._by_group(displaced) - 0.5 * (own / own_var + dof * own_var.log()) - cost

    def _by_group(self, values: Tensor) -> Tensor:
        """Sums over the contexts of each perturbation, controls left out; (B, K) to (B, U)."""
        return values.new_zeros(len(values), self.s.n_groups + 1).index_add_(1, self.group, values)[:, :-1]

    def baseline(self, weights, noise_var, residuals, v0) -> Tensor:
        """Log evidence if no gene were a target, shape (B,)."""
        means = _log_normal(residuals, v0).sum(1)
        if self.hard:
            rss, dof = self._group_rss(weights).sum(1), self.dof
        else:
            rss, dof = _rss(weights[:, :-1], self.xx, self.xy, self.yy), self.dof
        return means - 0.5 * (rss / noise_var + dof * noise_var.log())
