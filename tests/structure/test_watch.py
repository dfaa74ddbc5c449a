"""A search that ends early: its time is over, or Ctrl-C."""

from __future__ import annotations

import numpy as np
import pytest

from scgim.structure import learn_graph
from scgim.structure._climb import HillClimb
from scgim.structure._graph import topological_order
from scgim.structure._over_graphs import with_probs_over_graphs
from scgim.structure._search import search_structure
from scgim.structure._watch import STAGES, SearchWatch

WEIGHTS = np.triu(np.random.default_rng(0).normal(0, 0.8, (8, 8)) * (np.random.default_rng(1).random((8, 8)) < 0.4), 1)


def interrupt_at(n: int):
    """Ctrl-C at the n-th move, and at none after it."""
    calls = iter(range(1, 100_000))

    def moved(score: float) -> None:
        if next(calls) == n:
            raise KeyboardInterrupt

    return moved


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("n", [1, 5, 60])
def test_an_interrupted_search_gives_its_best_graph(simulate, n, told):
    statistics = simulate(WEIGHTS, np.eye(8)).statistics
    regulators = np.arange(8) < 6 if told else None
    noted = []
    watch = SearchWatch(on_move=interrupt_at(n), on_interrupt=lambda: noted.append(n))
    found = search_structure(statistics, regulators=regulators, watch=watch)
    assert watch.is_stopped
    assert noted == [n]
    topological_order(found.adjacency)
    assert ((found.edge_probs >= 0) & (found.edge_probs <= 1)).all()
    whole = HillClimb(statistics, found.prior, regulators=regulators)
    pairs = [(j, whole.parents(j, found.adjacency)) for j in range(8)]
    assert sum(whole.scores(pairs)) == pytest.approx(
        found.score, rel=1e-9 if not told else 1e-5
    )  # leaves by the prior of their time
    if told:  # leaves have had their turn all the same
        np.testing.assert_array_equal(found.adjacency[:, 6:].any(0), (WEIGHTS[:6, 6:] != 0).any(0))
    assert with_probs_over_graphs(statistics, found, regulators=regulators, watch=watch) is found


def test_the_second_interrupt_is_raised(simulate):
    def always(score: float) -> None:
        raise KeyboardInterrupt

    watch = SearchWatch(on_move=always)
    statistics = simulate(WEIGHTS, np.eye(8)).statistics
    search_structure(statistics, watch=watch)
    with pytest.raises(KeyboardInterrupt):
        search_structure(statistics, watch=watch)


def test_an_attempt_that_is_interrupted_is_undone(simulate):
    """The graph scores no less than before the larger moves."""
    statistics = simulate(WEIGHTS, np.eye(8)[:3], n_cells=15).statistics
    hasty = search_structure(statistics, max_evaluations=0)
    n_moves = []
    search_structure(statistics, max_evaluations=0, on_move=n_moves.append)
    for more in range(1, 12, 2):
        found = search_structure(statistics, watch=SearchWatch(on_move=interrupt_at(len(n_moves) + more)))
        alone = HillClimb(statistics, hasty.prior)
        scores = [sum(alone.scores([(j, alone.parents(j, own.adjacency)) for j in range(8)])) for own in (hasty, found)]
        assert scores[1] >= scores[0] - 1e-6


def test_no_time_is_left_for_larger_moves(simulate, monkeypatch):
    now = iter(np.arange(0.0, 1e6, 1.0))
    monkeypatch.setattr("scgim.structure._watch.time.monotonic", lambda: float(next(now)))
    statistics = simulate(WEIGHTS, np.eye(8)).statistics
    moves = []
    watch = SearchWatch(seconds=4.5, on_move=moves.append)
    found = search_structure(statistics, watch=watch)
    assert watch.is_stopped
    assert len(moves) == 5
    assert found.adjacency.sum() in (4, 5)


def test_stages_are_told_from_their_beginning_to_their_end(simulate):
    told = []
    statistics = simulate(WEIGHTS, np.eye(8)).statistics
    options = {"regulators": np.arange(8) < 6, "watch": SearchWatch(on_progress=lambda *a: told.append(a))}
    found = search_structure(statistics, **options)
    with_probs_over_graphs(statistics, found, **options)
    assert {stage for stage, _, _ in told} == set(STAGES)
    assert all(0 <= done <= total for _, done, total in told)
    assert (STAGES[0], 2, 2) in told


def test_learn_graph_takes_a_time(simulate):
    screen = simulate(WEIGHTS, np.eye(8))
    group = [-1, *np.repeat(np.arange(8), 2)]
    quick = learn_graph(screen.x, screen.context, group, max_seconds=1e-9)
    slow = learn_graph(screen.x, screen.context, group, max_seconds=1e9)
    assert quick.score <= slow.score
    np.testing.assert_array_equal(slow.adjacency, learn_graph(screen.x, screen.context, group).adjacency)
