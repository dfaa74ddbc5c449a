from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import torch

from scgim.structure._graph import topological_order
from scgim.structure._statistics import ContextStatistics, StatisticsAccumulator

if TYPE_CHECKING:
    from collections.abc import Callable


class Screen(NamedTuple):
    """Cells of a linear Gaussian screen: values (N, d), context codes (N,), and their statistics."""

    x: np.ndarray
    context: np.ndarray
    statistics: ContextStatistics


def gather(x: np.ndarray, context: np.ndarray, group: np.ndarray, **kwargs) -> ContextStatistics:
    """Statistics of cells in one pass."""
    group = torch.as_tensor(group)
    accumulator = StatisticsAccumulator(group, x.shape[1], x.shape[1], **kwargs)
    accumulator.update(torch.as_tensor(x), torch.as_tensor(context))
    return accumulator.finalise()


@pytest.fixture(scope="session")
def simulate() -> Callable[..., Screen]:
    """Make a linear Gaussian screen in which each perturbation, at two doses, acts on one or two genes."""

    def simulate(
        W: np.ndarray,
        targets: np.ndarray,
        *,
        hard: bool = False,
        n_cells: int = 60,
        n_controls: int = 400,
        effect: float = 2.5,
        seed: int = 0,
    ) -> Screen:
        rng = np.random.default_rng(seed)
        d, n_perturbations = len(W), len(targets)
        group = np.concatenate([[-1], np.repeat(np.arange(n_perturbations), 2)])
        sizes = [n_controls, *[n_cells] * (2 * n_perturbations)]
        context = np.repeat(np.arange(len(group)), sizes)
        size = np.where(np.arange(len(group)) % 2 == 1, 0.7, 1.0) * effect
        sign = rng.choice([-1.0, 1.0], (n_perturbations, d))
        on = np.vstack([targets, np.zeros(d)])[group].astype(bool)  # (K, d)
        shift = on * size[:, None] * np.vstack([sign, np.ones(d)])[group]
        x = np.zeros((len(context), d))
        for j in topological_order(W != 0):
            parents = x @ W[:, j]
            if hard:
                parents = parents * ~on[context, j]
            x[:, j] = parents + shift[context, j] + rng.normal(size=len(x))
        return Screen(x, context, gather(x, context, group, by_group=hard))

    return simulate
