"""Averages over sets of targets against sums over all of them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

import scgim.interventions._target_sets as module
from scgim.interventions._target_sets import TargetAverages, average_over_targets


def problem(g: int, q: int, seed: int = 0, strength: float = 3.0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(g * q, g * q)) / np.sqrt(g * q)
    slab = rng.normal(size=(q, q))
    values = {
        "precision": strength * root @ root.T,
        "linear": strength * rng.normal(size=g * q),
        "log_odds": rng.normal(-2.0, 0.5, g),
        "slab_mean": 0.3 * rng.normal(size=(g, q)),
        "slab_cov": slab @ slab.T + 0.5 * np.eye(q),
    }
    return {name: torch.as_tensor(value) for name, value in values.items()}


def by_enumeration(precision, linear, log_odds, slab_mean, slab_cov) -> TargetAverages:
    """Sum over all sets, each effect integrated out as a multivariate normal."""
    g, q = slab_mean.shape
    own = np.linalg.inv(slab_cov)
    logs, firsts, seconds, members = [], [], [], []
    for size in range(g + 1):
        for chosen in combinations(range(g), size):
            c = [i * q + a for i in chosen for a in range(q)]
            prior = np.kron(np.eye(size), own)
            mean = slab_mean[list(chosen)].reshape(-1)
            total = precision[np.ix_(c, c)] + prior
            pull = linear[c] + prior @ mean
            effect = np.linalg.solve(total, pull)
            log = 0.5 * (pull @ effect - mean @ prior @ mean)
            log += 0.5 * (np.linalg.slogdet(prior)[1] - np.linalg.slogdet(total)[1]) + log_odds[list(chosen)].sum()
            cov = np.linalg.inv(total).reshape(size, q, size, q)
            first, second, on = np.zeros((g, q)), np.zeros((g, q, q)), np.zeros(g)
            for place, gene in enumerate(chosen):
                e = effect.reshape(size, q)[place]
                first[gene], second[gene], on[gene] = e, cov[place, :, place] + np.outer(e, e), 1
            logs.append(log), firsts.append(first), seconds.append(second), members.append(on)
    weight = np.exp(np.array(logs) - max(logs))
    weight /= weight.sum()
    probs, first, second = (np.tensordot(weight, np.array(a), 1) for a in (members, firsts, seconds))
    effect = first / probs[:, None]
    return TargetAverages(probs, effect, second / probs[:, None, None] - effect[:, :, None] * effect[:, None])


def averages(precision, linear, log_odds, slab_mean, slab_cov) -> TargetAverages:
    """Averages for one drug, whose precision and linear term lie gene by gene."""
    g, q = slab_mean.shape
    by_part = precision.reshape(1, g, q, g, q).permute(0, 2, 1, 4, 3), linear.reshape(1, g, q).transpose(1, 2)
    return TargetAverages(*(part[0] for part in average_over_targets(*by_part, log_odds, slab_mean, slab_cov)))


@pytest.mark.parametrize(("g", "q"), [(1, 1), (5, 1), (5, 2), (4, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_averages_are_those_over_all_sets(g, q, seed):
    arguments = problem(g, q, seed)
    found = averages(**arguments)
    expected = by_enumeration(**{name: value.numpy() for name, value in arguments.items()})
    np.testing.assert_allclose(found.probs, expected.probs, atol=1e-5)
    clear = expected.probs > 0.05
    np.testing.assert_allclose(found.effect[clear], expected.effect[clear], atol=1e-3)
    np.testing.assert_allclose(found.cov[clear], expected.cov[clear], atol=1e-3)


def test_nothing_known_leaves_the_prior():
    arguments = problem(6, 2)
    arguments["precision"], arguments["linear"] = torch.zeros(12, 12).double(), torch.zeros(12).double()
    found = averages(**arguments)
    torch.testing.assert_close(found.probs, torch.sigmoid(arguments["log_odds"]), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.effect, arguments["slab_mean"], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.cov, arguments["slab_cov"].expand(6, 2, 2), atol=1e-6, rtol=0)


def test_of_two_genes_that_explain_the_same_one_is_a_target():
    """Only the sum of two effects is seen: either gene, not both, and which is not known."""
    precision = torch.full((2, 2), 100.0, dtype=torch.float64)
    linear = torch.full((2,), 200.0, dtype=torch.float64)
    odds, mean, cov = torch.full((2,), -4.0).double(), torch.zeros(2, 1).double(), torch.full((1, 1), 4.0).double()
    found = averages(precision, linear, odds, mean, cov)
    np.testing.assert_allclose(found.probs, 0.5, atol=0.03)
    np.testing.assert_allclose(found.effect, 2.0, atol=0.1)


def test_two_targets_that_explain_together_what_neither_does():
    precision = torch.tensor([[100.0, -95.0], [-95.0, 100.0]]).double()
    linear = precision @ torch.tensor([2.5, 2.5]).double()
    arguments = (
        precision,
        linear,
        torch.full((2,), -9.0).double(),
        torch.zeros(2, 1).double(),
        torch.eye(1).double() * 4,
    )
    found, expected = averages(*arguments), by_enumeration(*(value.numpy() for value in arguments))
    assert expected.probs.min() > 0.99
    np.testing.assert_allclose(found.probs, expected.probs, atol=1e-5)


def test_what_is_said_of_a_drug_does_not_depend_on_the_others():
    """Drugs are searched side by side, and each ends when its own sets do."""
    g, q = 12, 2
    arguments = problem(g, q)
    rng = np.random.default_rng(1)
    precision = arguments["precision"].reshape(g, q, g, q).permute(1, 0, 3, 2)
    strength = torch.tensor([0.0, 0.3, 3.0, 30.0]).double()
    linear = torch.as_tensor(rng.normal(size=(4, q, g))) * strength[:, None, None]
    precision = precision * strength[:, None, None, None, None]
    prior = arguments["log_odds"], arguments["slab_mean"], arguments["slab_cov"]
    together = average_over_targets(precision, linear, *prior)
    for i in range(4):
        alone = average_over_targets(precision[i : i + 1], linear[i : i + 1], *prior)
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[i], theirs[0], rtol=1e-9, atol=1e-12)


def test_a_set_that_is_reached_twice_counts_once():
    """Of few genes all sets are kept, and more than one way leads to most: none may be repeated, nor a gene within one."""
    arguments = problem(6, 1, strength=0.1)
    arguments["log_odds"] = torch.full((6,), 1.0, dtype=torch.float64)
    found = averages(**arguments)
    expected = by_enumeration(**{name: value.numpy() for name, value in arguments.items()})
    np.testing.assert_allclose(found.probs, expected.probs, atol=1e-3)


def test_no_genes():
    shapes = (1, 2, 0, 2, 0), (1, 2, 0), (0,), (0, 2)
    found = average_over_targets(*(torch.zeros(s).double() for s in shapes), torch.eye(2).double())
    assert [tuple(part.shape) for part in found] == [(1, 0), (1, 0, 2), (1, 0, 2, 2)]


def test_sets_stop_growing_where_one_more_target_is_out_of_the_question(monkeypatch):
    arguments = problem(6, 1)
    arguments["precision"], arguments["linear"] = torch.zeros(6, 6).double(), torch.zeros(6).double()
    arguments["log_odds"] = torch.full((6,), -60.0).double()
    grown, larger = [], module._larger
    monkeypatch.setattr(module, "_larger", lambda *args: grown.append(1) or larger(*args))
    assert averages(**arguments).probs.max() < 1e-20
    assert len(grown) == 1
