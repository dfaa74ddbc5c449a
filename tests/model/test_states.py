"""Hidden states of cells, as users see them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim.fit._statistics import gather_statistics
from scgim.model import GIM
from scgim.structure._states import HiddenStates
from scgim.train import BatchLoader


@pytest.fixture
def model(adata, fit) -> GIM:
    """A model that was told of one state of all genes, of which it reads by the first two alone."""
    model = fit(adata, {"batch_key": "batch", "size_factor_key": "size_factor"}, epochs=1)
    statistics = gather_statistics(model.module, BatchLoader(model._prepare_cells(), 4096, shuffle=False))
    d = model.module.adjacency.shape[0]
    loadings, noise_var = torch.full((d, 1), 0.5).double(), torch.full((d,), 1e6).double()
    noise_var[:2] = 0.5
    states = HiddenStates(torch.zeros(d, d).double(), loadings, noise_var)
    model.module.states.write(states, statistics, torch.ones(d).double())
    return model


def test_states_are_zero_on_average_in_each_context_but_for_covariates(model, adata):
    states = model.get_states()
    assert list(states.columns) == ["state_1"]
    assert states.index.equals(adata.obs_names)
    context = adata.obs["perturbation"].astype(str) + adata.obs["dosage"].astype(str)
    np.testing.assert_allclose(states["state_1"].groupby(context).mean(), 0, atol=0.3)
    assert abs(states["state_1"].mean()) < 0.01


def test_states_follow_the_genes_that_tell_of_them(model, adata):
    counts = adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None]
    control = (adata.obs["perturbation"] == "control").to_numpy()
    h = np.log1p(counts[control])
    read = ((h - h.mean(0)) / h.std(0))[:, :2].sum(1)
    assert np.corrcoef(read, model.get_states().loc[control, "state_1"])[0, 1] > 0.9


def test_states_are_stored(model, adata):
    model.annotate(adata, n_samples=5)
    np.testing.assert_array_equal(adata.obsm["gim_states"], model.get_states())


def test_no_states_no_columns(adata, fit):
    model = fit(adata, epochs=1)
    assert model.get_states().shape == (adata.n_obs, 0)
    model.annotate(adata, n_samples=5)
    assert "gim_states" not in adata.obsm


def test_states_in_contexts_that_were_not_measured_are_not_known(model, screen):
    other = screen.copy()
    states = model.get_states(other)
    known = (other.obs["split"] == "train").to_numpy()
    assert states[known].notna().all(axis=None)
    assert states[~known].isna().all(axis=None)


def test_annotated_data_need_not_have_cells(model, adata):
    bare = adata.copy()
    del bare.obs["size_factor"]
    model.annotate(bare, n_samples=5)
    assert "gim_states" not in bare.obsm
    assert "gim_targets" in bare.varm


def test_states_are_saved_and_loaded(model, adata, tmp_path):
    model.save(tmp_path / "model")
    loaded = GIM.load(tmp_path / "model", adata=adata, accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_states(), model.get_states())
