"""What people do that was not thought of: it works, or says what to do before anything takes time."""

from __future__ import annotations

import pickle
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import scgim
from scgim.model import GIM
from scgim.model._arguments import whole_number

QUICK = {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"}


@pytest.mark.parametrize("change", ["genes", "labels", "doses", "values"])
def test_data_changed_in_place_after_setup(adata, change):
    GIM.setup_anndata(adata)
    model = GIM(adata)
    if change == "genes":
        adata._inplace_subset_var(np.arange(adata.n_vars) < 5)
        message = r"Genes of `adata` were changed since `setup_anndata` \(8 then, 5 now"
    elif change == "labels":
        adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace({"drug_0": "drug_1"})
        message = r"of \d+ cells were changed since `setup_anndata`"
    elif change == "doses":
        adata.obs["dosage"] = adata.obs["dosage"] * 2
        message = r"of \d+ cells were changed since `setup_anndata`"
    else:
        adata.X = np.log1p(adata.X)
        message = "Found fractional values in `adata.X`"
    with pytest.raises(ValueError, match=message):
        model.train(**QUICK)


def test_genes_filtered_before_the_model_is_made(adata):
    GIM.setup_anndata(adata)
    adata._inplace_subset_var(np.arange(adata.n_vars) < 5)
    with pytest.raises(ValueError, match="Genes of `adata` were changed"):
        GIM(adata)


def test_doses_that_differ_by_rounding_are_one(adata, fit):
    rounded = adata.copy()
    dosage = adata.obs["dosage"].to_numpy() * np.where(np.arange(adata.n_obs) % 3 == 0, 1 + 6e-8, 1.0)
    rounded.obs["dosage"] = dosage
    GIM.setup_anndata(rounded)
    model = GIM(rounded)
    assert set(model.contexts.get_level_values("dosage")) == {0.5, 1.0, 2.0}
    scgim.pp.split_by_context(rounded, "doses", fraction=0.3)
    by_context = rounded.obs.groupby(["perturbation", rounded.obs["dosage"].round(4)], observed=True)["split"].nunique()
    assert (by_context == 1).all()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("nan", "look like missing ones: 'nan'"),
        ("Control", "reads like a control, beside 'control'"),
        ("DMSO", "reads like a control, beside 'control'"),
    ],
)
def test_labels_that_look_odd_are_named(adata, label, message):
    names = adata.obs["perturbation"].astype(str).to_numpy()
    control = np.flatnonzero(names == "control")[:20]
    names[control] = label
    adata.obs["perturbation"] = names
    adata.obs.loc[adata.obs["perturbation"] == label, "dosage"] = 1.0
    with pytest.warns(UserWarning, match=message):
        GIM.setup_anndata(adata, drug_embedding_key=None)
    report = scgim.pp.check_screen(adata, drug_embedding_key=None)
    assert report.loc["labels", "verdict"] == "warn"
    assert message in report.loc["labels", "advice"]


def test_effects_do_not_depend_on_the_unit_of_doses(adata, fit):
    micro, molar = adata.copy(), adata.copy()
    molar.obs["dosage"] = molar.obs["dosage"] * 1e-12
    models = [fit(screen, epochs=3) for screen in (micro, molar)]
    effects = [model.get_effects().to_numpy() for model in models]
    np.testing.assert_allclose(*effects, atol=1e-8)
    ec50 = [model.get_dose_response("drug_0", model.gene_names_)["ec50"].to_numpy() for model in models]
    np.testing.assert_allclose(ec50[0] * 1e-12, ec50[1], rtol=1e-6)


@pytest.mark.parametrize(
    "names", [pd.Series, pd.Categorical, lambda x: pd.Series(x, dtype="string").array, pd.Index, np.array, tuple]
)
def test_names_in_any_container(model, names):
    assert list(model.predict(names(["drug_1", "drug_0"]), 1.0, n_samples=2).obs["perturbation"].unique()) == [
        "drug_1",
        "drug_0",
    ]


def test_control_by_name_says_how(model):
    with pytest.raises(ValueError, match=r"Control cells are `model.predict_combination\(\{\}\)`"):
        model.predict("control", 0.0)


@pytest.mark.parametrize("logger", [False, True])
def test_other_loggers_leave_a_model_that_can_be_annotated(adata, tmp_path, logger):
    GIM.setup_anndata(adata)
    model = GIM(adata)
    model.train(**QUICK, logger=CSVLogger(tmp_path) if logger else False)
    model.annotate(n_samples=20)
    assert list(adata.uns["gim"]["history"]) == ["search_score"]
    model.train(**QUICK)
    model.annotate(n_samples=20)


def test_models_are_pickled_without_their_trainer(model):
    again = pickle.loads(pickle.dumps(model))
    pd.testing.assert_frame_equal(again.get_effects(), model.get_effects())
    np.testing.assert_array_equal(
        again.predict("drug_0", 1.0, n_samples=5, seed=0).X.toarray(),
        model.predict("drug_0", 1.0, n_samples=5, seed=0).X.toarray(),
    )


def test_normalised_cells_are_refused_where_counts_are_read(adata, fit):
    deep = adata.copy()
    rng = np.random.default_rng(0)
    deep.X = rng.poisson(10 * rng.gamma(4, 0.25, (adata.n_obs, 1)), adata.shape).astype(np.float32)  # depth varies
    model = fit(deep, epochs=1)
    assert model.control_pool_["log_size"].any()
    normalised = deep[:30].copy()
    normalised.X = np.log1p(normalised.X / 3)
    with pytest.raises(ValueError, match="fractional values in `cells.X`"):
        model.predict_cells(normalised, "drug_0", 1.0)
    with pytest.raises(ValueError, match="fractional values in `toward.X`"):
        model.rank_drugs(["drug_0"], normalised)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_names_with_slashes_survive_a_file(adata, fit, tmp_path, suffix):
    genes, drugs = {"gene_0": "NKX3-1/2", "gene_1": "NKX3-1"}, {"drug_0": "A/B", "drug_1": "A"}
    adata.var_names = [genes.get(name, name) for name in adata.var_names]
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace(drugs)
    adata.uns["drug_embedding"] = adata.uns["drug_embedding"].rename(index=drugs)
    model = fit(adata, epochs=1)
    model.annotate(adata, n_samples=20)
    path = tmp_path / f"screen.{suffix}"
    if suffix == "h5ad":
        adata.write_h5ad(path)
        again = anndata.read_h5ad(path)
    else:
        pytest.importorskip("zarr")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of anndata, on the format that it writes
            adata.write_zarr(path)
        again = anndata.read_zarr(path)
    np.testing.assert_allclose(again.varm["gim_targets"], model.get_targets(model.perturbations, 1.0).T)
    (ax,) = scgim.pl.dose_response(again, "A/B", "NKX3-1/2", show=False, points=False)
    assert ax.get_title() == "NKX3-1/2"
    with pytest.raises(ValueError, match="key_added='run/1'` holds a slash"):
        model.annotate(adata, key_added="run/1")


def test_predicted_combinations_go_into_a_file_with_the_screen(adata, model, tmp_path):
    pairs = model.predict_combination([{"drug_0": 1.0, "drug_1": 0.5}, {"drug_0": 2.0}], n_samples=3, seed=0)
    both = anndata.concat([adata, pairs, model.predict("drug_0", 1.0, n_samples=2, seed=0)], index_unique="-")
    both.write_h5ad(tmp_path / "both.h5ad")
    np.testing.assert_array_equal(both.obs["dosage"].tail(8), [np.nan] * 3 + [2.0] * 3 + [1.0] * 2)


def test_features_with_numbers_for_names_are_saved_with_the_data(adata, fit, tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (len(adata.uns["drug_embedding"]), 12))
    adata.uns["drug_embedding"] = pd.DataFrame(bits, index=adata.uns["drug_embedding"].index)
    model = fit(adata, epochs=1)
    model.save(tmp_path / "model", save_anndata=True)
    assert list(adata.uns["drug_embedding"].columns) == list(range(12))
    again = GIM.load(tmp_path / "model")
    pd.testing.assert_frame_equal(again.get_effects(), model.get_effects())


def test_cells_without_counts_pass_where_size_factors_are_given(adata):
    x = adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X.copy()
    x[3] = 0
    adata.X = x
    with pytest.raises(ValueError, match="name size factors from all genes as `size_factor_key`"):
        GIM.setup_anndata(adata)
    GIM.setup_anndata(adata, size_factor_key="size_factor")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(6, 6), (6.0, 6), (np.int64(6), 6), (np.min([400.0, 6]), 6), ("6.5", None), (6.5, None), (True, None)],
)
def test_whole_numbers(value, expected):
    if expected is None:
        with pytest.raises(ValueError, match="`max_epochs` must be a whole number, found"):
            whole_number("max_epochs", value)
    else:
        assert whole_number("max_epochs", value) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"use_gpu": True}, TypeError, r"has no arguments \['use_gpu'\].*`accelerator='gpu'`"),
        ({"enable_checkpointing": True}, ValueError, "Pass `checkpoint_dir='folder'`"),
        ({"callbacks": [ModelCheckpoint()]}, ValueError, "found ModelCheckpoint.*Pass `checkpoint_dir='folder'`"),
        ({"plan_kwargs": {"weight_decay": 1e-4}}, ValueError, "such as `weight_decay`, go into `optim_kwargs`"),
        ({"device": "cpu"}, ValueError, "Pass `accelerator='cpu'`"),
        ({"precision": 64}, ValueError, "`precision=64` is not supported"),
        ({"lr": 0}, ValueError, "`lr` must be a positive number, found 0"),
        ({"accelerator": "mps"}, ValueError, "GPUs of Apple"),
    ],
)
def test_arguments_of_train_are_checked_before_the_search(adata, monkeypatch, options, error, message):
    GIM.setup_anndata(adata)
    monkeypatch.setattr("scgim.fit._fit.Fit.run", lambda self: pytest.fail("the search began"))
    with pytest.raises(error, match=message):
        GIM(adata).train(**{**QUICK, **options})


def test_arguments_that_other_models_take_as_none(adata):
    GIM.setup_anndata(adata)
    model = GIM(adata)
    model.train(**QUICK, train_size=None, batch_size=None, callbacks=None)
    assert model.is_trained


def test_another_default_type_of_torch_is_named(adata, model):
    GIM.setup_anndata(adata)
    untrained = GIM(adata)
    torch.set_default_dtype(torch.float64)
    try:
        for ask in (lambda: untrained.train(**QUICK), model.score, model.get_targets, lambda: model.predict("drug_0")):
            with pytest.raises(ValueError, match="default type of torch is torch.float64"):
                ask()
    finally:
        torch.set_default_dtype(torch.float32)


class Bag:
    mod = {"rna": None}


@pytest.mark.parametrize(
    ("adata", "message"),
    [
        ("screen.h5ad", r"Read it first: `adata = anndata.read_h5ad\('screen.h5ad'\)`"),
        (Bag(), r"mdata\['rna'\]"),
        (3, "Expected cells x genes"),
    ],
)
def test_not_annotated_data(adata, message):
    with pytest.raises(TypeError, match=message):
        GIM.setup_anndata(adata)


def test_odd_tables(adata):
    twice = adata.copy()
    twice.obs = pd.concat([twice.obs, twice.obs[["dosage"]]], axis=1)
    with pytest.raises(ValueError, match="2 columns called 'dosage'. Keep one"):
        GIM.setup_anndata(twice)
    levels = adata.copy()
    levels.uns["drug_embedding"].columns = pd.MultiIndex.from_product([["fp"], levels.uns["drug_embedding"].columns])
    with pytest.raises(ValueError, match="have 2 levels"):
        GIM.setup_anndata(levels)
    adata.obs.index.name = "perturbation"
    GIM.setup_anndata(adata, categorical_covariate_keys=("batch",))
    assert GIM(adata)._covariates.keys == ["batch"]
    with pytest.raises(TypeError, match=r"`control` is 0 \(int\).*pass `control='0'`"):
        GIM.setup_anndata(adata, control=0)


def test_one_drug_at_several_doses(model):
    out = model.predict("drug_1", [0.5, 1.0, 2.0], n_samples=2, seed=0)
    assert list(out.obs["dosage"]) == [0.5, 0.5, 1.0, 1.0, 2.0, 2.0]
    each = model.predict(["drug_1"] * 3, [0.5, 1.0, 2.0], n_samples=2, seed=0)
    np.testing.assert_array_equal(out.X.toarray(), each.X.toarray())
    assert model.get_effects("drug_1", [0.5, 2.0]).shape == (2, len(model.gene_names_))


def test_the_usual_dosage_is_a_measured_one(model):
    dosage = set(model.predict("drug_1", n_samples=1).obs["dosage"])
    assert dosage <= set(model.contexts.get_level_values("dosage"))


def test_doses_of_a_screen_without_any_are_refused(adata, fit):
    adata.obs = adata.obs.drop(columns="dosage")
    model = fit(adata, {"dosage_key": None, "drug_embedding_key": None}, epochs=1)
    drug = model.perturbations[0]
    for ask in (
        lambda: model.predict(drug, 0.5),
        lambda: model.predict_mean([drug], 3.0),
        lambda: model.predict_combination({drug: 2.0}),
    ):
        with pytest.raises(ValueError, match="set up without doses .*Leave `dosage` out"):
            ask()
    with pytest.raises(ValueError, match="no dose-response curves"):
        model.get_dose_response(drug)
    assert model.predict(drug, 1.0, n_samples=2).n_obs == 2
