"""Counts or hidden expression, chosen by the data."""

from __future__ import annotations

import numpy as np
import pytest

import scgim
from scgim.model import GIM


def screen(measurement: str):
    return scgim.data.simulate_screen(
        n_genes=16, n_drugs=16, doses=(1.0, 2.0), n_cells=100, mean_count=3.0, measurement=measurement, seed=0
    )


@pytest.fixture(scope="module")
def hidden(fit) -> GIM:
    return fit(screen("poisson"), {"size_factor_key": "size_factor"}, epochs=1, measurement="auto")


@pytest.fixture(scope="module")
def counted(fit) -> GIM:
    return fit(screen("none"), {"size_factor_key": "size_factor"}, epochs=1, measurement="auto")


def test_hidden_expression_is_told(hidden):
    assert (hidden.module.measurement, hidden.module.likelihood) == ("latent", "poisson")
    assert "better than counts" in hidden.measurement_reason_


def test_counts_are_told(counted):
    assert (counted.module.measurement, counted.module.likelihood) == ("direct", "nb")
    assert "worse than counts" in counted.measurement_reason_


@pytest.mark.parametrize(
    ("setup", "options", "why"),
    [
        ({"batch_key": "batch"}, {}, "covariate 'batch'"),
        ({}, {"mechanism": "mlp"}, "mechanism='mlp'"),
        ({}, {"intervention": "hard"}, "intervention='hard'"),
    ],
)
def test_counts_where_hidden_expression_is_not_for_it(adata, fit, setup, options, why):
    model = fit(adata, setup, epochs=1, measurement="auto", **options)
    assert model.module.measurement == "direct"
    assert why in model.measurement_reason_


def test_nothing_is_chosen_where_it_is_told(adata, fit):
    model = fit(adata, epochs=1, measurement="direct")
    assert model.measurement_reason_ is None
    assert "parents_act_by" not in model.report().values


def test_the_choice_is_reported(hidden):
    numbers = hidden.report().values
    assert numbers["parents_act_by"] == "hidden expression"
    assert numbers["since"] == hidden.measurement_reason_


def test_the_choice_is_saved_and_loaded(hidden, tmp_path):
    hidden.save(tmp_path / "model", save_anndata=True)
    loaded = GIM.load(tmp_path / "model", accelerator="cpu")
    assert (loaded.module.measurement, loaded.module.likelihood) == ("latent", "poisson")
    assert loaded.measurement_reason_ == hidden.measurement_reason_
    drawn = [model.predict(["drug_00"], dosage=1.0, n_samples=50).X.toarray() for model in (hidden, loaded)]
    np.testing.assert_array_equal(*drawn)
