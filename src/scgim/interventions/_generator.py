r"""Generator: from the features of a drug to a distribution over interventions (GIM paper, section 3.2).

The direct effects of the measured drugs, as curves over a grid of doses, are written in a few principal curves. Each
coefficient is a Gaussian process of the drug features (a linear and a radial kernel; mixture, width and noise chosen
by leaving one drug out). What the features say of a new drug is then combined with the knowledge that a drug acts on
few genes directly: a spike-and-slab prior over genes, centred at the mean effect on each gene, averaged over likely
sets of targets (:mod:`scgim.interventions._target_sets`). Where features tell nothing the prediction shrinks to the effect of a typical drug.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scgim.interventions._curves import hill_curve
from scgim.interventions._interventions import Interventions
from scgim.interventions._target_sets import average_over_targets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scgim.interventions._curves import CurveGrid

_N_GRID = 8  # doses at which curves are written: as many as responses are kept at
_LEVEL = 1e3  # prior variance of the mean, which is so fitted anew where a drug is left out
_MAX_CURVES = 2  # principal curves, about height and place of the rise: convention
_MAX_ACTIVE_GENES = 300  # the likeliest; matrices are genes by genes, so this is for time and memory
_MAX_CHOOSING = 1000  # drugs that decide on the kernel: an eigenvalue problem for each choice, so this is for time
# What the kernel is chosen from, by leaving drugs out, in coarse steps: conventions, for time.
_WIDTHS, _RADIAL_SHARES = (0.3, 1.0, 3.0), (0.0, 0.3, 0.7, 1.0)
# Of ten, from, below and step: from features that tell all to features that tell nothing.
_LOG_NOISES = (-3.0, 3.5, 0.5)
_PRIOR_SHARE = 0.8  # of the spread of the outputs that is taken out; less than all, since it is an estimate: convention
_MAX_SEARCHED = 2000  # genes times drugs that share a search: for the processor's cache, results do not depend on it
# Of the likeliest drug; genes below it are never drawn as targets of a new drug: convention, for time.
_MIN_TARGET_PROB = 0.02
# Drugs' worth of the mean over genes that the frequency of each gene as a target is shrunk by, and of zero that its
# mean effect is: conventions.
_PSEUDO_DRUGS, _PSEUDO_TARGETS = 10, 2
_PROB_LIMITS = (1e-4, 0.9)  # of that frequency, so that features can overrule it
# Least and most of a covariance between genes that is removed, and how it rises in between with outputs over drugs: a
# simple form of linear shrinkage (Ledoit and Wolf). The numbers are conventions.
_LEAST_SHRUNK, _MOST_SHRUNK, _SHRUNK = 0.2, 0.9, 0.3
_FLOOR = 1e-3  # of the mean variance, below which none is estimated
_MIN_SHARE = 0.05  # of the height that a curve reached at the largest dose, else errors have no bound: convention
_USUAL_EXPONENT = 1.5  # of genes that are no targets, where it has no effect: the centre of the prior
# Guards: of quotients, of drugs of equal features, and to break ties by the prior.
_TINY, _SAME, _EVEN = 1e-6, 1e-9, 1e-12
_MIN_SCALE = 1e-8  # of features that do not vary


class DrugKernel:
    """Linear plus radial kernel over standardised drug features.

    Parameters
    ----------
    features
        Features of the measured drugs, shape (U, p).
    """

    def __init__(self, features: Tensor):
        self.mean = features.mean(0)
        self.scale = (features - self.mean).square().mean().sqrt().clamp_min(_MIN_SCALE)
        self.features = self.standardise(features)
        distances = _square_distances(self.features, self.features)
        positive = distances[distances > _SAME]
        self.median = float(positive.median()) if len(positive) else 1.0

    def standardise(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale

    def parts(self, other: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """Linear and radial kernel between `other` (standardised) and the measured drugs, both (Q, U)."""
        linear = other @ self.features.T / self.features.shape[1]
        return linear, torch.exp(-_square_distances(other, self.features) / (width * self.median))


@dataclass(frozen=True)
class KernelFit:
    """A Gaussian process of drug features for several outputs that share its kernel.

    Parameters
    ----------
    radial
        Share of the radial kernel; the rest is linear.
    width
        Width of the radial kernel, in medians of the squared distance between drugs.
    noise
        Noise variance relative to the kernel.
    residuals
        Errors of the measured drugs, each left out in turn and divided by their scale, shape (U, D).
    loss
        Sum of the squared errors of the measured drugs left out.
    inverse
        Inverse of kernel plus noise, shape (U, U).
    dual
        Its product with the outputs, shape (U, D).
    unit
        Mean predictive variance of a drug left out, in units of the outputs' residual variance.
    outputs
        Outputs of the measured drugs, shape (U, D).
    """

    radial: float
    width: float
    noise: float
    residuals: Tensor
    loss: float
    inverse: Tensor
    dual: Tensor
    unit: float
    outputs: Tensor

    def left_out(self) -> tuple[Tensor, Tensor]:
        """Mean (U, D) for measured drugs, from the others, and variance relative to that of the residuals (U,)."""
        precision = self.inverse.diagonal()
        return self.outputs - self.dual / precision[:, None], 1 / (precision * self.unit)

    def predict(self, kernel: DrugKernel, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (Q, D) and variance relative to that of the residuals (Q,) for standardised features (Q, p)."""
        linear, radial = kernel.parts(features, self.width)
        cross = (1 - self.radial) * linear + self.radial * radial + _LEVEL
        own = (1 - self.radial) * features.square().mean(1) + self.radial + _LEVEL
        variance = own - ((cross @ self.inverse) * cross).sum(1) + self.noise
        return cross @ self.dual, variance.clamp_min(_TINY) / self.unit


def covariance_given_measured(kernel: DrugKernel, fit: KernelFit, a: Tensor, b: Tensor | None) -> Tensor:
    """Covariance of what features predict between drugs of standardised features (Q, p) and (J, p), (Q, J); None for the variances (Q,)."""

    def mixed(linear: Tensor, radial: Tensor | float) -> Tensor:
        return (1 - fit.radial) * linear + fit.radial * radial + _LEVEL

    of_a = mixed(*kernel.parts(a, fit.width))
    if b is None:
        return (mixed(a.square().mean(1), 1.0) - ((of_a @ fit.inverse) * of_a).sum(1)).clamp_min(0.0)
    of_b = mixed(*kernel.parts(b, fit.width))
    radial = torch.exp(-_square_distances(a, b) / (fit.width * kernel.median))
    return mixed(a @ b.T / a.shape[1], radial) - of_a @ fit.inverse @ of_b.T


def fit_kernel(kernel: DrugKernel, outputs: Tensor) -> KernelFit:
    """Choose mixture, width and noise of the kernel by leaving one drug out (closed form), and fit.

    Of many drugs, a sample decides: what is chosen hardly depends on how many there are.
    """
    few = torch.randperm(len(outputs), generator=torch.Generator().manual_seed(0))[:_MAX_CHOOSING].sort().values
    _, share, width, noise = min(_losses(kernel, outputs[few], few))
    own = noise * torch.eye(len(outputs), dtype=torch.float64)
    inverse = torch.linalg.inv(_mixture(kernel, slice(None), share, width) + own)
    dual, precision = inverse @ outputs, inverse.diagonal()
    errors, unit = dual / precision[:, None], float((1 / precision).mean())
    scaled = errors * (precision * unit).sqrt()[:, None]
    return KernelFit(share, width, noise, scaled, float(errors.square().sum()), inverse, dual, unit, outputs)


def _mixture(kernel: DrugKernel, rows: Tensor | slice, share: float, width: float) -> Tensor:
    """Kernel between some of the measured drugs."""
    linear, radial = kernel.parts(kernel.features[rows], width)
    return ((1 - share) * linear + share * radial)[:, rows] + _LEVEL


def _losses(kernel: DrugKernel, outputs: Tensor, rows: Tensor) -> Iterator[tuple[float, float, float, float]]:
    """Sum of the squared errors of drugs left out, by share of the radial kernel, its width and the noise."""
    for width in _WIDTHS:
        for share in _RADIAL_SHARES:
            if share == 0.0 and width != 1.0:
                continue
            values, vectors = torch.linalg.eigh(_mixture(kernel, rows, share, width))
            rotated, square = vectors.T @ outputs, vectors.square()
            for noise in 10.0 ** torch.arange(*_LOG_NOISES, dtype=torch.float64):
                weight = 1 / (values.clamp_min(0) + noise)
                dual, precision = vectors @ (weight[:, None] * rotated), square @ weight
                yield float((dual / precision[:, None]).square().sum()), share, width, float(noise)


class FeatureGenerator:
    """Interventions of drugs that were never measured, from their features.

    Parameters
    ----------
    features
        Features of the measured drugs, shape (U, p).
    interventions
        Interventions of the measured drugs.
    shapes
        Dose-response curves to choose from.
    log_dosages
        Smallest and largest log dosage that was measured.
    """

    def __init__(
        self, features: Tensor, interventions: Interventions, shapes: CurveGrid, log_dosages: tuple[float, float]
    ):
        probs = interventions.target_probs.double()
        self.n_genes = probs.shape[1]
        reach = probs.max(0).values
        active = torch.argsort(-reach, stable=True)[:_MAX_ACTIVE_GENES]
        self.active = active[reach[active] > _MIN_TARGET_PROB].sort().values
        self.kernel = DrugKernel(features.double())
        low, high = log_dosages
        self.grid = torch.linspace(low, high, _N_GRID if high > low else 1, dtype=torch.float64)
        self.shapes = shapes
        spread = interventions.log_ec50[interventions.target_probs > 0.5]
        self.midpoint_sd = spread.double().std() if len(spread) > 2 else self.shapes.log_ec50.std(correction=0)
        self._fit(interventions, probs[:, self.active])

    def _fit(self, measured: Interventions, probs: Tensor) -> None:
        emax, log_ec50, hill = (
            getattr(measured, name)[:, self.active].double() for name in ("emax", "log_ec50", "hill")
        )
        curves = (probs * emax)[..., None] * hill_curve(self.grid, log_ec50[..., None], hill[..., None])
        u, g, m = curves.shape
        values, vectors = torch.linalg.eigh(curves.reshape(-1, m).T @ curves.reshape(-1, m))
        keep = min(_MAX_CURVES, m)
        self.basis = vectors.flip(1)[:, :keep]  # (m, q)
        self.basis = self.basis * torch.where(self.basis.sum(0) < 0, -1.0, 1.0)
        outputs = curves @ self.basis  # (U, g, q)
        self.outputs_mean = outputs.mean(0)
        self.fits = [fit_kernel(self.kernel, outputs[..., a] - self.outputs_mean[:, a]) for a in range(keep)]
        counts, total = probs.sum(0), outputs.sum(0)
        self.prior_probs, self.slab_mean = _usual(counts, total, u)
        self.usual_left_out = _usual(counts - probs, total - outputs, u - 1)
        spread = torch.einsum("ugq,ugr->qr", outputs, outputs) / probs.sum().clamp_min(_TINY)
        usual = torch.einsum("g,gq,gr->qr", counts, self.slab_mean, self.slab_mean)
        spread = spread - usual / counts.sum().clamp_min(_TINY)
        eye = torch.eye(keep, dtype=torch.float64)
        floor = _FLOOR * spread.diagonal().abs().mean() + _TINY
        self.slab_cov = (spread + spread.T) / 2 + floor * eye
        values, vectors = torch.linalg.eigh(self.slab_cov)
        self.slab_cov = (vectors * values.clamp_min(float(floor))) @ vectors.T
        precisions = [
            _precisions(
                _shrunk_covariance(fit.residuals), _shrunk_covariance(outputs[..., a] - self.outputs_mean[:, a])
            )
            for a, fit in enumerate(self.fits)
        ]
        self.error_precision, self.prior_precision = (
            torch.stack(p) for p in zip(*precisions, strict=True)
        )  # (q, g, g)

    def __call__(self, features: Tensor) -> Interventions:
        """Interventions of drugs with the given features, shape (Q, p)."""
        x = self.kernel.standardise(features.double())
        means, scales = zip(*(fit.predict(self.kernel, x) for fit in self.fits), strict=True)
        return self._posterior(torch.stack(means, 2) + self.outputs_mean, torch.stack(scales, 1))

    def left_out(self) -> Interventions:
        """Interventions of the measured drugs, each from the features of the others."""
        means, scales = zip(*(fit.left_out() for fit in self.fits), strict=True)
        return self._posterior(torch.stack(means, 2) + self.outputs_mean, torch.stack(scales, 1), self.usual_left_out)

    def _posterior(self, mean: Tensor, scale: Tensor, usual: tuple[Tensor, Tensor] | None = None) -> Interventions:
        """Combine what the features say with the prior.

        `mean` (Q, g, q) is the prediction of the features and `scale` (Q, q) its error variance relative to that of the
        drugs left out: a drug far from all others says less of its effects. `usual` is what is known of any drug: probabilities
        of targets (Q, g) and mean effects on them (Q, g, q); None for those of all measured drugs.
        """
        n = len(mean)
        probs, effects = (self.prior_probs.expand(n, -1), self.slab_mean.expand(n, -1, -1)) if usual is None else usual
        log_odds = torch.logit(probs)
        precision, known = self.error_precision, self.prior_precision  # (q, g, g)
        told = torch.einsum("nga,agh->nah", mean, precision) - torch.einsum("ga,agh->ah", self.outputs_mean, known)
        linear = told / scale[..., None]  # (n, q, g)
        # curves do not share errors: entries of different curves are zero
        left = torch.diag_embed((precision - known).movedim(0, -1)).permute(2, 0, 3, 1)  # (q, g, q, g)
        found = [
            average_over_targets(left / s[:, :, None, None, None], x, odds, slab, self.slab_cov)
            for x, s, odds, slab in zip(
                *(part.split(self._n_at_once()) for part in (linear, scale, log_odds, effects)), strict=True
            )
        ]
        probs, effect, cov = (torch.cat(part) for part in zip(*found, strict=True))
        return self._to_hill(effect, cov, probs)

    def _n_at_once(self) -> int:
        """Drugs that share a search, so that what it holds stays near the processor."""
        return max(1, _MAX_SEARCHED // max(1, len(self.active)))

    def _to_hill(self, mean: Tensor, cov: Tensor, probs: Tensor) -> Interventions:
        """Hill curve closest to each predicted curve, given mean (Q, g, q), covariance (Q, g, q, q) and probs (Q, g)."""
        shapes = self.shapes.values(self.grid)  # (m, S)
        norm = shapes.square().sum(0)
        height = (mean @ self.basis.T) @ shapes / norm  # (Q, g, S)
        best = (height.square() * norm + _EVEN * self.shapes.log_prior.exp()).argmax(-1)
        effect = torch.einsum("q,ngqr,r->ng", self.basis[-1], cov, self.basis[-1]).clamp_min(0.0).sqrt()
        # a drug that was never measured shares the uncertainty of the midpoints that were
        return Interventions(
            target_probs=self._everywhere(probs, 0.0),
            emax=self._everywhere(height.gather(-1, best[..., None])[..., 0], 0.0),
            emax_sd=self._everywhere(effect / shapes[-1][best].clamp_min(_MIN_SHARE), 0.0),
            log_ec50=self._everywhere(self.shapes.log_ec50[best], float(self.shapes.log_ec50.mean())),
            log_ec50_sd=self._everywhere(self.midpoint_sd.expand_as(probs), float(self.midpoint_sd)),
            hill=self._everywhere(self.shapes.hill[best], _USUAL_EXPONENT),
        )

    def _everywhere(self, value: Tensor, default: float) -> Tensor:
        """Fill in the genes that are never targets, (Q, g) to (Q, d)."""
        out = torch.full((len(value), self.n_genes), default, dtype=torch.float64)
        out[:, self.active] = value
        return out


def _usual(counts: Tensor, outputs: Tensor, n_drugs: int) -> tuple[Tensor, Tensor]:
    """Probability that a gene is a target of any drug, and the mean effect if so, from sums over drugs (..., g) and (..., g, q)."""
    pooled = counts.mean(-1, keepdim=True) / max(1, n_drugs)
    probs = ((counts.clamp_min(0) + _PSEUDO_DRUGS * pooled) / (n_drugs + _PSEUDO_DRUGS)).clamp(*_PROB_LIMITS)
    return probs, outputs / (counts.clamp_min(0) + _PSEUDO_TARGETS)[..., None]


def _precisions(errors: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Precision of what features predict, and of that what is known of any drug, from two covariances (g, g).

    A prediction is a compromise between what the features say and the usual effects, whose spread is that of the outputs. The
    sparse prior takes the place of the latter, so that its precision is taken out: where features say nothing, nothing
    is left. Errors cannot exceed the spread of the outputs; estimates of both can.
    """
    root = torch.linalg.inv(torch.linalg.cholesky(errors))
    ratio, vectors = torch.linalg.eigh(root @ outputs @ root.T)
    loading = root.T @ vectors
    usual = (loading * (_PRIOR_SHARE / ratio.clamp_min(1.0))) @ loading.T
    return loading @ loading.T, usual


def _square_distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b).square()


def _shrunk_covariance(rows: Tensor) -> Tensor:
    """Covariance about zero, a fifth of its off-diagonal removed, or more where outputs outnumber drugs."""
    n, p = rows.shape
    shrink = min(_MOST_SHRUNK, max(_LEAST_SHRUNK, _SHRUNK * p / (p + n)))
    cov = rows.T @ rows / n
    return (1 - shrink) * cov + torch.diag(shrink * cov.diagonal() + _TINY + _FLOOR * cov.diagonal().mean())
