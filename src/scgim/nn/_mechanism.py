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
    regulators
        Genes that may be parents, boolean (d,), which alone have weights; None for all.
    """

    is_linear = True

    def __init__(self, n_genes: int, regulators: NDArray[np.bool_] | None = None):
        super().__init__()
        sources = None if regulators is None or np.all(regulators) else torch.as_tensor(np.flatnonzero(regulators))
        self.register_buffer("sources", sources, persistent=False)
        self.weight = nn.Parameter(torch.zeros(n_genes if sources is None else len(sources), n_genes))  # [i, j]: i -> j
        self.register_buffer("adjacency", torch.zeros(n_genes, n_genes))

    def of_sources(self, values: Tensor) -> Tensor:
        """Rows of the genes that have weights, of values of pairs of genes (d, d)."""
        return values if self.sources is None else values[self.sources]

    def set_graph(self, adjacency: NDArray) -> None:
        """Fix the graph, boolean (d, d); weights of edges that are gone are forgotten."""
        self.adjacency.copy_(torch.as_tensor(np.asarray(adjacency), dtype=self.adjacency.dtype))
        with torch.no_grad():
            self.weight.mul_(self.of_sources(self.adjacency))

    def forward(self, h: Tensor, genes: Tensor | None = None) -> Tensor:
        """Contribution of the parents, (B, d) to (B, d), or (B, len(genes)) for some of the genes."""
        weight = self.weight * self.of_sources(self.adjacency)
        own = h if self.sources is None else h[:, self.sources]
        return own @ (weight if genes is None else weight[:, genes])

    def prior_masks(self) -> list[Tensor]:
        """For each parameter, which of its entries are in use."""
        return [self.of_sources(self.adjacency).bool()]

    def slopes(self, h: Tensor) -> Tensor:
        """Mean derivative of each gene's predictor in each parent, shape (d, d)."""
        if self.sources is None:
            return self.weight * self.adjacency
        slopes = torch.zeros_like(self.adjacency)
        slopes[self.sources] = self.weight * self.of_sources(self.adjacency)
        return slopes


class MLPMechanism(nn.Module):
    """f_j(h) = linear part + a network of one hidden layer, both of the parents of j only.

    Parameters
    ----------
    n_genes
        Number of genes d.
    n_hidden
        Hidden units per gene.
    regulators
        Genes that may be parents, boolean (d,); None for all.
    """

    is_linear = False

    def __init__(self, n_genes: int, n_hidden: int = N_HIDDEN, regulators: NDArray[np.bool_] | None = None):
        super().__init__()
        self.linear = LinearMechanism(n_genes, regulators)
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
            "linear.weight": self.linear.prior_masks()[0],
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


def make_mechanism(
    kind: str, n_genes: int, n_hidden: int, regulators: NDArray[np.bool_] | None = None
) -> LinearMechanism | MLPMechanism:
    """Mechanism by name."""
    if kind == "linear":
        return LinearMechanism(n_genes, regulators)
    return MLPMechanism(n_genes, n_hidden, regulators)


def through_network(slopes: Tensor) -> Tensor:
    """Inverse of 1 - slopes (d, d): what changes of genes become once they have gone through the network.

    Genes that act on none need no inverse, and most genes are such where few regulate.
    """
    acts = torch.nonzero(slopes.abs().amax(1))[:, 0]
    one = torch.eye(len(slopes), dtype=slopes.dtype, device=slopes.device)
    own = one[acts][:, acts] - slopes[acts][:, acts]
    rest = slopes[acts]
    rest[:, acts] = torch.eye(len(acts), dtype=slopes.dtype, device=slopes.device)
    one[acts] = torch.linalg.solve(own, rest)
    return one


@torch.no_grad()
def draw_weights(mechanism: nn.Module, fitted: nn.Module, weight_sd: Tensor, rng: torch.Generator) -> None:
    """Move the weights of `mechanism` from those of `fitted` by one draw of their errors, shape (d, d)."""
    linear, centre = linear_part(mechanism), linear_part(fitted).weight
    sd = linear.of_sources(weight_sd)
    noise = torch.randn(sd.shape, generator=rng, dtype=torch.float64)
    linear.weight.copy_(centre + (noise.to(sd) * sd).to(centre))
