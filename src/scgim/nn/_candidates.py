"""Which genes are looked at as parents of which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgim.nn._statistics import ContextStatistics


def candidate_parents(statistics: ContextStatistics, max_candidates: int) -> NDArray[np.bool_]:
    """Genes that may be parents of each gene, boolean (d, d): all, or the most correlated where genes are many.

    Half are chosen by partial correlation within contexts and half by correlation between context means. Genes that are chosen for
    one another in one direction are so in both.
    """
    d = statistics.n_genes
    if d <= max_candidates + 1:
        return ~np.eye(d, dtype=bool)
    within = statistics.gram[:d, :d].numpy() / statistics.residual_dof
    ridge = 0.05 * np.diag(np.diag(within)) + 1e-8 * np.eye(d)
    inverse = np.linalg.inv(within + ridge)
    scale = np.sqrt(np.diag(inverse))
    partial = np.abs(inverse / np.outer(scale, scale))
    between = np.abs(np.corrcoef(statistics.means[:, :d].numpy(), rowvar=False))
    candidates = np.zeros((d, d), dtype=bool)
    for strength in (partial, np.nan_to_num(between)):
        np.fill_diagonal(strength, -1.0)
        best = np.argsort(-strength, axis=0)[: max_candidates // 2]
        np.put_along_axis(candidates, best, True, axis=0)
    return candidates | candidates.T  # so that edges can turn round
