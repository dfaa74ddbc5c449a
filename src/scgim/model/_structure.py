"""From cells to a graph and starting values: statistics, search, and what the fitted model says of edges and targets."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scgim.nn._effects import effects_left_out
from scgim.nn._functions import SampledCells, refine_structure
from scgim.nn._graph import parent_table
from scgim.nn._information import FitInformation, InformationAccumulator
from scgim.nn._joint import Screen, estimate_jointly
from scgim.nn._likelihood import observation, parent_features, score_and_information
from scgim.nn._mechanism import LinearMechanism, linear_part
from scgim.nn._search import StructureResult, StructureSearch, search_structure
from scgim.nn._stacking import NO_PRECISION, measured_background
from scgim.nn._statistics import ContextStatistics, StatisticsAccumulator

if TYPE_CHECKING:
    from collections.abc import Callable

    from scgim.module import GIMModule
    from scgim.nn._score import GeneFit, ShiftPrior
    from scgim.train import BatchLoader

_MAX_SAMPLED_CELLS = 20_000
_MIN_SPREAD = 1e-3
_MAX_STRETCH = 5.0
_MAX_LOG_FOLD_CHANGE = 15.0
_ODD_CELLS = 2e-3
_MAX_FOLD = 10.0  # of the mean, that parents make of a single cell


def _to(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


@torch.no_grad()
def set_scales(module: GIMModule, loader: BatchLoader) -> None:
    """Centre and spread of parent features, and the log mean, over the control cells."""
    d = len(module.centre)
    n, total, square, values, sizes = 0, *(torch.zeros(d, dtype=torch.float64) for _ in range(3)), 0.0
    for batch in loader:
        control = ~module.treated.cpu()[batch["context"]]
        x, log_size = batch["x"][control], batch["log_size"][control]
        h = parent_features(x, log_size, module.likelihood).double()
        n += len(h)
        total, square, values = total + h.sum(0), square + h.square().sum(0), values + x.double().sum(0)
        sizes += float(log_size.exp().sum())
    centre = total / n
    spread = (square / n - centre.square()).clamp_min(0.0).sqrt()
    module.centre.copy_(centre)
    module.spread.copy_(torch.where(spread > _MIN_SPREAD, spread, torch.ones_like(spread)))
    if module.likelihood != "normal":
        module.intercept_loc.copy_(((values + 0.5) / sizes).log())
    module.intercept.copy_(module.intercept_loc)


@torch.no_grad()
def note_ranges(module: GIMModule, loader: BatchLoader, *, of_parents: bool = True) -> None:
    """Write to the module how far values went, and parents acted (not if these are hidden), in the training cells.

    Parents of counts act on the log scale, where one odd cell reaches far: two in a thousand cells at either end do not count, nor
    what goes beyond ten times the mean over cells. Means of contexts do.
    """
    d, k = len(module.centre), len(module.group)
    values = torch.tensor([[math.inf], [-math.inf]]).repeat(1, d)
    sums, n_cells, kept = torch.zeros(k, d), torch.zeros(k), []
    every = max(1, loader.n // _MAX_SAMPLED_CELLS)
    for raw in loader:
        batch = _to(raw, module.device)
        size = 1.0 if module.likelihood == "normal" else torch.exp(batch["log_size"])
        rate = (batch["x"] / size).cpu()
        values[0], values[1] = torch.minimum(values[0], rate.amin(0)), torch.maximum(values[1], rate.amax(0))
        action = module.mechanism(module.features(batch["x"], batch["log_size"])).cpu()
        context = batch["context"].cpu()
        sums.index_add_(0, context, action)
        n_cells += torch.bincount(context, minlength=k)
        kept.append(action[::every])
    cells, contexts = torch.cat(kept).sort(0).values, (sums / n_cells[:, None])[n_cells > 0]
    low, high = cells[0], cells[-1]
    if module.likelihood != "normal":
        odd = int(len(cells) * _ODD_CELLS)
        usual = torch.logsumexp(cells, 0) - math.log(len(cells))  # log of the mean fold
        low, high = cells[odd], torch.minimum(cells[-1 - odd], usual + math.log(_MAX_FOLD))
    reach = [torch.minimum(low, contexts.amin(0)), torch.maximum(high, contexts.amax(0))]
    module.value_range.copy_(values)
    if of_parents:
        module.reach.copy_(torch.stack(reach))


@torch.no_grad()
def _basis(h: Tensor, nonlinear: bool) -> list[Tensor]:
    """Functions of the features that the search regresses on. Mechanisms saturate, and so do these."""
    return [h, h.tanh(), h.tanh().square()] if nonlinear else [h]


def gather_statistics(module: GIMModule, loader: BatchLoader) -> ContextStatistics:
    """Statistics of the training cells; nonlinear mechanisms are searched for with nonlinear functions as well."""
    d, nonlinear = len(module.centre), not isinstance(module.mechanism, LinearMechanism)
    n_basis = len(_basis(module.centre, nonlinear))
    accumulator = StatisticsAccumulator(
        module.group, d, d * n_basis, module.covariate_effect.shape[0], by_group=module.intervention == "hard"
    )
    for raw in loader:
        batch = _to(raw, module.device)
        h = module.features(batch["x"], batch["log_size"]).double()
        accumulator.update(torch.cat(_basis(h, nonlinear), 1), batch["context"], batch["covariates"].double())
    return accumulator.finalise()


@torch.no_grad()
def sample_cells(module: GIMModule, loader: BatchLoader) -> SampledCells:
    """Random training cells that regressions can go through; contexts of which none is drawn are left out."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(loader.n, generator=generator)[:_MAX_SAMPLED_CELLS]
    cells = {name: value.to(module.device) for name, value in loader.take(rows).items()}
    h = module.features(cells["x"], cells["log_size"]).double().cpu()
    measured, context = torch.unique(cells["context"].cpu(), return_inverse=True)
    return SampledCells(
        h=h,
        x=cells["x"].double().cpu(),
        context=context,
        covariates=cells["covariates"].double().cpu(),
        log_size=cells["log_size"].double().cpu()[:, 0],
        group=module.group.cpu()[measured],
        likelihood=module.likelihood,
    )


def learn_structure(
    module: GIMModule,
    statistics: ContextStatistics,
    loader: BatchLoader,
    *,
    seed: int,
    on_move: Callable[[float], None] | None = None,
    features: Tensor | None = None,
) -> StructureResult:
    """Search for the graph and start the module from what was found; `features` (U, p) are those of the drugs."""
    note_informed(module, None)
    options: dict[str, Any] = {
        "intervention": module.intervention,
        "edge_log_odds": module.edge_log_odds.cpu().numpy(),
        "seed": seed,
        "on_move": on_move,
    }
    known = module.known_targets()
    result = search_structure(statistics, known_targets=known, **options)
    if statistics.n_basis > 1:
        # mechanisms may well be linear, and the search on more functions has more ways to go astray
        linear = search_structure(statistics.first_basis(), known_targets=known, **options)
        result = refine_structure(sample_cells(module, loader), statistics, [result, linear], **options)
    elif features is not None and module.intervention == "shift":
        result = _informed_search(module, statistics, result, features, options)
    module.mechanism.set_graph(result.adjacency)
    _start_from(module, statistics, result)
    return result


def _informed_search(
    module: GIMModule, statistics: ContextStatistics, result: StructureResult, features: Tensor, options: dict[str, Any]
) -> StructureResult:
    """Go on with the search under what the features say of each drug's targets, if the evidence is for it."""
    fit = _fit_of(statistics, result, module.intervention)
    treated = statistics.group >= 0
    measured, group = torch.unique(statistics.group[treated], return_inverse=True)
    log_dosage = module.log_dosage.cpu()[statistics.observed][treated]
    precision = statistics.n_cells[treated][:, None] / fit.noise_var
    given = module.given_targets()
    prior = replace(result.prior, known=None if given is None else given[measured])
    screen = Screen(
        fit.residuals[:, treated].T,
        precision,
        group,
        log_dosage,
        features[measured],
        module.curve_grid(),
        module.dosage_range(),
    )
    found = estimate_jointly(screen, prior)
    if found.prior.known is prior.known:
        return result
    note_informed(module, found.prior, measured)
    return search_structure(statistics, known_targets=module.known_targets(), start=result, **options)


def _fit_of(statistics: ContextStatistics, result: StructureResult, intervention: str) -> GeneFit:
    """Regressions of all genes on their parents in the graph that was found."""
    search = StructureSearch(statistics, result.prior, intervention=intervention)
    parents = [tuple(np.flatnonzero(column).tolist()) for column in result.adjacency.T]
    return search.fit(list(enumerate(parents)))


@torch.no_grad()
def _start_from(module: GIMModule, statistics: ContextStatistics, result: StructureResult) -> None:
    """Weights and direct effects of the linear Gaussian fit, carried to the scale of the log mean."""
    d, device = statistics.n_genes, module.device
    fit = _fit_of(statistics, result, module.intervention)
    if module.likelihood == "normal":
        stretch = torch.ones(d, dtype=torch.float64)
        module.log_scale.copy_(-fit.noise_var.log())
    else:
        # log1p(x) moves by less than log(mean) does where counts are small
        mean = module.intercept_loc.double().exp().cpu()
        stretch = module.spread.double().cpu() * ((1 + mean) / mean.clamp_min(1e-3)).clamp_max(_MAX_STRETCH)
    linear = linear_part(module.mechanism)
    weight = torch.zeros(d, d, dtype=torch.float64)
    n = statistics.n_basis
    for j in range(d):
        parents = np.flatnonzero(result.adjacency[:, j])
        by_function = fit.weights[j, : len(parents) * n].reshape(len(parents), n)
        weight[parents, j] = by_function[:, :2].sum(1) * stretch[j]  # the slope at zero
    linear.weight.copy_(weight)
    group = statistics.group
    probs = torch.zeros(d, len(group), dtype=torch.float64)
    probs[:, group >= 0] = fit.target_probs[:, group[group >= 0]]
    module.shift[statistics.observed] = ((probs * fit.residuals).T * stretch).to(module.shift)
    if module.intervention == "hard":
        module.target_logits.copy_(torch.logit(fit.target_probs.T.clamp(1e-3, 1 - 1e-3)))
    scale = float(stretch.median()) ** 2
    prior = result.prior
    module.prior.copy_(torch.tensor([prior.target_prob, prior.slab_var * scale, prior.spike_var * scale]))
    module.to(device)


@torch.no_grad()
def gather_information(module: GIMModule, loader: BatchLoader) -> FitInformation:
    """Score and information of direct effects and edges at the fitted parameters."""
    linear = linear_part(module.mechanism)
    index, mask = (torch.as_tensor(t, device=module.device) for t in parent_table(linear.adjacency.cpu().numpy()))
    accumulator = InformationAccumulator(len(module.group), index, mask)
    for raw in loader:
        batch = _to(raw, module.device)
        whole, cut = module.predictors(**batch)
        x, size, scale = module.standardised(batch["x"]), batch["log_size"], module.log_scale
        h = module.features(batch["x"], size)
        hard = module.intervention == "hard"
        score, information = score_and_information(module.likelihood, x, cut if hard else whole, size, scale)
        evidence = _cut_evidence(module, x, whole, cut, size) if hard else None
        accumulator.update(batch["context"], h, score, information, evidence)
    return accumulator.finalise()


def _cut_evidence(module: GIMModule, x: Tensor, whole: Tensor, cut: Tensor, log_size: Tensor) -> Tensor:
    """Log-likelihood with the mechanism cut less that with it whole."""
    log_probs = (observation(module.likelihood, p, log_size, module.log_scale).log_prob(x) for p in (cut, whole))
    return next(log_probs) - next(log_probs)


@torch.no_grad()
def note_informed(module: GIMModule, prior: ShiftPrior | None, perturbations: Tensor | slice = slice(None)) -> None:
    """Write what features say of the targets of some measured drugs to the module; None for nothing."""
    module.informed_log_odds.zero_()
    module.target_is_informed.zero_()
    if prior is not None and prior.known is not None:
        module.informed_log_odds[perturbations] = prior.known.nan_to_num(0.0).to(module.informed_log_odds)
        module.target_is_informed[perturbations] = ~prior.known.isnan().to(module.device)


def note_responses(module: GIMModule, contexts: Tensor, estimates: Tensor, precision: Tensor) -> None:
    """Write estimates of the effects of some contexts (boolean, K) to the module; of others nothing is known."""
    contexts = contexts.to(module.device)
    module.response.zero_()
    module.response_precision.fill_(NO_PRECISION)
    module.response[contexts], module.response_precision[contexts] = (
        estimates.to(module.response),
        precision.to(module.response),
    )


@torch.no_grad()
def infer_targets(module: GIMModule, information: FitInformation, features: Tensor | None) -> None:
    """Posterior of targets, dose-response curves and background, written to the module; `features` (U, p) are those of the drugs."""
    seen = module.treated.cpu() & (information.information.amax(1) > NO_PRECISION)  # not those without training cells
    precision = information.information[seen].clamp_min(1e-3)
    shift = module.shift.detach().double().cpu()[seen] + information.score[seen] / precision
    if module.likelihood != "normal":  # where a context tells nothing the step has no bound
        shift = shift.clamp(-_MAX_LOG_FOLD_CHANGE, _MAX_LOG_FOLD_CHANGE)
    evidence = information.evidence[seen] if module.intervention == "hard" else None
    write_interventions(module, seen, shift, precision, module.shift_prior(), features, evidence)


def write_interventions(
    module: GIMModule,
    seen: Tensor,
    shift: Tensor,
    precision: Tensor,
    prior: ShiftPrior,
    features: Tensor | None,
    evidence: Tensor | None = None,
) -> None:
    """Infer interventions from estimates of effects and write all that follows to the module.

    Parameters
    ----------
    module
        The module.
    seen
        Treated contexts with training cells, boolean (K,).
    shift, precision
        Estimates of effects in these and their precision, both (k, d).
    prior
        Prior to start from; what is known of targets is that of all perturbations.
    features
        Features of the perturbations (U, p); None if there are none.
    evidence
        For hard interventions, log-likelihood with the mechanism cut less that with it whole, (k, d).
    """
    measured, group = torch.unique(module.group.cpu()[seen], return_inverse=True)
    prior = replace(prior, known=None if prior.known is None else prior.known[measured])
    of_drugs = None if features is None else features[measured]
    log_dosage, curves = module.log_dosage.cpu()[seen], module.curve_grid()
    screen = Screen(shift, precision, group, log_dosage, of_drugs, curves, module.dosage_range())
    found, prior, programme, _ = estimate_jointly(screen, prior)
    note_informed(module, prior, measured)
    note_responses(module, seen, shift, precision)
    left_out = effects_left_out(shift - programme, precision, group, log_dosage, curves, prior)
    if evidence is not None:
        per_context = evidence - 0.5 * torch.log1p(precision * prior.slab_var)
        total = torch.zeros_like(found.target_probs).index_add_(0, group, per_context)
        odds = prior.target_log_odds(len(total), torch.arange(total.shape[1]))
        found = replace(found, target_probs=torch.sigmoid(total + odds))
    background = measured_background(module.responses().of(measured), found, programme, left_out, of_drugs)
    for buffer, value in (
        (module.posterior.movedim(1, 0), found.of_targets.movedim(1, 0)),
        (module.background, background),
    ):
        buffer.zero_()
        buffer[measured.to(buffer.device)] = value.to(buffer)
    module.prior.copy_(torch.tensor([prior.target_prob, prior.slab_var, prior.spike_var]))


@torch.no_grad()
def infer_edges(module: GIMModule, information: FitInformation, n_cells: int) -> np.ndarray:
    """Standard errors of the weights, written to the module, and log evidence of each edge, shape (d, d).

    The evidence is half the squared Wald statistic less the cost of an edge (:func:`edge_costs`); for nonlinear mechanisms the statistic is
    that of the mean slope.
    """
    prior: ShiftPrior = module.shift_prior()
    cost = edge_costs(n_cells, module.edge_log_odds.cpu().numpy())
    linear = linear_part(module.mechanism)
    adjacency = linear.adjacency.cpu().numpy().astype(bool)
    index, mask = parent_table(adjacency)
    on = module.posterior[0].cpu()[module.group.cpu().clamp_min(0)] * module.treated.cpu()[:, None]
    spike = prior.spike_var + 1e-6
    covariance = information.edge_covariance(1 / (on * prior.slab_var + spike))
    sd = covariance.diagonal(dim1=1, dim2=2).clamp_min(1e-12).sqrt().numpy()
    module.weight_sd.zero_()
    evidence = np.full(adjacency.shape, -np.inf)
    weight = linear.weight.detach().double().cpu().numpy()
    for j in range(len(adjacency)):
        parents = index[j, mask[j] > 0]
        module.weight_sd[parents, j] = torch.as_tensor(sd[j, : len(parents)], device=module.device)
        evidence[parents, j] = 0.5 * (weight[parents, j] / sd[j, : len(parents)]) ** 2 - cost[parents, j]
    return evidence


def edge_costs(n_cells: int, edge_log_odds: np.ndarray) -> np.ndarray:
    """Log evidence that each edge must bring: Bayesian information criterion and prior odds, shape (d, d)."""
    return 0.5 * math.log(n_cells) - edge_log_odds
