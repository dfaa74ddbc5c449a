r"""Whether the children of genes see their counts, or hidden expression of which counts are a noisy sample.

Counts follow their parents' counts in the first case: the noise of a parent's counts is passed on. In the second it is not, and what is measured of
gene i is :math:`u_i + e_i`, where u follows the network and :math:`e_i` is noise of its own. With reliabilities
:math:`\rho_i = \mathrm{Var}\,u_i / \mathrm{Var}(u_i + e_i)` the first is the case of all :math:`\rho_i = 1`, so that the covariance within contexts
tells the two apart: siblings of a parent that is measured with noise stay correlated given what is measured of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

_N_STEPS = 200  # of descent: convention
_FIRST_LOG_ODDS = 1.0  # of reliabilities, 0.73
_MIN_VARIANCE = 1e-6  # of what parents leave of a gene


def evidence_by_counts(correlation: Tensor, n_cells: float, adjacency: NDArray[np.bool_]) -> float:
    """Log evidence of a graph in which parents act as they are measured (Bayesian information criterion).

    Parameters
    ----------
    correlation
        Of what is measured, within contexts, shape (d, d).
    n_cells
        Cells, less one for each context.
    adjacency
        Edges of the graph, shape (d, d).
    """
    _, noise_var = _regressions(correlation, adjacency)
    return -0.5 * n_cells * float((noise_var.log() + 1).sum()) - _price(adjacency.sum(), n_cells)


def evidence_by_hidden(
    correlation: Tensor, n_cells: float, adjacency: NDArray[np.bool_], hidden_correlation: Tensor | None = None
) -> float:
    """Log evidence of a graph in which hidden expression acts, with a reliability for each gene.

    Arguments as for :func:`evidence_by_counts`; `hidden_correlation` (d, d) is that of hidden expression, if it is known, to start from.
    """
    weights, noise_var = _regressions(correlation if hidden_correlation is None else hidden_correlation, adjacency)
    edges, eye = torch.as_tensor(adjacency).double(), torch.eye(len(correlation), dtype=torch.float64)
    log_odds = torch.full_like(noise_var, _FIRST_LOG_ODDS)
    parameters = [t.clone().requires_grad_() for t in (weights, noise_var.log(), log_odds)]
    optimiser = torch.optim.LBFGS(parameters, max_iter=_N_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        weights, log_noise, log_odds = parameters
        carried = torch.linalg.inv(eye - weights * edges)
        hidden = carried.T @ (log_noise.exp()[:, None] * carried)
        implied = hidden + torch.diag(hidden.diagonal() * torch.exp(-log_odds))
        value = 0.5 * (torch.logdet(implied) + torch.linalg.solve(implied, correlation).trace())
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
        value = float(loss().detach())
    if not math.isfinite(value):
        return -math.inf
    return -n_cells * value - _price(adjacency.sum() + len(correlation), n_cells)


def _price(n_parameters: float, n_cells: float) -> float:
    return 0.5 * float(n_parameters) * math.log(n_cells)


def _regressions(correlation: Tensor, adjacency: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """Weights (d, d) of all genes on their parents and the variances (d,) that they leave."""
    weights, noise_var = torch.zeros_like(correlation), correlation.diagonal().clone()
    for j, own in enumerate(adjacency.T):
        parents = np.flatnonzero(own)
        if len(parents):
            weights[parents, j] = torch.linalg.solve(correlation[parents][:, parents], correlation[parents, j])
            noise_var[j] -= correlation[j, parents] @ weights[parents, j]
    return weights, noise_var.clamp_min(_MIN_VARIANCE)
