"""Which genes could explain what the parents of a gene leave: a score test of all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgim.nn._score import GeneFit, ShiftPrior
    from scgim.nn._statistics import ContextStatistics


def score_test(
    statistics: ContextStatistics, prior: ShiftPrior, fit: GeneFit, pairs: list[tuple[int, tuple[int, ...]]]
) -> NDArray:
    """About how much the evidence of each (gene, parents) pair would gain by each further parent, all else as it is, shape (d, B).

    From slope and curvature in the weight of the new parent where that is zero: of the scatter within contexts and of
    context means. Several functions of a parent are added up as if they were unrelated. For hard interventions the scatter of
    targets is not left out, which is near enough.
    """
    s, d = statistics, statistics.n_genes
    genes = torch.tensor([gene for gene, _ in pairs])
    weight = torch.zeros(s.means.shape[1], len(pairs), dtype=s.means.dtype)
    for b, (_, parents) in enumerate(pairs):
        columns = s.columns(torch.tensor(parents, dtype=torch.long))
        weight[columns, b] = fit.weights[b, : len(columns)]
    on = torch.nn.functional.pad(fit.target_probs, (0, 1))[:, s.group % (s.n_groups + 1)]  # (B, K)
    v0 = fit.noise_var[:, None] / s.n_cells + prior.spike_var
    precision = (1 - on) / v0 + on / (v0 + prior.slab_var)
    x = s.means - s.means.mean(0)
    slope = (s.gram[:, genes] - s.gram @ weight) / fit.noise_var + x.T @ (precision * fit.residuals).T
    curvature = s.gram.diagonal()[:, None] / fit.noise_var + x.square().T @ precision.T
    gain = slope.square() / (2 * curvature.clamp_min(1e-9))
    return gain.reshape(s.n_basis, d, len(pairs)).sum(0).numpy()
