"""From arrays to a graph in one call."""

from __future__ import annotations

import numpy as np
import pytest

from scgim.structure import learn_graph

GROUP = np.concatenate([[-1], np.repeat(np.arange(5), 2)])
CHAIN = np.diag([0.9, -0.8, 0.9, -0.8], 1)  # 0 -> 1 -> ... -> 4


def test_a_known_graph_is_found_in_any_units(simulate):
    screen = simulate(CHAIN, np.eye(5))
    scale, place = np.array([1.0, 10.0, 0.1, 3.0, 1e3]), np.arange(5.0)
    for x in (screen.x, screen.x * scale + place):
        found = learn_graph(x, screen.context, GROUP)
        np.testing.assert_array_equal(found.adjacency, CHAIN != 0)
        assert found.edge_probs[CHAIN != 0].min() > 0.95
        assert found.edge_probs[CHAIN == 0].max() < 0.1


def test_hard_interventions(simulate):
    screen = simulate(CHAIN, np.eye(5), hard=True)
    found = learn_graph(screen.x, screen.context, GROUP, intervention="hard")
    np.testing.assert_array_equal(found.adjacency, CHAIN != 0)


def test_covariates_are_taken_out(simulate):
    screen = simulate(CHAIN, np.eye(5))
    batch = np.random.default_rng(0).integers(2, size=(len(screen.x), 1)).astype(float)
    x = screen.x + 3 * batch * np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    assert learn_graph(x, screen.context, GROUP).adjacency.sum() > 4  # a hidden cause looks like edges
    np.testing.assert_array_equal(learn_graph(x, screen.context, GROUP, covariates=batch).adjacency, CHAIN != 0)


def test_prior_odds_hold(simulate):
    screen = simulate(CHAIN, np.eye(5))
    forbidden = np.full((5, 5), -2.0)
    forbidden[0, 1] = -1e6
    assert not learn_graph(screen.x, screen.context, GROUP, edge_log_odds=forbidden).adjacency[0, 1]


def test_only_regulators_act_on_others(simulate):
    screen = simulate(CHAIN, np.eye(5))
    found = learn_graph(screen.x, screen.context, GROUP, regulators=[True, False, True, True, True])
    assert not found.adjacency[1].any()
    assert not found.edge_probs[1].any()
    assert found.adjacency[2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros(9)}, r"samples x variables.*\(9,\)"),
        ({"x": np.full((9, 2), np.nan)}, "18 values that are NaN"),
        ({"context": np.full(9, 7)}, "codes from 7 to 7, but `group` has 2 contexts"),
        ({"group": np.array([0, 1])}, "No sample is in a context of `group` -1"),
        ({"group": np.array([-1, -1])}, "controls only"),
        ({"intervention": "soft"}, "'shift' or 'hard', found 'soft'"),
    ],
)
def test_wrong_input(change, message):
    arguments = {"x": np.zeros((9, 2)), "context": np.arange(9) % 2, "group": np.array([-1, 0])}
    with pytest.raises(ValueError, match=message):
        learn_graph(**{**arguments, **change})
