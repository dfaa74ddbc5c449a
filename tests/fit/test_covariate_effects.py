"""Covariates taken out of counts before the moments of hidden expression."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim.fit._covariate_effects import covariate_effects
from scgim.fit._hidden import gather_moments
from scgim.module import GIMModule
from scgim.train import Cells

N, D = 6000, 5
EFFECTS = np.array([[0.5, -0.8, 0.0, 1.0, 0.3], [0.2, 0.0, -0.4, 0.1, 0.6]])


@pytest.fixture(scope="module")
def cells() -> Cells:
    """Two contexts and the control; gene 0 acts on gene 1, in hidden expression; a batch and a continuous covariate move all genes.

    Treated cells are mostly of one batch, so that batches cannot be told from drugs without the controls.
    """
    rng = np.random.default_rng(0)
    context = rng.integers(0, 3, N)
    batch = rng.uniform(size=N) < np.array([0.5, 0.8, 0.9])[context]
    covariates = np.stack([batch - batch.mean(), rng.normal(size=N)], axis=1)
    z = rng.normal(0.0, 0.5, (N, D))
    z[:, 1] += 0.8 * z[:, 0]
    z += np.array([[0, 0, 0, 0, 0], [0.7, 0, 0, 0, 0], [0, 0, -0.5, 0, 0.5]])[context]
    log_size = rng.normal(0.0, 0.3, N)
    x = rng.poisson(np.exp(z + covariates @ EFFECTS + log_size[:, None] + 1.0))
    return Cells(
        *(v.astype(t) for v, t in ((x, "float32"), (context, "int64"), (covariates, "float32"), (log_size, "float32")))
    )


@pytest.fixture
def module() -> GIMModule:
    return GIMModule(D, np.array([-1, 0, 1]), None, 2, "nb", "linear", "shift", 3)


def test_effects_are_found_beside_those_of_contexts(module, cells, load):
    np.testing.assert_allclose(covariate_effects(module, load(cells)), EFFECTS, atol=0.06)


def test_moments_do_not_see_covariates(module, cells, load):
    gram = gather_moments(module, load(cells)).statistics.gram
    correlation = gram / gram.diagonal().sqrt().outer(gram.diagonal().sqrt())
    expected = torch.eye(D, dtype=torch.float64)
    expected[0, 1] = expected[1, 0] = 0.4 / np.hypot(0.4, 0.5)
    np.testing.assert_allclose(correlation, expected, atol=0.08)


def test_means_of_contexts_are_those_without_covariates(module, cells, load):
    hidden = gather_moments(module, load(cells))
    moved = hidden.statistics.means * hidden.spread
    np.testing.assert_allclose(moved[1], [0.7, 0, 0, 0, 0], atol=0.09)
    np.testing.assert_allclose(moved[2], [0, 0, -0.5, 0, 0.5], atol=0.09)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_covariate_with_a_long_tail_does_not_run_away(load, seed):
    rng = np.random.default_rng(seed)
    n, effect = 2000, 0.2
    skewed = np.exp(1.5 * rng.normal(size=n))
    skewed = (skewed - skewed.mean()) / skewed.std()
    x = rng.poisson(0.5 * np.exp(effect * skewed))[:, None].repeat(2, axis=1)
    alone = GIMModule(2, np.array([-1, 0]), None, 1, "nb", "linear", "shift", 3)
    cells = Cells(
        x.astype("float32"), rng.integers(0, 2, n), skewed[:, None].astype("float32"), np.zeros(n, dtype="float32")
    )
    np.testing.assert_allclose(covariate_effects(alone, load(cells)), effect, atol=0.06)
