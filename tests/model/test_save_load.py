"""Saved models: outputs are the same bit by bit, in this process and in a new one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scgim
from scgim.model import GIM

OUTPUTS = '''
def outputs(model, features):
    """Everything a model tells, by name, as arrays."""
    predicted = model.predict(features, dosage=0.7, n_samples=4, seed=3)
    known = model.predict(["drug_1", "drug_5"], n_samples=4, seed=4)
    found = {
        "counts": predicted.X.toarray() if hasattr(predicted.X, "toarray") else predicted.X,
        "expected": predicted.layers["expected"],
        "known": known.X.toarray() if hasattr(known.X, "toarray") else known.X,
        "size_factor": predicted.obs["size_factor"],
        "adjacency": model.get_adjacency(),
        "weights": model.get_graph()[["weight", "weight_sd", "probability"]],
        "targets": model.get_targets(),
        "new_targets": model.get_targets(features, 1.0),
        "effects": model.get_effects(),
        "effect_sds": model.get_effects(return_sd=True)[1],
        "total_effects": model.get_total_effects(n_samples=20),
        "dose_response": model.get_dose_response("drug_1", "gene_0").drop(columns="gene"),
    }
    return {name: value.to_numpy() if hasattr(value, "to_numpy") else value for name, value in found.items()}
'''
namespace: dict = {}
exec(OUTPUTS, namespace)
outputs = namespace["outputs"]

IN_A_NEW_PROCESS = f"""
import sys
import numpy as np
import pandas as pd
from scgim.model import GIM
{OUTPUTS}
model = GIM.load(sys.argv[1], adata=False, accelerator="cpu")
np.savez(sys.argv[2], **outputs(model, pd.read_pickle(sys.argv[3])))
"""


def assert_same(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.fixture(scope="module")
def features(screen):
    return screen.uns["drug_embedding"].loc[["drug_8", "drug_9"]]


@pytest.fixture
def saved(model, tmp_path) -> str:
    model.save(tmp_path / "model", save_anndata=False)
    return str(tmp_path / "model")


def test_without_data(model, saved, features):
    loaded = GIM.load(saved, adata=False, accelerator="cpu")
    assert loaded.is_trained
    assert_same(outputs(loaded, features), outputs(model, features))


def test_with_data(model, saved, adata, features):
    loaded = GIM.load(saved, adata=adata, accelerator="cpu")
    assert_same(outputs(loaded, features), outputs(model, features))
    pd.testing.assert_frame_equal(loaded.score(), model.score())
    loaded.annotate()
    assert "gim_targets" in adata.varm


def test_with_the_data_saved_along(model, tmp_path, features):
    model.save(tmp_path / "model", save_anndata=True)
    loaded = GIM.load(tmp_path / "model", accelerator="cpu")
    assert_same(outputs(loaded, features), outputs(model, features))
    pd.testing.assert_frame_equal(loaded.score(), model.score())


@pytest.mark.parametrize(
    "options",
    [{"mechanism": "mlp", "n_hidden": 3}, {"intervention": "hard"}, {"likelihood": "normal"}],
    ids=["mlp", "hard", "normal"],
)
@pytest.mark.filterwarnings("ignore:.*as raw counts are")  # also for likelihood="normal", which runs on anything
def test_other_models(adata, fit, options, tmp_path, features):
    model = fit(adata, epochs=3, **options)
    model.save(tmp_path / "model")
    loaded = GIM.load(tmp_path / "model", adata=False, accelerator="cpu")
    assert_same(outputs(loaded, features), outputs(model, features))


def test_in_a_new_process(model, saved, tmp_path, features):
    result, table = tmp_path / "result.npz", tmp_path / "features.pkl"
    features.to_pickle(table)
    source = str(Path(scgim.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = [sys.executable, "-W", "ignore", "-c", IN_A_NEW_PROCESS, saved, str(result), str(table)]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    with np.load(result) as found:
        assert_same(dict(found), outputs(model, features))


def test_another_model_alive_does_not_interfere(model, saved, adata, fit, features):
    expected = outputs(model, features)
    other = fit(adata, epochs=2)
    loaded = GIM.load(saved, adata=False, accelerator="cpu")
    other.predict("drug_1", n_samples=2, seed=0)
    assert_same(outputs(loaded, features), expected)
    assert_same(outputs(model, features), expected)


def test_untrained(adata, tmp_path):
    GIM.setup_anndata(adata)
    GIM(adata).save(tmp_path / "model")
    loaded = GIM.load(tmp_path / "model", adata=adata, accelerator="cpu")
    with pytest.raises(RuntimeError, match="[Tt]rain the model first"):
        loaded.predict("drug_1")
    loaded.train(2, enable_progress_bar=False, accelerator="cpu")
    assert loaded.is_trained


@pytest.mark.filterwarnings("ignore:`var_names` for the loaded `model`")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:, ::-1].copy(), "genes of the model in another order.*adata\\[:, training_adata.var_names\\]"),
        (lambda a: a[:, :6].copy(), "lacks 2 of the 8 genes.*'gene_6', 'gene_7'"),
    ],
    ids=["order", "fewer"],
)
def test_loading_with_other_genes(saved, adata, change, message):
    with pytest.raises(ValueError, match=message):
        GIM.load(saved, adata=change(adata), accelerator="cpu")


def test_loaded_without_data_there_is_nothing_to_score_or_train_on(saved):
    loaded = GIM.load(saved, adata=False, accelerator="cpu")
    for use in (loaded.score, loaded.annotate, lambda: loaded.train(1)):
        with pytest.raises(ValueError, match="loaded without data.*adata"):
            use()


def test_a_new_model_of_the_data_of_a_loaded_one(saved, screen):
    loaded = GIM.load(saved, adata=screen.copy(), accelerator="cpu")
    new = GIM(loaded.adata)
    assert new.perturbations == loaded.perturbations
    with pytest.raises(
        ValueError, match=r"^252 cells of 'drug_0'.* the model does not know: .*`GIM.load`.*GIM.setup_anndata"
    ):
        new.train(1, enable_progress_bar=False, accelerator="cpu")


def test_loaded_without_data_other_data_can_be_used(model, saved, adata, features):
    loaded = GIM.load(saved, adata=False, accelerator="cpu")
    some = adata[adata.obs["perturbation"].isin(["control", "drug_1"])].copy()
    # the draws of direct effects differ, since there are fewer contexts
    np.testing.assert_allclose(loaded.score(some), model.score().loc[["control", "drug_1"]], atol=0.3)
    loaded.annotate(adata)
    assert "gim_targets" in adata.varm
    assert_same(outputs(loaded, features), outputs(model, features))


def test_another_class_is_refused(saved):
    class Other(GIM):
        pass

    with pytest.raises(ValueError, match="class 'GIM'"):
        Other.load(saved, adata=False, accelerator="cpu")
