"""Sparse targets and dense responses together, each as far as the drugs, or doses, that were left out say it can be trusted.

A prediction starts from the simplest that there is, for new drugs the mean of the measured drugs at that dose, and goes towards a
better one by a share between 0 and 1 that is found on what was left out (stacked regression). It stays where it is when the gain is
no larger than its standard error over drugs, so that features that tell nothing change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scgim.interventions._activity import LevelActivity
from scgim.interventions._curves import groups_of, on_grid
from scgim.interventions._generator import DrugKernel, FeatureGenerator
from scgim.interventions._level_parts import LevelParts
from scgim.interventions._responses import Contexts, ResponseSurface, choose_settings, left_out
from scgim.interventions._trust import trust

if TYPE_CHECKING:
    from scgim.interventions._curves import CurveGrid
    from scgim.interventions._interventions import Interventions

NO_PRECISION = 1e-6  # of contexts of which nothing is known
# Three doses that are left determine a curve of three numbers; judged on fewer, curves look worse than they are.
_MIN_DOSES = 4
_USUAL = 10.0  # times the median variance of an error is what a context may have and weigh as others: convention
_SHARES = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)  # in tenths; the loss is a parabola, flat at its minimum
# Effects that features predict well may lie beyond those measured, by at most this share of their range: convention.
_LEEWAY = 1.0
_MIN_SPREAD, _TINY = 1e-6, 1e-12  # guards: of changes that are all noise, and of quotients
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Responses:
    """What was measured in the treated contexts.

    Parameters
    ----------
    estimates, precision
        Estimates of all that each context does to each gene given its parents, and their precision, both (K, d).
    group, log_dosage
        Perturbation and log dosage of each, both (K,).
    grid
        Log dosages at which predictions are kept, shape (m,).
    carry
        What effects do to all genes once they have gone through the network, to first order: `effects @ carry` are changes of the
        parent features in standard deviations, shape (d, d).
    level
        Level of the effect modifier of each, (K,); None without one.
    """

    estimates: Tensor
    precision: Tensor
    group: Tensor
    log_dosage: Tensor
    grid: Tensor
    carry: Tensor
    level: Tensor | None = None

    @property
    def effects(self) -> Tensor:
        """Estimates shrunk by their errors, (K, d): those of each gene to their mean at that dose, and this to that at all doses."""
        return self._shrunk[0]

    @property
    def mean_square(self) -> Tensor:
        """Mean square over contexts of what they do to each gene, what was shrunk away in it, (d,)."""
        effects, doubt = self._shrunk
        return (effects.square() + doubt).mean(0)

    @cached_property
    def _shrunk(self) -> tuple[Tensor, Tensor]:
        """Shrunk estimates and the variance of their error, both (K, d)."""
        level, error = self._mean(slice(None))
        usual = (level * _kept(level, error)).repeat(len(self.estimates), 1)
        for rows in groups_of(self.nearest):
            mean, error = self._mean(rows)
            usual[rows] += (mean - usual[rows]) * _kept(mean - usual[rows], error)
        left, error = self.estimates - usual, 1 / self.precision
        spread = _spread(left, error)
        kept = spread / (spread + error)
        return usual + left * kept, kept * error

    @cached_property
    def nearest(self) -> Tensor:
        """Point of the grid next to each context, (K,)."""
        return (self.log_dosage[:, None] - self.grid).abs().argmin(1)

    def mean_at_dose(self, values: Tensor) -> Tensor:
        """Mean over contexts of the same dose, in each context (K, d)."""
        out = torch.empty_like(values)
        for rows in groups_of(self.nearest):
            out[rows] = values[rows].mean(0)
        return out

    def _mean(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Mean of the estimates of some contexts and the variance of its error, both (d,).

        Contexts weigh alike, as drugs do, but for those of which much less is known than of most.
        """
        estimates, error = self.estimates[rows], 1 / self.precision[rows]
        weight = 1 / (_USUAL * error.median(0).values + error)
        weight = weight / weight.sum(0)
        return (weight * estimates).sum(0), (weight.square() * error).sum(0)

    @cached_property
    def totals(self) -> Tensor:
        """Changes of all genes in each context, not shrunk, so that predictions can be judged by them, (K, d)."""
        return self.estimates @ self.carry

    @cached_property
    def error(self) -> Tensor:
        """Variance of the error of each of these, (K, d)."""
        return (1 / self.precision) @ self.carry.square()

    @cached_property
    def weight(self) -> Tensor:
        """Weight of each of these by its error, between 0 and 1, (K, d)."""
        spread = _spread(self.totals, self.error).clamp_min(_MIN_SPREAD)
        return spread / (spread + self.error)

    def loss(self, predicted: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Squared error of predicted changes in each of some contexts, weighted, summed over genes."""
        return (self.weight[rows] * (self.totals[rows] - predicted).square()).sum(1)

    def drawn_back(self, effects: Tensor, fitted: Tensor, leeway: float = 0.0) -> Tensor:
        """What takes effects (Q, d) back to where the changes of all genes lie within those measured, the same shape.

        These are the effects of contexts and those `fitted` (K, d). `leeway` is how far beyond changes may lie, as a share of the
        range.
        """
        totals, measured = effects @ self.carry, torch.cat([self.effects, fitted]) @ self.carry
        low, high = measured.amin(0).clamp_max(0.0), measured.amax(0).clamp_min(0.0)
        beyond = totals.clamp(low - leeway * (high - low), high + leeway * (high - low)) - totals
        return torch.linalg.solve(self.carry.T, beyond.T).T if beyond.any() else beyond

    def of(self, perturbations: Tensor) -> Responses:
        """Contexts of some perturbations, numbered anew."""
        number = torch.full((int(max(self.group.max(), perturbations.max())) + 1,), -1)
        number[perturbations] = torch.arange(len(perturbations))
        group = number[self.group]
        kept = group >= 0
        estimates, precision, group, log_dosage = (
            part[kept] for part in (self.estimates, self.precision, group, self.log_dosage)
        )
        level = None if self.level is None else self.level[kept]
        return Responses(estimates, precision, group, log_dosage, self.grid, self.carry, level)


def _kept(difference: Tensor, error: Tensor) -> Tensor:
    """How much of a difference is left when it is shrunk by the variance of its error."""
    return (1 - error / difference.square().clamp_min(_TINY)).clamp_min(0.0)


def _spread(values: Tensor, error: Tensor) -> Tensor:
    """Variance of values (K, d) beyond that of their errors, (d,); those of which little is known count little."""
    return ((values.square() / error - 1).sum(0) / (1 / error).sum(0)).clamp_min(0.0)


class DrugGenerator:
    """Interventions of drugs that were never measured, from their features (GIM paper, section 3.2).

    Sparse targets (:class:`FeatureGenerator`) and dense responses (:class:`ResponseSurface`) are weighed by how well they predict
    measured drugs that are left out, against the mean of the other drugs at the same dose.

    Parameters
    ----------
    features
        Features of the measured drugs, shape (U, p).
    interventions
        What is known of the measured drugs.
    shapes, log_dosages
        Dose-response curves to choose from, and the smallest and the largest log dosage.
    responses
        What was measured in each context.
    """

    def __init__(
        self,
        features: Tensor,
        interventions: Interventions,
        shapes: CurveGrid,
        log_dosages: tuple[float, float],
        responses: Responses,
    ):
        levels = interventions.levels
        self.activity = None if levels is None else LevelActivity(features, levels)
        active = interventions if self.activity is None else self.activity.where_active(interventions)
        self.sparse = FeatureGenerator(features, active, shapes, log_dosages)
        self.responses = responses
        self.left_out = self.sparse.left_out()
        kernel, group = self.sparse.kernel, responses.group
        # activity in the level of each context, as measured and by features
        own = told = torch.ones_like(responses.log_dosage)
        if self.activity is not None and responses.level is not None:
            own, told = (a[group, responses.level] for a in (self.activity.measured, self.activity.left_out))
        contexts = Contexts(group, responses.log_dosage, kernel.features[group], own)
        totals = responses.effects @ responses.carry

        def missed(predicted: Tensor, rows: Tensor) -> Tensor:
            return responses.loss((told / own)[rows, None] * predicted, rows)

        judge = partial(choose_settings, totals, contexts, kernel, group, missed)
        plain, featured = judge(features=False), judge()
        where_active = [
            left_out(responses.effects, contexts, kernel, s, group) / own[:, None] for s in (plain, featured)
        ]
        where_active.insert(1, self.left_out.rows(group).direct(responses.log_dosage))
        parts = [told[:, None] * part for part in where_active]
        mean, sparse, dense = (part @ responses.carry for part in parts)
        self.of_sparse, self.of_dense = _shares(mean, sparse, dense, responses)
        shares = (1 - self.of_sparse - self.of_dense, self.of_sparse, self.of_dense)
        effects = sum(share * part for share, part in zip(shares, parts, strict=True))
        best = effects @ responses.carry
        everywhere = replace(contexts, activity=None)
        self.levels = None if responses.level is None else LevelParts(responses, effects, everywhere, kernel)
        loss, usual, nothing = (responses.loss(predicted).mean() for predicted in (best, mean, 0 * best))
        self.error, self.error_of_mean = loss / nothing.clamp_min(_TINY), usual / nothing.clamp_min(_TINY)
        self.fitted = interventions.rows_at(group, None).mean(responses.log_dosage)
        self.mean, self.dense = (
            ResponseSurface(responses.effects, contexts, kernel, settings) for settings in (plain, featured)
        )

    def __call__(self, features: Tensor) -> Interventions:
        """Interventions of drugs with the given features, shape (Q, p)."""
        found = self.sparse(features)
        found = replace(found, emax=self.of_sparse * found.emax, emax_sd=self.of_sparse * found.emax_sd)
        grid, (q, d) = self.responses.grid, found.emax.shape
        x = self.sparse.kernel.standardise(features.double())
        contexts = Contexts(torch.full((q * len(grid),), -1), grid.repeat(q), x.repeat_interleave(len(grid), 0))
        every = torch.arange(q).repeat_interleave(len(grid))
        direct = found.rows(every).direct(contexts.log_dosage)
        background = torch.zeros_like(direct)
        if self.of_sparse < 1:
            mean = self.mean(contexts)
            background += (1 - self.of_sparse) * mean
            if self.of_dense:
                background += self.of_dense * (self.dense(contexts) - mean)
        background += self.responses.drawn_back(direct + background, self.fitted, self.of_sparse * _LEEWAY)
        sd = (1 - self.of_sparse) * self.error_of_effects()
        return replace(found, background=background.reshape(q, len(grid), d), background_sd=sd.expand(q, d), grid=grid)

    def of_levels(self, features: Tensor) -> Tensor | None:
        """What drugs with the given features (Q, p) do in each level beside what they do in all, (Q, L, m, d); None without levels."""
        return None if self.levels is None else self.levels(self.sparse.kernel.standardise(features.double()))

    def variance_of_totals(self, found: Interventions, log_dosage: Tensor) -> Tensor:
        """Variance of the changes of all genes, to first order, that doubt of direct effects at some log dosages (Q,) brings, summed over genes, (Q,)."""
        return (found.sd(log_dosage).square() @ self.responses.carry.square()).sum(1)

    def activity_in_levels(self, features: Tensor) -> Tensor | None:
        """Share of their effects that drugs with the given features (Q, p) have in each level, (Q, L); None without levels."""
        return None if self.activity is None else self.activity(features)

    def error_of_effects(self) -> Tensor:
        """Root mean square error of the effects of drugs left out, given the parents, shape (d,)."""
        return self.responses.mean_square.sqrt() * self.error.clamp_max(1.0).sqrt()


def _shares(mean: Tensor, sparse: Tensor, dense: Tensor, responses: Responses) -> tuple[float, float]:
    """How far to go from the mean towards sparse and dense predictions: the best shares, by as much as they are trusted.

    All of one and nothing of the other is preferred where it is no worse than one standard error over drugs.
    """
    loss = {
        (float(s), float(t)): responses.loss(mean + s * (sparse - mean) + t * (dense - mean))
        for s in _SHARES
        for t in _SHARES
        if s + t <= 1 + _ROUNDING
    }
    best = min(loss, key=lambda c: float(loss[c].sum()))
    for corner in sorted([(1.0, 0.0), (0.0, 1.0)], key=lambda c: float(loss[c].sum())):
        if trust(loss[corner] - loss[best], responses.group) == 0:
            best = corner
            break
    s, t = best
    by = trust(loss[0.0, 0.0] - loss[best], responses.group)
    if not s:
        return 0.0, t * by
    # what is usual of all drugs may do as well as what the features say of each, and then that is not trusted
    usual = mean + s * (responses.mean_at_dose(sparse) - mean) + t * (dense - mean)
    return s * by * trust(responses.loss(usual) - loss[best], responses.group), t * by


def measured_background(
    responses: Responses,
    interventions: Interventions,
    programme: Tensor,
    direct_left_out: Tensor,
    features: Tensor | None,
) -> Tensor:
    """What measured drugs do beside their direct effects, at the doses of the grid, shape (U, m, d).

    Between and at the measured doses it is the programme, or as much more of the dense response as is trusted: what drug,
    alike drugs and neighbouring doses did, judged on doses that were left out.

    Parameters
    ----------
    responses
        What was measured in each context.
    interventions
        What is known of direct effects.
    programme
        What perturbations share, in each context (K, d).
    direct_left_out
        Direct effects in each context by the other doses of the drug (K, d); NaN for drugs of one dose.
    features
        Features of the drugs (U, p); None for a screen without.
    """
    group, log_dosage, grid = responses.group, responses.log_dosage, responses.grid
    n_drugs = len(interventions.emax)
    drug = torch.arange(n_drugs).repeat_interleave(len(grid))
    direct = interventions.rows_at(drug, None).direct(grid.repeat(n_drugs))
    shared = on_grid(programme, group, log_dosage, grid, n_drugs).flatten(0, 1)
    shared = shared + _more_than_programmes(responses, direct, shared, programme, direct_left_out, features)
    if shared.any():
        fitted = interventions.rows_at(group, None).direct(log_dosage) + programme
        shared = shared + responses.drawn_back(direct + shared, fitted)
    return shared.reshape(n_drugs, len(grid), -1)


def _more_than_programmes(
    responses: Responses,
    direct: Tensor,
    shared: Tensor,
    programme: Tensor,
    direct_left_out: Tensor,
    features: Tensor | None,
) -> Tensor:
    """What dense responses add at all drugs and doses of the grid, as far as they are trusted, (U m, d)."""
    group, log_dosage, grid = responses.group, responses.log_dosage, responses.grid
    n_drugs = len(direct) // len(grid)
    n_doses, labels = _doses(group, log_dosage)
    several = n_doses >= _MIN_DOSES
    if not several.any():
        return torch.zeros_like(shared)
    kernel = None if features is None else DrugKernel(features.double())
    x = torch.zeros(n_drugs, 0, dtype=torch.float64) if kernel is None else kernel.features
    contexts = Contexts(group, log_dosage, x[group])
    totals = responses.effects @ responses.carry
    settings = choose_settings(totals, contexts, kernel, labels, responses.loss)
    dense = left_out(totals, contexts, kernel, settings, labels)
    sparse = (direct_left_out + _programme_left_out(programme, group, log_dosage)) @ responses.carry
    rows = torch.nonzero(several)[:, 0]
    loss = [responses.loss((sparse + s * (dense - sparse))[rows], rows) for s in _SHARES]
    best = int(torch.stack(loss).sum(1).argmin())
    share = float(_SHARES[best]) * trust(loss[0] - loss[best], group[rows])
    if not share:
        return torch.zeros_like(shared)
    drug = torch.arange(n_drugs).repeat_interleave(len(grid))
    everywhere = ResponseSurface(responses.effects, contexts, kernel, settings)(
        Contexts(drug, grid.repeat(n_drugs), x[drug])
    )
    return share * (everywhere - direct - shared)


def _doses(group: Tensor, log_dosage: Tensor) -> tuple[Tensor, Tensor]:
    """Number of doses of the drug of each context, and a label of drug and dose, both (K,); levels share doses."""
    n_doses, labels = torch.empty_like(group), torch.empty_like(group)
    for rows in groups_of(group):
        doses, code = torch.unique(log_dosage[rows], return_inverse=True)
        n_doses[rows], labels[rows] = len(doses), rows.min() + code
    return n_doses, labels


def _programme_left_out(programme: Tensor, group: Tensor, log_dosage: Tensor) -> Tensor:
    """Programmes in each context by the other doses of its drug, (K, d); those of drugs of one dose as they are."""
    out = programme.clone()
    for rows in groups_of(group):
        for k in rows.tolist():
            others = rows[log_dosage[rows] != log_dosage[k]]
            if not len(others):
                continue
            zero = torch.zeros_like(others)
            out[k] = on_grid(programme[others], zero, log_dosage[others], log_dosage[k : k + 1], 1)[0, 0]
    return out
