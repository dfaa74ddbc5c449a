"""Size factors that are estimated because none were given."""

from __future__ import annotations

import numpy as np
import pytest

import scgim
from scgim.model import GIM


@pytest.fixture(scope="module")
def deep_screen():
    """Cells whose depth varies by half an e-fold."""
    return scgim.data.simulate_screen(
        n_genes=10, n_drugs=12, doses=(0.5, 2.0), n_cells=30, n_controls=300, n_features=4, library_size_sd=0.5, seed=3
    )


@pytest.fixture(scope="module")
def model(deep_screen, fit) -> GIM:
    return fit(deep_screen, epochs=3)


def test_size_factors_are_estimated(model, deep_screen):
    found = np.log(model.get_size_factors())
    assert found.index.equals(deep_screen.obs_names)
    assert np.corrcoef(found, np.log(deep_screen.obs["size_factor"]))[0, 1] > 0.9
    totals = np.asarray(np.log(deep_screen.X.sum(1))).ravel()
    truth = np.log(deep_screen.obs["size_factor"])
    assert np.std(found - truth) < 0.8 * np.std(totals - truth)


def test_drawn_cells_differ_in_depth_as_measured_ones_do(model, deep_screen):
    drawn = np.log(model.predict(["drug_00"], dosage=1.0, n_samples=3000).obs["size_factor"])
    control = (deep_screen.obs["perturbation"] == "control").to_numpy()
    np.testing.assert_allclose(drawn.std(), np.log(deep_screen.obs["size_factor"][control]).std(), rtol=0.15)


def test_size_factors_of_other_cells(model, deep_screen):
    some = deep_screen[::7].copy()
    np.testing.assert_allclose(model.get_size_factors(some), model.get_size_factors()[::7], rtol=1e-5)


def test_size_factors_are_stored_for_plots(model, deep_screen):
    adata = deep_screen.copy()
    model.annotate(adata, n_samples=5)
    np.testing.assert_array_equal(adata.obs["gim_size_factor"], model.get_size_factors())
    assert adata.uns["gim"]["params"]["size_factor_key"] == "gim_size_factor"


def test_they_are_saved_and_loaded(model, deep_screen, tmp_path):
    model.save(tmp_path / "model")
    loaded = GIM.load(tmp_path / "model", adata=deep_screen, accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_size_factors(), model.get_size_factors())


def test_controls_of_the_user_keep_their_depth(model, deep_screen):
    controls = deep_screen[deep_screen.obs["perturbation"] == "control"][:20].copy()
    treated = model.predict_cells(controls, ["drug_00"], dosage=1.0)
    expected = model.get_size_factors()[controls.obs_names]
    np.testing.assert_allclose(treated.obs["size_factor"], expected, rtol=0.05)


def test_given_size_factors_are_taken(deep_screen, fit):
    model = fit(deep_screen, {"size_factor_key": "size_factor"}, epochs=1)
    np.testing.assert_allclose(model.get_size_factors(), deep_screen.obs["size_factor"], rtol=1e-5)
    assert not model.module.depth.is_known


def test_ones_where_cells_do_not_differ(adata, fit):
    assert (fit(adata, epochs=1).get_size_factors() == 1.0).all()


def test_the_same_seed_gives_the_same_size_factors(model, deep_screen, fit):
    again = fit(deep_screen.copy(), epochs=3)
    np.testing.assert_array_equal(again.get_size_factors(), model.get_size_factors())


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_is_resumed_has_the_same_size_factors(deep_screen, monkeypatch, tmp_path):
    """Also where counts differ in their totals, but not, as a network says, in depth."""
    monkeypatch.setattr("scgim.model._preparation.estimate_depth", lambda *_: None)
    options = {"enable_progress_bar": False, "accelerator": "cpu"}
    adata = deep_screen.copy()
    GIM.setup_anndata(adata)
    GIM(adata).train(2, checkpoint_dir=tmp_path, **options)
    resumed = GIM(adata)
    resumed.train(resume_from=tmp_path, **options)
    assert not resumed.control_pool_["log_size"].any()
    assert (resumed.get_size_factors() == 1).all()
