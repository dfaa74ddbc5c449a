"""Hidden states of cells as the module holds them: what they add to each gene, and how they are read off a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scgim.structure._states import MAX_STATES

if TYPE_CHECKING:
    from scgim.structure._states import HiddenStates
    from scgim.structure._statistics import ContextStatistics

_MIN_VARIANCE = 1e-3  # of noise that is left where states have taken the rest


class StatesOfCells(nn.Module):
    """What the search found of hidden states, on the scale of predictors; zero where there are none.

    Where a gene is fitted, the noise of the other genes of its cell tells of the states. Where cells are drawn, states are.

    Parameters
    ----------
    n_genes, n_contexts, n_covariates
        Numbers of genes d, contexts K and covariates Q.
    """

    def __init__(self, n_genes: int, n_contexts: int, n_covariates: int):
        super().__init__()
        self.register_buffer("loadings", torch.zeros(MAX_STATES, n_genes))
        self.register_buffer("score_weights", torch.zeros(n_genes, MAX_STATES))
        self.register_buffer("without_own", torch.zeros(0, 0))  # (d, d) where there are states: a large table
        # variance of what the states add that the noise of other genes leaves open
        self.register_buffer("open_var", torch.zeros(n_genes))
        self.register_buffer("centre", torch.zeros(n_contexts, n_genes))
        self.register_buffer("covariate_slopes", torch.zeros(n_covariates, n_genes))
        self.n = 0

    @torch.no_grad()
    def write(self, states: HiddenStates | None, statistics: ContextStatistics, stretch: Tensor) -> None:
        """Take over what was found; `stretch` (d,) is a change of each gene's predictor for one of its parent feature."""
        for buffer in self.buffers():
            buffer.zero_()
        self.n, self.without_own = 0, self.loadings.new_zeros(0, 0)
        if states is None:
            return
        self.n = states.n_states
        without_own, open_var = states.without_own()
        self.loadings[: self.n] = (states.loadings * stretch[:, None]).T.to(self.loadings)
        self.score_weights[:, : self.n] = states.score_weights().to(self.loadings)
        self.without_own = (without_own * stretch).to(self.loadings)
        self.open_var.copy_(open_var * stretch.square())
        means = statistics.means[:, : statistics.n_genes]
        if statistics.covariate_slopes is not None:
            slopes = statistics.covariate_slopes[:, : statistics.n_genes]
            self.covariate_slopes.copy_(slopes)
            means = means - statistics.covariate_centre @ slopes
        self.centre[statistics.observed] = means.to(self.centre)

    def deviations(self, h: Tensor, context: Tensor, covariates: Tensor) -> Tensor:
        """Parent features less what is expected in the context of the cell, (B, d)."""
        return h - self.centre[context] - covariates @ self.covariate_slopes

    def offsets(self, h: Tensor, context: Tensor, covariates: Tensor) -> Tensor:
        """What states add to the predictor of each gene of a cell, by the noise of all others, (B, d)."""
        return self.deviations(h, context, covariates) @ self.without_own

    def scores(self, h: Tensor, context: Tensor, covariates: Tensor) -> Tensor:
        """Posterior means of the states of cells, (B, n)."""
        return self.deviations(h, context, covariates) @ self.score_weights[:, : self.n]

    def draw(self, n_cells: int, rng: torch.Generator) -> Tensor:
        """What states of new cells add to the predictors, (B, d)."""
        return torch.randn(n_cells, self.n, generator=rng, device=self.loadings.device) @ self.loadings[: self.n]

    @property
    def variance(self) -> Tensor:
        """Variance that states add to each predictor, (d,)."""
        return self.loadings.square().sum(0)

    def scale_beside(self, likelihood: str, log_scale: Tensor, genes: Tensor, added: Tensor) -> Tensor:
        """Scale of the noise of genes (G,) where predictors vary by `added` (G,) beside what was fitted with the states as they were read."""
        if not self.n:
            return log_scale
        change = added - self.open_var[genes]
        if likelihood == "normal":
            return -(torch.exp(-log_scale) + change).clamp_min(_MIN_VARIANCE).log()
        # overdispersion of a log-normal and a gamma factor, about
        return -(torch.exp(-log_scale) + change.exp() - 1).clamp_min(_MIN_VARIANCE).log()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, buffer in self.named_buffers():
            state_dict.setdefault(prefix + name, torch.zeros_like(buffer))  # of a model from before there were states
        self.without_own = torch.empty_like(state_dict[prefix + "without_own"], device=self.loadings.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.n = int((self.loadings != 0).any(1).sum())
