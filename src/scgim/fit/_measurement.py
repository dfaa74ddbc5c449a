"""Whether the graph is searched in counts or in hidden expression, where the user leaves that to the data."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from scgim.fit._hidden import LESS_SURE, gather_moments
from scgim.fit._search import search_options
from scgim.fit._statistics import gather_statistics, set_scales
from scgim.structure._reliability import evidence_by_counts, evidence_by_hidden
from scgim.structure._search import CELLS_A_GENE, search_structure
from scgim.structure._watch import SearchWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from scgim.module import GIMModule
    from scgim.train import BatchLoader

_PART = 4  # of the time that the search may take: convention
_MAX_GENES = 300  # of more, the comparison takes minutes
# Nats that hidden expression must bring, and for each cell: real counts depart a little from either model. Conventions.
_MIN_EVIDENCE, _MIN_EVIDENCE_A_CELL = 10.0, 0.003
_MIN_GAIN_A_GENE = 0.5  # nats of log-likelihood for its reliability, twice what chance brings, to look further


@torch.no_grad()
def is_expression_hidden(
    module: GIMModule,
    loader: BatchLoader,
    seed: int,
    max_seconds: float | None,
    on_move: Callable[[float], None] | None = None,
) -> tuple[bool, str]:
    """Whether hidden expression explains the covariance of cells within contexts better than counts do, and why.

    Both are tried on graphs that were searched quickly under either; `on_move` is called after each move. Scales of the cells may be written to the module.
    """
    d = len(module.centre)
    if d > _MAX_GENES or loader.n < CELLS_A_GENE * d:
        return (
            False,
            f"{d} genes and {loader.n} cells are too many or too few for a comparison with hidden expression",
        )
    try:
        hidden = gather_moments(module, loader).statistics
    except ValueError:
        return False, "counts are too few for the moments of hidden expression"
    watch = SearchWatch(None if max_seconds is None else max_seconds / _PART, on_move)
    options: dict[str, Any] = {
        **search_options(module, seed, watch),
        "known_targets": module.knowledge.known_targets(),
        "max_evaluations": 0,
        "departures": False,  # within contexts there are none
    }
    set_scales(module, loader)
    statistics = gather_statistics(module, loader)
    n, correlation = statistics.residual_dof, _correlation(statistics.gram)
    graph = search_structure(statistics, **options).adjacency
    by_counts = evidence_by_counts(correlation, n, graph)
    by_hidden = evidence_by_hidden(correlation, n, graph)
    if watch.is_stopped:
        return False, "the search was stopped before a comparison with hidden expression"
    # where reliabilities are one, they bring next to nothing, and another graph is no better
    if by_hidden + 0.5 * d * math.log(n) - by_counts > _MIN_GAIN_A_GENE * d:
        less_sure = replace(hidden, n_cells=LESS_SURE * hidden.n_cells)
        graph = search_structure(less_sure, **options).adjacency
        own = evidence_by_hidden(correlation, n, graph, _correlation(hidden.gram))
        by_hidden = max(by_hidden, own)
    gain = by_hidden - by_counts
    is_hidden = gain > max(_MIN_EVIDENCE, _MIN_EVIDENCE_A_CELL * n)
    than = "better" if gain > 0 else "worse"
    return (
        is_hidden,
        f"hidden expression explains how genes go together in cells {than} than counts do, by {abs(gain):.1f} nats",
    )


def _correlation(gram: Tensor) -> Tensor:
    spread = gram.diagonal().sqrt()
    return gram / torch.outer(spread, spread)
