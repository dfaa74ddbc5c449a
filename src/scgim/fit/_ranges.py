"""How far values went in the training cells, and how far parents acted: what is drawn goes no further."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from scgim.fit._statistics import MAX_SAMPLED_CELLS, to_device

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.module import GIMModule
    from scgim.train import BatchLoader

_ODD_CELLS = 2e-3  # share of cells at either end: convention
_GENES_AT_ONCE = 200  # of the cells, sorted: for memory
_MAX_FOLD = 10.0  # of the mean, that parents make of a single cell: convention


@torch.no_grad()
def note_ranges(module: GIMModule, loader: BatchLoader, *, of_parents: bool = True) -> None:
    """Write to the module how far values went, and parents acted (not if these are hidden), in the training cells.

    Parents of counts act on the log scale, where one odd cell reaches far: two in a thousand cells at either end do not count, nor
    what goes beyond ten times the mean over cells. Means of contexts do.
    """
    d, k = len(module.centre), len(module.group)
    values = torch.tensor([[math.inf], [-math.inf]]).repeat(1, d)
    sums, n_cells, kept = torch.zeros(k, d), torch.zeros(k), []
    every = max(1, loader.n // MAX_SAMPLED_CELLS)
    for raw in loader:
        batch = to_device(raw, module.device)
        size = 1.0 if module.likelihood == "normal" else torch.exp(batch["log_size"])
        rate = (batch["x"] / size).cpu()
        values[0], values[1] = torch.minimum(values[0], rate.amin(0)), torch.maximum(values[1], rate.amax(0))
        action = module.mechanism(module.parent_features(batch["x"], batch["log_size"])).cpu()
        context = batch["context"].cpu()
        sums.index_add_(0, context, action)
        n_cells += torch.bincount(context, minlength=k)
        kept.append(action[::every])
    cells, contexts = torch.cat(kept), (sums / n_cells[:, None])[n_cells > 0]
    ends = [_usual_ends(own, counts=module.likelihood != "normal") for own in cells.split(_GENES_AT_ONCE, 1)]
    low, high = (torch.cat(end) for end in zip(*ends, strict=True))
    reach = [torch.minimum(low, contexts.amin(0)), torch.maximum(high, contexts.amax(0))]
    module.knowledge.value_range.copy_(values)
    if of_parents:
        module.knowledge.reach.copy_(torch.stack(reach))


def _usual_ends(cells: Tensor, *, counts: bool) -> tuple[Tensor, Tensor]:
    """Least and most that parents did in cells (n, g), of counts without odd cells and ten times the mean."""
    ordered = cells.sort(0).values
    if not counts:
        return ordered[0], ordered[-1]
    odd = int(len(cells) * _ODD_CELLS)
    usual = torch.logsumexp(cells, 0) - math.log(len(cells))  # log of the mean fold
    return ordered[odd], torch.minimum(ordered[-1 - odd], usual + math.log(_MAX_FOLD))
