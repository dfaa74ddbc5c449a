"""Predictions: what may be asked, what comes back, and that it follows from the fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scgim.predict._sampler import enough_samples

KEY = "drug_embedding"


@pytest.fixture(scope="module")
def features(screen) -> pd.DataFrame:
    """Features of two drugs that were not measured."""
    return screen.uns[KEY].loc[["drug_8", "drug_9"]]


def values(predicted) -> np.ndarray:
    return predicted.X.toarray() if sparse.issparse(predicted.X) else predicted.X


def test_what_comes_back(model, features):
    predicted = model.predict(features, dosage=[1.0, 0.3], n_samples=7, seed=0)
    assert predicted.shape == (14, 8)
    assert isinstance(predicted.X, sparse.csr_matrix)
    x = values(predicted)
    assert (x >= 0).all()
    np.testing.assert_array_equal(x, np.rint(x))
    assert predicted.layers["expected"].shape == (14, 8)
    assert list(predicted.var_names) == model.gene_names_
    assert list(predicted.obs["perturbation"].cat.categories) == ["drug_8", "drug_9"]
    assert list(predicted.obs["perturbation"]) == ["drug_8"] * 7 + ["drug_9"] * 7
    assert list(predicted.obs["dosage"]) == [1.0] * 7 + [0.3] * 7
    assert (predicted.obs["size_factor"] > 0).all()
    pd.testing.assert_frame_equal(predicted.uns[KEY], features)
    assert predicted.obs_names.is_unique


def test_predictions_can_be_written(model, features, tmp_path):
    model.predict(features, n_samples=2, seed=0).write_h5ad(tmp_path / "predicted.h5ad")


def test_default_dosage_is_the_median_measured(model):
    assert set(model.predict("drug_1", n_samples=2).obs["dosage"]) == {1.0}


@pytest.mark.parametrize("dosage", [10.0, 0.3, 1.1])
def test_dosage_comes_back_exactly(model, features, dosage):
    assert set(model.predict(features, dosage, n_samples=1, seed=1).obs["dosage"]) == {dosage}
    assert set(model.get_effects(features, dosage).index.get_level_values(1)) == {dosage}


def test_same_seed_same_cells(model, features):
    a, b, c = (values(model.predict(features, n_samples=20, seed=s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


ASKED = {
    "predict": lambda m, **seed: values(m.predict("drug_1", n_samples=20, **seed)),
    "predict_mean": lambda m, **seed: m.predict_mean("drug_1", n_draws=3, n_samples=20, **seed).layers["lower"],
    "predict_combination": lambda m, **seed: values(m.predict_combination({"drug_1": 1.0}, n_samples=20, **seed)),
    "intervene": lambda m, **seed: values(m.intervene({"gene_1": 1.0}, n_samples=20, **seed)),
    "get_total_effects": lambda m, **seed: m.get_total_effects("drug_1", n_samples=20, **seed).to_numpy(),
    "rank_drugs": lambda m, **seed: m.rank_drugs("drug_1", ["gene_1"], n_draws=3, n_samples=20, **seed)["score"],
    "propose_doses": lambda m, **seed: m.propose_doses("drug_1", [1.0], n_draws=5, **seed)["gain"],
}


@pytest.mark.parametrize("method", ASKED)
def test_all_draws_follow_one_rule(model, method):
    """The same call gives the same; without a seed, draws differ."""
    ask = ASKED[method]
    same, again, zero = ask(model), ask(model), ask(model, seed=0)
    np.testing.assert_array_equal(same, again)
    np.testing.assert_array_equal(same, zero)
    assert (np.asarray(ask(model, seed=None)) != np.asarray(ask(model, seed=None))).any()


def test_as_many_cells_as_means_need_where_none_are_asked_for(model):
    assert model.predict("drug_1").n_obs == model.predict_combination({"drug_1": 1.0}).n_obs == 1000
    assert enough_samples(30_000, 100, 1000) == 1000
    assert enough_samples(100_000, 100, 1000) == 300
    assert enough_samples(10**9, 100, 1000) == 100


def test_predictions_have_the_names_of_the_users_data(adata, fit):
    adata.obs = adata.obs.rename(columns={"perturbation": "drug", "dosage": "dose_uM", "size_factor": "depth"})
    model = fit(adata, {"perturbation_key": "drug", "dosage_key": "dose_uM", "size_factor_key": "depth"}, epochs=2)
    for out in (
        model.predict("drug_1", [0.5, 1.0], n_samples=3),
        model.predict_mean("drug_1", [0.5, 1.0], n_draws=2, n_samples=3),
        model.predict_combination([{"drug_1": 0.5}, {"drug_1": 1.0}], n_samples=3),
        model.predict_cells(adata[:3], ["drug_1", "drug_1"], [0.5, 1.0]),
    ):
        assert (out.obs["drug"] == "drug_1").all()
        assert sorted(set(out.obs["dose_uM"])) == [0.5, 1.0]
        np.testing.assert_array_equal(out.obs["dosage"], out.obs["dose_uM"])
        if "size_factor" in out.obs:
            np.testing.assert_array_equal(out.obs["depth"], out.obs["size_factor"])
    out = model.intervene({"gene_1": 1.0}, n_samples=3)
    assert (out.obs["drug"] == "do(gene_1=1)").all()


def test_drawing_leaves_global_random_numbers_alone(model):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    model.predict("drug_1", n_samples=3, seed=5)
    model.score()
    model.get_total_effects("drug_1", 1.0, n_samples=5)
    torch.testing.assert_close(torch.random.get_rng_state(), before)


def test_forms_of_features(model, features):
    """Data frame, permuted columns, arrays, sparse, one row: the same features, the same cells."""
    expected = values(model.predict(features, n_samples=3, seed=0))
    forms = [
        features[features.columns[::-1]],
        features.to_numpy(),
        features.to_numpy(dtype=np.float32).astype(float),
        sparse.csr_matrix(features.to_numpy()),
    ]
    for form in forms:
        predicted = model.predict(form, n_samples=3, seed=0)
        tolerance = {} if form is not forms[2] else {"atol": 1e9}
        np.testing.assert_allclose(values(predicted), expected, **tolerance)
    assert list(model.predict(forms[1], n_samples=1, seed=1).obs["perturbation"]) == ["new_drug_0", "new_drug_1"]
    one = values(model.predict(features.iloc[:1], n_samples=3, seed=0))
    for form in (features.iloc[0], features.to_numpy()[0]):
        np.testing.assert_array_equal(values(model.predict(form, n_samples=3, seed=0)), one)


def test_measured_drugs_use_what_was_learned_about_them(model, screen):
    table = screen.uns[KEY]
    by_name = model.get_effects(["drug_1", "drug_2"], 1.0)
    by_row = model.get_effects(table.loc[["drug_1", "drug_2"]], 1.0)
    pd.testing.assert_frame_equal(by_name, by_row)
    renamed = model.get_effects(table.loc[["drug_1"]].set_axis(["x"]), 1.0)
    assert np.abs(renamed.to_numpy() - by_name.to_numpy()[:1]).max() > 1e-3
    measured = model.get_effects()
    np.testing.assert_allclose(by_name, measured.loc[[("drug_1", 1.0), ("drug_2", 1.0)]], rtol=1e-6)


def test_known_and_new_drugs_side_by_side(model, screen):
    rows = screen.uns[KEY].loc[["drug_8", "drug_1", "drug_9", "drug_3"]]
    together = model.get_effects(rows, 1.0).droplevel(1)
    for name in rows.index:
        np.testing.assert_allclose(together.loc[name], model.get_effects(rows.loc[[name]], 1.0).iloc[0], atol=1e-5)


def test_one_drug_at_several_dosages(model):
    predicted = model.predict(["drug_1"] * 3, dosage=[0.5, 1.0, 2.0], n_samples=4, seed=0)
    assert list(predicted.obs["dosage"].unique()) == [0.5, 1.0, 2.0]
    assert list(predicted.obs["perturbation"].unique()) == ["drug_1"]


@pytest.mark.filterwarnings("ignore:Predicted means leave the range")
def test_dosages_far_outside_are_finite_and_monotone(model, features):
    dosages = [0.0, 1e-12, 1e-3, 1.0, 1e3, 1e12]
    for rows in (["drug_1"] * 6, features.iloc[[0] * 6]):
        effects = model.get_effects(rows, dosages).to_numpy()
        assert np.isfinite(effects).all()
        assert (effects[0] == 0).all()
        assert (np.abs(effects[1]) < 1e-3).all()
        assert (np.diff(np.abs(effects), axis=0) >= -1e-12).all()
        predicted = model.predict(rows, dosages, n_samples=20, seed=0)
        assert np.isfinite(predicted.layers["expected"]).all()
        assert np.isfinite(values(predicted)).all()


def test_dose_zero_is_control(model, adata):
    predicted = model.predict("drug_1", 0.0, n_samples=3000, seed=0)
    controls = adata.X.toarray()[adata.obs["perturbation"] == "control"]
    error = values(predicted).mean(0) - controls.mean(0)
    np.testing.assert_array_less(np.abs(error), 4 * controls.std(0) / np.sqrt(len(controls)) + 0.05 * controls.mean(0))


def test_means_of_measured_contexts_are_reproduced(model, adata):
    """Closer to the cells of the drug than control cells are."""
    controls = adata.X.toarray()[adata.obs["perturbation"] == "control"]
    gap = {"model": 0.0, "control": 0.0}
    for drug in model.perturbations:
        member = (adata.obs["perturbation"] == drug) & (adata.obs["dosage"] == 2.0)
        observed = np.log1p(adata.X.toarray()[member]).mean(0)
        predicted = np.log1p(values(model.predict(drug, 2.0, n_samples=300, seed=0))).mean(0)
        gap["model"] += ((predicted - observed) ** 2).sum()
        gap["control"] += ((np.log1p(controls).mean(0) - observed) ** 2).sum()
    assert gap["model"] < 0.45 * gap["control"]  # much of it the noise of 18 cells


def test_draws_scatter_about_their_means(model):
    predicted = model.predict("drug_2", n_samples=4000, seed=0)
    np.testing.assert_allclose(values(predicted).mean(0), predicted.layers["expected"].mean(0), rtol=0.1)


def test_size_factors(model):
    small, large = (model.predict("drug_1", n_samples=2000, size_factor=s, seed=0) for s in (1.0, 4.0))
    assert set(large.obs["size_factor"]) == {4.0}
    np.testing.assert_allclose(large.layers["expected"].mean(0) / small.layers["expected"].mean(0), 4.0, rtol=0.25)
    each = np.linspace(0.5, 2.0, 6)
    predicted = model.predict(["drug_1", "drug_2"], n_samples=3, size_factor=each)
    np.testing.assert_allclose(predicted.obs["size_factor"], each, rtol=1e-6)


def test_covariates(model, screen):
    counts = {b: np.asarray(screen[(screen.obs["batch"] == b)].X.mean(0)).ravel() for b in ("batch_0", "batch_1")}
    expected = {}
    for batch in counts:
        predicted = model.predict("drug_1", 0.0, n_samples=3000, covariates={"batch": batch}, seed=0)
        expected[batch] = predicted.layers["expected"].mean(0)
    found, truth = (np.log(d["batch_1"] / d["batch_0"]) for d in (expected, counts))
    assert np.corrcoef(found, truth)[0, 1] > 0.8
    frame = pd.DataFrame({"batch": ["batch_1"]}, index=["any name"])
    again = model.predict("drug_1", 0.0, n_samples=3000, covariates=frame, seed=0)
    np.testing.assert_array_equal(again.layers["expected"].mean(0), expected["batch_1"])
    assert (again.obs["batch"] == "batch_1").all()
    means = model.predict_mean(["drug_1", "drug_2"], 1.0, covariates={"batch": "batch_0"}, n_draws=2, n_samples=5)
    assert means.obs["batch"].tolist() == ["batch_0", "batch_0"]
    assert "batch" not in model.predict("drug_1", 1.0, n_samples=2).obs


def test_many_rows_are_drawn_in_parts(model, features, monkeypatch):
    monkeypatch.setattr("scgim.predict._sampler._CHUNK_VALUES", 100)
    rows = pd.concat([features] * 5, ignore_index=True)
    predicted = model.predict(rows, n_samples=6, seed=0)
    assert predicted.n_obs == 60
    assert predicted.obs["perturbation"].nunique() == 10
    np.testing.assert_array_equal(values(predicted), values(model.predict(rows, n_samples=6, seed=0)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"drug_embedding": "drug_99"},
            "'drug_99' not among the measured perturbations.*give them as `drug_embedding`",
        ),
        ({"drug_embedding": "control"}, "'control' not among the measured"),
        ({"drug_embedding": []}, "no rows"),
        ({"drug_embedding": np.ones((2, 3))}, r"shape \(2, 3\).*Expected \(drugs, 4\)"),
        ({"drug_embedding": np.full((1, 4), np.nan)}, "NaN or infinite features"),
        ({"drug_embedding": pd.DataFrame(np.ones((1, 4)), columns=list("abcd"))}, "lacks.*has unknown 'a'"),
        ({"dosage": -1.0}, "`dosage` contains -1"),
        ({"dosage": np.inf}, "`dosage` contains inf"),
        ({"dosage": np.nan}, "`dosage` contains nan"),
        ({"dosage": "10uM"}, "text such as '10uM'"),
        ({"drug_embedding": ["drug_0", "drug_1"], "dosage": [1.0, 2.0, 3.0]}, "3 values for 2 rows"),
        ({"n_samples": 0}, "`n_samples` must be at least 1, found 0"),
        ({"size_factor": 0.0}, "`size_factor` must be one or 5 positive numbers"),
        ({"size_factor": [1.0, 2.0]}, "one or 5 positive numbers, found 2"),
        ({"covariates": {"batch": "batch_7"}}, "not in the training data: 'batch_7'.*'batch_0', 'batch_1'"),
        ({"covariates": {"patient": "a"}}, r"holds \['patient'\].*\['batch'\]"),
        ({"covariates": pd.DataFrame({"batch": ["batch_0"] * 2})}, "has 2 rows. Expected one"),
    ],
)
def test_wrong_questions(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.predict(**{"drug_embedding": "drug_1", "n_samples": 5, **arguments})


def test_a_model_without_features_knows_measured_drugs_only(adata, fit, features):
    model = fit(adata, {"drug_embedding_key": None}, epochs=2)
    assert model.predict(["drug_1", "drug_2"], n_samples=2).n_obs == 4
    for rows in (features, features.to_numpy()):
        with pytest.raises(ValueError, match="measured"):
            model.predict(rows)


def test_continuous_values_are_predicted_in_their_units(adata, fit):
    adata.X = 100.0 + 5 * np.log1p(adata.X.toarray())
    model = fit(adata, epochs=20, likelihood="normal")
    predicted = model.predict("drug_1", 0.0, n_samples=2000, seed=0)
    assert isinstance(predicted.X, np.ndarray)
    controls = adata.X[adata.obs["perturbation"] == "control"]
    np.testing.assert_allclose(predicted.X.mean(0), controls.mean(0), atol=0.6)
    np.testing.assert_allclose(predicted.X.std(0), controls.std(0), rtol=0.25)


def test_new_drugs_are_not_worse_than_guessing(model, screen):
    """With eight drugs features tell little of the unseen ones; they must not mislead."""
    control = np.log1p(screen.X.toarray()[screen.obs["perturbation"] == "control"]).mean(0)
    unseen = screen[screen.obs["split"] == "unseen_drug"]
    gap = np.zeros(2)
    for (drug, dosage), index in unseen.obs.groupby(["perturbation", "dosage"], observed=True).groups.items():
        observed = np.log1p(unseen[index].X.toarray()).mean(0)
        row = screen.uns[KEY].loc[[drug]]
        predicted = np.log1p(values(model.predict(row, dosage, n_samples=200, seed=0))).mean(0)
        gap += ((predicted - observed) ** 2).sum(), ((control - observed) ** 2).sum()
    assert gap[0] < 1.3 * gap[1]
