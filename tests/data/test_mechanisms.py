from __future__ import annotations

import numpy as np
import pytest

from scgim.data._mechanisms import LinearMechanism, MLPMechanism, random_mechanism


def test_mlp_has_the_variance_of_the_linear_mechanism():
    rng = np.random.default_rng(0)
    weights = np.array([1.0, -2.0, 0.5])
    values = MLPMechanism(weights, rng)(rng.normal(size=(100_000, 3)))
    assert values.mean() == pytest.approx(0, abs=0.15)
    assert values.std() == pytest.approx(np.linalg.norm(weights), rel=0.05)


def test_slopes_are_finite_differences():
    rng = np.random.default_rng(1)
    mechanism = MLPMechanism(np.array([1.5, -0.7]), rng)
    parents = rng.normal(size=(500, 2))
    for i, step in enumerate(1e-5 * np.eye(2)):
        difference = (mechanism(parents + step) - mechanism(parents - step)).mean() / 2e-5
        assert mechanism.slopes(parents)[i] == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_rescaling_multiplies_values_and_slopes(kind):
    rng = np.random.default_rng(2)
    mechanism, parents = random_mechanism(kind, 3, rng), rng.normal(size=(100, 3))
    values, slopes = mechanism(parents), mechanism.slopes(parents)
    mechanism.rescale(0.3)
    np.testing.assert_allclose(mechanism(parents), 0.3 * values)
    np.testing.assert_allclose(mechanism.slopes(parents), 0.3 * slopes)


def test_centring_moves_the_mean_of_an_mlp():
    mechanism, parents = (
        MLPMechanism(np.ones(2), np.random.default_rng(0)),
        np.random.default_rng(1).normal(size=(50, 2)),
    )
    values = mechanism(parents)
    mechanism.rescale(2.0, values.mean())
    np.testing.assert_allclose(mechanism(parents), 2 * (values - values.mean()))


def test_gene_without_parents_has_a_constant_mechanism():
    mechanism = random_mechanism("mlp", 0, np.random.default_rng(0))
    assert isinstance(mechanism, LinearMechanism)
    np.testing.assert_array_equal(mechanism(np.zeros((4, 0))), np.zeros(4))
