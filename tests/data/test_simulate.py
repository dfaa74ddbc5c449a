from __future__ import annotations

import inspect

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scgim.data import ScreenSimulator, simulate_screen

SMALL = {"n_genes": 8, "n_drugs": 6, "n_cells": 10, "n_controls": 60}


def control_cells(adata):
    X = adata[adata.obs["perturbation"] == "control"].X
    return X.toarray() if sparse.issparse(X) else np.asarray(X)


def test_layout():
    adata = simulate_screen(**SMALL, n_unseen_drugs=2, unseen_doses=(0.25, 3.0), n_unseen_cells=7, n_batches=3)
    assert adata.shape == (60 + 6 * 4 * 10 + 6 * 2 * 7 + 2 * 4 * 7, 8)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert adata.X.data.min() > 0
    assert adata.var_names.tolist() == [f"gene_{i}" for i in range(8)]
    assert adata.obs["split"].value_counts().to_dict() == {"train": 300, "unseen_dose": 84, "unseen_drug": 56}
    assert adata.obs["perturbation"].cat.categories.tolist() == ["control", *[f"drug_{i}" for i in range(8)]]
    assert adata.obs["batch"].nunique() == 3
    assert (adata.obs["size_factor"] == 1).all()
    assert adata.uns["drug_embedding"].shape == (8, 20)
    assert adata.uns["drug_embedding"].index.tolist() == [f"drug_{i}" for i in range(8)]
    assert not adata.obsm


def test_contexts():
    obs = simulate_screen(**SMALL, n_unseen_drugs=1, unseen_doses=(0.25,)).obs
    control = obs[obs["perturbation"] == "control"]
    assert (control["dosage"] == 0).all()
    assert (control["split"] == "train").all()
    assert set(obs.loc[obs["split"] == "unseen_drug", "perturbation"]) == {"drug_6"}
    assert set(obs.loc[obs["split"] == "unseen_dose", "dosage"]) == {0.25}
    sizes = obs[obs["perturbation"] != "control"].groupby(["perturbation", "dosage"], observed=True).size()
    assert len(sizes) == 6 * 5 + 4
    assert (sizes == 10).all()


def test_truth_is_consistent():
    adata = simulate_screen(**SMALL, n_unseen_drugs=2)
    A, W = adata.varp["true_adjacency"].toarray(), adata.varp["true_weights"].toarray()
    assert A.dtype == bool
    assert ((W != 0) == A).all()
    targets, emax = adata.varm["true_targets"], adata.varm["true_emax"]
    assert ((emax != 0) == targets).all(axis=None)
    assert (adata.varm["true_ec50"].notna() == targets).all(axis=None)
    c, n = 2.0, adata.varm["true_hill"]
    curve = emax * c**n / (adata.varm["true_ec50"] ** n + c**n)
    pd.testing.assert_frame_equal(curve.fillna(0.0), adata.varm["true_shifts"])


def test_unlinked_targets_move_by_the_true_shift_and_nothing_else_moves():
    adata = simulate_screen(n_genes=10, n_drugs=3, edges_per_gene=0, n_cells=4000, n_controls=8000, doses=(2.0,))
    mean = adata.to_df().groupby(adata.obs["perturbation"], observed=True).mean()
    fold = np.log(mean.drop("control") / mean.loc["control"]).T
    np.testing.assert_allclose(fold, adata.varm["true_shifts"], atol=0.05)


def test_means_of_the_screen_agree_with_the_simulator():
    world = ScreenSimulator(n_genes=10, n_drugs=3, n_cells=4000, doses=(1.0,))
    adata = world.screen()
    observed = adata.to_df()[(adata.obs["perturbation"] == "drug_1").to_numpy()].mean()
    np.testing.assert_allclose(observed, world.sample({"drug_1": 1.0}, n_cells=40_000, seed=7).mean(), rtol=0.06)


def test_continuous_screen_is_dense_with_unit_control_variance():
    adata = simulate_screen(likelihood="normal", n_controls=5000, n_drugs=2)
    assert isinstance(adata.X, np.ndarray)
    assert adata.X.dtype == np.float32
    np.testing.assert_allclose(control_cells(adata).var(0), 1, atol=0.12)
    sizes = np.abs(adata.varm["true_emax"].to_numpy())
    assert sizes[sizes > 0].min() >= 1.5


def test_library_size_scales_counts():
    adata = simulate_screen(n_genes=4, edges_per_gene=0, n_drugs=1, n_controls=20_000, library_size_sd=0.5)
    control = adata.obs["perturbation"] == "control"
    size, counts = adata.obs.loc[control, "size_factor"].to_numpy(), control_cells(adata)
    assert np.log(size).std() == pytest.approx(0.5, rel=0.03)
    large = size > 1
    np.testing.assert_allclose(
        (counts[large] / size[large, None]).mean(0), (counts[~large] / size[~large, None]).mean(0), rtol=0.05
    )
    assert counts[large].mean() > 1.5 * counts[~large].mean()


def test_batches_shift_genes():
    options = {"n_genes": 5, "edges_per_gene": 0, "n_drugs": 1, "n_controls": 20_000, "batch_sd": 0.5}
    world = ScreenSimulator(**options, n_batches=2)
    adata = world.screen()
    means = adata.to_df().groupby([adata.obs["perturbation"], adata.obs["batch"]], observed=True).mean().loc["control"]
    expected = world._batch_offsets[1] - world._batch_offsets[0]
    np.testing.assert_allclose(np.log(means.loc["batch_1"] / means.loc["batch_0"]), expected, atol=0.04)


def test_confounders_correlate_genes_without_edges():
    adata = simulate_screen(
        n_genes=8, edges_per_gene=0, n_drugs=1, n_controls=20_000, n_confounders=1, confounder_sd=1.0
    )
    off = np.abs(np.corrcoef(np.log1p(control_cells(adata)).T)) - np.eye(8)
    assert sorted((off > 0.3).sum(0)) == [0, 0, 0, 0, 0, 0, 1, 1]
    assert adata.varp["true_adjacency"].nnz == 0


def test_latent_layer_only_with_measurement():
    adata = simulate_screen(**SMALL, measurement="poisson", mean_count=1)
    assert adata.layers["true_latent"].shape == adata.shape
    control = (adata.obs["perturbation"] == "control").to_numpy()
    assert adata.layers["true_latent"][control].std(0) == pytest.approx(0.7, abs=0.25)
    assert 0.4 < control_cells(adata).mean() < 1.8
    assert not simulate_screen(**SMALL).layers


def test_same_seed_same_data_and_other_seed_other_data():
    one, two, other = simulate_screen(**SMALL), simulate_screen(**SMALL), simulate_screen(**SMALL, seed=1)
    assert (one.X != two.X).nnz == 0
    pd.testing.assert_frame_equal(one.uns["drug_embedding"], two.uns["drug_embedding"])
    assert (one.X != other.X).nnz > 0
    world = ScreenSimulator(**SMALL)
    assert (world.screen().X != world.screen().X).nnz == 0


def test_numbers_of_cells_and_of_unseen_drugs_leave_the_world_unchanged():
    few = ScreenSimulator(**SMALL)
    more = ScreenSimulator(**{**SMALL, "n_cells": 33, "n_controls": 99}, n_unseen_drugs=4, unseen_doses=(5.0,))
    np.testing.assert_array_equal(few.weights, more.weights)
    np.testing.assert_array_equal(few.drugs.emax, more.drugs.emax[:6])
    np.testing.assert_allclose(few.drug_embedding, more.drug_embedding.iloc[:6])


def test_screen_drawn_in_blocks_has_the_same_distribution(monkeypatch):
    whole = simulate_screen(**SMALL, n_batches=2)
    monkeypatch.setattr("scgim.data._simulator._BLOCK_SIZE", 8 * 37)
    parts = simulate_screen(**SMALL, n_batches=2)
    pd.testing.assert_frame_equal(parts.obs, whole.obs)
    np.testing.assert_allclose(parts.to_df().mean(), whole.to_df().mean(), rtol=0.15)


def test_round_trip(tmp_path):
    adata = simulate_screen(**SMALL, unseen_doses=(3.0,), n_batches=2, measurement="poisson")
    adata.write_h5ad(tmp_path / "screen.h5ad")
    back = anndata.read_h5ad(tmp_path / "screen.h5ad")
    assert (back.X != adata.X).nnz == 0
    assert (back.varp["true_adjacency"] != adata.varp["true_adjacency"]).nnz == 0
    pd.testing.assert_frame_equal(back.varm["true_hill"], adata.varm["true_hill"])
    pd.testing.assert_frame_equal(back.uns["drug_embedding"], adata.uns["drug_embedding"])
    again = ScreenSimulator(**back.uns["simulation"]).screen()
    assert (again.X != adata.X).nnz == 0


def test_truth_follows_a_subset_of_genes():
    adata = simulate_screen(**SMALL)
    genes = ["gene_5", "gene_1"]
    assert adata[:, genes].varm["true_targets"].equals(adata.varm["true_targets"].loc[genes])
    assert (
        adata[:, genes].varp["true_adjacency"].toarray()
        == adata.varp["true_adjacency"].toarray()[np.ix_([5, 1], [5, 1])]
    ).all()


def test_function_and_class_take_the_same_options():
    of_function, of_class = (inspect.signature(obj).parameters for obj in (simulate_screen, ScreenSimulator))
    assert {name: p.default for name, p in of_function.items()} == {name: p.default for name, p in of_class.items()}


@pytest.mark.parametrize("options", [{"n_genes": 1}, {"n_drugs": 1, "doses": (1.0,)}, {"n_features": 1}])
def test_smallest_sizes(options):
    adata = simulate_screen(**{**SMALL, **options})
    assert np.isfinite(adata.X.data).all()
    assert np.isfinite(adata.uns["drug_embedding"]).all(axis=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graph": "ba"}, r"`graph` to be one of \['er', 'sf'\], found 'ba'"),
        ({"likelihood": "gaussian"}, "`likelihood`"),
        ({"n_genes": 0}, "`n_genes` to be an integer of at least 1, found 0"),
        ({"n_cells": 2.5}, "`n_cells` to be an integer"),
        ({"n_unseen_drugs": -1}, "`n_unseen_drugs`"),
        ({"feature_noise": -0.1}, "`feature_noise` to be zero or positive"),
        ({"mean_count": 0}, "`mean_count` to be positive"),
        ({"ec50": (2.0, 1.0)}, r"`ec50` to be a range"),
        ({"doses": ()}, "`doses` is empty"),
        ({"doses": (0.0, 1.0)}, "`doses` to be distinct positive numbers"),
        ({"unseen_doses": (1.0,)}, r"Doses \[1.0\] are in both"),
        ({"graph": "sf", "edges_per_gene": 1.5}, "integer `edges_per_gene`"),
        ({"measurement": "poisson", "likelihood": "normal"}, "cannot be combined"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        simulate_screen(**options)
