"""The search for the graph, under what the features of other drugs say of each drug's targets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scgim.fit._statistics import sample_cells
from scgim.interventions._effects import estimate_interventions
from scgim.interventions._joint import Screen, estimate_jointly
from scgim.interventions._passage import Passage
from scgim.nn._mechanism import parent_table
from scgim.structure._cell_weight import is_dense, search_with_cell_weight
from scgim.structure._feedback import with_loops
from scgim.structure._functions import refine_structure
from scgim.structure._levels import pooled_over_levels
from scgim.structure._over_graphs import with_probs_over_graphs
from scgim.structure._search import StructureResult, regressions, search_structure, weights_of
from scgim.structure._states import search_with_states
from scgim.structure._watch import SearchWatch

if TYPE_CHECKING:
    from scgim.module import GIMModule
    from scgim.structure._states import HiddenStates
    from scgim.structure._statistics import ContextStatistics
    from scgim.train import BatchLoader

_FEW_DRUGS = 10  # of which levels are kept apart in the search: convention


def search_graph(
    module: GIMModule,
    statistics: ContextStatistics,
    loader: BatchLoader,
    *,
    seed: int,
    watch: SearchWatch | None = None,
    features: Tensor | None = None,
) -> tuple[StructureResult, HiddenStates | None]:
    """Search for the graph and for hidden states; `features` (U, p) are those of the drugs, and what they say of targets is written to the module."""
    module.knowledge.note_informed(None)
    watch = SearchWatch() if watch is None else watch
    options = {"intervention": module.intervention, **search_options(module, seed, watch)}
    statistics = pooled(module, statistics)
    known = module.knowledge.known_targets()
    result, states = search_by_means(module, statistics, known_targets=known, **options), None
    if module.mechanism.is_linear and module.intervention == "shift" and not module.knowledge.n_levels:
        result, states = search_with_states(statistics, result, known_targets=known, **options)
        if states is not None:
            statistics = states.taken_out(statistics)
        elif is_dense(result) and not _share_programmes(module, statistics, result):
            result, statistics = search_with_cell_weight(statistics, result, known, **options)
    if not module.mechanism.is_linear:
        # mechanisms may well be linear, and the search on more functions has more ways to go astray
        linear = search_structure(statistics.first_basis(), known_targets=known, **options)
        result = refine_structure(sample_cells(module, loader), statistics, [result, linear], **options)
    elif features is not None and module.intervention == "shift" and not watch.is_stopped:
        result = _informed_search(module, statistics, result, features, options)
    if module.mechanism.is_linear:  # regressions on functions of any form take too long for many sets of parents
        result = with_probs_over_graphs(statistics, result, **options)
        result = with_loops(statistics, result, **options)
    return result, states


def search_options(module: GIMModule, seed: int, watch: SearchWatch) -> dict[str, Any]:
    """What every search for a graph of the module is told beside its statistics."""
    return {
        "edge_log_odds": module.knowledge.edge_log_odds.cpu().numpy(),
        "regulators": module.knowledge.told_regulators(),
        "seed": seed,
        "watch": watch,
    }


def pooled(module: GIMModule, statistics: ContextStatistics) -> ContextStatistics:
    """Statistics in which the levels of the effect modifier are one, if drugs are many enough to tell the graph by themselves.

    Effects that differ between levels have a mean, which goes through the network as any effect does. Of few drugs, levels are as many more
    contrasts.
    """
    known = module.knowledge
    if not known.n_levels or statistics.n_groups < _FEW_DRUGS:
        return statistics
    return pooled_over_levels(statistics, known.context_log_dosage().cpu())


def _levels(module: GIMModule, statistics: ContextStatistics) -> Tensor | None:
    """Level of each context as 0/1, (K, L); None without levels, or where they are pooled."""
    member = module.knowledge.membership()
    return None if member is None or statistics.is_pooled else member[statistics.observed]


def search_by_means(module: GIMModule, statistics: ContextStatistics, **options: Any) -> StructureResult:
    """Search for a graph whose mechanisms may be wrong between contexts, unless perturbations share a programme.

    Genes that a regulator moves that was not measured follow each other between contexts, though not within. Departures would take each
    for the cause of the next; where a programme explains that better, mechanisms have to hold within contexts as well.
    """
    result = search_structure(statistics, **options)
    if not module.mechanism.is_linear or options["watch"].is_stopped:
        return result
    if not result.prior.departure_var or not result.adjacency.any():
        return result
    if not _share_programmes(module, statistics, result):
        return result
    return search_structure(statistics, departures=False, **options)


def _share_programmes(module: GIMModule, statistics: ContextStatistics, result: StructureResult) -> bool:
    """Whether perturbations share what the graph does not explain."""
    fit = regressions(statistics, result, module.intervention)
    parents, mask = (torch.as_tensor(t) for t in parent_table(result.adjacency))
    treated = statistics.group >= 0
    moved = (statistics.means - statistics.means[~treated].mean(0))[treated, : statistics.n_genes]
    member = _levels(module, statistics)
    found = estimate_interventions(
        (fit.residuals + fit.transported)[:, treated].T,
        1 / statistics.variance_of_means(fit.noise_var).T[treated],
        torch.unique(statistics.group[treated], return_inverse=True)[1],
        module.knowledge.log_dosage.cpu()[statistics.observed][treated],
        module.knowledge.curve_grid(),
        replace(result.prior, known=None),
        Passage(moved, weights_of(result, fit), parents, mask),
        None if member is None else member[treated],
    )
    return found.form.n_programmes > 0


def _informed_search(
    module: GIMModule, statistics: ContextStatistics, result: StructureResult, features: Tensor, options: dict[str, Any]
) -> StructureResult:
    """Go on with the search under what the features say of each drug's targets, if the evidence is for it."""
    if not inform(module, statistics, result, features):
        return result
    return search_structure(statistics, known_targets=module.knowledge.known_targets(), start=result, **options)


def inform(module: GIMModule, statistics: ContextStatistics, result: StructureResult, features: Tensor) -> bool:
    """Note what the features say of each drug's targets on a graph, if the evidence is for it; whether it is."""
    fit = regressions(statistics, result, module.intervention)
    treated = (statistics.group >= 0) & (statistics.group < module.knowledge.n_drugs)  # combinations have no features
    measured, group = torch.unique(statistics.group[treated], return_inverse=True)
    log_dosage = module.knowledge.log_dosage.cpu()[statistics.observed][treated]
    member = _levels(module, statistics)
    variance = (
        statistics.variance_of_means(fit.noise_var).T[treated] + result.prior.misfit**2 * fit.passed[:, treated].T
    )
    given = module.knowledge.given_targets()
    prior = replace(result.prior, known=None if given is None else given[measured])
    screen = Screen(
        fit.residuals[:, treated].T,
        1 / variance,
        group,
        log_dosage,
        features[measured],
        module.knowledge.curve_grid(),
        module.knowledge.dosage_range(),
        member=None if member is None else member[treated],
    )
    found = estimate_jointly(screen, prior)
    if found.prior.known is prior.known:
        return False
    module.knowledge.note_informed(found.prior, measured)
    return True
