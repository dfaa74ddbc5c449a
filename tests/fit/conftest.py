"""Small modules whose parameters are all known, and cells to go with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from scgim.module import GIMModule
from scgim.train._data import BatchLoader, Cells

if TYPE_CHECKING:
    from collections.abc import Callable

# The control, two doses of the first drug, a drug that was never measured, and a third one, at one dose.
GROUP = np.array([-1, 0, 0, 1, 2])
DOSAGE = np.array([0.0, 1.0, 3.0, 1.0, 2.0])
EDGES = [(0, 2), (0, 3), (1, 3)]  # genes 0 and 1 are roots


@pytest.fixture(scope="session")
def make_module() -> Callable[..., GIMModule]:
    """Make a module of four genes with parameters drawn at random."""

    def make(
        likelihood: str = "nb",
        mechanism: str = "linear",
        intervention: str = "shift",
        n_covariates: int = 0,
        dosage: np.ndarray | None = DOSAGE,
        group: np.ndarray = GROUP,
        **options: Any,
    ) -> GIMModule:
        with np.errstate(divide="ignore"):
            log_dosage = None if dosage is None else np.log(dosage)
        module = GIMModule(4, group, log_dosage, n_covariates, likelihood, mechanism, intervention, 3, **options)
        graph = np.zeros((4, 4), dtype=bool)
        graph[tuple(np.transpose(EDGES))] = True
        module.mechanism.set_graph(graph)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        return module

    return make


@pytest.fixture(scope="session")
def make_cells() -> Callable[..., Cells]:
    """Make cells whose genes follow their parents, 0 -> 2 and (0, 1) -> 3, and of which none has had the second drug."""

    def make(n: int = 300, n_covariates: int = 0, *, counts: bool = True, seed: int = 0) -> Cells:
        rng = np.random.default_rng(seed)
        context = rng.choice([0, 0, 0, 1, 2, 4], n)
        covariates = rng.normal(size=(n, n_covariates)).astype(np.float32)
        log_size = rng.normal(0.0, 0.4, n).astype(np.float32)
        moved = np.array([[0, 0, 0, 0], [0.6, 0, 0, 0], [1.2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0.9, -0.7]])[context]
        noise = 0.5 * rng.normal(size=(n, 4)) + moved + covariates @ rng.normal(size=(n_covariates, 4))
        z = noise.copy()
        z[:, 2] += 0.8 * z[:, 0]
        z[:, 3] += 0.5 * z[:, 1] - 0.6 * z[:, 0]
        x = rng.poisson(np.exp(z + [1.5, 1.0, 0.5, 1.2] + log_size[:, None])) if counts else 5.0 + 2.0 * z
        return Cells(x.astype(np.float32), context, covariates, log_size)

    return make


@pytest.fixture(scope="session")
def load() -> Callable[[Cells], BatchLoader]:
    """Minibatches of cells in order, the last of them smaller."""
    return lambda cells: BatchLoader(cells, 64, shuffle=False)
