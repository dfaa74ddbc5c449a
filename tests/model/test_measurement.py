"""A graph searched in counts or in hidden expression, chosen by the data."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
from pandas.testing import assert_frame_equal

import scgim
import scgim.fit._fit
from scgim.metrics import edge_metrics
from scgim.model import GIM

SIZES = {"size_factor_key": "size_factor"}


def screen(measurement: str):
    return scgim.data.simulate_screen(
        n_genes=16, n_drugs=16, doses=(1.0, 2.0), n_cells=100, mean_count=3.0, measurement=measurement, seed=0
    )


@pytest.fixture(scope="module")
def hidden(fit) -> GIM:
    return fit(screen("poisson"), SIZES, epochs=2)


@pytest.fixture(scope="module")
def counted(fit) -> GIM:
    return fit(screen("none"), SIZES, epochs=1)


def test_hidden_expression_is_told(hidden):
    assert "better than counts" in hidden.measurement_reason_
    assert (hidden.module.measurement, hidden.module.likelihood) == ("direct", "nb")


def test_counts_are_told(counted):
    assert "worse than counts" in counted.measurement_reason_


def test_the_graph_is_that_of_hidden_expression(hidden, fit):
    by_moments = fit(screen("poisson"), SIZES, epochs=1, measurement="latent")
    found, same = (model.get_adjacency().to_numpy() for model in (hidden, by_moments))
    assert ((found > 0.5) == (same > 0.5)).mean() > 0.95
    assert edge_metrics(found, hidden.adata.varp["true_adjacency"] != 0)["auprc"] > 0.85


@pytest.mark.parametrize(("measurement", "is_cut"), [("poisson", False), ("none", True)])
def test_edges_are_cut_for_lack_of_support_only_where_counts_found_them(fit, monkeypatch, measurement, is_cut):
    def no_support(module, *_):
        return np.full(module.adjacency.shape, -1.0)

    monkeypatch.setattr(scgim.fit._fit, "infer_edges", no_support)
    model = fit(screen(measurement), SIZES, epochs=1)
    assert model.adjacency_.any() == (not is_cut)
    assert (model.edge_evidence_ is None) == (not is_cut)


def test_mechanisms_are_fitted_to_counts(hidden):
    scores = hidden.score()
    assert np.isfinite(scores.to_numpy()).all()


@pytest.mark.parametrize(
    ("options", "why"),
    [({"mechanism": "mlp"}, "mechanism='mlp'"), ({"intervention": "hard"}, "intervention='hard'")],
)
def test_counts_where_hidden_expression_is_not_for_it(adata, fit, options, why):
    model = fit(adata, epochs=1, **options)
    assert why in model.measurement_reason_


def test_nothing_is_chosen_where_it_is_told(adata, fit):
    model = fit(adata, epochs=1, measurement="direct")
    assert model.measurement_reason_ is None
    assert "graph_of" not in model.report().values


def test_the_choice_is_reported(hidden):
    numbers = hidden.report().values
    assert numbers["graph_of"] == "hidden expression"
    assert numbers["since"] == hidden.measurement_reason_


def test_the_choice_is_saved_and_loaded(hidden, tmp_path):
    hidden.save(tmp_path / "model", save_anndata=True)
    loaded = GIM.load(tmp_path / "model", accelerator="cpu")
    assert loaded.measurement_reason_ == hidden.measurement_reason_
    assert loaded.report().values["graph_of"] == "hidden expression"
    drawn = [model.predict(["drug_00"], dosage=1.0, n_samples=50).X.toarray() for model in (hidden, loaded)]
    np.testing.assert_array_equal(*drawn)


def test_a_run_on_hidden_expression_resumes(tmp_path, monkeypatch):
    """What moments say of targets is in the checkpoint, as the search is not made again."""

    def make() -> GIM:
        adata = screen("poisson")
        GIM.setup_anndata(adata, **SIZES)
        scvi.settings.seed = 0
        return GIM(adata)

    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    whole, resumed = make(), make()
    scvi.settings.seed = 0
    whole.train(2, checkpoint_dir=tmp_path, **quiet)
    monkeypatch.setattr(scgim.fit._fit, "search_hidden_graph", None)
    resumed.train(resume_from=tmp_path, **quiet)
    assert_frame_equal(resumed.get_targets(), whole.get_targets())
