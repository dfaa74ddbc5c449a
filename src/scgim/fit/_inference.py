"""What the fitted parameters say of targets, dose-response curves and edges."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scgim._departures import first_departures
from scgim._priors import ShiftPrior
from scgim.fit._shrinkage import shrunken
from scgim.fit._statistics import to_device
from scgim.interventions._combinations import share, together
from scgim.interventions._curve_posterior import effects_left_out
from scgim.interventions._interventions import Interventions
from scgim.interventions._joint import Screen, estimate_jointly
from scgim.interventions._levels import with_programmes, with_targets
from scgim.interventions._passage import Passage
from scgim.interventions._stacking import NO_PRECISION, measured_background
from scgim.nn._information import FitInformation, InformationAccumulator
from scgim.nn._likelihood import observation, score_and_information
from scgim.nn._mechanism import parent_table
from scgim.structure._levels import control_means

if TYPE_CHECKING:
    from scgim.interventions._combinations import Shared
    from scgim.interventions._effects import Estimate
    from scgim.module import GIMModule
    from scgim.module._knowledge import Knowledge
    from scgim.train import BatchLoader

_MAX_LOG_FOLD_CHANGE = 15.0  # as the likelihood has no smaller means: from nothing to everything
_MIN_PRECISION = 1e-3  # of an effect, a standard error of 30 e-folds: nothing is known of it
_FIRST_SPIKE = 1e-3  # variance of the spike of moments to start from, before it is fitted: an effect of 3 %
_MIN_SPIKE, _TINY = 1e-6, 1e-12  # variances must not be zero


@torch.no_grad()
def gather_information(module: GIMModule, loader: BatchLoader) -> FitInformation:
    """Score and information of direct effects and edges at the fitted parameters."""
    index, mask = (torch.as_tensor(t, device=module.device) for t in parent_table(module.adjacency.cpu().numpy()))
    accumulator = InformationAccumulator(len(module.group), index, mask)
    for raw in loader:
        batch = to_device(raw, module.device)
        whole, cut = module.predictors(**batch)
        x, size, scale = module.standardised(batch["x"]), batch["log_size"], module.log_scale
        h = module.parent_features(batch["x"], size)
        hard = module.intervention == "hard"
        score, information = score_and_information(module.likelihood, x, cut if hard else whole, size, scale)
        evidence = _cut_evidence(module, x, whole, cut, size) if hard else None
        accumulator.update(batch["context"], h, score, information, evidence)
    return accumulator.finalise()


def _cut_evidence(module: GIMModule, x: Tensor, whole: Tensor, cut: Tensor, log_size: Tensor) -> Tensor:
    """Log-likelihood with the mechanism cut less that with it whole."""
    log_probs = (observation(module.likelihood, p, log_size, module.log_scale).log_prob(x) for p in (cut, whole))
    return next(log_probs) - next(log_probs)


class Observed(NamedTuple):
    """What contexts say of direct effects.

    `seen` (K,) marks the k contexts of which anything is known, `shift` and `precision` (k, d) are estimates of the effects in them, and
    `passage` is what reaches genes through their parents there, None if mechanisms say it all.
    """

    seen: Tensor
    shift: Tensor
    precision: Tensor
    passage: Passage | None


@dataclass(frozen=True)
class HiddenEffects:
    """What moments of hidden expression say of direct effects.

    `seen` (K,) marks the contexts of which anything is known, `shift` and `precision` (K, d) are estimates of the effects in them, `moved` (K, d) is
    by how much the means of parents have moved, and `weight` (d, d) are the slopes on these; their prior starts from `target_prob` and `slab_var`.
    """

    seen: Tensor
    shift: Tensor
    precision: Tensor
    moved: Tensor
    weight: Tensor
    target_prob: float
    slab_var: float

    def prior(self, module: GIMModule) -> ShiftPrior:
        """Prior of the effects to start from, features left out."""
        return ShiftPrior(self.target_prob, self.slab_var, _FIRST_SPIKE, module.knowledge.given_targets())


class Looseness(NamedTuple):
    """How loosely the means of contexts are tied to mechanisms.

    `variance` (K, d) is that of what contexts show beside mechanisms and direct effects, `support` (d, d) the log evidence for edges by what
    passes along them between contexts beside the mechanism.
    """

    variance: Tensor
    support: Tensor


@torch.no_grad()
def infer_targets(
    module: GIMModule,
    information: FitInformation,
    features: Tensor | None,
    *,
    departures: bool = True,
    of_moments: HiddenEffects | None = None,
) -> Looseness:
    """Posterior of targets, dose-response curves and background, written to the module; `features` (U, p) are those of the drugs.

    `departures` False takes mechanisms to hold between contexts as well. What moments say has its share in the probabilities of targets.
    """
    treated = module.treated.cpu()
    seen = treated & (information.information.amax(1) > NO_PRECISION)  # not those without training cells
    step = information.score[seen] / information.information[seen].clamp_min(_MIN_PRECISION)
    shift = module.shift.detach().double().cpu()[seen] + step
    are_counts = module.likelihood != "normal"
    # of hard interventions the evidence decides, whose scores are those of a mechanism that is cut
    are_shifts_of_counts = are_counts and module.intervention == "shift"
    certain = information.information / (information.overdispersion if are_shifts_of_counts else 1.0)
    precision = certain[seen].clamp_min(_MIN_PRECISION)
    if module.states.n:  # cells of a context have other states by chance, which move its mean
        moving = (module.states.variance - module.states.open_var).clamp_min(0.0).double().cpu()
        precision = 1 / (1 / precision + moving / information.n_cells[seen][:, None])
    if are_counts:  # where a context tells nothing the step has no bound
        shift = shift.clamp(-_MAX_LOG_FOLD_CHANGE, _MAX_LOG_FOLD_CHANGE)
    level = module.knowledge.context_level()
    if level is not None:  # baselines of levels rest on the controls of each, which are a sample as well
        of_controls = torch.zeros(module.knowledge.n_levels, precision.shape[1], dtype=torch.float64)
        of_controls.index_add_(0, level[~treated], certain[~treated])
        precision = 1 / (1 / precision + 1 / of_controls.clamp_min(_MIN_PRECISION)[level[seen]])
    evidence, passage = None, None
    if module.intervention == "hard":
        evidence = information.evidence[seen]
    elif departures:
        known = module.knowledge
        moved = information.means - control_means(information.means, known.group.cpu(), known.context_level())
        passage = passage_of(module, moved[seen])
    told, found = write_interventions(
        module, seen, shift, precision, module.knowledge.shift_prior(), features, evidence, passage, of_moments
    )
    loose = Looseness(torch.zeros_like(information.information), torch.zeros_like(module.knowledge.edge_probs.cpu()))
    if told.passage is not None:
        reach = told.passage.reach(proportional=found.prior.proportional)
        loose.variance[told.seen] = found.variance - 1 / told.precision + found.prior.departure_var * reach
        for context, member in module.knowledge.members.tolist():
            loose.variance[context] += loose.variance[member]
        if found.support is not None:
            loose.support.copy_(found.support)
    return loose


def write_effects(module: GIMModule, effects: HiddenEffects, features: Tensor | None) -> None:
    """Posterior of what moments say of direct effects, written to the module."""
    seen = effects.seen
    passage = passage_of(module, effects.moved[seen], effects.weight)
    write_interventions(
        module, seen, effects.shift[seen], effects.precision[seen], effects.prior(module), features, passage=passage
    )


def passage_of(module: GIMModule, moved: Tensor, slopes: Tensor | None = None) -> Passage | None:
    """What reaches genes through parents whose means have moved (K, d) against the control, by slopes (d, d); None without edges.

    `slopes` None takes those of the mechanisms.
    """
    adjacency = module.adjacency.cpu().numpy().astype(bool)
    if not adjacency.any():
        return None
    parents, mask = (torch.as_tensor(t) for t in parent_table(adjacency))
    return Passage(moved, module.mean_slopes() if slopes is None else slopes, parents, mask)


def write_interventions(
    module: GIMModule,
    seen: Tensor,
    shift: Tensor,
    precision: Tensor,
    prior: ShiftPrior,
    features: Tensor | None,
    evidence: Tensor | None = None,
    passage: Passage | None = None,
    of_moments: HiddenEffects | None = None,
) -> tuple[Observed, Estimate]:
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
    passage
        What reaches genes through their parents in these contexts; None if mechanisms say it all.
    of_moments
        What moments of hidden expression say of direct effects; None if they are not asked.

    Returns
    -------
    What was known of contexts of one drug each, and what follows from it.
    """
    known = module.knowledge
    whole = Observed(seen, shift, precision, passage)
    told, shared = (whole, None) if not len(known.members) else split_combinations(known, whole, prior)
    seen, shift, precision, passage = told
    measured, group = torch.unique(known.group.cpu()[seen], return_inverse=True)
    prior = replace(prior, known=None if prior.known is None else prior.known[measured])
    of_drugs = None if features is None else features[measured]
    log_dosage, curves, member = known.log_dosage.cpu()[seen], known.curve_grid(), known.membership()
    member = None if member is None else member[seen]
    screen = Screen(shift, precision, group, log_dosage, of_drugs, curves, known.dosage_range(), passage, member)
    estimate = estimate_jointly(screen, first_departures(prior, proportional=prior.proportional))
    found, prior, beside = estimate.interventions, estimate.prior, estimate.programme
    known.note_informed(prior, measured)
    known.note_responses(seen, shift, precision)
    left_out = effects_left_out(shift - beside, 1 / estimate.variance, group, log_dosage, curves, prior, member)
    if evidence is not None:
        per_context = evidence - 0.5 * torch.log1p(precision * prior.slab_var)
        total = torch.zeros_like(found.target_probs).index_add_(0, group, per_context)
        odds = prior.target_log_odds(len(total), torch.arange(total.shape[1]))
        found = with_targets(found, torch.sigmoid(total + odds))
    if of_moments is not None and shared is None:
        by_moments = _targets_by_moments(module, screen, of_moments, seen)
        # the mean of log odds: of rare genes moments say nothing, which is not to count against what counts are sure of
        found = with_targets(found, torch.sigmoid(0.5 * (found.target_probs.logit() + by_moments.logit())))
    background = measured_background(module.responses().of(measured), found, beside, left_out, of_drugs)
    found = replace(found, background=background, grid=known.grid.cpu())
    if found.levels is not None and member is not None:
        found = replace(
            found,
            levels=with_programmes(
                found.levels, found, beside, (group, member.argmax(1), known.context_log_dosage().cpu()[seen])
            ),
        )
    if shared is not None:
        every = seen | whole.seen
        known.note_responses(every, *(values[every] for values in over_contexts(told, whole)))
        measured, found = _with_combinations(module, whole, shared, measured, found)
    known.note_interventions(measured, found)
    known.prior.copy_(torch.tensor([prior.target_prob, prior.slab_var, prior.spike_var]))
    return told, estimate


def _targets_by_moments(module: GIMModule, screen: Screen, effects: HiddenEffects, seen: Tensor) -> Tensor:
    """Probabilities of targets by moments of hidden expression, (Q, d).

    Mechanisms of counts see parents through counting noise and pass on too little of what moves them; moments of few counts are off by as much.
    """
    measured = torch.unique(module.knowledge.group.cpu()[seen])
    prior = effects.prior(module)
    prior = replace(prior, known=None if prior.known is None else prior.known[measured])
    passage = passage_of(module, effects.moved[seen], effects.weight)
    own = replace(screen, shift=effects.shift[seen], information=effects.precision[seen], passage=passage)
    return estimate_jointly(own, first_departures(prior, proportional=prior.proportional)).interventions.target_probs


def split_combinations(known: Knowledge, whole: Observed, prior: ShiftPrior) -> tuple[Observed, Shared]:
    """What contexts say of single drugs at their dosages, those of combinations shared among their members; and of interactions."""
    pairs = known.members.cpu()
    pairs = pairs[whole.seen[pairs[:, 0]]]
    combined = torch.unique(pairs[:, 0])
    seen = whole.seen & known.of_one_drug
    seen[pairs[:, 1]] = True
    drugs, row = torch.nonzero(seen)[:, 0], torch.full((len(seen),), -1)
    row[drugs], row[combined] = torch.arange(len(drugs)), torch.arange(len(combined))
    members = torch.zeros(len(combined), len(drugs), dtype=torch.bool)
    members[row[pairs[:, 0]], row[pairs[:, 1]]] = True
    shift, precision = over_contexts(whole)
    order = torch.cat([drugs, combined])
    measured, drug = torch.unique(known.group.cpu()[drugs], return_inverse=True)
    own = replace(prior, known=None if prior.known is None else prior.known[measured])
    shared = share(shift[order], precision[order], members, drug, own)
    passage = whole.passage
    if passage is not None:  # movements that would have been seen if all had been given alone
        observed = torch.nonzero(whole.seen)[:, 0]
        design = torch.zeros(len(observed), len(drugs), dtype=torch.float64)
        alone = known.of_one_drug[observed]
        design[alone, row[observed[alone]]] = 1.0
        design[~alone] = members[row[observed[~alone]]].double()
        passage = passage.elsewhere(torch.linalg.pinv(design) @ passage.moved.T)
    return Observed(seen, shared.shift, shared.precision, passage), shared


def over_contexts(*parts: Observed) -> tuple[Tensor, Tensor]:
    """Estimates and precision in all contexts, zero where nothing is known, both (K, d); the first part that knows a context is right."""
    shape = (len(parts[0].seen), parts[0].shift.shape[1])
    shift, precision = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for told in reversed(parts):
        shift[told.seen], precision[told.seen] = told.shift, told.precision
    return shift, precision


def _with_combinations(
    module: GIMModule, whole: Observed, shared: Shared, measured: Tensor, found: Interventions
) -> tuple[Tensor, Interventions]:
    """Interventions of drugs and of the combinations that were measured, and their perturbations; interactions are written down."""
    known = module.knowledge
    pairs = known.members.cpu()
    pairs = pairs[whole.seen[pairs[:, 0]]]
    combined, arm = torch.unique(pairs[:, 0], return_inverse=True)
    known.note_interactions(combined, shared.interaction, shared.variance)
    group, log_dosage = known.group.cpu(), known.log_dosage.cpu()
    drug = torch.searchsorted(measured, group[pairs[:, 1]])
    # of rare genes these may be huge, and uncertain; where means are matched to the observed ones, interactions come with them
    is_matched = module.likelihood != "normal" or module.mechanism.is_linear
    beside = None if is_matched else shrunken(shared.interaction, shared.variance)
    both = together(found.rows(drug), log_dosage[pairs[:, 1]], arm, len(combined), beside)
    return torch.cat([measured, group[combined]]), Interventions.stack([found, both])


@torch.no_grad()
def infer_edges(module: GIMModule, information: FitInformation, n_cells: int, loose: Looseness) -> np.ndarray:
    """Standard errors of the slopes, written to the module, and log evidence of each edge, shape (d, d).

    The evidence is half the squared Wald statistic of the mean slope less the cost of an edge (:func:`edge_costs`), and what speaks for
    the edge by what passes along it between contexts alone. The standard error is that of the slope with hidden units of a nonlinear
    mechanism held as they are.
    """
    prior: ShiftPrior = module.knowledge.shift_prior()
    cost = edge_costs(n_cells, module.knowledge.edge_log_odds.cpu().numpy())
    adjacency = module.adjacency.cpu().numpy().astype(bool)
    index, mask = parent_table(adjacency)
    on = module.knowledge.target_probs.cpu()[module.group.cpu().clamp_min(0)] * module.treated.cpu()[:, None]
    spike = prior.spike_var + _MIN_SPIKE + loose.variance
    covariance = information.edge_covariance(1 / (on * prior.slab_var + spike))
    sd = covariance.diagonal(dim1=1, dim2=2).clamp_min(_TINY).sqrt().numpy()
    module.knowledge.weight_sd.zero_()
    evidence = np.full(adjacency.shape, -np.inf)
    weight, support = module.mean_slopes().numpy(), loose.support.clamp_min(0.0).numpy()
    for j in range(len(adjacency)):
        parents = index[j, mask[j] > 0]
        module.knowledge.weight_sd[parents, j] = torch.as_tensor(sd[j, : len(parents)], device=module.device)
        wald = 0.5 * (weight[parents, j] / sd[j, : len(parents)]) ** 2
        evidence[parents, j] = wald + support[parents, j] - cost[parents, j]
    return evidence


def edge_costs(n_cells: int, edge_log_odds: np.ndarray) -> np.ndarray:
    """Log evidence that each edge must bring: Bayesian information criterion and prior odds, shape (d, d)."""
    return 0.5 * math.log(n_cells) - edge_log_odds
