"""Screens that stay in their files are fitted as those in memory."""

from __future__ import annotations

import tracemalloc

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scvi
import zarr
from anndata.io import read_elem, sparse_dataset
from scipy import sparse

import scgim
from scgim.model import GIM
from scgim.train import BatchLoader, CellsDataModule

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


KINDS = ["h5ad csr", "h5ad dense", "zarr csr", "zarr dense"]


def from_file(screen, kind: str, folder):
    kind, form = kind.split()
    screen = screen.copy()
    screen.X = screen.X.toarray() if form == "dense" else screen.X
    if kind == "h5ad":
        screen.write_h5ad(folder / "screen.h5ad")
        return anndata.read_h5ad(folder / "screen.h5ad", backed="r")
    screen.write_zarr(folder / "screen.zarr")
    group = zarr.open(str(folder / "screen.zarr"), mode="r")
    parts = {name: read_elem(group[name]) for name in ("obs", "var", "uns")}
    return anndata.AnnData(group["X"] if form == "dense" else sparse_dataset(group["X"]), **parts)


@pytest.mark.parametrize("kind", KINDS[1:3])
def test_small_file_gives_the_fit_of_memory(screen, kind, tmp_path):
    in_memory, in_file = fitted(screen.copy()), fitted(from_file(screen, kind, tmp_path))
    np.testing.assert_array_equal(in_memory.get_targets(), in_file.get_targets())
    np.testing.assert_array_equal(in_memory.adjacency_, in_file.adjacency_)


@pytest.mark.parametrize("kind", ["h5ad csr", "zarr dense"])
def test_large_file_is_never_read_as_a_whole(screen, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("scgim.fit._baselines._N_CELLS", 500)
    monkeypatch.setattr("scgim.fit._contexts._BLOCK_VALUES", 1000 * screen.n_vars)
    reference = fitted(screen.copy())
    adata = from_file(screen, kind, tmp_path)
    monkeypatch.setattr("scgim.train._data._DENSE_BYTES_OF_FILE", 0)
    monkeypatch.setattr("scgim._backed._BLOCK_VALUES", 1000 * screen.n_vars)
    monkeypatch.setattr("scgim.train._data._AHEAD", 1)
    largest = 0
    read = scgim._backed.StoredMatrix.read

    def recording(self):
        nonlocal largest
        largest = max(largest, len(self.rows))
        return read(self)

    monkeypatch.setattr("scgim._backed.StoredMatrix.read", recording)
    model = fitted(adata)
    assert largest < adata.n_obs
    np.testing.assert_array_equal(model.adjacency_, reference.adjacency_)
    difference = model.get_effects() - reference.get_effects()
    assert difference.abs().to_numpy().max() < 0.2  # other minibatches


@pytest.mark.parametrize("kind", KINDS)
def test_model_of_a_file_is_used_as_any_other(screen, kind, tmp_path):
    reference = screen.copy()
    del reference.obs["size_factor"]
    adata = from_file(reference, kind, tmp_path)
    model = fitted(adata)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = GIM.load(tmp_path / "model")
    np.testing.assert_array_equal(sc.get.obs_df(loaded.adata, "gene_0"), sc.get.obs_df(screen, "gene_0"))
    np.testing.assert_allclose(
        loaded.score(seed=0)["log_likelihood"], model.score(adata, seed=0)["log_likelihood"], rtol=1e-6
    )
    is_control = adata.obs["perturbation"] == "control"
    predicted = model.predict_cells(adata[is_control], ["drug_0"], dosage=1.0)
    assert predicted.n_obs == is_control.sum()
    assert len(model.score(adata[is_control], seed=0)) == 1
    pd.testing.assert_frame_equal(
        model.rank_drugs(["drug_0", "drug_1"], toward=adata), model.rank_drugs(["drug_0", "drug_1"], toward=reference)
    )
    model.annotate()
    scgim.pl.targets(adata, show=False)
    scgim.pl.dose_response(adata, "drug_0", show=False)
    scgim.pl.predicted_vs_observed(adata, model.predict(["drug_0"], dosage=1.0, n_samples=50), show=False)
    table = scgim.pp.check_screen(adata)
    assert "fail" not in set(table["verdict"].str.lower())
    adata.obs["split"] = np.where(adata.obs["perturbation"] == "drug_0", "unseen_drug", "train")
    with pytest.raises(ValueError, match=r"lies in a file.*to_memory"):
        scgim.metrics.compare_baselines(adata, predicted={"model": predicted})


def test_views_of_a_file_are_explained(screen, tmp_path):
    adata = from_file(screen, "h5ad csr", tmp_path)
    with pytest.raises(ValueError, match=r"view.*`adata = adata.to_memory\(\)`"):
        GIM.setup_anndata(adata[:100])
    GIM.setup_anndata(adata[adata.obs["dosage"] < 2].to_memory())


def test_columns_in_a_file_are_no_baseline_either(screen, tmp_path):
    by_column = screen.copy()
    by_column.X = by_column.X.tocsc()
    by_column.obs["split"] = np.where(by_column.obs["perturbation"] == "drug_0", "unseen_drug", "train")
    by_column.write_h5ad(tmp_path / "screen.h5ad")
    backed = anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"lies in a file.*to_memory"):
        scgim.metrics.compare_baselines(backed)
    with pytest.raises(ValueError, match="column by column"):
        GIM.setup_anndata(backed)
    backed.file.close()


def grown_bytes(path, n_genes: int, n_cells: int) -> int:
    """Most bytes of arrays, beside what little has nothing to do with cells, from the set-up to a pass of all loaders of a fit."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"perturbation": np.resize(["control", "a", "b", "c"], n_cells), "size_factor": 1.0})
    obs["dosage"] = (obs["perturbation"] != "control") * 1.0
    counts = sparse.csr_matrix(rng.poisson(1.0, (n_cells, n_genes)).astype(np.float32))
    anndata.AnnData(counts, obs=obs.set_index(obs.index.astype(str))).write_h5ad(path)
    del counts, obs
    adata = anndata.read_h5ad(path, backed="r")
    tracemalloc.start()
    GIM.setup_anndata(adata, drug_embedding_key=None, size_factor_key="size_factor")
    cells = GIM(adata)._prepare_cells()
    train, held = np.arange(n_cells)[: n_cells // 2], np.arange(n_cells)[n_cells // 2 :]
    module = CellsDataModule(None, cells=cells, external_indexing=[train, held, []], batch_size=64)
    loaders = [BatchLoader(cells.take(train), 64, shuffle=False), module.train_dataloader(), module.val_dataloader()]
    for loader in loaders:
        assert sum(len(batch["x"]) for batch in loader) == n_cells // 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    adata.file.close()
    return peak


@pytest.mark.parametrize("in_file", [True, False])
def test_memory_of_a_screen_in_a_file_grows_with_annotations_alone(in_file, tmp_path, monkeypatch):
    """Dense values take 1,200 bytes a cell, sparse ones as many; of a screen small enough to be read there is one dense copy for all."""
    n_genes, sizes = 300, (1000, 5000)
    blocks = ("_backed._BLOCK_VALUES", "_validation._matrix._BLOCK_VALUES", "train._data._COPIED_VALUES")
    for name in blocks:
        monkeypatch.setattr(f"scgim.{name}", 100 * n_genes)
    monkeypatch.setattr("scgim.train._data._AHEAD", 1)
    if in_file:
        monkeypatch.setattr("scgim.train._data._DENSE_BYTES_OF_FILE", 0)
    few, many = (grown_bytes(tmp_path / f"{n}.h5ad", n_genes, n) for n in sizes)
    a_cell = (many - few) / (sizes[1] - sizes[0])
    values = 0 if in_file else 4 * n_genes
    assert values < a_cell < values + 150
