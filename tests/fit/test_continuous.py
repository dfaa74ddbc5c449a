"""Means of continuous contexts in screens of combinations, in closed form."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData

from scgim.model import GIM

NAMES = "abcd"


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Dense effects of four drugs on the means of ten proteins, none large."""
    return np.random.default_rng(0).normal(0, 1.5, (4, 10))


@pytest.fixture(scope="module")
def model(truth) -> GIM:
    """Two samples of each drug alone and one of all pairs but "a+b"."""
    rng = np.random.default_rng(1)
    labels = ["control"] * 60 + [n for n in NAMES for _ in range(2)] + ["a+c", "a+d", "b+c", "b+d", "c+d"]
    means = [sum((truth[NAMES.index(n)] for n in label.split("+") if n in NAMES), np.zeros(10)) for label in labels]
    adata = AnnData(np.stack(means) + rng.normal(size=(len(labels), 10)))
    adata.obs["perturbation"] = pd.Categorical(labels)
    scvi.settings.seed = 0
    GIM.setup_anndata(adata, dosage_key=None, drug_embedding_key=None, combination_separator="+")
    model = GIM(adata, likelihood="normal")
    model.train(5, accelerator="cpu", enable_progress_bar=False)
    return model


def change(model: GIM, *drugs: dict[str, float]) -> np.ndarray:
    cells = model.predict_combination([*drugs, {}], n_samples=4000).X.reshape(len(drugs) + 1, 4000, -1).mean(axis=1)
    return cells[:-1] - cells[-1]


def test_a_pair_that_was_left_out_is_the_sum_of_shrunk_members(model, truth):
    """Better than the members measured alone, whose errors add up: two samples of each have twice half the variance."""
    pair = change(model, {"a": 1.0, "b": 1.0})
    assert ((pair - truth[0] - truth[1]) ** 2).mean() < 1.0
    alone = change(model, {"a": 1.0}, {"b": 1.0})
    np.testing.assert_allclose(pair[0], alone.sum(axis=0), atol=0.15)


def test_drugs_are_known_by_their_pairs_as_well(model, truth):
    found = change(model, *({n: 1.0} for n in NAMES))
    assert ((found - truth) ** 2).mean() < 0.45  # two samples alone: 0.5
