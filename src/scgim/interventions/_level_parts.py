"""What drugs have in common in one level of the effect modifier and not in the others, by drugs that were left out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from scgim.interventions._responses import Contexts, ResponseSurface, choose_settings, left_out
from scgim.interventions._trust import trust

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.interventions._generator import DrugKernel
    from scgim.interventions._stacking import Responses


class LevelParts:
    """Deviations of each level from what is predicted of drugs in all.

    What a level shows beside the prediction for its drugs, each left out, is a dense response of drug and dose as well
    (:mod:`scgim.interventions._responses`), and is trusted as far as it predicts drugs that are left out.

    Parameters
    ----------
    responses
        What was measured in each context, with levels.
    predicted
        Effects predicted of each context, its drug left out, (K, d).
    contexts
        Drug, dose and features of the contexts.
    kernel
        Kernel of the drug features.
    """

    def __init__(self, responses: Responses, predicted: Tensor, contexts: Contexts, kernel: DrugKernel):
        self.grid, self.n_genes = responses.grid, predicted.shape[1]
        level: Tensor = responses.level  # type: ignore[assignment]
        self.n_levels = int(level.max()) + 1
        self.parts: dict[int, tuple[float, ResponseSurface]] = {}
        left = responses.effects - predicted
        for k in torch.unique(level).tolist():
            rows = torch.nonzero(level == k)[:, 0]
            own, group = contexts.rows(rows), responses.group[rows]
            loss = partial(_loss, responses, predicted @ responses.carry, rows)
            settings = choose_settings(left[rows] @ responses.carry, own, kernel, group, loss)
            found = left_out(left[rows], own, kernel, settings, group) @ responses.carry
            every = torch.arange(len(rows))
            share = trust(loss(0 * found, every) - loss(found, every), group)
            if share:
                self.parts[k] = share, ResponseSurface(left[rows], own, kernel, settings)

    def __call__(self, features: Tensor) -> Tensor:
        """What drugs with standardised features (Q, p) do in each level beside what they do in all, (Q, L, m, d)."""
        q, m = len(features), len(self.grid)
        contexts = Contexts(torch.full((q * m,), -1), self.grid.repeat(q), features.repeat_interleave(m, 0))
        out = torch.zeros(q, self.n_levels, m, self.n_genes, dtype=torch.float64)
        for k, (share, surface) in self.parts.items():
            out[:, k] = share * surface(contexts).reshape(q, m, -1)
        return out


def _loss(responses: Responses, base: Tensor, rows: Tensor, predicted: Tensor, chosen: Tensor) -> Tensor:
    """Squared error in some of the contexts `rows` where `predicted` is added to what is predicted of all levels."""
    return responses.loss(base[rows[chosen]] + predicted, rows[chosen])
