r"""Responses of whole contexts: what alike drugs and neighbouring doses do, all genes together.

Sparse direct targets explain much of what a drug does in some screens and little in others: where a plate holds single wells,
or most genes answer to stress, effects are dense. Here the effects of a context, y (d genes), are a Gaussian process of drug and
dose whose kernel all genes share,

.. math:: k\left((u, c), (u', c')\right) = \lambda + \kappa_1(c, c') + v\,\left[f\,\phi(u, u') + (1 - f)\,1_{u = u'}\right]\,\kappa_l(c, c') + 1_{\text{same context}}

with a level and a mean curve in dose that all drugs have in common, a kernel phi of the drug features and kappa of log dosages.
Lengths, variance v and share f of the features are chosen by leaving drugs, or contexts, out in closed form. With f = 0 the
prediction for a new drug is the mean of the measured drugs at that dose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scgim.interventions._curves import groups_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from scgim.interventions._generator import DrugKernel

_LEVEL, _COMMON, _COMMON_LENGTH = 1e3, 10.0, 1.0  # variances in units of the noise: what is common is hardly shrunk
# What settings are chosen from, by leaving drugs or contexts out, in coarse steps: conventions, for time.
_CHOICES = {
    "length": (1.0, 2.0, 4.0, math.inf),  # in e-folds of dose
    "variance": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "features": (0.0, 0.3, 0.6, 0.9, 1.0),
    "width": (0.0, 0.3, 1.0, 3.0),  # 0: the linear kernel
}
_MAX_CONTEXTS = 600  # more do not change what is chosen
_MAX_FITTED = 4000  # the kernel is contexts by contexts: for time and memory
_N_SWEEPS = 2  # over the settings, one after the other: convention, for time
_FIRST_FEATURES = 0.6  # share that the choice starts from where there are features: the middle of the choices
_TINY = 1e-12  # guard of a quotient


@dataclass(frozen=True)
class Settings:
    """Settings of the kernel; variances in units of the noise.

    Parameters
    ----------
    length
        Length of the dose kernel in e-folds.
    variance
        Variance of what single drugs do.
    features
        Share of it that follows the features.
    width
        Width of the radial kernel of the features in medians of the squared distance; 0 for the linear kernel.
    """

    length: float = 2.0
    variance: float = 1.0
    features: float = 0.0
    width: float = 1.0


@dataclass(frozen=True)
class Contexts:
    """Drug codes (K,), log dosages (K,) and standardised features (K, p) of contexts; -1 for a drug that was not measured.

    `activity` (K,) is the share of its effect that the drug has in the level of each; None for all.
    """

    drug: Tensor
    log_dosage: Tensor
    features: Tensor
    activity: Tensor | None = None

    def rows(self, index: Tensor) -> Contexts:
        activity = None if self.activity is None else self.activity[index]
        return Contexts(self.drug[index], self.log_dosage[index], self.features[index], activity)

    @property
    def scale(self) -> Tensor:
        """What responses are multiplied by, (K,)."""
        return torch.ones_like(self.log_dosage) if self.activity is None else self.activity

    def usual(self, responses: Tensor) -> Tensor:
        """Mean of the responses (K, d) of drugs that are active, (d,)."""
        return (self.scale @ responses) / self.scale.square().sum().clamp_min(_TINY)


class ResponseSurface:
    """Gaussian process of the responses y of contexts.

    Parameters
    ----------
    responses
        Effects of each measured context, shape (K, d).
    contexts
        Where they were measured.
    kernel
        Kernel of the drug features; None for a screen without.
    settings
        Settings of the kernel.
    """

    def __init__(self, responses: Tensor, contexts: Contexts, kernel: DrugKernel | None, settings: Settings):
        if len(responses) > _MAX_FITTED:
            rows = _sample(len(responses), _MAX_FITTED)
            responses, contexts = responses[rows], contexts.rows(rows)
        self.contexts, self.kernel, self.settings = contexts, kernel, settings
        self.centre = contexts.usual(responses)
        own = covariance(contexts, contexts, kernel, settings) + torch.eye(len(responses), dtype=torch.float64)
        self.dual = torch.cholesky_solve(responses - contexts.scale[:, None] * self.centre, torch.linalg.cholesky(own))

    def __call__(self, contexts: Contexts) -> Tensor:
        """Expected responses at contexts, shape (Q, d)."""
        told = covariance(contexts, self.contexts, self.kernel, self.settings) @ self.dual
        return told + contexts.scale[:, None] * self.centre


def covariance(a: Contexts, b: Contexts, kernel: DrugKernel | None, settings: Settings) -> Tensor:
    """Prior covariance of contexts without the noise, (A, B)."""
    distance = (a.log_dosage[:, None] - b.log_dosage[None]).square()
    drug = (1 - settings.features) * (a.drug[:, None] == b.drug[None]).double()
    if settings.features and kernel is not None:
        drug = drug + settings.features * _feature_kernel(a.features, b.features, kernel, settings.width)
    along = torch.exp(-distance / (2 * settings.length**2))
    active = _LEVEL + _COMMON * torch.exp(-distance / (2 * _COMMON_LENGTH**2)) + settings.variance * drug * along
    return a.scale[:, None] * active * b.scale


def _feature_kernel(a: Tensor, b: Tensor, kernel: DrugKernel, width: float) -> Tensor:
    """Linear or radial kernel of standardised features; drugs beyond the measured ones are drawn back to their distance."""
    if width:
        return torch.exp(-torch.cdist(a, b).square() / (width * kernel.median))
    furthest = kernel.features.norm(dim=1).max().clamp_min(_TINY)
    a, b = (x * (furthest / x.norm(dim=1, keepdim=True).clamp_min(_TINY)).clamp_max(1.0) for x in (a, b))
    return a @ b.T / a.shape[1]


def left_out(
    responses: Tensor, contexts: Contexts, kernel: DrugKernel | None, settings: Settings, by: Tensor
) -> Tensor:
    """Prediction of each context from those with another label in `by` (K,), in closed form, shape (K, d)."""
    own = covariance(contexts, contexts, kernel, settings) + torch.eye(len(responses), dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(own))
    dual = inverse @ (responses - contexts.scale[:, None] * contexts.usual(responses))
    errors = torch.empty_like(dual)
    for rows in groups_of(by):
        errors[rows] = torch.linalg.solve(inverse[rows][:, rows], dual[rows])
    return responses - errors


def choose_settings(
    responses: Tensor,
    contexts: Contexts,
    kernel: DrugKernel | None,
    by: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    features: bool = True,
) -> Settings:
    """Settings with the least `loss(predicted, rows)` of what is left out, one after the other, twice round.

    `features` False leaves the drug features out.
    """
    rows = torch.arange(len(responses))
    if len(responses) > _MAX_CONTEXTS:
        rows = _some_groups(by, _MAX_CONTEXTS)
        responses, contexts, by = responses[rows], contexts.rows(rows), by[rows]
    names = ["variance"]
    if len(torch.unique(contexts.log_dosage)) > 1:
        names.append("length")
    use_features = features and kernel is not None
    if use_features:
        names += ["features", "width"]
    best = Settings(features=_FIRST_FEATURES if use_features else 0.0)
    total = _memoised(lambda s: float(loss(left_out(responses, contexts, kernel, s, by), rows).sum()))
    for _ in range(_N_SWEEPS):
        for name in names:
            best = min((replace(best, **{name: value}) for value in _CHOICES[name]), key=total)
    return best


def _memoised(loss: Callable[[Settings], float]) -> Callable[[Settings], float]:
    known: dict[Settings, float] = {}

    def look_up(settings: Settings) -> float:
        if settings not in known:
            known[settings] = loss(settings)
        return known[settings]

    return look_up


def _sample(n: int, k: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:k].sort().values


def _some_groups(labels: Tensor, n: int) -> Tensor:
    """About n rows that make up whole groups, chosen at random."""
    groups = groups_of(labels)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0)).tolist()
    rows, total = [], 0
    for g in order:
        rows.append(groups[g])
        total += len(groups[g])
        if total >= n:
            break
    return torch.cat(rows).sort().values
