r"""What would tell most: expected information of a further dose of a measured drug, and of a further drug.

A dose of drug u is worth the mutual information between what would be measured there and what is to be known of each gene: whether it is a
target, z, and the midpoint of its curve, m,

.. math:: I(y; z, m) = I(y; z) + I(y; m \mid z)

under the posterior over curves, heights and exponents integrated out. A drug is worth what it takes off the variance of what features
predict for a library: in the proportion in which that of the Gaussian process of the generator falls.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scgim.interventions._generator import covariance_given_measured

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scgim.interventions._curves import CurveGrid
    from scgim.interventions._generator import DrugKernel, KernelFit

_MIN_PRECISION = 1e-6  # guard of a quotient
_MAX_JUDGED = 1000  # drugs of a library on which the variance is judged: for memory; a sample of more says the same


class CurveBelief(NamedTuple):
    """What is known of one drug and G genes; S curves to choose from.

    Parameters
    ----------
    log_odds
        Log odds of a target, (..., G).
    log_weight, mean
        Log probability of each curve and mean of its height, if the gene is a target, both (..., G, S).
    variance
        Variance of that height, (G, S).
    """

    log_odds: Tensor
    log_weight: Tensor
    mean: Tensor
    variance: Tensor

    def after(self, y: Tensor, noise: Tensor, curve: Tensor) -> CurveBelief:
        """With a measurement y (..., G) of variance `noise` (G,) where the curves have the values `curve` (S,).

        The odds are left as they are: :meth:`log_probs` tells by how much they change.
        """
        spread = self.variance * curve.square() + noise[:, None]  # (G, S)
        error = y[..., None] - self.mean * curve
        log_weight = self.log_weight + _log_normal(error, spread)
        gain = self.variance * curve / spread
        log_odds = self.log_odds + log_weight.logsumexp(-1) - _log_normal(y, noise)
        log_weight = log_weight - log_weight.logsumexp(-1, keepdim=True)
        return CurveBelief(log_odds, log_weight, self.mean + gain * error, self.variance * noise[:, None] / spread)

    def log_probs(
        self, y: Tensor, noise: Tensor, curve: Tensor, midpoint: Tensor, true: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log density of y (M, G) if the gene is no target, if it is, and if the midpoint of its curve is that of curve `true` (M, G).

        `midpoint` (S,) numbers the midpoints of the curves.
        """
        spread = self.variance * curve.square() + noise[:, None]
        each = self.log_weight + _log_normal(y[..., None] - self.mean * curve, spread)  # (M, G, S)
        same = midpoint == midpoint[true][..., None]
        among = torch.where(same, each, -torch.inf).logsumexp(-1)
        among = among - torch.where(same, self.log_weight, -torch.inf).logsumexp(-1)
        return _log_normal(y, noise), each.logsumexp(-1), among


def _log_normal(error: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * (error.square() / variance + variance.log() + math.log(2 * math.pi))


def curve_belief(
    shift: Tensor, variance: Tensor, log_dosage: Tensor, grid: CurveGrid, slab_var: float, target_probs: Tensor
) -> CurveBelief:
    """What estimates (K, G) of one drug at K doses, with their variance, say of its curves; `target_probs` (G,) as they were found."""
    curves = grid.values(log_dosage)  # (K, S)
    weight = 1 / variance.clamp_min(_MIN_PRECISION)
    precision = weight.T @ curves.square() + 1 / slab_var
    mean = ((weight * shift).T @ curves) / precision
    joint = 0.5 * mean.square() * precision - 0.5 * precision.log() + grid.log_prior
    odds = torch.logit(target_probs, eps=_MIN_PRECISION)
    return CurveBelief(odds, joint - joint.logsumexp(-1, keepdim=True), mean, 1 / precision)


def informative_doses(
    belief: CurveBelief, noise: Tensor, log_dosage: Tensor, grid: CurveGrid, n_draws: int, seed: int
) -> Iterator[Tensor]:
    """Expected information of doses (C,) in nats, summed over genes, by `n_draws` draws of what may be true.

    `noise` (G,) is the variance of what a context tells of each gene that is no target. Yields what each dose says of targets and of midpoints
    given these, (C, 2): first by itself, then beyond the dose that said most before, and so on without end.
    """
    rng = torch.Generator().manual_seed(seed)
    draws = (n_draws, len(noise))
    curves = grid.values(log_dosage)  # (C, S)
    midpoint = torch.unique(grid.log_ec50, return_inverse=True)[1]
    is_target = torch.rand(draws, generator=rng, dtype=torch.float64) < torch.sigmoid(belief.log_odds)
    true = torch.multinomial(belief.log_weight.exp(), n_draws, replacement=True, generator=rng).T  # (M, G)
    height = torch.randn(draws, generator=rng, dtype=torch.float64) * belief.variance.T.gather(0, true).sqrt()
    height = is_target * (height + belief.mean.T.gather(0, true))
    while True:
        # doses share the draws of their errors, so that chance does not decide between them
        error = torch.randn(draws, generator=rng, dtype=torch.float64) * noise.sqrt()
        told = []
        for curve in curves:
            off, on, among = belief.log_probs(height * curve[true] + error, noise, curve, midpoint, true)
            odds = belief.log_odds
            total = torch.logaddexp(off - torch.nn.functional.softplus(odds), on - torch.nn.functional.softplus(-odds))
            of_target, of_midpoint = torch.where(is_target, on, off) - total, is_target * (among - on)
            told.append(torch.stack([of_target.mean(0).sum(), of_midpoint.mean(0).sum()]))
        yield torch.stack(told)
        best = curves[int(torch.stack(told).sum(1).argmax())]
        belief = belief.after(height * best[true] + error, noise, best)


def reduction_of_variance(
    kernel: DrugKernel, fit: KernelFit, features: Tensor, variance: Tensor, n: int, seed: int
) -> tuple[list[int], list[float]]:
    """Drugs of a library (Q, p) that, measured, take most off the variance of what is predicted for each (Q,); n of them.

    The process has the same variance for drugs that may act on a hub and for those that surely do little: each drug counts by its own.

    Returns
    -------
    Positions of those picked, one after the other, and the share of the variance that each takes off beyond those before.
    """
    x = kernel.standardise(features.double())
    judged = torch.arange(len(x))
    if len(x) > _MAX_JUDGED:
        judged = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:_MAX_JUDGED]
    cross = covariance_given_measured(kernel, fit, x, x[judged])  # (Q, J)
    own = covariance_given_measured(kernel, fit, x, None)  # (Q,)
    variance = variance if variance.any() else own  # nothing was found that drugs act on
    weight = variance[judged] / own[judged].clamp_min(_MIN_PRECISION)
    total = float(variance[judged].sum())
    open_, picks, shares = torch.ones(len(x), dtype=torch.bool), [], []
    updates: list[tuple[Tensor, Tensor]] = []  # covariances with each drug picked, and what they are divided by
    for _ in range(min(n, len(x))):
        taken = (cross.square() @ weight) / (own + fit.noise)
        best = int(torch.where(open_, taken, -torch.inf).argmax())
        open_[best] = False
        picks.append(best)
        shares.append(float(taken[best]) / max(total, _MIN_PRECISION))
        column = covariance_given_measured(kernel, fit, x, x[best : best + 1])[:, 0]
        for earlier, scale in updates:
            column = column - earlier * earlier[best] / scale
        updates.append((column, own[best] + fit.noise))
        scale = updates[-1][1]
        cross, own = cross - column[:, None] * cross[best] / scale, own - column.square() / scale
    return picks, shares
