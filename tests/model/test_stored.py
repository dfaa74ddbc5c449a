"""Screens that stay in their files are fitted as those in memory."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scvi
import zarr
from anndata.io import read_elem, sparse_dataset

import scgim
from scgim.model import GIM

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")


@pytest.fixture(scope="module")
def screen():
    return scgim.data.simulate_screen(
        n_genes=6, n_drugs=8, n_cells=40, n_controls=200, n_features=4, n_unseen_drugs=0, library_size_sd=0.3, seed=0
    )


def fitted(adata, **setup) -> GIM:
    GIM.setup_anndata(adata, **setup)
    scvi.settings.seed = 0
    model = GIM(adata)
    model.train(12, accelerator="cpu", enable_progress_bar=False)
    return model


def from_file(screen, kind: str, folder):
    if kind == "h5ad":
        screen.write_h5ad(folder / "screen.h5ad")
        return anndata.read_h5ad(folder / "screen.h5ad", backed="r")
    screen.write_zarr(folder / "screen.zarr")
    group = zarr.open(str(folder / "screen.zarr"), mode="r")
    parts = {name: read_elem(group[name]) for name in ("obs", "var", "uns")}
    return anndata.AnnData(sparse_dataset(group["X"]), **parts)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_small_file_gives_the_fit_of_memory(screen, kind, tmp_path):
    in_memory, in_file = fitted(screen.copy()), fitted(from_file(screen, kind, tmp_path))
    np.testing.assert_array_equal(in_memory.get_targets(), in_file.get_targets())
    np.testing.assert_array_equal(in_memory.adjacency_, in_file.adjacency_)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_large_file_is_never_read_as_a_whole(screen, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("scgim.model._calibration._MAX_CELLS", 500)
    reference = fitted(screen.copy())
    adata = from_file(screen, kind, tmp_path)
    monkeypatch.setattr("scgim.train._data._DENSE_BYTES", 0)
    monkeypatch.setattr("scgim._stored._BLOCK_VALUES", 1000 * screen.n_vars)
    monkeypatch.setattr("scgim.train._data._AHEAD", 1)
    largest = 0
    read = scgim._stored.StoredMatrix.read

    def recording(self):
        nonlocal largest
        largest = max(largest, len(self.rows))
        return read(self)

    monkeypatch.setattr("scgim._stored.StoredMatrix.read", recording)
    model = fitted(adata)
    assert largest < adata.n_obs
    np.testing.assert_array_equal(model.adjacency_, reference.adjacency_)
    difference = model.get_effects() - reference.get_effects()
    assert difference.abs().to_numpy().max() < 0.15  # other minibatches


def test_model_of_a_file_is_saved_scored_and_loaded(screen, tmp_path):
    adata = from_file(screen, "h5ad", tmp_path)
    model = fitted(adata)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = GIM.load(tmp_path / "model")
    np.testing.assert_array_equal(np.asarray(loaded.adata.X.todense()), np.asarray(screen.X.todense()))
    beside = GIM.load(tmp_path / "model", adata=from_file(screen, "zarr", tmp_path))
    np.testing.assert_allclose(beside.score(seed=0)["log_likelihood"], model.score(seed=0)["log_likelihood"])
    controls = adata[adata.obs["perturbation"] == "control"]
    assert model.predict_cells(controls, ["drug_0"], dosage=1.0).n_obs == controls.n_obs
    model.annotate()
    scgim.pl.targets(adata, show=False)
    scgim.pl.dose_response(adata, "drug_0", show=False)
    predicted = model.predict(["drug_0"], dosage=1.0, n_samples=50)
    scgim.pl.predicted_vs_observed(adata, predicted, show=False)
    adata.file.close()
