"""In which way mechanisms are wrong between contexts, and that targets are still targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim._departures import bends
from scgim.interventions._passage import Passage
from scgim.structure._search import regressions, search_structure
from scgim.structure._statistics import ContextStatistics

N_GENES, N_DRUGS, N_CELLS = 14, 42, 200


def statistics(kind: str, seed: int) -> tuple[ContextStatistics, np.ndarray]:
    """Slopes between contexts are those within and a number more, the same for all; or a share more; and the one target of each drug."""
    rng = np.random.default_rng(seed)
    edges = np.triu(rng.random((N_GENES, N_GENES)) < 0.25, 1)
    sign = rng.choice([-1, 1], edges.shape)
    within = edges * sign * np.exp(rng.uniform(np.log(0.03), np.log(0.6), edges.shape))
    more = {"share": 1.5 * within, "number": edges * sign * 0.4, "none": 0.0}[kind]
    between = within + more * rng.uniform(0.2, 1.8, edges.shape)
    targets = np.arange(N_DRUGS) % N_GENES
    effect = np.zeros((N_DRUGS + 1, N_GENES))
    effect[np.arange(N_DRUGS) + 1, targets] = rng.choice([-1, 1], N_DRUGS) * rng.uniform(2, 4, N_DRUGS)
    total = [np.linalg.inv(np.eye(N_GENES) - slopes) for slopes in (within, between)]
    n_cells = np.r_[2000, np.full(N_DRUGS, N_CELLS)]
    noise = rng.normal(size=effect.shape) / np.sqrt(n_cells)[:, None]
    cells = ContextStatistics(
        gram=torch.as_tensor(total[0].T @ total[0]) * float(n_cells.sum() - len(n_cells)),
        means=torch.as_tensor(effect @ total[1] + noise @ total[0]),
        n_cells=torch.as_tensor(n_cells).double(),
        group=torch.arange(-1, N_DRUGS),
        n_genes=N_GENES,
    )
    return cells, targets


@pytest.mark.parametrize("kind", ["share", "number", "none"])
def test_the_way_in_which_mechanisms_are_wrong_is_found(kind):
    for seed in range(3):
        cells, targets = statistics(kind, seed)
        result = search_structure(cells)
        assert (result.prior.departure_var > 0) == (kind != "none")
        assert result.prior.proportional == (kind == "share")
        called = regressions(cells, result).target_probs.T.numpy() > 0.5
        assert called[np.arange(N_DRUGS), targets].all()
        assert called.sum() <= N_DRUGS + 3


@pytest.mark.parametrize("proportional", [False, True])
def test_what_passes_is_explained_by_departures(proportional):
    """Closed form: without targets, what is left of one gene is normal, of a covariance to which departures add."""
    rng = np.random.default_rng(0)
    moved, slopes = torch.as_tensor(rng.normal(size=(12, 3))), torch.zeros(3, 3, dtype=torch.float64)
    slopes[0, 2], slopes[1, 2] = 0.4, -1.5
    table = torch.tensor([[0, 0], [0, 0], [0, 1]])
    mask = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    left, precision = torch.as_tensor(rng.normal(size=(12, 3))), torch.as_tensor(rng.uniform(1, 5, (12, 3)))
    found = Passage(moved, slopes, table, mask).fit(left, precision, 0.3, proportional=proportional)
    scale = slopes[:2, 2].abs() if proportional else torch.ones(2)
    z = bends(moved[:, :2].T * scale[:, None]).flatten(0, 1)  # (6, 12)
    prior = 0.3 * z.T @ z
    expected = prior @ torch.linalg.solve(prior + torch.diag(1 / precision[:, 2]), left[:, 2])
    torch.testing.assert_close(found.transported[:, 2], expected)
    assert not found.transported[:, :2].any()
