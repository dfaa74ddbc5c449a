"""Mechanisms: how the parents of a gene set its log mean (GIM paper, section 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from numpy.typing import NDArray

MECHANISMS = ("linear", "mlp")
# Units a gene: convention; others are in the tables `sensitivity-gnw` and `-nonlinear` of docs/benchmarks.md.
N_HIDDEN = 8


class LinearMechanism(nn.Module):
    """f_j(h) = sum_i W_ij h_i over the parents of j.

    Parameters
    ----------
    n_genes
        Number of genes d.
    """

    is_linear = True

    def __init__(self, n_genes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_genes, n_genes))  # [i, j]: i -> j
        self.register_buffer("adjacency", torch.zeros(n_genes, n_genes))

    def set_graph(self, adjacency: NDArray) -> None:
        """Fix the graph, boolean (d, d); weights of edges that are gone are forgotten."""
        self.adjacency.copy_(torch.as_tensor(np.asarray(adjacency), dtype=self.adjacency.dtype))
        with torch.no_grad():
            self.weight.mul_(self.adjacency)

    def forward(self, h: Tensor, genes: Tensor | None = None) -> Tensor:
        """Contribution of the parents, (B, d) to (B, d), or (B, len(genes)) for some of the genes."""
        weight = self.weight * self.adjacency
        return h @ (weight if genes is None else weight[:, genes])

    def prior_masks(self) -> list[Tensor]:
        """For each parameter, which of its entries are in use."""
        return [self.adjacency.bool()]

    def slopes(self, h: Tensor) -> Tensor:
        """Mean derivative of each gene's predictor in each parent, shape (d, d)."""
        return self.weight * self.adjacency


class MLPMechanism(nn.Module):
    """f_j(h) = linear part + a network of one hidden layer, both of the parents of j only.

    Parameters
    ----------
    n_genes
        Number of genes d.
    n_hidden
        Hidden units per gene.
    """

    is_linear = False

    def __init__(self, n_genes: int, n_hidden: int = N_HIDDEN):
        super().__init__()
        self.linear = LinearMechanism(n_genes)
        self.n_hidden = n_hidden
        self.set_graph(np.zeros((n_genes, n_genes), dtype=bool))

    def set_graph(self, adjacency: NDArray) -> None:
        """Fix the graph, boolean (d, d), and start the hidden layers anew."""
        self.linear.set_graph(adjacency)
        index, mask = parent_table(adjacency)
        d, p = index.shape
        device = self.linear.weight.device
        rng = torch.Generator().manual_seed(0)
        first = torch.randn(d, p, self.n_hidden, generator=rng) / p**0.5
        bias = torch.randn(d, self.n_hidden, generator=rng)
        self.register_buffer("index", torch.as_tensor(index, device=device))
        self.register_buffer("mask", torch.as_tensor(mask, device=device))
        self.first = nn.Parameter(first.to(device))
        self.bias = nn.Parameter(bias.to(device))
        self.second = nn.Parameter(torch.zeros(d, self.n_hidden, device=device))

    def forward(self, h: Tensor, genes: Tensor | None = None) -> Tensor:
        """Contribution of the parents, (B, d) to (B, d), or (B, len(genes)) for some of the genes."""
        linear = self.linear(h, genes)
        genes = slice(None) if genes is None else genes
        inputs = h[:, self.index[genes]] * self.mask[genes]  # (B, g, p)
        hidden = torch.einsum("bgp,gph->bgh", inputs, self.first[genes]) + self.bias[genes]
        # less its value at the control mean, so that the intercept keeps its meaning
        hidden = torch.tanh(hidden) - torch.tanh(self.bias[genes])
        return linear + (hidden * self.second[genes]).sum(-1)

    def prior_masks(self) -> list[Tensor]:
        """For each parameter, which of its entries are in use."""
        masks = {
            "linear.weight": self.linear.adjacency.bool(),
            "first": self.mask[:, :, None].bool().expand_as(self.first),
            "bias": torch.ones_like(self.bias, dtype=torch.bool),
            "second": torch.ones_like(self.second, dtype=torch.bool),
        }
        return [masks[name] for name, _ in self.named_parameters()]

    def slopes(self, h: Tensor) -> Tensor:
        """Mean derivative of each gene's predictor in each parent over the rows of h, shape (d, d)."""
        inputs = h[:, self.index] * self.mask
        hidden = torch.einsum("bgp,gph->bgh", inputs, self.first) + self.bias
        slope = torch.einsum("bgh,gph->gp", (1 - torch.tanh(hidden).square()) * self.second, self.first) / len(h)
        out = self.linear.slopes(h).detach().clone()
        rows = self.index.flatten()
        columns = torch.arange(len(self.index), device=rows.device).repeat_interleave(self.index.shape[1])
        return out.index_put_((rows, columns), (slope * self.mask).flatten(), accumulate=True)


def parent_table(adjacency: NDArray) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Parents of each gene, padded to the largest number: indices and 0/1 mask, both (n_genes, max_parents)."""
    adjacency = np.asarray(adjacency, dtype=bool)
    width = max(1, int(adjacency.sum(0).max()))
    index = np.zeros((len(adjacency), width), dtype=np.int64)
    mask = np.zeros((len(adjacency), width), dtype=np.float32)
    for j in range(len(adjacency)):
        parents = np.flatnonzero(adjacency[:, j])
        index[j, : len(parents)] = parents
        mask[j, : len(parents)] = 1.0
    return index, mask


def linear_part(mechanism: nn.Module) -> LinearMechanism:
    """Linear part of a mechanism, which holds the graph."""
    return getattr(mechanism, "linear", mechanism)


def make_mechanism(kind: str, n_genes: int, n_hidden: int) -> LinearMechanism | MLPMechanism:
    """Mechanism by name."""
    return LinearMechanism(n_genes) if kind == "linear" else MLPMechanism(n_genes, n_hidden)


@torch.no_grad()
def draw_weights(mechanism: nn.Module, fitted: nn.Module, weight_sd: Tensor, rng: torch.Generator) -> None:
    """Move the weights of `mechanism` from those of `fitted` by one draw of their errors, shape (d, d)."""
    linear, centre = (linear_part(m).weight for m in (mechanism, fitted))
    noise = torch.randn(weight_sd.shape, generator=rng, dtype=torch.float64)
    linear.copy_(centre + (noise.to(weight_sd) * weight_sd).to(centre))
