"""Depth of cells as the module holds it, where it was not given: how it is read off the counts."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scgim.structure._depth import DepthCells, DepthModel

if TYPE_CHECKING:
    from collections.abc import Mapping


class DepthOfCells(nn.Module):
    """What was found of the depth of cells; a variance of zero where it was given, does not differ or cannot be told.

    Parameters
    ----------
    n_genes, n_contexts, n_covariates
        Numbers of genes d, contexts K and covariates Q.
    """

    def __init__(self, n_genes: int, n_contexts: int, n_covariates: int):
        super().__init__()
        shapes = {
            "weights": (0, 0),  # (d, d) where depth is told: a large table
            "base": (n_genes,),
            "shift": (n_contexts, n_genes),
            "covariate_effect": (n_covariates, n_genes),
            "inverse_dispersion": (n_genes,),
            "centre": (n_genes,),
            "spread": (n_genes,),
            "depth": (n_contexts,),
            "variance": (),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @property
    def is_known(self) -> bool:
        """Whether depth is read off the counts."""
        return bool(self.variance > 0)

    @torch.no_grad()
    def write(self, model: DepthModel | None) -> None:
        """Take over what was found; None for nothing."""
        self.weights = self.base.new_zeros(0, 0) if model is None else model.weights.clone().to(self.base)
        for name, buffer in self.named_buffers():
            if model is None:
                buffer.zero_()
            else:
                buffer.copy_(getattr(model, name))

    def read(self, batch: Mapping[str, Tensor], *, known: bool = False) -> tuple[Tensor, Tensor]:
        """Log size factors of the cells of a minibatch and their standard deviations, both (B, 1).

        Where they are `known`, those of the minibatch are gone on from.
        """
        model = DepthModel(*(getattr(self, field.name) for field in fields(DepthModel)))
        cells = DepthCells(batch["x"].double(), batch["context"], batch["covariates"].double())
        return model.posterior(cells, batch["log_size"].double(), n_steps=1) if known else model.posterior(cells)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, buffer in self.named_buffers():
            state_dict.setdefault(prefix + name, torch.zeros_like(buffer))  # of a model from before depth was told
        self.weights = torch.empty_like(state_dict[prefix + "weights"], device=self.base.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
