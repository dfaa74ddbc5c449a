"""Genes that may not regulate: their parents are chosen for each alone."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import joblib
import numpy as np
import pytest
import torch

from scgim._priors import ShiftPrior
from scgim.structure import learn_graph
from scgim.structure._climb import HillClimb
from scgim.structure._leaves import Leaves
from scgim.structure._search import GraphSearch, search_structure

REGULATORS = np.arange(12) < 4


def two_layers(seed: int) -> np.ndarray:
    """Four regulators in a chain, and eight leaves of one or two of them."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((12, 12))
    weights[[0, 1, 2], [1, 2, 3]] = [0.8, -0.8, 0.8]
    for j in range(4, 12):
        own = rng.choice(4, rng.integers(1, 3), replace=False)
        weights[own, j] = rng.choice([-0.8, 0.8], len(own))
    return weights


@pytest.mark.parametrize("hard", [False, True])
def test_the_best_parents_of_each_leaf_are_found(simulate, hard):
    statistics = simulate(two_layers(0), np.eye(12)[:6], hard=hard).statistics
    kind = "hard" if hard else "shift"
    prior = ShiftPrior(0.1, known=torch.randn(6, 12, dtype=torch.float64) if not hard else None)
    odds = np.random.default_rng(0).normal(-2.0, 1.0, (12, 12))
    leaves = Leaves(statistics, REGULATORS, intervention=kind, edge_log_odds=odds)
    leaves.climb(prior, 6, thorough=True)
    whole = HillClimb(statistics, prior, intervention=kind, edge_log_odds=odds)
    sets = [own for n in range(5) for own in combinations(range(4), n)]
    for leaf, gene in enumerate(range(4, 12)):
        scores = whole.scores([(gene, own) for own in sets])
        best = sets[int(np.argmax(scores))]
        assert tuple(np.flatnonzero(leaves.parents[:, leaf])) == best
        assert leaves.scores[leaf] == pytest.approx(max(scores), abs=1e-6)


def test_score_and_probabilities_are_those_of_the_whole_graph(simulate):
    statistics = simulate(two_layers(1), np.eye(12)[:6]).statistics
    found = search_structure(statistics, regulators=REGULATORS)
    np.testing.assert_array_equal(found.adjacency, two_layers(1) != 0)
    whole = HillClimb(statistics, found.prior, regulators=REGULATORS)
    whole.adjacency = found.adjacency
    whole.refresh(range(12))
    assert whole.score == pytest.approx(found.score, rel=1e-10)
    np.testing.assert_allclose(found.edge_probs, whole.edge_probs(), atol=1e-8)


def test_a_search_goes_on_from_another(simulate):
    statistics = simulate(two_layers(1), np.eye(12)[:6]).statistics
    found = search_structure(statistics, regulators=REGULATORS)
    again = search_structure(statistics, regulators=REGULATORS, start=found)
    np.testing.assert_array_equal(again.adjacency, found.adjacency)
    assert again.score == pytest.approx(found.score)


def test_one_leaf_and_one_regulator_will_do(simulate):
    weights = np.zeros((2, 2))
    weights[0, 1] = 0.9
    statistics = simulate(weights, np.eye(2)).statistics
    found = search_structure(statistics, regulators=np.array([True, False]))
    np.testing.assert_array_equal(found.adjacency, weights != 0)


def test_the_prior_is_fitted_to_all_genes(simulate):
    """Also where drugs act on leaves alone."""
    statistics = simulate(two_layers(0), np.eye(12)[6:], effect=4.0).statistics
    search = GraphSearch(statistics, ShiftPrior(0.02), regulators=REGULATORS)
    search.settle()
    assert 0.05 < search.prior.target_prob < 0.15
    assert search.prior.slab_var > 5


BACKENDS = ["loky", "threading", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dask", "ray"))]


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    weights = two_layers(2)
    context = np.repeat(np.arange(7), 60)
    group = np.array([-1, 0, 1, 2, 3, 4, 5])
    noise = rng.normal(size=(len(context), 12))
    shift = 2.0 * np.vstack([np.zeros(12), np.eye(12)[:6]])[context]
    return (noise + shift) @ np.linalg.inv(np.eye(12) - weights), context, group


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_workers_find_what_one_finds(samples, backend, monkeypatch):
    monkeypatch.setattr("scgim.structure._leaves.LEAVES_A_BATCH", 2)
    started = _start(backend)
    alone = learn_graph(*samples, regulators=REGULATORS)
    try:
        with joblib.parallel_config(backend, n_jobs=2):
            shared = learn_graph(*samples, regulators=REGULATORS)
    finally:
        started()
    np.testing.assert_array_equal(shared.adjacency, alone.adjacency)
    np.testing.assert_array_equal(shared.edge_probs, alone.edge_probs)
    assert shared.score == alone.score
    assert alone.adjacency[:, 4:].any()


@pytest.mark.parametrize("n_workers", [1, 2])
def test_regulators_are_searched_while_workers_are_at_the_leaves(simulate, n_workers, monkeypatch):
    """Before any batch without workers."""
    monkeypatch.setattr("scgim.structure._leaves.LEAVES_A_BATCH", 1)
    leaves = Leaves(
        simulate(two_layers(0), np.eye(12)[:6]).statistics, REGULATORS, intervention="shift", edge_log_odds=-2.0
    )
    begun, seen, task_of = [], [], leaves._task
    monkeypatch.setattr(leaves, "_task", lambda own, *args: begun.append(own.start) or task_of(own, *args))
    with joblib.parallel_config("threading", n_jobs=n_workers):
        leaves.climb(ShiftPrior(0.1), 6, meanwhile=lambda: seen.append(len(begun)))
    assert (seen[0] > 0) == (n_workers > 1)
    assert begun == list(range(8))
    assert leaves.parents.any()


def test_a_search_that_workers_share_may_be_ended_early(samples, monkeypatch):
    """Ctrl-C among the larger moves, while workers are at the leaves: these are waited for, and the graph so far is kept, whole."""
    monkeypatch.setattr("scgim.structure._leaves.LEAVES_A_BATCH", 2)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    finished, climb = [], Leaves.climb

    def noted(leaves: Leaves, *args: object, thorough: bool = False, **kwargs: object) -> None:
        climb(leaves, *args, thorough=thorough, **kwargs)
        finished.append(thorough)

    monkeypatch.setattr("scgim.structure._moves.StructureSearch.escape", interrupt)
    monkeypatch.setattr(Leaves, "climb", noted)
    with joblib.parallel_config("loky", n_jobs=2):
        found = learn_graph(*samples, regulators=REGULATORS)
    np.testing.assert_array_equal(found.adjacency, two_layers(2) != 0)
    assert True in finished


def _start(backend: str):
    """Start what a backend needs; returns what stops it."""
    if backend == "dask":
        distributed = pytest.importorskip("distributed")
        client = distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
        return client.close
    if backend == "ray":
        ray = pytest.importorskip("ray")
        from ray.util.joblib import register_ray

        ray.init(num_cpus=2, include_dashboard=False)
        register_ray()
        return ray.shutdown
    return lambda: None


def test_threads_are_as_they_were(simulate):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        search_structure(simulate(two_layers(0), np.eye(12)[:6]).statistics, regulators=REGULATORS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


_SHARED = """
import sys
from unittest import mock
import numpy as np
import torch
from scgim.structure import _leaves, learn_graph

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
screen, n_tasks = np.load(f"{folder}/screen.npz"), []
task_of = _leaves.Leaves._task
count = lambda self, own, *args: n_tasks.append(own.start) or task_of(self, own, *args)
with mock.patch.object(_leaves, "LEAVES_A_BATCH", 3), mock.patch.object(_leaves.Leaves, "_task", count):
    found = learn_graph(**screen)
np.savez(f"{folder}/{rank}.npz", probs=found.edge_probs, adjacency=found.adjacency, score=found.score, tasks=n_tasks)
torch.distributed.destroy_process_group()
"""


def test_processes_of_a_group_share_the_leaves(simulate, tmp_path, monkeypatch):
    """Each looks at its share, and all get the graph that one process finds, bit for bit."""
    screen = simulate(two_layers(0), np.eye(12)[:6])
    arrays = {"x": screen.x, "context": screen.context, "group": screen.statistics.group.numpy()}
    np.savez(tmp_path / "screen.npz", **arrays, regulators=REGULATORS)
    monkeypatch.setattr("scgim.structure._leaves.LEAVES_A_BATCH", 3)
    alone = learn_graph(**arrays, regulators=REGULATORS)
    commands = [[sys.executable, "-c", _SHARED, str(rank), str(tmp_path)] for rank in range(2)]
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    shared = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    for found in shared:
        np.testing.assert_array_equal(found["adjacency"], alone.adjacency)
        np.testing.assert_array_equal(found["probs"], alone.edge_probs)
        assert found["score"] == alone.score
    # three batches of leaves, those of 0 to 2 and of 6 to 7 for the first process
    assert [set(found["tasks"].tolist()) for found in shared] == [{0, 6}, {3}]
