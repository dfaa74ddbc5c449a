"""The same on a GPU; skipped where there is none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgim.model import GIM

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def on_gpu(_train_split, fit) -> GIM:
    return fit(_train_split.copy(), {"batch_key": "batch"}, epochs=60, train={"accelerator": "gpu"})


def test_parameters_and_results_are_where_they_belong(on_gpu):
    assert on_gpu.device.type == "cuda"
    assert isinstance(on_gpu.get_effects(), pd.DataFrame)
    predicted = on_gpu.predict("drug_1", n_samples=10, seed=0)
    assert isinstance(predicted.layers["expected"], np.ndarray)


def test_close_to_the_fit_on_the_cpu(on_gpu, model):
    np.testing.assert_array_equal(on_gpu.adjacency_, model.adjacency_)
    np.testing.assert_allclose(on_gpu.get_effects(), model.get_effects(), atol=0.05)
    scores = on_gpu.score()["log_likelihood"] - model.score()["log_likelihood"]
    assert scores.abs().max() < 0.2


@pytest.mark.parametrize("options", [{"mechanism": "mlp"}, {"intervention": "hard"}, {"likelihood": "normal"}])
@pytest.mark.filterwarnings("ignore:.*as raw counts are")  # also for likelihood="normal", which runs on anything
def test_other_models(adata, fit, options):
    model = fit(adata, epochs=3, train={"accelerator": "gpu"}, **options)
    assert np.isfinite(model.score()["log_likelihood"]).all()
    assert np.isfinite(model.get_total_effects(n_samples=20).to_numpy()).all()


def test_same_seed_same_cells(on_gpu):
    a, b = (on_gpu.predict("drug_1", n_samples=50, seed=3).X.toarray() for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_saved_on_the_gpu_and_loaded_on_the_cpu(on_gpu, tmp_path):
    on_gpu.save(tmp_path / "model")
    loaded = GIM.load(tmp_path / "model", adata=False, accelerator="cpu")
    assert loaded.device.type == "cpu"
    pd.testing.assert_frame_equal(loaded.get_effects(), on_gpu.get_effects())
    pd.testing.assert_frame_equal(loaded.get_adjacency(), on_gpu.get_adjacency())
    loaded.to_device("cuda:0")
    assert loaded.predict("drug_1", n_samples=3, seed=0).n_obs == 3


def test_annotation(on_gpu, adata):
    on_gpu.annotate(adata, n_samples=5)
    assert "gim_targets" in adata.varm
