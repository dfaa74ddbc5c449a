"""Evidence of a gene given its parents against sums over all target configurations."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from scgim._departures import bends
from scgim._priors import ShiftPrior
from scgim.structure._climb import fit_pairs
from scgim.structure._score import GeneFit, _Relevance, empirical_prior, fit_genes
from scgim.structure._statistics import ContextStatistics, StatisticsAccumulator

PRIOR = ShiftPrior(target_prob=0.2, slab_var=1.5, spike_var=0.01)
W = np.array([[0, 0.8, 0, 0.5], [0, 0, -0.7, 0], [0, 0, 0, 0.6], [0, 0, 0, 0]])
TARGETS = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]])
PARENTS = {0: (), 1: (0,), 2: (1,), 3: (0, 2)}


@pytest.fixture(scope="module", params=["shift", "hard"])
def screen(request, simulate):
    return request.param, simulate(W, TARGETS, hard=request.param == "hard", n_cells=20, n_controls=80)


@pytest.fixture(scope="module")
def shift_screen(simulate):
    return simulate(W, TARGETS, n_cells=20, n_controls=80)


def padded(parents: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(1, *map(len, parents))
    index, mask = torch.zeros(len(parents), width, dtype=torch.long), torch.zeros(len(parents), width).double()
    for b, p in enumerate(parents):
        index[b, : len(p)] = torch.tensor(p, dtype=torch.long)
        mask[b, : len(p)] = 1
    return index, mask


def fit(statistics, parents: dict[int, tuple[int, ...]], **kwargs):
    index, mask = padded(list(parents.values()))
    return fit_genes(statistics, torch.tensor(list(parents)), index, mask, kwargs.pop("prior", PRIOR), **kwargs)


def configurations(n: int, target_prob: float):
    """All target configurations and the log prior of each."""
    for on in itertools.product([False, True], repeat=n):
        yield np.array(on), sum(np.log(target_prob if t else 1 - target_prob) for t in on)


def brute_force_shift(
    screen, gene: int, parents: tuple[int, ...], w: np.ndarray, variance: float, misfit: float = 0.0
) -> tuple[float, np.ndarray]:
    """Log evidence from the cells themselves, and target probabilities, at given weights (intercept last).

    The displacement of each context is summed out in a multivariate normal over its cells' residuals.
    """
    residuals = screen.x[:, gene] - screen.x[:, list(parents)] @ w[: len(parents)] - w[-1]
    group = screen.statistics.group.numpy()
    means = screen.statistics.means[:, list(parents)].numpy()
    spike = PRIOR.spike_var + misfit**2 * ((w[: len(parents)] * (means - means[group < 0])) ** 2).sum(1)
    logs, configs = [], list(configurations(3, PRIOR.target_prob))
    for on, log_prior in configs:
        total = log_prior
        for k, g in enumerate(group):
            r = residuals[screen.context == k]
            displaced = spike[k] + PRIOR.slab_var * (g >= 0 and on[g])
            cov = variance * np.eye(len(r)) + displaced
            total += multivariate_normal(np.zeros(len(r)), cov).logpdf(r)
        logs.append(total)
    logs = np.array(logs)
    weight = np.exp(logs - logsumexp(logs))
    return float(logsumexp(logs)), weight @ np.array([on for on, _ in configs])


@pytest.mark.parametrize("misfit", [0.0, 0.4])
def test_shift_evidence_and_target_probabilities_by_enumeration(shift_screen, misfit):
    found = fit(shift_screen.statistics, PARENTS, n_iterations=60, prior=replace(PRIOR, misfit=misfit))
    n, k = len(shift_screen.x), shift_screen.statistics.n_contexts
    # what the score leaves out: the constant of the normal, and of the mean of each context
    constant = -0.5 * n * np.log(2 * np.pi) - 0.5 * np.log(shift_screen.statistics.n_cells.numpy()).sum()
    for b, (gene, parents) in enumerate(PARENTS.items()):
        weights = np.r_[found.weights[b, : len(parents)], found.weights[b, -1]]
        expected, probs = brute_force_shift(shift_screen, gene, parents, weights, float(found.noise_var[b]), misfit)
        np.testing.assert_allclose(found.log_evidence[b] + constant, expected, rtol=1e-9)
        np.testing.assert_allclose(found.target_probs[b], probs, atol=1e-6)
    assert k == 7


@pytest.mark.parametrize("proportional", [False, True])
def test_departures_are_integrated_out(shift_screen, proportional):
    """Without targets the means of contexts are jointly normal, of a covariance that departures give a low rank."""
    statistics = shift_screen.statistics
    prior = ShiftPrior(1e-12, 1e-9, 0.02, misfit=0.3, departure_var=0.2, proportional=proportional)
    found = fit(statistics, {3: (0, 2)}, n_iterations=100, prior=prior)
    means, noise = statistics.means, float(found.noise_var[0])
    moved = (means - means[statistics.group < 0])[:, [0, 2]].T
    spread = noise / statistics.n_cells + prior.spike_var + prior.misfit**2 * found.passed[0]
    gram, cross = statistics.gram[[0, 2]][:, [0, 2]], statistics.gram[[0, 2], 3]
    within = torch.linalg.solve(gram, cross)
    if proportional:
        moved = moved * within.abs()[:, None]
    z = bends(moved).flatten(0, 1)
    covariance = torch.diag(spread) + prior.departure_var * z.T @ z
    left = means[:, 3] - means[:, [0, 2]] @ found.weights[0, :2] - found.weights[0, 2]
    of_means = multivariate_normal(np.zeros(len(left)), covariance.numpy()).logpdf(left.numpy())
    w = found.weights[0, :2]
    rss = float(statistics.gram[3, 3] - 2 * w @ cross + w @ gram @ w)
    of_cells = -0.5 * (rss / noise + statistics.residual_dof * np.log(noise))
    expected = of_means + 0.5 * len(left) * np.log(2 * np.pi) + of_cells
    np.testing.assert_allclose(found.log_evidence[0], expected, rtol=1e-6)
    slopes = torch.einsum("fp,fpk->k", found.departures[0], bends(moved))
    torch.testing.assert_close(slopes, found.transported[0])
    torch.testing.assert_close(found.residuals[0] + slopes, left)


def test_mechanisms_that_hold_have_no_departures_and_no_misfit(simulate):
    statistics = simulate(W, TARGETS, n_cells=200, n_controls=2000, effect=6.0).statistics
    prior = ShiftPrior(0.2, 4.0, misfit=0.3, departure_var=0.3)
    for _ in range(3):
        prior = empirical_prior(statistics, fit(statistics, PARENTS, prior=prior), prior)
    assert prior.misfit <= 0.03
    assert prior.departure_var < 0.01


@pytest.mark.parametrize(("bent", "effect"), [(np.tanh, 2.0), (lambda h: h**3 / 9, 9.0)])
def test_what_a_bent_mechanism_passes_on_is_no_target(bent, effect):
    """A gene follows its parent beyond the line of its control cells; without departures each perturbation of the parent hits it too."""
    rng = np.random.default_rng(0)
    group = np.r_[-1, np.repeat(np.arange(8), 3)]
    push = np.zeros((25, 2))
    push[1:, 0] = np.where(np.arange(24) < 15, rng.choice([-1, 1], 24) * np.tile([1.5, 3.0, 6.0], 8), 0)
    push[1:4, 1] = effect  # the first perturbation hits both
    context = np.repeat(np.arange(25), [400, *[40] * 24])
    parent = push[context, 0] + rng.normal(size=len(context))
    child = bent(parent) + push[context, 1] + 0.5 * rng.normal(size=len(context))
    x = torch.as_tensor(np.c_[parent, child])
    accumulator = StatisticsAccumulator(torch.as_tensor(group), 2, 2)
    accumulator.update(x, torch.as_tensor(context))
    statistics, called = accumulator.finalise(), {}
    for first in (0.0, 0.3):
        prior = ShiftPrior(0.1, 2.0, misfit=first, departure_var=first)
        for _ in range(3):
            found = fit(statistics, {1: (0,)}, prior=prior, n_iterations=20)
            prior = empirical_prior(statistics, found, prior) if first else prior
        called[first] = found.target_probs[0] > 0.5
    assert called[0.0].sum() >= 4
    assert called[0.3].tolist() == [True] + 7 * [False]


def test_shift_weights_maximise_the_evidence(shift_screen):
    gene, parents = 3, PARENTS[3]
    found = fit(shift_screen.statistics, {gene: parents}, n_iterations=200)
    best, variance = found.weights[0].numpy(), float(found.noise_var[0])
    value = brute_force_shift(shift_screen, gene, parents, best, variance)[0]
    for direction in np.vstack([np.eye(3), -np.eye(3)]):
        assert brute_force_shift(shift_screen, gene, parents, best + 0.01 * direction, variance)[0] < value


def test_fit_recovers_weights_and_targets(screen):
    intervention, data = screen
    prior = ShiftPrior(target_prob=0.2, slab_var=4.0)
    found = fit(data.statistics, PARENTS, intervention=intervention, prior=prior)
    for b, (gene, parents) in enumerate(PARENTS.items()):
        np.testing.assert_allclose(found.weights[b, : len(parents)], W[list(parents), gene], atol=0.2)
    np.testing.assert_array_equal(found.target_probs.numpy() > 0.5, TARGETS.T)
    np.testing.assert_allclose(found.noise_var, 1.0, atol=0.2)


def test_fit_without_perturbation_effects_is_least_squares(shift_screen):
    """With no slab to speak of, weights are those of a regression on all cells within and between contexts."""
    prior = ShiftPrior(target_prob=1e-9, slab_var=1e-9, spike_var=1e6)
    found = fit(shift_screen.statistics, {3: (0, 2)}, prior=prior)
    x, context = shift_screen.x, shift_screen.context
    design = np.hstack([np.eye(7)[context], x[:, [0, 2]]])
    expected, rss, *_ = np.linalg.lstsq(design, x[:, 3], rcond=None)
    np.testing.assert_allclose(found.weights[0, :2], expected[-2:], atol=1e-4)
    np.testing.assert_allclose(found.noise_var[0], rss[0] / (len(x) - 7), rtol=1e-4)


def test_padding_changes_nothing(screen):
    intervention, data = screen
    alone = fit(data.statistics, {1: (0,)}, intervention=intervention)
    beside = fit(data.statistics, {1: (0,), 3: (0, 1, 2)}, intervention=intervention)
    torch.testing.assert_close(alone.log_evidence[0], beside.log_evidence[0])
    torch.testing.assert_close(alone.target_probs[0], beside.target_probs[0])


def test_true_parents_score_best(screen):
    intervention, data = screen
    prior = ShiftPrior(target_prob=0.2, slab_var=4.0)
    options = [p for n in range(4) for p in itertools.combinations([0, 1, 2], n)]
    index, mask = padded(options)
    found = fit_genes(data.statistics, torch.full((len(options),), 3), index, mask, prior, intervention=intervention)
    cost = 0.5 * np.log(len(data.x)) * np.array([len(p) for p in options])
    assert options[int(np.argmax(found.log_evidence.numpy() - cost))] == (0, 2)


def brute_force_hard(screen, gene: int, parents: tuple[int, ...], w: np.ndarray, variance: float) -> float:
    """Log evidence less constants; the cells of a target follow a normal of their own with one fitted variance."""
    x, context, group = screen.x, screen.context, screen.statistics.group.numpy()
    y = x[:, gene]
    fitted = x[:, list(parents)] @ w[: len(parents)] + w[-1]

    def log_normal_of(values, cells, var, mean_var) -> float:
        """Cells about their context means, and the means themselves."""
        total = 0.0
        for k in np.unique(context[cells]):
            v = values[cells & (context == k)]
            total += norm(0, np.sqrt(var / len(v) + mean_var)).logpdf(v.mean()) + 0.5 * np.log(2 * np.pi)
            total -= 0.5 * ((v - v.mean()) ** 2).sum() / var + 0.5 * (len(v) - 1) * np.log(var)
        return total

    logs = []
    for on, log_prior in configurations(3, PRIOR.target_prob):
        total = log_prior + log_normal_of(y - fitted, group[context] < 0, variance, PRIOR.spike_var)
        for g in range(3):
            cells = group[context] == g
            if not on[g]:
                total += log_normal_of(y - fitted, cells, variance, PRIOR.spike_var)
                continue
            dof = cells.sum() - 2
            own = sum(((y[context == k] - y[context == k].mean()) ** 2).sum() for k in np.unique(context[cells]))
            own_var = (own + variance) / (dof + 1)
            total += log_normal_of(y - w[-1], cells, own_var, PRIOR.slab_var) - 0.5 * np.log(dof + 1)
        logs.append(total)
    return float(logsumexp(logs))


def test_hard_evidence_by_enumeration(simulate):
    screen = simulate(W, TARGETS, hard=True, n_cells=20, n_controls=80)
    found = fit(screen.statistics, PARENTS, intervention="hard", n_iterations=30)
    for b, (gene, parents) in enumerate(PARENTS.items()):
        weights = np.r_[found.weights[b, : len(parents)], found.weights[b, -1]]
        expected = brute_force_hard(screen, gene, parents, weights, float(found.noise_var[b]))
        np.testing.assert_allclose(found.log_evidence[b], expected, rtol=1e-9)


def test_log_odds():
    np.testing.assert_allclose(ShiftPrior(0.25).log_odds, np.log(1 / 3))


def test_weights_are_integrated_out_in_closed_form():
    """Integral of a normal likelihood of weights over their normal prior, by its value at the mode and what the class adds."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(1, 5, 5))
    a, b = torch.as_tensor(root @ root.transpose(0, 2, 1)), torch.as_tensor(rng.normal(size=(1, 5)))
    relevance = _Relevance(torch.tensor([0, 0, 1, 1]), 1)
    prior = relevance.precision[0, relevance.of_column].numpy()
    w = relevance.solve(a, b)[0].numpy()
    a, b = a[0].numpy(), b[0].numpy()
    at_mode = -0.5 * w @ a @ w + b @ w
    # as if b were a draw: integral of exp(-w'aw/2 + b'w) over N(0, 1/prior)
    total = a + np.diag(prior)
    expected = 0.5 * (np.log(prior).sum() - np.linalg.slogdet(total)[1] + b @ np.linalg.solve(total, b))
    np.testing.assert_allclose(at_mode + float(relevance.log_volume), expected, rtol=1e-10)


def test_weights_of_a_family_that_does_nothing_are_shrunk(shift_screen):
    """Of two families of parents, one of noise, the other keeps its weights."""
    rng = np.random.default_rng(1)
    s = shift_screen.statistics
    x = np.hstack([shift_screen.x, rng.normal(size=(len(shift_screen.x), 4))])
    accumulator = StatisticsAccumulator(s.group, 8, 8)
    accumulator.update(torch.as_tensor(x), torch.as_tensor(shift_screen.context))
    wide = accumulator.finalise()
    index, mask = padded([(0, 2, 4, 5, 6, 7)])
    families = torch.tensor([0, 0, 1, 1, 1, 1])
    free = fit_genes(wide, torch.tensor([3]), index, mask, PRIOR)
    shrunk = fit_genes(wide, torch.tensor([3]), index, mask, PRIOR, families=families)
    np.testing.assert_allclose(shrunk.weights[0, :2], free.weights[0, :2], atol=0.05)
    assert shrunk.weights[0, 2:6].abs().max() < 0.5 * free.weights[0, 2:6].abs().max()


@pytest.mark.parametrize(("prob", "expected"), [(0.0, 0.25 / 3), (0.2, 0.2), (0.9, 0.3)])
def test_the_prior_is_fitted_by_moments(prob, expected):
    """Squared displacements less their noise: of targets for the slab, of others for the spike, its median over genes."""
    n = torch.tensor([50.0, 20.0, 10.0]).double()
    group = torch.tensor([-1, 0, 1])
    residuals = torch.tensor([[9.0, 1.0, -2.0], [9.0, 0.5, 0.5], [9.0, -3.0, 0.1]]).double()
    noise = torch.tensor([1.0, 2.0, 0.5]).double()
    probs = torch.full((3, 2), prob).double()
    statistics = ContextStatistics(torch.eye(3), torch.zeros(3, 3), n, group, 3)
    still, none = torch.zeros_like(residuals), torch.zeros(3, 3, 1)  # nothing reaches the genes through parents
    fit = GeneFit(torch.zeros(3), torch.zeros(3, 1), probs, noise, residuals, still, none, none, still, probs)
    found = empirical_prior(statistics, fit, ShiftPrior(0.05))
    square = (residuals[:, 1:].square() - noise[:, None] / n[1:]).numpy()
    spike, slab = np.median(square.mean(1)), square.mean() if prob else 0.1
    np.testing.assert_allclose([found.target_prob, found.spike_var, found.slab_var], [expected, spike, slab])


@pytest.mark.parametrize("departure_var", [0.0, 0.3])
def test_fits_of_batches_are_those_of_all_at_once(screen, departure_var):
    """Pairs of fewer parents come first, so that they have to be filled up."""
    intervention, simulated = screen
    prior = replace(PRIOR, departure_var=departure_var, misfit=0.1 * (departure_var > 0))
    pairs = [(0, ()), (1, (0,)), (3, (0, 2))]
    at_once = fit_pairs(simulated.statistics, prior, pairs, intervention)
    joined = GeneFit.joined([fit_pairs(simulated.statistics, prior, [pair], intervention) for pair in pairs])
    for name in GeneFit.__dataclass_fields__:
        torch.testing.assert_close(getattr(joined, name), getattr(at_once, name), rtol=1e-6, atol=1e-8, msg=name)
