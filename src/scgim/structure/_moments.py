r"""Statistics of hidden expression, freed of counting noise by moments.

Where the network acts on hidden log expression z and counts are a Poisson sample of it, x ~ Poisson(s exp z), regressions
on observed counts see parents through noise: edges fade and spurious ones appear. Moments see through it. Within a
context k

.. math:: \log \frac{E[x_i x_j / s^2] - \delta_{ij} E[x_i / s^2]}{m_{ki} m_{kj}} = \mathrm{Cov}(z_i, z_j), \qquad
          m_{ki} = E[x_i / s] = \exp(E z_i + \tfrac{1}{2} \mathrm{Var} z_i)

and interventions that shift means leave the covariance alone, so it is pooled over contexts. It is then less certain than
the number of cells suggests; the search is told by how much, from the spread of the products themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scgim.structure._covariance_model import MeasuredCovariance
from scgim.structure._statistics import ContextStatistics

_MIN_VARIANCE = 0.02  # of log expression, a spread of 14 %; less cannot be told from none: convention
_PSEUDOCOUNT = 0.1  # cells' worth of one count, so that a context without counts has a log mean: convention
_DOF_QUANTILE = 0.1  # certainty is that of the least certain pairs, since those make the spurious edges: convention
_MIN_RATIO = 0.05  # of E[xy] to E[x] E[y], so that pairs never seen together have a logarithm: convention
_HALF = 0.5  # of the variance is what parents typically leave unexplained: convention
_TINY = 1e-12  # guard of a quotient


@dataclass(frozen=True)
class HiddenExpression:
    """Statistics of hidden expression for the search, and its scale.

    Parameters
    ----------
    statistics
        Statistics of z, standardised by its mean and spread in controls.
    centre, spread
        Mean of z in controls and its standard deviation within contexts, both (d,).
    n_cells
        Cells of each context, (K,); the search takes them for fewer.
    reading_var
        Variance of the log mean of each context by counting, and by how far means of exp(z) vary more than those of z, (K, d).
    measured
        Covariance within contexts of counts per size factor, relative to their means, with what of it is counting noise.
    """

    statistics: ContextStatistics
    centre: Tensor
    spread: Tensor
    n_cells: Tensor
    reading_var: Tensor
    measured: MeasuredCovariance

    def variance_of_means(self, noise_var: Tensor) -> Tensor:
        """Variance of the log mean of each context given those of the parents, (K, d), where z has `noise_var` (d,) of its own."""
        return noise_var / self.n_cells[:, None] + self.reading_var


class MomentAccumulator:
    """Adds up moments over minibatches, in a pass for the means of contexts and another for products.

    Parameters
    ----------
    group
        Perturbation of each context, -1 for the control, shape (K,).
    n_genes
        Number of genes d.
    """

    def __init__(self, group: Tensor, n_genes: int):
        self.group = group.cpu()
        self.n_cells = torch.zeros(len(group), dtype=torch.float64)
        self.sums = torch.zeros(len(group), n_genes, dtype=torch.float64)
        self.products, self.squares, self.centred = (
            torch.zeros(n_genes, n_genes, dtype=torch.float64) for _ in range(3)
        )
        self.counting = torch.zeros(n_genes, dtype=torch.float64)
        self.per_count = torch.zeros(n_genes, dtype=torch.float64)  # sum of 1 / s

    def add_means(self, x: Tensor, log_size: Tensor, context: Tensor) -> None:
        """First pass: counts (B, d), log size factors (B, 1), or those of each gene (B, d), context codes (B,)."""
        self.sums.index_add_(0, context, (x * torch.exp(-log_size)).double())
        self.n_cells += torch.bincount(context, minlength=len(self.n_cells))

    @property
    def means(self) -> Tensor:
        """Mean of x / s in each context, shape (K, d)."""
        return (self.sums + _PSEUDOCOUNT) / self.n_cells.clamp_min(1.0)[:, None]

    def add_products(self, x: Tensor, log_size: Tensor, context: Tensor) -> None:
        """Second pass over the same cells."""
        means, size = self.means[context], log_size.double().exp()
        ratio = x.double() / size / means
        self.products += ratio.T @ ratio
        self.squares += ratio.square().T @ ratio.square()
        centred = (ratio - 1).square()
        self.centred += centred.T @ centred
        self.counting += (ratio / (size * means)).sum(0)
        self.per_count += (1 / size).sum(0)

    def finalise(self) -> HiddenExpression:
        """Covariance, log means and how certain they are."""
        n, d = self.n_cells.sum(), len(self.counting)
        raw, counting = self.products / n, self.counting / n
        covariance = torch.log((raw - torch.diag(counting)).clamp_min(_MIN_RATIO))
        values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        covariance = (vectors * values.clamp_min(_MIN_VARIANCE)) @ vectors.T
        variance = covariance.diagonal()
        # degrees of freedom of a Wishart matrix whose entries vary as much as these do
        observed = ((self.squares / n - raw.square()) / raw.square() / n).clamp_min(_TINY)
        observed = torch.where(raw > 0, observed, torch.inf)  # genes never seen together tell nothing of each other
        dof = (torch.outer(variance, variance) + covariance.square()) / observed
        pairs = dof[torch.ones(d, d).triu(1).bool()]
        half = _HALF * variance
        kept = ((half / (half + counting)) * (variance + counting) / variance).mean()
        certainty = (half / (variance.exp() - 1 - half + counting)).mean().clamp_max(1.0)
        spread = variance.sqrt()
        control = int(torch.nonzero(self.group < 0)[0])
        logs = self.means.log()
        seen = self.n_cells > 0
        n_cells = self.n_cells[seen]
        reading = (self.per_count / n / self.means[seen] + variance.exp() - 1 - variance) / n_cells[:, None]
        effective = float((pairs.quantile(_DOF_QUANTILE) if len(pairs) else dof[0, 0]) * kept)
        statistics = ContextStatistics(
            gram=covariance / torch.outer(spread, spread) * effective,
            means=((logs - logs[control]) / spread)[seen],
            n_cells=n_cells * certainty,
            group=self.group[seen],
            n_genes=d,
            observed=seen,
            dof=effective,
        )
        measured = MeasuredCovariance((raw - 1).numpy(), counting.numpy(), self._cells_worth())
        return HiddenExpression(statistics, logs[control] - half, spread, n_cells, reading, measured)

    def _cells_worth(self) -> float:
        """Cells of normal values whose products of two genes would vary as much as those of these cells, less one for each context."""
        n = self.n_cells.sum()
        covariance = self.products / n - 1
        variance = covariance.diagonal()
        usual = torch.outer(variance, variance) + covariance.square()
        excess = ((self.centred / n - covariance.square()) / usual.clamp_min(_TINY))[
            torch.ones_like(usual).triu(1).bool()
        ]
        n_contexts = float((self.n_cells > 0).sum())
        return max(1.0, float(n) - n_contexts) / max(1.0, float(excess.median()) if len(excess) else 1.0)
