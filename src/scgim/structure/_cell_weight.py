r"""How far the covariance of cells within contexts is believed.

Cells within a context vary for reasons of their own: proteins that follow their messages late, bursts, states. Where the covariance that comes of it is
another one than the network's, it asks for edges among genes that have a regulator in common, with the certainty of thousands of cells, and means of
contexts have no say. It is therefore raised to a power :math:`w`, as historical data are in a power prior (Ibrahim and Chen, 2000, Stat Sci 15:46),

.. math:: \log p(\text{means} \mid \text{covariance}^w) = \log p(\text{means}, \text{covariance}^w) - \log p(\text{covariance}^w) ,

and the power is taken by which the covariance foretells the means of contexts best. Either term is that of the best graph that is found, with the prior
of graphs. It is tried where the graph that cells ask for leaves so many genes for targets as no screen has, though perturbations share no programme:
then it says next to nothing of means. In worlds in which perturbations have few targets by either graph, gains are of the size of what two searches
differ by.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scgim._priors import CELLS_A_GENE, MAX_TARGET_PROB
from scgim.structure._search import cells_a_gene, search_structure, usual_budget

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.structure._search import StructureResult
    from scgim.structure._statistics import ContextStatistics

logger = logging.getLogger(__name__)

_WEIGHTS = (0.2, 0.04)  # that are tried beside 1: for time; convention
_MIN_GAIN = 10.0  # nats, strong evidence, as each search may end at another local optimum: convention
_MAX_GENES = 300  # with more, the further searches take minutes: for time


def search_with_cell_weight(
    statistics: ContextStatistics, result: StructureResult, known_targets: Tensor | None = None, **options: Any
) -> tuple[StructureResult, ContextStatistics]:
    """Search under less weight of the covariance within contexts, if by it the covariance foretells means better.

    Parameters
    ----------
    statistics
        Statistics of the cells.
    result
        Result of a search by these, which leaves too many genes for targets (:func:`is_dense`). If cells are few or genes many, it stays.
    known_targets, **options
        Of :func:`~scgim.structure._search.search_structure`.

    Returns
    -------
    The result, and the statistics by which it was found.
    """
    few_cells = cells_a_gene(statistics) < CELLS_A_GENE
    if few_cells or not result.trace or statistics.n_genes > _MAX_GENES:
        return result, statistics
    watch, found = options["watch"], None
    best = result.trace[0] - _score_of_covariance(statistics, options) + _MIN_GAIN
    for weight in _WEIGHTS:
        if watch.is_stopped:
            return result, statistics
        weighted = with_weight(statistics, weight)
        trial = search_structure(weighted, known_targets=known_targets, max_evaluations=0, **options)
        evidence = trial.score - _score_of_covariance(weighted, options)
        logger.info(
            "Log evidence of means with cells at a weight of %g: %.1f; of the best so far: %.1f.",
            weight,
            evidence,
            best,
        )
        if evidence > best and not watch.is_stopped:
            best, found = evidence, (trial, weighted)
    if found is None:
        return result, statistics
    start, weighted = found
    budget = usual_budget(weighted)
    return search_structure(
        weighted, known_targets=known_targets, start=start, max_evaluations=budget, **options
    ), weighted


def is_dense(result: StructureResult) -> bool:
    """Whether a graph leaves as many genes for targets as the prior can say."""
    return result.prior.target_prob >= MAX_TARGET_PROB


def with_weight(statistics: ContextStatistics, weight: float) -> ContextStatistics:
    """Statistics whose covariance within contexts is worth that part of the cells."""
    return replace(statistics, gram=weight * statistics.gram, dof=weight * statistics.residual_dof)


def _score_of_covariance(statistics: ContextStatistics, options: dict[str, Any]) -> float:
    """Score of the best graph that is found by the covariance alone, means of controls with it."""
    control = statistics.group < 0
    alone = replace(
        statistics,
        means=statistics.means[control],
        n_cells=statistics.n_cells[control],
        group=statistics.group[control],
        dof=statistics.residual_dof,
        observed=None,
    )
    return search_structure(alone, max_evaluations=0, departures=False, **options).score
