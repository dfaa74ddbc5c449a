"""How likely counts are at fitted values of log1p, by their own likelihood rather than a normal one."""

from __future__ import annotations

import torch
from torch import Tensor

from scgim.nn._likelihood import MAX_LOG_MEAN, MIN_LOG_MEAN, score_and_information

_N_STEPS = 6  # of Newton's method: convention, for time
# Of the log mean of any cell, and half of it of the log inverse dispersion, in a step: a factor of seven.
_MAX_CHANGE = 2.0
_START = 2.0  # log inverse dispersion, an overdispersion of exp(-2) = 0.14, as the model's prior has it
_LOG_SCALE_RANGE = (-4.0, 8.0)  # from hardly any information to Poisson
_HALF_A_COUNT = 0.5  # so that zeros have a logarithm
_TINY = 1e-6  # the spread of fitted values must not be zero
_RIDGE = 1e-2  # where there are few different fitted values a parabola is not determined


class CountFit:
    """Largest log-likelihood of the counts of one gene, its log mean being a parabola in fitted values.

    log1p of counts scatters less where they are large and is skewed where they are small, which a regression of constant
    variance takes for structure. The parabola brings fitted values of log1p to the scale of the log mean.

    Parameters
    ----------
    x
        Counts, shape (n,).
    log_size
        Log size factors, shape (n,).
    covariates
        Further columns of the log mean, shape (n, Q).
    likelihood
        "nb" or "poisson".
    """

    def __init__(self, x: Tensor, log_size: Tensor, covariates: Tensor, likelihood: str):
        self.x, self.log_size, self.covariates, self.likelihood = x, log_size, covariates, likelihood
        # gamma functions are slow, and many cells have the same count
        self.value, self.times = torch.unique(x, return_counts=True)

    def log_likelihood(self, fitted: Tensor) -> Tensor:
        """Log-likelihood for fitted values of log1p(x / s), standardised or not, shape (n,)."""
        z = (fitted - fitted.mean()) / fitted.std().clamp_min(_TINY)
        columns = torch.cat([torch.ones_like(z)[:, None], z[:, None], z.square()[:, None], self.covariates], 1)
        ridge = _RIDGE * torch.eye(columns.shape[1], dtype=z.dtype)
        weights = torch.linalg.solve(
            columns.T @ columns + ridge, columns.T @ (torch.log(self.x + _HALF_A_COUNT) - self.log_size)
        )
        log_scale = torch.tensor(_START, dtype=z.dtype)
        for _ in range(_N_STEPS):
            predictor = columns @ weights
            score, information = score_and_information(self.likelihood, self.x, predictor, self.log_size, log_scale)
            curvature = (columns * information[:, None]).T @ columns + ridge
            step = torch.linalg.solve(curvature, columns.T @ score - ridge @ weights)
            weights = weights + step * (_MAX_CHANGE / (columns @ step).abs().max().clamp_min(_MAX_CHANGE))
            if self.likelihood == "nb":
                log_scale = self._better_scale(log_scale, self._log_mean(columns @ weights).exp())
        return self._log_prob(self._log_mean(columns @ weights), log_scale)

    def _log_mean(self, predictor: Tensor) -> Tensor:
        return (predictor + self.log_size).clamp(MIN_LOG_MEAN, MAX_LOG_MEAN)

    def _log_prob(self, log_mean: Tensor, log_scale: Tensor) -> Tensor:
        """Log-likelihood of all cells, the same as that of :func:`~scgim.nn._likelihood.observation`."""
        constant = (self.times * torch.lgamma(self.value + 1)).sum()
        if self.likelihood == "poisson":
            return (self.x * log_mean - log_mean.exp()).sum() - constant
        r = log_scale.exp()
        gammas = (self.times * (torch.lgamma(self.value + r) - torch.lgamma(r))).sum()
        rest = self.x * log_mean + r * log_scale - (self.x + r) * torch.log(r + log_mean.exp())
        return gammas + rest.sum() - constant

    def _better_scale(self, log_scale: Tensor, mean: Tensor) -> Tensor:
        """Log inverse dispersion after a Newton step."""
        r, x = log_scale.exp(), self.x
        gammas = (self.times * (torch.digamma(self.value + r) - torch.digamma(r))).sum()
        slope = gammas + (log_scale + 1 - torch.log(r + mean) - (x + r) / (r + mean)).sum()
        bends = (self.times * (torch.polygamma(1, self.value + r) - torch.polygamma(1, r))).sum()
        bend = bends + (1 / r - 2 / (r + mean) + (x + r) / (r + mean).square()).sum()
        slope, bend = slope * r, bend * r.square() + slope * r  # in the logarithm
        step = -slope / bend if bend < 0 else slope.sign()
        return (log_scale + step.clamp(-_MAX_CHANGE / 2, _MAX_CHANGE / 2)).clamp(*_LOG_SCALE_RANGE)
