"""What is known of the drugs that are asked for is kept once a drug, whatever the dosages and levels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from scgim.interventions._interventions import Interventions
from scgim.interventions._levels import LevelEffects
from scgim.predict._drugs import Drugs, Query

N_DRUGS, N_LEVELS, N_DOSES, N_GENES = 3, 2, 4, 5
NAMES = ["a", "b", "c"]


@pytest.fixture
def known() -> Interventions:
    rng = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.rand(N_DRUGS, *shape, N_GENES, generator=rng, dtype=torch.float64)

    levels = LevelEffects(
        some(N_LEVELS), some(N_LEVELS), some(N_LEVELS), some(N_LEVELS, N_DOSES), *[some(N_LEVELS)] * 2
    )
    direct = [some() for _ in range(6)]
    grid = torch.linspace(-1.0, 1.0, N_DOSES, dtype=torch.float64)
    return Interventions(*direct, some(N_DOSES), some(), grid, levels)


@pytest.fixture
def query(known) -> Query:
    contexts = pd.MultiIndex.from_product([NAMES, [0.1, 1.0]], names=["perturbation", "dosage"])
    module = SimpleNamespace(knowledge=SimpleNamespace(interventions=lambda: known))
    n_cells = pd.Series(10, index=NAMES)
    return Drugs(module, contexts, None, n_cells, "control").query(["c", "a", "c", "c"], [0.1, 0.2, 0.3, 0.4])


def test_a_drug_at_many_dosages_is_kept_once(query, known):
    assert query.known.emax.shape == (2, N_GENES)
    assert len(query) == 4
    assert query.drug.tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(query.interventions.emax, known.emax[[2, 0, 2, 2]], rtol=0, atol=0)
    assert query.interventions.levels is None


def test_rows_have_the_effects_of_their_level(query, known):
    """Bytes beside what is known do not grow with genes, nor with levels."""
    found = query.rows(np.array([1, 1, 3])).at_levels(["x", "y"], ["y", "x", "y"])
    assert found.known is query.known
    drug, level = [0, 0, 2], [1, 0, 1]
    for name in ("target_probs", "emax", "emax_sd", "background"):
        expected = getattr(known.levels, name)[drug, level]
        torch.testing.assert_close(getattr(found.interventions, name), expected, rtol=0, atol=0)
    torch.testing.assert_close(found.interventions.hill, known.hill[drug], rtol=0, atol=0)
    np.testing.assert_array_equal(found.dosage, [0.2, 0.2, 0.4])


def test_values_are_those_of_all_rows_in_order(query, monkeypatch):
    monkeypatch.setattr("scgim.predict._drugs._ROWS_AT_ONCE", 3)
    whole = query.interventions.direct(query.log_dosage)
    torch.testing.assert_close(query.each(Interventions.direct), whole, rtol=1e-14, atol=0)
