r"""Prior of the number of genes that a gene acts on: few genes regulate, and those that do regulate many.

A gene regulates with probability q; one that does acts on each of the m others with a probability of its own, drawn from a beta
distribution. Given how many genes it acts on, all sets of them are alike:

.. math:: P(\text{set of } k) = (1 - q) [k = 0] + q \, \frac{B(1 + k, b + m - k)}{B(1, b)}.

The first edge of a gene therefore costs more than the next. Both parameters are fitted to the graph between climbs; where every gene
regulates, q is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHARES = np.linspace(0.01, 1.0, 100)  # of genes that regulate; enough for any number of genes that is searched
_MISFIT = 10.0  # nats: a noisy regulator's target that stands in for it seems to explain about as much where mechanisms are misfitted
_N_MEANS = 40  # of the grid of edges a regulator


@dataclass(frozen=True)
class OutDegreePrior:
    """Prior of the edges out of each gene.

    Parameters
    ----------
    share
        Probability that a gene regulates.
    mean
        Number of genes that a regulator acts on, on average.
    """

    share: float
    mean: float

    def log_probability(self, n_children: int) -> NDArray[np.float64]:
        """Log probability of one set of k of `n_children` genes, for k = 0, ..., `n_children`."""
        return _log_probability(np.array([self.share]), np.array([self.mean]), n_children)[0]

    def bonus(self, n_children: int, log_odds: float) -> NDArray[np.float64]:
        """What this prior adds to one of independent edges with these log odds, for each number of edges; 0 for none.

        What regulates must explain more than a misfit does, as far as others do not regulate; nothing more is asked where all do.
        """
        log = self.log_probability(n_children)
        bonus = log - log[0] - log_odds * np.arange(n_children + 1)
        bonus[1:] -= _MISFIT * (1.0 - self.share)
        return bonus

    @classmethod
    def fitted(cls, n_edges: NDArray[np.int_], n_children: int) -> OutDegreePrior:
        """Prior under which the numbers of edges out of all genes are most probable."""
        means = np.geomspace(0.5, max(1.0, 0.5 * n_children), _N_MEANS)
        share, mean = (grid.ravel() for grid in np.meshgrid(_SHARES, means, indexing="ij"))
        log = _log_probability(share, mean, n_children)[:, n_edges].sum(1)
        best = int(log.argmax())
        return cls(float(share[best]), float(mean[best]))


def _log_probability(share: NDArray, mean: NDArray, n_children: int) -> NDArray[np.float64]:
    k = np.arange(n_children + 1)
    b = np.maximum(n_children / mean - 1.0, 1e-3)[:, None]
    log = (
        np.log(share * b[:, 0])[:, None]
        + _log_gamma(1.0 + k)
        + _log_gamma(b + n_children - k)
        - _log_gamma(1.0 + b + n_children)
    )
    none = np.log1p(-np.minimum(share, 1.0 - 1e-12))
    log[:, 0] = np.logaddexp(log[:, 0], none)
    return log


def _log_gamma(values: NDArray) -> NDArray[np.float64]:
    return torch.lgamma(torch.as_tensor(values, dtype=torch.float64)).numpy()
