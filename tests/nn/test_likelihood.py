"""Observation models against scipy, their derivatives against autograd, their draws against both."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.stats
import torch

from scgim.nn._likelihood import (
    LIKELIHOODS,
    MAX_LOG_MEAN,
    CommonNoise,
    _standard_gamma,
    observation,
    parent_features,
    poisson_quantile,
    sample_observation,
    score_and_information,
)

PREDICTOR = torch.tensor([[-1.0, 0.5, 2.0], [0.3, 1.0, -3.0]]).double()
LOG_SIZE = torch.tensor([[0.0], [0.4]]).double()
LOG_SCALE = torch.tensor([0.0, 1.0, 3.0]).double()


def reference(likelihood: str):
    """The scipy distribution."""
    mean, r = np.exp((PREDICTOR + LOG_SIZE).numpy()), np.exp(LOG_SCALE.numpy())
    if likelihood == "nb":
        return scipy.stats.nbinom(r, r / (r + mean))
    if likelihood == "poisson":
        return scipy.stats.poisson(mean)
    return scipy.stats.norm(PREDICTOR.numpy(), np.exp(-0.5 * LOG_SCALE.numpy()))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_log_density(likelihood):
    x = torch.tensor([[0.0, 3.0, 12.0], [1.0, 0.0, 7.0]]).double()
    found = observation(likelihood, PREDICTOR, LOG_SIZE, LOG_SCALE).log_prob(x)
    expected = reference(likelihood)
    log_density = expected.logpdf if likelihood == "normal" else expected.logpmf
    np.testing.assert_allclose(found, log_density(x.numpy()), rtol=1e-8)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_draws_have_the_moments_of_the_distribution(likelihood):
    n = 200_000
    generator = torch.Generator().manual_seed(0)
    expected = reference(likelihood)
    for row in range(2):
        predictor, log_size = PREDICTOR[row].expand(n, 3).float(), LOG_SIZE[row].expand(n, 1).float()
        x, mean = sample_observation(likelihood, predictor, log_size, LOG_SCALE.float(), generator)
        np.testing.assert_allclose(mean[0], expected.mean()[row], rtol=1e-5)
        tolerance = 5 * expected.std()[row] / np.sqrt(n)
        assert (np.abs(x.mean(0).numpy() - expected.mean()[row]) < tolerance).all()
        np.testing.assert_allclose(x.var(0), np.broadcast_to(expected.var(), (2, 3))[row], rtol=0.06)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_draws_are_reproducible(likelihood):
    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(7)
        return sample_observation(likelihood, PREDICTOR.float(), LOG_SIZE.float(), LOG_SCALE.float(), generator)[0]

    torch.testing.assert_close(draw(), draw(), rtol=0, atol=0)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_gamma_draws_are_those_of_the_generator(device):
    shared = torch.default_generator if device == "cpu" else torch.cuda.default_generators[0]
    shape = torch.tensor([[0.01, 0.5, 30.0]], device=device).expand(400, 3)
    torch.manual_seed(7)
    expected = torch.distributions.Gamma(shape, 1.0).sample(torch.Size([2]))
    torch.manual_seed(1)
    before = shared.get_state()
    generator = torch.Generator(device).manual_seed(7)
    found = _standard_gamma(shape.expand(2, -1, -1), generator)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not torch.equal(_standard_gamma(shape, generator), found[0])  # the generator went on
    assert torch.equal(shared.get_state(), before)  # and torch's own did not


def test_generators_of_several_threads_do_not_mix():
    shape = torch.full((2000, 3), 0.5)

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.stack([_standard_gamma(shape, generator) for _ in range(5)])

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, range(8)))
    for seed, found in enumerate(together):
        torch.testing.assert_close(found, draw(seed), rtol=0, atol=0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_score_is_the_derivative_of_the_log_density(likelihood):
    x = torch.tensor([[0.0, 3.0, 12.0], [1.0, 0.0, 7.0]]).double()
    predictor = PREDICTOR.clone().requires_grad_()
    observation(likelihood, predictor, LOG_SIZE, LOG_SCALE).log_prob(x).sum().backward()
    score, _ = score_and_information(likelihood, x, PREDICTOR, LOG_SIZE, LOG_SCALE)
    np.testing.assert_allclose(score, predictor.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_information_is_the_mean_negative_second_derivative(likelihood):
    """Fisher information, as a sum over all values weighted by their probability."""
    _, information = score_and_information(likelihood, torch.zeros(2, 3).double(), PREDICTOR, LOG_SIZE, LOG_SCALE)
    values = torch.arange(0.0, 2000.0).double()
    for row in range(2):
        for gene in range(3):
            args = PREDICTOR[row, gene].expand(len(values)), LOG_SIZE[row].expand(len(values)), LOG_SCALE[gene]
            predictor = args[0].clone().requires_grad_()
            log_density = observation(likelihood, predictor, *args[1:]).log_prob(values)
            (slope,) = torch.autograd.grad(log_density.sum(), predictor, create_graph=True)
            (curvature,) = torch.autograd.grad(slope.sum(), predictor)
            # that of the normal does not depend on the value
            weight = log_density.detach().exp() if likelihood != "normal" else torch.full_like(values, 1 / len(values))
            np.testing.assert_allclose(information[row, gene], -(weight * curvature).sum(), rtol=1e-5)


def test_negative_binomial_variance_exceeds_its_mean_by_the_square():
    d = observation("nb", PREDICTOR, LOG_SIZE, LOG_SCALE)
    np.testing.assert_allclose(d.mean, (PREDICTOR + LOG_SIZE).exp())
    np.testing.assert_allclose(d.variance, d.mean + d.mean**2 / LOG_SCALE.exp())


@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
@pytest.mark.parametrize("predictor", [-1e4, 1e4])
def test_extreme_predictors_stay_finite(likelihood, predictor):
    predictor = torch.full((1, 1), predictor)
    args = predictor, torch.zeros(1, 1), torch.zeros(1)
    assert torch.isfinite(observation(likelihood, *args).log_prob(torch.tensor([[5.0]]))).all()
    x, mean = sample_observation(likelihood, *args, torch.Generator().manual_seed(0))
    assert torch.isfinite(x).all()
    assert mean <= np.exp(MAX_LOG_MEAN) * 1.001
    assert all(torch.isfinite(t).all() for t in score_and_information(likelihood, torch.tensor([[5.0]]), *args))


def test_parents_show_log_counts_per_size_factor():
    x = torch.tensor([[0.0, 4.0], [10.0, 1.0]])
    log_size = torch.tensor([[0.0], [np.log(2.0)]])
    for likelihood in ("nb", "poisson"):
        np.testing.assert_allclose(parent_features(x, log_size, likelihood), np.log1p([[0, 4], [5, 0.5]]), rtol=1e-6)
    np.testing.assert_array_equal(parent_features(x, log_size, "normal"), x)


def test_quantiles_of_small_rates_are_exact():
    rate = torch.cat([torch.tensor([0.0, 1e-6]), torch.linspace(0.01, 29.9, 60)]).double()
    uniform = torch.linspace(1e-4, 1 - 1e-4, 181).double()
    found = poisson_quantile(*torch.broadcast_tensors(rate[:, None], uniform[None]))
    np.testing.assert_array_equal(found, scipy.stats.poisson.ppf(uniform[None], rate[:, None].numpy()))


def test_quantiles_of_large_rates_are_those_of_the_expansion():
    rate, uniform = torch.linspace(30.0, 200.0, 35).double(), torch.linspace(1e-3, 1 - 1e-3, 181).double()
    found = poisson_quantile(*torch.broadcast_tensors(rate[:, None], uniform[None])).numpy()
    exact = scipy.stats.poisson.ppf(uniform[None], rate[:, None].numpy())
    assert np.abs(found - exact).max() <= 1
    assert (found == exact).mean() > 0.98
    assert np.abs((found - exact).mean(1)).max() < 0.03


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_coupled_draws_follow_the_mean(likelihood):
    """Draws of one generator differ by what their means do: never the other way, and by little where means differ by little."""

    def draw(shift: float) -> torch.Tensor:
        predictor = torch.linspace(-2.0, 5.0, 3000)[:, None] + shift
        generator = torch.Generator().manual_seed(3)
        args = predictor, torch.zeros(3000, 1), torch.ones(1), CommonNoise(generator)
        x, _ = sample_observation(likelihood, *args)
        assert torch.isfinite(x).all()
        return torch.stack([x[:, 0], torch.rand(3000, generator=generator)])  # what is left of the generator

    draws = [draw(shift) for shift in (-3.0, -0.01, 0.0, 0.01, 0.3, 3.0)]
    for low, high in itertools.pairwise(draws):
        assert (high[0] - low[0]).min() >= (-1e-6 if likelihood == "normal" else 0)
        torch.testing.assert_close(low[1], high[1], rtol=0, atol=0)  # as many numbers were used
    assert (draws[2][0] != draws[3][0]).float().mean() > 0.01
    near = (draws[3][0] - draws[2][0]).mean()
    expected = 0.01 if likelihood == "normal" else 0.01 * float(torch.linspace(-2.0, 5.0, 3000).exp().mean())
    np.testing.assert_allclose(near, expected, rtol=0.15)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_coupled_draws_have_the_moments_of_the_distribution(likelihood):
    n, expected = 100_000, reference(likelihood)
    for row in range(2):
        predictor, log_size = PREDICTOR[row].expand(n, 3).float(), LOG_SIZE[row].expand(n, 1).float()
        generator = torch.Generator().manual_seed(1)
        x, _ = sample_observation(likelihood, predictor, log_size, LOG_SCALE.float(), CommonNoise(generator))
        assert (np.abs(x.mean(0).numpy() - expected.mean()[row]) < 5 * expected.std()[row] / np.sqrt(n)).all()
        np.testing.assert_allclose(x.var(0), np.broadcast_to(expected.var(), (2, 3))[row], rtol=0.08)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_values_that_are_not_needed_are_not_drawn(likelihood):
    """Those that are needed get the numbers that they would get by themselves; means are of all genes."""
    predictor, scale, drawn = PREDICTOR.float(), LOG_SCALE.float(), torch.tensor([True, False, True])
    first, second = (torch.Generator().manual_seed(4) for _ in range(2))
    x, mean = sample_observation(likelihood, predictor, LOG_SIZE.float(), scale, first, drawn)
    own, _ = sample_observation(likelihood, predictor[:, drawn], LOG_SIZE.float(), scale[drawn], second)
    torch.testing.assert_close(x[:, drawn], own, rtol=0, atol=0)
    assert not x[:, 1].any()
    np.testing.assert_allclose(mean, reference(likelihood).mean(), rtol=1e-5)
    nothing, same = sample_observation(likelihood, predictor, LOG_SIZE.float(), scale, first, torch.zeros(3).bool())
    assert not nothing.any()
    torch.testing.assert_close(same, mean, rtol=0, atol=0)
