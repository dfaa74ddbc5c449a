"""Feedback in linear worlds that are made here, with loops and without."""

import numpy as np
import pytest
import torch

from scgim._priors import ShiftPrior
from scgim.structure._climb import fit_pairs
from scgim.structure._cyclic import CyclicScore, Part, _Batch
from scgim.structure._feedback import Feedback, Loop, circle_of, with_loops
from scgim.structure._search import search_structure
from scgim.structure._statistics import StatisticsAccumulator
from scgim.structure._watch import SearchWatch

LOOPS = {(0, 1): 0.7, (1, 0): 0.5, (2, 3): 0.8, (3, 4): 0.7, (4, 2): 0.5, (0, 5): -0.8, (5, 6): 0.7, (3, 7): 0.9}
N_GENES, N_DRUGS, N_DOSES = 8, 20, 2


def cells(weights, rng, n_cells=40, n_controls=300):
    """Statistics of cells at the rest point of x = W' x + psi + noise; drugs act on one gene or two."""
    settle = np.linalg.inv(np.eye(N_GENES) - weights)
    x, group, context = [rng.normal(size=(n_controls, N_GENES))], [-1], [np.zeros(n_controls, dtype=int)]
    for drug in range(N_DRUGS):
        targets = rng.choice(N_GENES, rng.integers(1, 3), replace=False)
        effect = np.zeros(N_GENES)
        effect[targets] = rng.choice([-1, 1], len(targets)) * rng.uniform(2, 5, len(targets))
        for dose in range(1, N_DOSES + 1):
            x.append(rng.normal(size=(n_cells, N_GENES)) + effect * dose / N_DOSES)
            context.append(np.full(n_cells, len(group)))
            group.append(drug)
    x = np.concatenate(x) @ settle
    controls = x[: len(context[0])]
    accumulator = StatisticsAccumulator(torch.tensor(group), N_GENES, N_GENES)
    accumulator.update(torch.tensor((x - controls.mean(0)) / controls.std(0)), torch.tensor(np.concatenate(context)))
    return accumulator.finalise()


def loopy(seed):
    weights = np.zeros((N_GENES, N_GENES))
    for edge, weight in LOOPS.items():
        weights[edge] = weight
    return cells(weights, np.random.default_rng(seed))


def acyclic(seed):
    rng = np.random.default_rng(seed)
    size = rng.choice([-1, 1], (N_GENES, N_GENES)) * rng.uniform(0.5, 1.0, (N_GENES, N_GENES))
    weights = np.triu(size * (rng.random((N_GENES, N_GENES)) < 0.3), 1)
    order = rng.permutation(N_GENES)
    return cells(weights[np.ix_(order, order)], rng)


def found(statistics):
    result = search_structure(statistics)
    return with_loops(statistics, result, edge_log_odds=-2.0).loops


def circles(loops):
    return {frozenset(loop.genes) for loop in loops}


def test_loops_of_two_and_of_three_genes_are_found_and_no_others():
    truth = {frozenset({0, 1}), frozenset({2, 3, 4})}
    loops = [found(loopy(seed)) for seed in range(10)]
    assert sum(circles(own) == truth for own in loops) >= 9
    assert all(circles(own) <= truth for own in loops)
    assert min(own[0].evidence for own in loops) > 100  # those of most evidence come first


def test_edges_of_clear_loops_are_probable_in_both_directions():
    statistics = loopy(2)
    result = search_structure(statistics)
    told = with_loops(statistics, result, edge_log_odds=-2.0)
    two = next(loop for loop in told.loops if set(loop.genes) == {0, 1})
    probability = 1 / (1 + np.exp(-min(two.evidence, two.forward_evidence)))
    assert min(told.edge_probs[0, 1], told.edge_probs[1, 0]) >= probability > 0.99
    assert min(result.edge_probs[0, 1], result.edge_probs[1, 0]) < 0.6
    others = np.ones((N_GENES, N_GENES), dtype=bool)
    others[[0, 1, 2, 3, 4], [1, 0, 3, 4, 2]] = False
    np.testing.assert_array_equal(told.edge_probs[others], result.edge_probs[others])


def test_weights_of_both_directions_are_those_of_the_world():
    statistics = loopy(2)
    two = next(loop for loop in found(statistics) if set(loop.genes) == {0, 1})
    gain = two.weight * two.forward_weight  # does not depend on the scales of genes
    assert gain == pytest.approx(0.7 * 0.5, abs=0.06)


def test_the_acyclic_graph_has_no_such_weights():
    # what the search is left with: one direction takes what the other does as well
    statistics = loopy(0)
    adjacency = search_structure(statistics).adjacency
    assert adjacency[0, 1] != adjacency[1, 0]


def test_acyclic_worlds_have_none():
    assert sum(found(acyclic(seed)) == [] for seed in range(20)) >= 19


def test_the_same_loops_are_found_again():
    assert found(loopy(1)) == found(loopy(1))


def test_edges_that_a_loop_makes_needless_are_left_out():
    statistics = loopy(2)
    result = search_structure(statistics)
    feedback = Feedback(statistics, result.adjacency, result.prior, np.full((N_GENES, N_GENES), 6.0))
    feedback.find()
    truth = np.zeros((N_GENES, N_GENES), dtype=bool)
    truth[tuple(np.array(list(LOOPS)).T)] = True
    assert (result.adjacency != truth).sum() >= 3
    np.testing.assert_array_equal(feedback.adjacency, truth)


def test_genes_that_may_not_regulate_close_no_loop():
    statistics = loopy(0)
    result = search_structure(statistics)
    regulators = np.arange(N_GENES) > 1
    loops = with_loops(statistics, result, edge_log_odds=-2.0, regulators=regulators).loops
    assert circles(loops) == {frozenset({2, 3, 4})}


@pytest.mark.parametrize("why", ["hard", "few cells", "stopped"])
def test_feedback_is_not_looked_for(why):
    statistics = acyclic(0)
    result, watch = search_structure(statistics), SearchWatch()
    watch.is_stopped = why == "stopped"
    if why == "few cells":
        statistics = statistics.of_genes(torch.arange(N_GENES))
        statistics.n_cells.mul_(0.01)
    intervention = "hard" if why == "hard" else "shift"
    assert with_loops(statistics, result, edge_log_odds=-2.0, watch=watch, intervention=intervention).loops is None


def test_loops_are_none_if_the_time_is_over():
    statistics = loopy(0)
    result = search_structure(statistics)
    watch = SearchWatch(seconds=0.0)
    assert with_loops(statistics, result, edge_log_odds=-2.0, watch=watch).loops is None
    assert watch.is_stopped


def test_circle_of_a_gene():
    adjacency = np.zeros((5, 5), dtype=bool)
    adjacency[[0, 1, 2, 3, 3], [1, 2, 0, 0, 4]] = True
    assert circle_of(adjacency, 1) == (0, 1, 2)
    assert circle_of(adjacency, 3) == (3,)


@pytest.mark.parametrize(
    "departures", [{}, {"departure_var": 0.2}, {"departure_var": 0.2, "proportional": True}], ids=str
)
def test_without_a_loop_the_score_is_that_of_acyclic_graphs(departures):
    statistics, prior = acyclic(3), ShiftPrior(0.1, slab_var=4.0, spike_var=1e-3, **departures)
    score = CyclicScore(statistics, prior, np.zeros((N_GENES, N_GENES)))
    sets = [(0, ()), (0, (1,)), (0, (2, 5)), (4, ()), (4, (1, 3))]
    ours = score.scores([Part((gene,), (parents,)) for gene, parents in sets])
    usual = fit_pairs(statistics, prior, sets, n_iterations=50).log_evidence.tolist()
    assert ours[1] - ours[0] == pytest.approx(usual[1] - usual[0], abs=0.01)
    assert ours[2] - ours[0] == pytest.approx(usual[2] - usual[0], abs=0.01)
    assert ours[4] - ours[3] == pytest.approx(usual[4] - usual[3], abs=0.01)


def test_density_of_a_loop_is_that_of_its_normal_distribution():
    statistics, prior = loopy(5), ShiftPrior(1e-300, slab_var=4.0)
    score = CyclicScore(statistics, prior, np.zeros((N_GENES, N_GENES)))
    batch = _Batch(score, [Part((0, 1), ((1,), (0,)))])
    forward, back = 0.6, -0.4
    value = float(batch.objective(torch.tensor([[[back, 0.0], [forward, 0.0]]], dtype=torch.float64)))

    slopes = np.array([[0.0, forward], [back, 0.0]])
    own = np.eye(2) - slopes
    noise = np.diag(own.T @ score.covariance[:2, :2].numpy() @ own)
    covariance = np.linalg.inv(own).T @ np.diag(noise) @ np.linalg.inv(own)
    expected = -0.5 * score.dof * np.linalg.slogdet(covariance)[1]
    for mean, n in zip(score.moved[:2].T.numpy(), score.n_cells.tolist(), strict=True):
        expected -= 0.5 * (mean @ np.linalg.solve(covariance / n, mean) + np.linalg.slogdet(covariance / n)[1])
    assert value == pytest.approx(expected, rel=1e-9)


def test_a_loop_that_does_not_settle_has_a_price():
    score = CyclicScore(loopy(5), ShiftPrior(0.1), np.zeros((N_GENES, N_GENES)))
    batch = _Batch(score, [Part((0, 1), ((1,), (0,)))])
    stable, unstable = (
        float(batch.log_determinants(torch.full((1, 2, 2), slope, dtype=torch.float64))) for slope in (0.5, 1.5)
    )
    n = score.dof + len(score.group)
    assert stable == pytest.approx(n * np.log(0.75))
    assert unstable == pytest.approx(-50 * n)


def test_parts_are_scored_alike_alone_and_beside_larger_ones():
    statistics, prior = loopy(2), ShiftPrior(0.1, misfit=0.2, departure_var=0.3)
    parts = [Part((0, 1), ((1,), (0,))), Part((2, 3, 4), ((4, 0), (2,), (3, 5, 6)))]
    cost = np.full((N_GENES, N_GENES), 6.0)
    together = CyclicScore(statistics, prior, cost).scores(parts)
    alone = [CyclicScore(statistics, prior, cost).score(part) for part in parts]
    np.testing.assert_allclose(together, alone, atol=0.1)


def test_one_perturbation_is_not_enough():
    loop = Loop((0, 1), 0.5, -1.0, 0.5, 10.0)
    statistics = acyclic(0)
    result = search_structure(statistics)
    feedback = Feedback(statistics, result.adjacency, result.prior, np.full((N_GENES, N_GENES), 6.0))
    feedback.candidates, feedback.back = [], [(1, 0)]
    feedback.adjacency[:] = False
    feedback.adjacency[[0, 1], [1, 0]] = True
    feedback._climb, feedback._loop = (lambda: None), (lambda j, i: loop)
    assert feedback.find() == []
