"""Sufficient statistics of a screen: what the structure search needs to know of the cells, gathered in one pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from scgim._departures import bends
from scgim.structure._levels import relative_to_controls

# Covariates that are copies or sums of each other must be solved for, and so must those that do not vary.
_RIDGE, _TINY = 1e-6, 1e-8


@dataclass(frozen=True)
class ContextStatistics:
    """Means and scatter of the parent features within and between contexts.

    A linear Gaussian structural causal model whose interventions shift means depends on the cells through these alone.
    Columns are gene features; column `b * n_genes + i` is the b-th basis function of gene i and the first `n_genes`
    columns are the genes themselves.

    Parameters
    ----------
    gram
        Scatter within contexts, pooled over contexts, shape (P, P).
    means
        Mean of each column in each context, shape (K, P).
    n_cells
        Cells in each context, shape (K,).
    group
        Perturbation of each context as an integer from 0 to U - 1, shape (K,); -1 marks controls.
    n_genes
        Number of genes d; P is a multiple of d.
    gram_by_group
        Scatter within the contexts of each perturbation, controls last, shape (U + 1, P, P); only hard interventions
        need it.
    observed
        Which of all contexts these are: those with cells, boolean.
    dof
        Degrees of freedom of the scatter; None for cells less one mean per context.
    is_pooled
        Whether a drug at a dose is one context in all levels of the effect modifier.
    covariate_slopes, covariate_centre
        Slopes of the columns on covariates within contexts, shape (Q, P), and the mean of covariates over cells, shape (Q,); None without.
    state_var
        Variance that hidden states add to each gene in a cell, beside what the scatter still has, shape (d,); None without.
    """

    gram: Tensor
    means: Tensor
    n_cells: Tensor
    group: Tensor
    n_genes: int
    gram_by_group: Tensor | None = None
    observed: Tensor | None = None
    dof: float | None = None
    is_pooled: bool = False
    covariate_slopes: Tensor | None = None
    covariate_centre: Tensor | None = None
    state_var: Tensor | None = None

    @cached_property
    def by_column(self) -> Tensor:
        """Means, a row a column, (P, K): a search takes a few of them at a time."""
        return self.means.T.contiguous()

    @cached_property
    def movements(self) -> Tensor:
        """Orthonormal basis of what each gene's movements between contexts may add to others, (d, K, 3)."""
        own = self.means[:, : self.n_genes]
        return torch.linalg.qr(bends((own - own[self.group < 0].mean(0)).T).permute(1, 2, 0))[0]

    def variance_of_means(self, noise_var: Tensor, genes: Tensor | None = None) -> Tensor:
        """Variance of the mean of each context, shape (B, K), where cells have `noise_var` (B,) given parents and hidden states."""
        if self.state_var is not None:
            noise_var = noise_var + (self.state_var if genes is None else self.state_var[genes])
        return noise_var[:, None] / self.n_cells

    @property
    def n_contexts(self) -> int:
        """Number of contexts K, controls counted."""
        return len(self.n_cells)

    @cached_property
    def n_groups(self) -> int:
        """Number of perturbations, controls not counted."""
        return int(self.group.max()) + 1 if self.gram_by_group is None else len(self.gram_by_group) - 1

    @property
    def n_basis(self) -> int:
        """Number of functions of each gene."""
        return self.means.shape[1] // self.n_genes

    @cached_property
    def residual_dof(self) -> float:
        """Degrees of freedom of the scatter."""
        if self.dof is not None:
            return self.dof
        return float((self.n_cells.sum() - self.n_contexts).clamp_min(1.0))

    def first_basis(self) -> ContextStatistics:
        """Statistics of the genes themselves, without further functions of them."""
        d, by_group = self.n_genes, self.gram_by_group
        return replace(
            self,
            gram=self.gram[:d, :d],
            means=self.means[:, :d],
            gram_by_group=None if by_group is None else by_group[:, :d, :d],
        )

    def of_genes(self, genes: Tensor) -> ContextStatistics:
        """Statistics of some of the genes, in the order given, shape (g,)."""
        columns = (torch.arange(self.n_basis)[:, None] * self.n_genes + genes).flatten()
        by_group = self.gram_by_group
        return replace(
            self,
            gram=self.gram[columns[:, None], columns],
            means=self.means[:, columns],
            n_genes=len(genes),
            gram_by_group=None if by_group is None else by_group[:, columns[:, None], columns],
        )

    def columns(self, genes: Tensor) -> Tensor:
        """Columns of the given parents, shape (..., p) to (..., p * n_basis)."""
        offsets = torch.arange(self.n_basis) * self.n_genes
        return (genes[..., None] + offsets).flatten(-2)


class StatisticsAccumulator:
    """Adds up :class:`ContextStatistics` over minibatches; memory does not grow with the number of cells.

    Parameters
    ----------
    group
        Perturbation of each context, -1 for controls, shape (K,).
    n_genes
        Number of genes.
    n_columns
        Number of feature columns (a multiple of `n_genes`).
    n_covariates
        Number of covariate columns to be partialled out.
    by_group
        Keep the scatter of each perturbation apart, as hard interventions need.
    level
        Level of the effect modifier of each context, shape (K,): contexts are then compared with the controls of their own level.
        None without one.
    """

    def __init__(
        self,
        group: Tensor,
        n_genes: int,
        n_columns: int,
        n_covariates: int = 0,
        by_group: bool = False,
        level: Tensor | None = None,
    ):
        self.level = None if level is None else level.cpu()
        width = n_columns + n_covariates
        self.group, self.n_genes, self.n_columns = group.cpu(), n_genes, n_columns
        n_contexts, n_groups = len(group), int(group.max()) + 2
        self.n_cells = torch.zeros(n_contexts, dtype=torch.float64)
        self.sums = torch.zeros(n_contexts, width, dtype=torch.float64)
        self.gram = torch.zeros(n_groups if by_group else 1, width, width, dtype=torch.float64)
        self.by_group = by_group

    def update(self, features: Tensor, context: Tensor, covariates: Tensor | None = None) -> None:
        """Add a minibatch: features (B, P), context codes (B,), covariates (B, Q)."""
        if covariates is not None and covariates.shape[1]:
            features = torch.cat([features, covariates], 1)
        self.n_cells += torch.bincount(context, minlength=len(self.n_cells)).cpu()
        sums = features.new_zeros(self.sums.shape).index_add_(0, context, features)
        self.sums += sums.double().cpu()
        if not self.by_group:
            self.gram[0] += (features.T @ features).double().cpu()
            return
        cell_group = self.group.to(context.device)[context]
        for g in cell_group.unique().tolist():
            members = features[cell_group == g]
            self.gram[g] += (members.T @ members).double().cpu()  # -1, controls, is the last

    def finalise(self) -> ContextStatistics:
        """Centre within contexts and take the covariates out (Frisch-Waugh-Lovell)."""
        n = self.n_cells.clamp_min(1.0)
        means = self.sums / n[:, None]
        by_group = self.gram.clone()
        for g in range(len(by_group)):
            own = self.group % len(by_group) == g  # controls, -1, come last
            by_group[g] -= (self.n_cells[own, None] * means[own]).T @ means[own]
        gram = by_group.sum(0)
        p, slopes, centre = self.n_columns, None, None
        if gram.shape[0] > p:
            slopes, centre = _regression(gram, p), self.sums[:, p:].sum(0) / self.n_cells.sum()
            projection = torch.cat([torch.eye(p, dtype=gram.dtype), -slopes])  # (P + Q, P)
            covariate_means = means[:, p:] - centre
            means = torch.cat([means[:, :p], covariate_means], 1) @ projection
            by_group = projection.T @ by_group @ projection
            gram = projection.T @ gram @ projection
        observed = self.n_cells > 0
        means, n_cells, group = means[observed], self.n_cells[observed], self.group[observed]
        dof = None
        if self.level is not None:
            dof, level = float((n_cells.sum() - len(n_cells)).clamp_min(1.0)), self.level[observed]
            means, n_cells = relative_to_controls(means, n_cells, group, level)
        return ContextStatistics(
            gram=gram,
            means=means,
            n_cells=n_cells,
            group=group,
            n_genes=self.n_genes,
            gram_by_group=by_group if self.by_group else None,
            observed=observed,
            dof=dof,
            covariate_slopes=slopes,
            covariate_centre=centre,
        )


def of_half_cells(statistics: ContextStatistics) -> ContextStatistics:
    """Statistics of cells of which each was added twice, in two versions that count half."""
    s = statistics
    by_group = None if s.gram_by_group is None else s.gram_by_group / 2
    return replace(s, gram=s.gram / 2, n_cells=s.n_cells / 2, gram_by_group=by_group)


def _regression(gram: Tensor, n_columns: int) -> Tensor:
    """Coefficients of the features on the covariates within contexts, shape (Q, P)."""
    covariates = gram[n_columns:, n_columns:]
    ridge = _RIDGE * covariates.diagonal().mean() + _TINY
    covariates = covariates + ridge * torch.eye(len(covariates), dtype=gram.dtype)
    return torch.linalg.solve(covariates, gram[n_columns:, :n_columns])
