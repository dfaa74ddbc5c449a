"""Observation models of one gene given its rate, and the scale on which parents act."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyro.distributions.torch_distribution import TorchDistribution

LIKELIHOODS = ("nb", "poisson", "normal")
# exp(14) is a million counts; beyond it float32 loses the likelihood. exp(-15) is one count in three million cells.
MIN_LOG_MEAN, MAX_LOG_MEAN = -15.0, 14.0
_ONE_AT_A_TIME = threading.Lock()

# Rate from which the expansion is taken: there it is off by a count in one draw of a hundred, and less often above. And
# a count that smaller rates do not reach: 150 is 22 standard deviations beyond a mean of 30.
_LARGE_RATE, _MAX_SMALL_COUNT = 30.0, 150
_TINY = 1e-12  # uniform numbers must not be 0 or 1


def parent_features(x: Tensor, log_size: Tensor, likelihood: str) -> Tensor:
    """What parents show their children, before it is standardised: log1p(x / s) for counts, x itself for "normal"."""
    if likelihood == "normal":
        return x
    return torch.log1p(x * torch.exp(-log_size))


def observation(likelihood: str, predictor: Tensor, log_size: Tensor, log_scale: Tensor) -> TorchDistribution:
    """Distribution of the observed values of each gene.

    Parameters
    ----------
    likelihood
        "nb": mean s exp(predictor), variance mean + mean^2 / r with r = exp(log_scale). "poisson": the same without
        overdispersion. "normal": mean `predictor`, standard deviation exp(-log_scale / 2).
    predictor
        Log mean per unit of size factor (counts) or mean (normal), shape (B, G).
    log_size
        Log size factors, shape (B, 1); ignored by "normal".
    log_scale
        Log inverse dispersion (nb) or log precision (normal), shape (G,).
    """
    if likelihood == "normal":
        return dist.Normal(predictor, torch.exp(-0.5 * log_scale))
    log_mean = (predictor + log_size).clamp(MIN_LOG_MEAN, MAX_LOG_MEAN)
    if likelihood == "poisson":
        return dist.Poisson(log_mean.exp())
    return dist.NegativeBinomial(total_count=log_scale.exp(), logits=log_mean - log_scale)


class CommonNoise:
    """Random numbers that draws at other means share, so that these differ by no more than the means do (common random numbers).

    Each draw asks for as many, in the same order; they are drawn once, and are the same for each that begins with :meth:`again`.
    """

    def __init__(self, rng: torch.Generator):
        self._rng, self._drawn, self._place = rng, list[Tensor](), 0

    def again(self) -> CommonNoise:
        """Begin another draw."""
        self._place = 0
        return self

    def next(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """What the first draw got here."""
        if self._place == len(self._drawn):
            self._drawn.append(draw(self._rng))
        self._place += 1
        return self._drawn[self._place - 1]


def random_numbers(rng: torch.Generator | CommonNoise, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
    """Random numbers of a generator, or those that draws share."""
    return rng.next(draw) if isinstance(rng, CommonNoise) else draw(rng)


def sample_observation(
    likelihood: str,
    predictor: Tensor,
    log_size: Tensor,
    log_scale: Tensor,
    rng: torch.Generator | CommonNoise,
    drawn: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw observed values and return them with their mean, both (B, G); reproducible by the generator.

    `drawn` (G,) marks the genes whose values are needed, None for all; those of others are 0, or with common noise and "normal" as drawn.
    """
    device = predictor.device
    if drawn is not None and isinstance(rng, torch.Generator) and not drawn.all():
        value = torch.zeros_like(predictor)
        if drawn.any():
            own = (predictor[:, drawn], log_size, log_scale[drawn])
            value[:, drawn] = sample_observation(likelihood, *own, rng)[0]
        return value, _mean(likelihood, predictor, log_size)
    if likelihood == "normal":
        noise = random_numbers(rng, lambda own: torch.randn(predictor.shape, generator=own, device=device))
        return predictor + torch.exp(-0.5 * log_scale) * noise, predictor
    rate = mean = _mean(likelihood, predictor, log_size)
    if likelihood == "nb":
        r = log_scale.exp().expand_as(mean)
        rate = mean * random_numbers(rng, lambda own: _standard_gamma(r.contiguous(), own)) / r
    if not isinstance(rng, CommonNoise):
        return torch.poisson(rate, rng), mean
    uniform = rng.next(lambda own: torch.rand(rate.shape, generator=own, device=device, dtype=torch.float64))
    if drawn is None:
        return poisson_quantile(rate, uniform), mean
    counts = torch.zeros_like(rate)
    counts[:, drawn] = poisson_quantile(rate[:, drawn], uniform[:, drawn])
    return counts, mean


def _mean(likelihood: str, predictor: Tensor, log_size: Tensor) -> Tensor:
    """Mean of the observed values, (B, G)."""
    if likelihood == "normal":
        return predictor
    return (predictor + log_size).clamp(MIN_LOG_MEAN, MAX_LOG_MEAN).exp()


def poisson_quantile(rate: Tensor, uniform: Tensor) -> Tensor:
    """Smallest count whose distribution function reaches `uniform`; from 30 up by Cornish and Fisher's expansion."""
    small = torch.where(rate < _LARGE_RATE, rate, 0.0).double()
    term = torch.exp(-small)
    reached, count = term.clone(), torch.zeros_like(small)
    for k in range(1, _MAX_SMALL_COUNT):
        below = uniform > reached
        if not below.any():
            break
        count += below
        term = term * small / k
        reached += term
    z = torch.special.ndtri(uniform.clamp(_TINY, 1 - _TINY))
    large = torch.round(rate.double() + rate.double().sqrt() * z + (z.square() - 1) / 6).clamp_min(0.0)
    return torch.where(rate < _LARGE_RATE, count, large).to(rate)


def _standard_gamma(concentration: Tensor, rng: torch.Generator) -> Tensor:
    """Gamma variables of rate 1, reproducible by the generator.

    Distributions of torch draw from its global generator alone. It takes the state of ours for the draw, and then its own
    again; a lock, because another thread may draw with one of its own.
    """
    with _ONE_AT_A_TIME:
        shared = _global_generator(rng.device)
        before = shared.get_state()
        try:
            shared.set_state(rng.get_state())
            draws = dist.Gamma(concentration, 1.0, validate_args=False).rsample()
            rng.set_state(shared.get_state())
        finally:
            shared.set_state(before)
    return draws


def _global_generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    return getattr(torch, device.type).default_generators[device.index or 0]


def score_and_information(
    likelihood: str, x: Tensor, predictor: Tensor, log_size: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivative of the log-likelihood in the predictor and its expected negative second derivative, both (B, G)."""
    if likelihood == "normal":
        precision = log_scale.exp().expand_as(predictor)
        return (x - predictor) * precision, precision
    mean = (predictor + log_size).clamp(MIN_LOG_MEAN, MAX_LOG_MEAN).exp()
    if likelihood == "poisson":
        return x - mean, mean
    shrink = 1 / (1 + mean * torch.exp(-log_scale))  # r / (r + mean)
    return (x - mean) * shrink, mean * shrink
