"""What the generator reads in each feature: slopes of the expected direct effects, in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scgim.interventions._generator import DrugKernel, FeatureGenerator, KernelFit


def feature_sensitivity(generator: FeatureGenerator) -> Tensor:
    """Change of the expected direct effect at the largest measured dosage for one standard deviation of each feature.

    Averaged over the measured drugs, shape (p, d); zero for genes that no drug acts on.
    """
    spread = generator.kernel.features.std(0, correction=0)
    slope = sum(
        height * _mean_slope(generator.kernel, fit)
        for height, fit in zip(generator.basis[-1], generator.fits, strict=True)
    )
    out = torch.zeros(len(spread), generator.n_genes, dtype=torch.float64)
    out[:, generator.active] = spread[:, None] * slope
    return out


def _mean_slope(kernel: DrugKernel, fit: KernelFit) -> Tensor:
    r"""Derivative of the mean of a Gaussian process in its inputs, averaged over the measured drugs, shape (p, D).

    With dual weights a_u, the mean is sum_u k(x, x_u) a_u. The linear kernel has the same slope everywhere; that of the
    radial kernel is -2 (x - x_u) / (width * median) times the kernel.
    """
    x = kernel.features  # (U, p)
    _, radial = kernel.parts(x, fit.width)
    moved = radial @ fit.dual - radial.sum(0)[:, None] * fit.dual  # (U, D)
    factor = -2.0 / (fit.width * kernel.median * len(x))
    return (1 - fit.radial) / x.shape[1] * x.T @ fit.dual + fit.radial * factor * x.T @ moved
