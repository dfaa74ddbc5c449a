"""What the cells say of each effect and edge once the model is fitted: score and Fisher information, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 1e-12  # guard of a quotient
_BLOCK_VALUES = 2**24  # 64 MB at a time: for memory
# Cells of a context that the likelihood is worth, where it says how scores vary: convention; suites of benchmarks/sensitivity have half and double.
_CELLS_WORTH = 100.0


@dataclass(frozen=True)
class FitInformation:
    """Sums over cells at the fitted parameters.

    Parameters
    ----------
    score, information
        Derivative of the log-likelihood in the direct effect of each context, and its Fisher information, (K, d).
    edge_information
        Fisher information of the weights of each gene's parents, (d, p, p), p the largest number of parents.
    cross_information
        Of direct effects with weights, (K, d, p).
    evidence
        For hard interventions, log-likelihood of each context with the mechanism cut less that with it whole, (K, d).
    means
        Mean of the parent features in each context, (K, d); zero where there are no cells.
    n_cells
        Cells of each context, (K,).
    overdispersion
        By how much the variance of the score exceeds the information, a factor that is 1 or more, (K, d); see :func:`overdispersion_of`.
    """

    score: Tensor
    information: Tensor
    edge_information: Tensor
    cross_information: Tensor
    evidence: Tensor
    means: Tensor
    n_cells: Tensor
    overdispersion: Tensor

    def edge_covariance(self, shift_precision: Tensor) -> Tensor:
        """Covariance of the weights of each gene's parents, direct effects summed out, (d, p, p).

        `shift_precision` (K, d) is the prior precision of the direct effects: where it is large, means of contexts tell
        of the weights as well.
        """
        weight = 1 / (self.information + shift_precision).clamp_min(_TINY)
        lost = torch.einsum("kjp,kj,kjq->jpq", self.cross_information, weight, self.cross_information)
        return torch.linalg.pinv(self.edge_information - lost, hermitian=True)


class InformationAccumulator:
    """Adds up :class:`FitInformation` over minibatches.

    Parameters
    ----------
    n_contexts
        Number of contexts K.
    parents
        Table of parents and its mask, both (d, p).
    """

    def __init__(self, n_contexts: int, parents: Tensor, mask: Tensor):
        d, p = parents.shape
        self.parents, self.mask = parents, mask
        device = parents.device
        self.score = torch.zeros(n_contexts, d, device=device)
        self.information = torch.zeros(n_contexts, d, device=device)
        self.squares = torch.zeros(n_contexts, d, device=device)
        self.evidence = torch.zeros(n_contexts, d, device=device)
        self.sums = torch.zeros(n_contexts, d, device=device)
        self.n_cells = torch.zeros(n_contexts, device=device)
        self.edges = torch.zeros(d, p, p, device=device)
        self.cross = torch.zeros(n_contexts, d, p, device=device)

    def update(self, context: Tensor, h: Tensor, score: Tensor, information: Tensor, evidence: Tensor | None) -> None:
        """Add a minibatch: context (B,), parent features, score, information and evidence, all (B, d)."""
        self.sums.index_add_(0, context, h.to(self.sums))
        self.n_cells += torch.bincount(context, minlength=len(self.n_cells))
        self.score.index_add_(0, context, score)
        self.information.index_add_(0, context, information)
        self.squares.index_add_(0, context, score.square())
        for genes in torch.arange(len(self.parents)).split(max(1, _BLOCK_VALUES // self.mask.shape[1] // len(h))):
            own = slice(int(genes[0]), int(genes[-1]) + 1)
            inputs = h[:, self.parents[own]] * self.mask[own]  # (B, g, p)
            weighted = inputs * information[:, own, None]
            self.cross[:, own].index_add_(0, context, weighted)
            self.edges[own] += torch.einsum("bjp,bjq->jpq", weighted, inputs)
        if evidence is not None:
            self.evidence.index_add_(0, context, evidence)

    def finalise(self) -> FitInformation:
        """All sums, in double precision on the CPU."""
        means = self.sums / self.n_cells.clamp_min(1)[:, None]
        sums = (self.score, self.information, self.edges, self.cross, self.evidence, means, self.n_cells)
        of_fit = [t.double().cpu() for t in sums]
        of_fit.append(overdispersion_of(of_fit[0], self.squares.double().cpu(), of_fit[1], of_fit[-1]))
        return FitInformation(*of_fit)


def overdispersion_of(score: Tensor, squares: Tensor, information: Tensor, n_cells: Tensor) -> Tensor:
    """By how much scores of a context's cells vary more than their likelihood says, (K, d).

    Real cells have counts that no common likelihood foresees, and a few of them move the mean of a context by more than it is said to vary: such a gene
    looked like a target. The variance of the scores over the information is the factor of the sandwich estimate (White, 1982, Econometrica 50:1) over
    that of the likelihood; it is shrunk to 1, as it is itself uncertain where cells are few, and held there where scores vary less.
    Arguments are sums over the cells of each context: scores, their squares and information, all (K, d), and the number of cells (K,).
    """
    n = n_cells[:, None]
    own = (squares - score.square() / n.clamp_min(1)) / information.clamp_min(_TINY)
    return ((_CELLS_WORTH + n * own) / (_CELLS_WORTH + n)).clamp_min(1.0)
