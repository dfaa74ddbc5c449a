"""Hidden programmes against the marginal likelihood of the factor model, and their recovery."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from scgim.interventions._programmes import effective_genes, initial_loadings, price, programme_of, update_loadings

K, D = 12, 80


@pytest.fixture
def factors():
    """Displacements (K, d), their noise variances, loadings (K, 2) and scores (2, d)."""
    rng = np.random.default_rng(0)
    loadings, scores = rng.normal(size=(K, 2)) * [2.0, 1.0], rng.normal(size=(2, D))
    noise = rng.uniform(0.05, 0.2, (K, D))
    shift = loadings @ scores + np.sqrt(noise) * rng.normal(size=(K, D))
    return tuple(torch.as_tensor(t) for t in (shift, noise, loadings, scores))


def log_marginal(shift: torch.Tensor, noise: torch.Tensor, loadings: torch.Tensor) -> float:
    """Log density of each gene's displacements, scores summed out."""
    shared = (loadings @ loadings.T).numpy()
    return sum(
        multivariate_normal(np.zeros(K), shared + np.diag(noise[:, j].numpy())).logpdf(shift[:, j].numpy())
        for j in range(D)
    )


def test_fit_less_price_is_the_marginal_likelihood(factors):
    shift, noise, loadings, _ = factors
    residuals = shift - programme_of(shift, noise, loadings)
    fit = torch.distributions.Normal(0.0, noise.sqrt()).log_prob(residuals).sum()
    criterion = 0.5 * loadings.numel() * np.log(D)
    np.testing.assert_allclose(
        fit - (price(shift, noise, loadings) - criterion), log_marginal(shift, noise, loadings), rtol=1e-8
    )


def test_each_step_raises_the_marginal_likelihood(factors):
    shift, noise, *_ = factors
    loadings = initial_loadings(shift, noise, 2)
    values = [log_marginal(shift, noise, loadings)]
    for _ in range(8):
        loadings = update_loadings(shift, noise, loadings)
        values.append(log_marginal(shift, noise, loadings))
    assert (np.diff(values) > -1e-6).all()
    assert values[-1] > values[0]


def test_programmes_are_recovered(factors):
    shift, noise, loadings, scores = factors
    found = initial_loadings(shift, noise, 2)
    for _ in range(20):
        found = update_loadings(shift, noise, found)
    truth = loadings @ scores
    error = (programme_of(shift, noise, found) - truth).square().mean()
    assert error < 0.5 * (shift - truth).square().mean()


def test_effective_genes_counts_those_that_share_a_programme():
    loadings = torch.linspace(1, 2, K).double()[:, None]
    noise = torch.full((K, D), 1e-3).double()
    scores = torch.zeros(1, D).double()
    for n_genes in (1, 10, D):
        scores[:, :n_genes] = 1.0
        np.testing.assert_allclose(effective_genes(loadings @ scores, noise, loadings), n_genes, rtol=1e-3)
