"""From an array of cells to a graph, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgim._priors import usual_edge_log_odds
from scgim.structure._over_graphs import with_probs_over_graphs
from scgim.structure._search import StructureResult, search_structure
from scgim.structure._statistics import StatisticsAccumulator
from scgim.structure._watch import SearchWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

_MIN_SPREAD = 1e-8  # a column that does not vary is left as it is


def learn_graph(
    x: ArrayLike,
    context: ArrayLike,
    group: ArrayLike,
    *,
    covariates: ArrayLike | None = None,
    intervention: str = "shift",
    edge_log_odds: float | ArrayLike | None = None,
    regulators: ArrayLike | None = None,
    seed: int = 0,
    max_seconds: float | None = None,
    on_move: Callable[[float], None] | None = None,
) -> StructureResult:
    """Acyclic graph of variables from samples under interventions whose targets are unknown.

    Variables follow linear mechanisms with Gaussian noise; in each context some of them, few, are displaced. Which ones is summed
    out. The search is that of :class:`scgim.model.GIM`, without AnnData, counts or doses.

    Parameters
    ----------
    x
        Samples x variables, shape (N, d); continuous, or counts after log1p. Standardised by the control samples.
    context
        Context of each sample as an integer from 0 to K - 1, shape (N,).
    group
        Intervention of each context as an integer from 0 on, shape (K,); -1 for controls, of which there must be some. Contexts of the
        same intervention, such as doses, share their targets.
    covariates
        Columns that shift variables in all contexts alike, shape (N, Q); partialled out.
    intervention
        `"shift"`: a target is displaced given its parents. `"hard"`: its mechanism is replaced.
    edge_log_odds
        Log prior odds of each edge, one number or shape (d, d), [source, target]; None for about two parents each.
    regulators
        Variables that may act on others, boolean (d,); None for all.
    seed
        Seed of the random moves.
    max_seconds
        Seconds that the search may take, about; what it has found by then is the result. None for no limit.
    on_move
        Called with the score after each move.

    Returns
    -------
    Graph, probabilities of edges (over graphs near it, and over choices of interventions), score and trace.

    Notes
    -----
    Ctrl-C ends the search early: the result is the best graph so far. Where regulators are told, the parents of the other variables are chosen
    in parallel as :func:`joblib.parallel_config` says; processes of one group of :mod:`torch.distributed` share them, unless there is a limit of time.

    Raises
    ------
    ValueError
        Shapes do not fit, values are not finite, or there is no control sample.

    Examples
    --------
    >>> found = scgim.structure.learn_graph(x, context, group=[-1, 0, 1, 1])
    >>> found.adjacency[i, j]  # whether i acts on j
    """
    values, context, group = np.asarray(x, dtype=np.float64), np.asarray(context), np.asarray(group)
    _check(values, context, group, intervention)
    control = values[(group < 0)[context]]
    spread = control.std(0)
    standardised = (values - control.mean(0)) / np.where(spread > _MIN_SPREAD, spread, 1.0)
    n, d = values.shape
    columns = np.zeros((n, 0)) if covariates is None else np.asarray(covariates, dtype=np.float64).reshape(n, -1)
    accumulator = StatisticsAccumulator(torch.as_tensor(group), d, d, columns.shape[1], by_group=intervention == "hard")
    accumulator.update(torch.as_tensor(standardised), torch.as_tensor(context), torch.as_tensor(columns))
    odds = usual_edge_log_odds(d) if edge_log_odds is None else np.asarray(edge_log_odds, dtype=np.float64)
    options: dict[str, Any] = {"intervention": intervention, "edge_log_odds": odds, "seed": seed}
    options["regulators"] = None if regulators is None else np.asarray(regulators, dtype=bool)
    statistics = accumulator.finalise()
    watch = SearchWatch(max_seconds, on_move)
    found = search_structure(statistics, watch=watch, **options)
    return with_probs_over_graphs(statistics, found, watch=watch, **options)


def _check(values: np.ndarray, context: np.ndarray, group: np.ndarray, intervention: str) -> None:
    if intervention not in ("shift", "hard"):
        raise ValueError(f"`intervention` must be 'shift' or 'hard', found {intervention!r}.")
    if values.ndim != 2 or context.shape != values.shape[:1] or group.ndim != 1:
        raise ValueError(
            f"Expected `x` as samples x variables, `context` with one code a sample and `group` with one a context; found shapes "
            f"{values.shape}, {context.shape} and {group.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"`x` holds {int((~np.isfinite(values)).sum())} values that are NaN or infinite. Impute or remove them."
        )
    if context.min() < 0 or context.max() >= len(group):
        raise ValueError(
            f"`context` holds codes from {context.min()} to {context.max()}, but `group` has {len(group)} contexts."
        )
    if not (group[context] < 0).any():
        raise ValueError("No sample is in a context of `group` -1. The search needs control samples.")
    if group.max() < 0:
        raise ValueError("`group` has controls only. Directions are told by interventions: give some, 0 and up.")
