"""Genes that may not regulate are leaves of the graph.

No cycle goes through a leaf, so that its parents are chosen without regard to the rest of the graph: in batches of leaves that
know nothing of each other, by statistics of the regulators and of these leaves alone. Batches go through :class:`joblib.Parallel`, which runs them
where :func:`joblib.parallel_config` says, one after the other if it says nothing. Processes of one group of :mod:`torch.distributed` share them.
What they give does not depend on where they run.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import torch
import torch.distributed

from scgim.structure._climb import TOLERANCE, HillClimb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from scgim._priors import ShiftPrior
    from scgim.structure._statistics import ContextStatistics

LEAVES_A_BATCH = 100  # few enough for many workers, enough for large regressions: for time, results do not depend on it


@dataclass(frozen=True)
class LeafTask:
    """What is to be known to choose the parents of some leaves.

    Parameters
    ----------
    statistics
        Statistics of the genes that may regulate, which come first, and of the leaves.
    prior, intervention, edge_log_odds, n_iterations
        As for :class:`~scgim.structure._climb.HillClimb`, of the same genes.
    parents
        Parents that the leaves have, boolean (regulators, leaves).
    """

    statistics: ContextStatistics
    prior: ShiftPrior
    intervention: str
    edge_log_odds: float | NDArray
    n_iterations: int
    parents: NDArray[np.bool_]


class LeafClimb(HillClimb):
    """Hill climbing of leaves, all at once."""

    def __init__(self, task: LeafTask):
        self.n_sources = len(task.parents)
        is_source = np.arange(task.statistics.n_genes) < self.n_sources
        super().__init__(
            task.statistics,
            task.prior,
            intervention=task.intervention,
            edge_log_odds=task.edge_log_odds,
            regulators=is_source,
        )
        self.n_iterations = task.n_iterations
        self.leaves = np.flatnonzero(~is_source)
        self.adjacency[: self.n_sources, self.n_sources :] = task.parents

    def climb_from(self, leaves: NDArray[np.int64]) -> None:
        """Add or remove the parent of each leaf that raises its score most, until none does."""
        self.refresh(leaves)
        while len(leaves):
            best = self.gain[:, leaves].argmax(0)
            better = self.gain[best, leaves] > TOLERANCE
            leaves, best = leaves[better], best[better]
            self.adjacency[best, leaves] ^= True
            self.refresh(leaves)

    def try_from(self, trial: NDArray[np.bool_]) -> None:
        """Climb from other parents, and keep what comes of it where the score is higher."""
        changed = self.leaves[(trial != self.adjacency)[:, self.leaves].any(0)]
        before, score = self.adjacency.copy(), self.score_by_gene.copy()
        self.adjacency = trial
        self.climb_from(changed)
        worse = self.score_by_gene <= score + TOLERANCE
        self.adjacency[:, worse], self.score_by_gene[worse] = before[:, worse], score[worse]

    def try_without_each(self) -> None:
        """Climb from the parents that there are but one, for each of these: another may take its place."""
        kept = self.adjacency.copy()
        for k in range(int(kept.sum(0).max(initial=0))):
            trial, nth = self.adjacency.copy(), np.cumsum(kept, 0) == k + 1
            trial[nth & kept] = False
            self.try_from(trial)

    def found(self) -> NDArray[np.bool_]:
        return self.adjacency[: self.n_sources, self.n_sources :]


def choose_parents(task: LeafTask, thorough: bool) -> tuple[NDArray[np.bool_], NDArray[np.float64], int]:
    """Parents of leaves, from those that there are and from none, their scores, and the number of regressions."""
    search = LeafClimb(task)
    search.climb_from(search.leaves)
    if task.parents.any():
        search.try_from(np.zeros_like(search.adjacency))
    if thorough:
        search.try_without_each()
    return search.found(), search.score_by_gene[search.leaves], search.n_evaluations


def parent_probs(task: LeafTask) -> NDArray[np.float64]:
    """Probability of each parent given the others, (regulators, leaves)."""
    search = LeafClimb(task)
    search.refresh(search.leaves)
    return search.edge_probs()[: search.n_sources, search.n_sources :]


class Leaves:
    """The leaves of a graph.

    Parameters
    ----------
    statistics
        Statistics of all genes.
    regulators
        Genes that may be parents, boolean (d,); the others are leaves.
    intervention, edge_log_odds
        As for :class:`~scgim.structure._climb.HillClimb`.
    share
        Whether the processes of a group of :mod:`torch.distributed` share the leaves, all of which must then do the same search to its end.
    """

    def __init__(
        self,
        statistics: ContextStatistics,
        regulators: NDArray[np.bool_],
        *,
        intervention: str,
        edge_log_odds: float | NDArray,
        share: bool = True,
    ):
        self.statistics, self.intervention, self.edge_log_odds = statistics, intervention, edge_log_odds
        self.sources, self.genes = np.flatnonzero(regulators), np.flatnonzero(~regulators)
        self.parents = np.zeros((len(self.sources), len(self.genes)), dtype=bool)
        self.scores = np.full(len(self.genes), np.nan)  # until they are searched
        self.n_evaluations = 0
        self.rank, self.n_processes = process_of_group() if share else (0, 1)

    def climb(
        self,
        prior: ShiftPrior,
        n_iterations: int,
        *,
        thorough: bool = False,
        only_new: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Choose the parents of all leaves, or of those that were not searched yet; `on_progress` is told how many are done, of all.

        `meanwhile` is called while workers, if there are any, are at it.
        """
        skip = ~np.isnan(self.scores) if only_new else None
        found = self.each(prior, n_iterations, choose_parents, thorough, skip=skip, meanwhile=meanwhile)
        for own, (parents, scores, n) in found:
            self.parents[:, own], self.scores[own] = parents, scores
            self.n_evaluations += n
            if on_progress:
                on_progress(min(own.stop, len(self.genes)), len(self.genes))

    def edge_probs(self, prior: ShiftPrior, n_iterations: int) -> NDArray[np.float64]:
        """Probability of each parent given the others, (regulators, leaves)."""
        return self.probs(prior, n_iterations, parent_probs)

    def probs(self, prior: ShiftPrior, n_iterations: int, function: Callable, *args: Any) -> NDArray[np.float64]:
        """Probability of each parent by a function of a task, (regulators, leaves)."""
        probs = np.zeros(self.parents.shape)
        for own, found in self.each(prior, n_iterations, function, *args):
            probs[:, own] = found
        return probs

    def each(
        self,
        prior: ShiftPrior,
        n_iterations: int,
        function: Callable,
        *args: Any,
        skip: NDArray[np.bool_] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Iterator[tuple[slice, Any]]:
        """What a function gives for each batch of leaves, in order, but for those all of which are to be skipped.

        `meanwhile` is called once workers have their first batches, if there are workers, and before any batch if there are none.
        """
        slices = [slice(k, k + LEAVES_A_BATCH) for k in range(0, len(self.genes), LEAVES_A_BATCH)]
        if skip is not None:
            slices = [own for own in slices if not skip[own].all()]
        tasks = (self._task(own, prior, n_iterations) for own in slices[self.rank :: self.n_processes])
        with _parallel() as parallel:
            results = parallel(joblib.delayed(_on_one_thread)(function, task, *args) for task in tasks)
            with _asked_for(results) as found:
                if meanwhile:
                    meanwhile()
                for k in range(0, len(slices), self.n_processes):
                    some = slices[k : k + self.n_processes]
                    yield from zip(some, self._gather(found, len(some)), strict=True)

    def _gather(self, found: Iterator, n: int) -> list:
        """The next n results, one of each of the first n processes."""
        n_threads = torch.get_num_threads()
        try:
            own = next(found) if self.rank < n else None
        finally:  # without workers the batch was worked on here
            torch.set_num_threads(n_threads)
        if self.n_processes == 1:
            return [own]
        by_process: list = [None] * self.n_processes
        torch.distributed.all_gather_object(by_process, own)
        return by_process[:n]

    def _task(self, own: slice, prior: ShiftPrior, n_iterations: int) -> LeafTask:
        genes = np.concatenate([self.sources, self.genes[own]])
        columns = torch.as_tensor(genes)
        return LeafTask(
            self.statistics.of_genes(columns),
            prior.of_genes(columns),
            self.intervention,
            odds_among(self.edge_log_odds, genes),
            n_iterations,
            self.parents[:, own],
        )


def process_of_group() -> tuple[int, int]:
    """Rank of this process in the group of :mod:`torch.distributed`, and how many there are; 0 and 1 without a group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def has_workers() -> bool:
    """Whether :func:`joblib.parallel_config` says that there are several workers."""
    return joblib.effective_n_jobs(_parallel().n_jobs) > 1


def _parallel() -> joblib.Parallel:
    """Results one by one, as they come, where the backend of joblib can do that; that of ray gives them all at once."""
    try:
        return joblib.Parallel(return_as="generator")
    except ValueError:
        return joblib.Parallel()


@contextmanager
def _asked_for(results: Iterable) -> Iterator[Iterator]:
    """Results one by one. Where no more are asked for, workers are told, and :mod:`joblib` does not warn of what they did in vain."""
    try:
        yield iter(results)
    finally:
        if isinstance(results, Generator):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                results.close()


def _on_one_thread(function: Callable, *args: Any) -> Any:
    """Call a function with one thread of torch, so that rounding is the same wherever it runs."""
    torch.set_num_threads(1)
    return function(*args)


def odds_among(log_odds: float | NDArray, genes: NDArray[np.int64]) -> float | NDArray:
    """Log prior odds of the edges among some genes; one number holds for all."""
    return log_odds if np.ndim(log_odds) == 0 else np.asarray(log_odds)[np.ix_(genes, genes)]
