"""How well what drugs do matches a wanted change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scgim._backed import StoredMatrix
from scgim._validation import quote_some
from scgim.predict._means import MIN_MEAN, control_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from scgim.predict._sampler import Sampler

METRICS = ("change", "cosine", "correlation", "distance")
_MIN_TARGET_PROB = 0.1  # genes less likely are not named as targets: convention
_N_NAMED = 3  # in a row of the table
_CALLED = 0.5  # probability from which a gene is called a target
_TINY = 1e-12  # lengths below it have no direction


def named_targets(probs: np.ndarray, genes: Sequence[str]) -> list[str]:
    """Names of the likeliest targets of each row of probabilities, with the probability where that is below one half."""
    names = np.asarray(genes)
    order = np.argsort(-probs, axis=1, kind="stable")[:, :_N_NAMED]
    return [
        ", ".join(
            names[j] if row[j] >= _CALLED else f"{names[j]} ({row[j]:.2f})" for j in best if row[j] >= _MIN_TARGET_PROB
        )
        for row, best in zip(probs, order, strict=True)
    ]


def _check_sizes(toward: Mapping | pd.Series) -> None:
    """Raise where a wanted change is no number."""
    odd = [gene for gene, change in toward.items() if not isinstance(change, (int, float, np.number))]
    if odd:
        raise ValueError(
            f'`toward` holds {quote_some(odd)} with no number. Give lists of genes under "up" and "down", as {{"up": [...], "down": [...]}}, '
            "or a wanted change, a number, for each gene."
        )


def wanted_change(toward: Any, genes: Sequence[str]) -> pd.Series:
    """Wanted change of each gene that counts, from genes up and down, or from changes by gene; `attrs["sized"]` tells which."""
    by_side = isinstance(toward, Mapping) and set(toward) <= {"up", "down"}
    sized = isinstance(toward, (Mapping, pd.Series)) and not by_side
    if by_side:
        both = [toward.get(side, []) for side in ("up", "down")]
        both = [[names] if isinstance(names, str) else list(names) for names in both]
        wanted = pd.Series([1.0] * len(both[0]) + [-1.0] * len(both[1]), [*both[0], *both[1]], dtype=float)
    elif sized:
        _check_sizes(toward)
        wanted = pd.Series(toward, dtype=float)
    else:
        wanted = pd.Series(1.0, [toward] if isinstance(toward, str) else list(toward))
    unknown = [gene for gene in wanted.index if gene not in genes]
    if unknown or not len(wanted):
        found = f"genes {quote_some(unknown)}, which are not in the model" if unknown else "no genes"
        raise ValueError(f"`toward` holds {found}. `model.gene_names_` lists those that are.")
    if not wanted.index.is_unique or not np.isfinite(wanted).all():
        raise ValueError("`toward` must give each gene once, a finite value.")
    wanted.attrs["sized"] = sized
    return wanted


def change_to(sampler: Sampler, values: Any, size: np.ndarray) -> pd.Series:
    """Change from the model's control cells to the mean of given cells with size factors (N,)."""
    mean = _mean_per_size(values, size)
    control = control_mean(sampler, torch.Generator().manual_seed(0)).numpy()
    if sampler.is_continuous:
        change = (mean - control) / sampler.module.spread.double().cpu().numpy()
    else:
        # half a count, so that a gene that is not seen in few cells does not count for infinity
        least = max(0.5 / len(size), MIN_MEAN)
        change = np.log(mean + least) - np.log(control + least)
    return pd.Series(change, sampler.genes)


def agreement(effects: Tensor, goal: Tensor, metric: str, *, sized: bool = True) -> Tensor:
    """Agreement of effects (..., genes) with what is wanted (genes,); more is better. Goals that are not `sized` are signs only."""
    if metric == "change":
        limit = goal.abs() if sized else torch.full_like(goal, torch.inf)  # more than is wanted earns no more
        wanted, kept = goal != 0, goal == 0
        achieved = torch.minimum(effects * goal.sign(), limit)[..., wanted]
        weight = goal.abs()[wanted] / goal.abs().sum().clamp_min(1e-12)
        unwanted = effects[..., kept].abs().mean(-1) if kept.any() else torch.zeros_like(effects[..., 0])
        return achieved @ weight - unwanted
    if metric == "distance":
        return -(effects - goal).square().sum(-1).sqrt()
    if metric == "correlation":
        effects, goal = effects - effects.mean(-1, keepdim=True), goal - goal.mean()
    size = effects.square().sum(-1).sqrt() * goal.square().sum().sqrt()
    # a drug that does nothing has no direction
    return torch.where(size > _TINY, (effects @ goal) / size.clamp_min(_TINY), 0.0)


def _mean_per_size(x: Any, size: np.ndarray) -> np.ndarray:
    """Mean over cells of values over size factors, shape (d,)."""
    total, start = np.zeros(x.shape[1]), 0
    for block in x.blocks() if isinstance(x, StoredMatrix) else [x]:
        inverse = 1 / size[start : start + block.shape[0]]
        total += inverse @ block  # type: ignore[operator]
        start += block.shape[0]
    return total / len(size)
