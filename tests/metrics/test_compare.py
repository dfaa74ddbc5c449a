from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scgim.metrics import centred_correlation, compare_baselines, discrimination, distribution_metrics
from scgim.metrics._screen import Keys, predicted_cells

DOSES = (1.0, 2.0, 4.0)
FAST = ["control", "trainmean", "nearest_dose", "nearest_drug", "ridge"]


def screen(n_drugs=12, n_cells=40, n_genes=6, held_out=("d10", "d11")) -> AnnData:
    """Poisson counts whose log mean is linear in the drug features times the dose."""
    rng = np.random.default_rng(0)
    features = pd.DataFrame(rng.normal(size=(n_drugs, 3)), [f"d{i}" for i in range(n_drugs)], ["x", "y", "z"])
    effects = 0.25 * features @ rng.normal(size=(3, n_genes))
    rows = [("control", 0.0)] * 300 + [(d, c) for d in features.index for c in DOSES for _ in range(n_cells)]
    obs = pd.DataFrame(rows, columns=["perturbation", "dosage"], index=[f"c{i}" for i in range(len(rows))])
    shift = np.stack([np.zeros(n_genes) if d == "control" else effects.loc[d] * np.log2(2 * c) for d, c in rows])
    obs["split"] = np.where(obs["perturbation"].isin(held_out), "test", "train")
    adata = AnnData(sparse.csr_matrix(rng.poisson(8 * np.exp(shift)).astype(np.float32)), obs=obs)
    adata.var_names = [f"g{i}" for i in range(n_genes)]
    adata.uns["drug_embedding"] = features
    return adata


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return screen()


@pytest.fixture(scope="module")
def table(adata) -> pd.DataFrame:
    return compare_baselines(adata, methods=FAST)


def held_out(adata) -> AnnData:
    return adata[adata.obs["split"] == "test"].copy()


def test_one_row_a_method(table):
    assert table.index.names == ["split", "method"]
    assert table.loc["test"].index.tolist() == ["control", "trainmean", "nearest_drug", "ridge"]
    assert table.columns.tolist() == [
        "centred_correlation",
        "discrimination",
        "energy_distance",
        "mmd",
        "wasserstein1",
        "mean_shift_error",
        "mean_shift_correlation",
        "mean_shift_determination",
        "n_contexts",
    ]
    assert (table["n_contexts"] == 6).all()


def test_ridge_is_best_where_features_tell_all(table):
    test = table.loc["test"]
    assert test["energy_distance"].idxmin() == "ridge"
    assert test.loc["ridge", "energy_distance"] < 0.3 * test.loc["control", "energy_distance"]
    assert test.loc["ridge", "mean_shift_correlation"] > 0.9
    assert test.loc["control", "mean_shift_correlation"] == 0


def test_doses_in_any_unit_are_told_apart(adata):
    """Predictions that are the measured cells: each is compared with the dose that it is of."""
    predicted = held_out(adata)
    expected = compare_baselines(adata, predicted=predicted, methods=["control"])
    for cells in (molar := adata.copy(), predicted):
        cells.obs["dosage"] *= 1e-10
    found = compare_baselines(molar, predicted=predicted, methods=["control"])
    pd.testing.assert_frame_equal(found, expected)


def test_numbers_of_control_are_those_of_distribution_metrics(adata, table):
    control, test = adata[adata.obs["perturbation"] == "control"].X, held_out(adata)
    contexts = [test[rows].X for rows in test.obs.groupby(["perturbation", "dosage"]).indices.values()]
    expected = pd.DataFrame([distribution_metrics(X, control, control, max_cells=400) for X in contexts]).mean()
    found = compare_baselines(adata, methods=["control"], max_cells=400).loc["test", "control"]
    np.testing.assert_allclose(found[expected.index], expected, rtol=1e-6, atol=1e-12)


def test_what_drugs_have_in_common_earns_nothing():
    adata = screen()
    # Ten times as many counts of one gene under every drug.
    treated = (adata.obs["perturbation"] != "control").to_numpy()
    counts = adata.X.toarray()
    counts[treated, 0] *= 10
    adata.X = sparse.csr_matrix(counts)
    trainmean = compare_baselines(adata, methods=["trainmean"]).loc[("test", "trainmean")]
    assert trainmean["mean_shift_correlation"] > 0.9
    assert trainmean["centred_correlation"] == 0
    assert trainmean["discrimination"] == 0.5


def test_a_response_in_common_that_grows_with_dose_is_dosemeans():
    adata = screen()
    counts = np.tile([100.0, 10.0, 10.0, 10.0, 10.0, 10.0], (adata.n_obs, 1))
    counts[:, 1] += 40 * np.log2(1 + adata.obs["dosage"])
    counts += np.random.default_rng(0).poisson(2, counts.shape)
    adata.X = counts
    found = compare_baselines(adata, methods=["trainmean", "dosemean"], per_context=True)
    dosemean = found[found["method"] == "dosemean"]
    trainmean = found[found["method"] == "trainmean"]
    assert dosemean["mean_shift_error"].mean() < 0.1 * trainmean["mean_shift_error"].mean()
    # Six contexts, two at each dose: four predictions are farther off, and one is the same.
    np.testing.assert_array_equal(dosemean["discrimination"], (4 + 0.5) / 5)


def test_centred_scores_are_those_of_plain_arrays(adata, table):
    log = np.log1p(adata.X.toarray().astype(float))
    obs = adata.obs
    control = log[obs["perturbation"] == "control"]
    profiles = (pd.DataFrame(log, obs.index) - control.mean(axis=0)) / control.std(axis=0)
    means = profiles.groupby([obs["split"], obs["perturbation"], obs["dosage"]], observed=True).mean()
    train = means.loc["train"].drop(index="control")
    observed = means.loc["test"]
    predicted = np.zeros(observed.shape)
    expected = centred_correlation(observed, predicted, train.mean().to_numpy()).mean()
    assert table.loc[("test", "control"), "centred_correlation"] == pytest.approx(expected)
    assert table.loc[("test", "control"), "discrimination"] == discrimination(observed, predicted).mean() == 0.5
    assert table.loc[("test", "ridge"), "centred_correlation"] > 0.9
    assert table.loc[("test", "ridge"), "discrimination"] > 0.8


def test_contexts_are_told_apart_within_their_label(adata):
    adata = adata.copy()
    adata.obs.loc[adata.obs["perturbation"] == "d10", "split"] = "other"
    one = (adata.obs["split"] != "other") | (adata.obs["dosage"] == 1.0)
    found = compare_baselines(adata[one].copy(), methods=["trainmean", "ridge"], intervals=0.9)
    assert found["n_contexts"].tolist() == [1, 1, 3, 3]
    assert np.isnan(found.loc["other", "discrimination"]).all()
    assert found.loc[("test", "trainmean"), "discrimination"] == 0.5
    assert found.filter(like="_lower").isna().all(axis=None)  # one drug in either


def test_intervals_follow_their_means_and_are_wider_with_fewer_drugs():
    many = screen(n_drugs=28, held_out=[f"d{i}" for i in range(12, 28)])
    few = many[~many.obs["perturbation"].isin([f"d{i}" for i in range(15, 28)])].copy()
    methods = ["trainmean", "ridge"]
    plain, found = compare_baselines(many, methods=methods), compare_baselines(many, methods=methods, intervals=0.95)
    names = plain.columns.drop("n_contexts")
    assert found.columns.tolist() == [*(f"{n}{end}" for n in names for end in ("", "_lower", "_upper")), "n_contexts"]
    pd.testing.assert_frame_equal(found[plain.columns], plain)
    for name in names:
        assert found[name].between(found[f"{name}_lower"], found[f"{name}_upper"]).all()
    pd.testing.assert_frame_equal(found, compare_baselines(many, methods=methods, intervals=0.95))
    wide = compare_baselines(few, methods=methods, intervals=0.95)
    error = [table.loc[("test", "trainmean")].filter(like="mean_shift_error_") for table in (found, wide)]
    assert np.ptp(error[0]) < np.ptp(error[1])
    assert found.loc[("test", "trainmean")].filter(like="discrimination").tolist() == [0.5] * 3


def test_nearest_dose_for_measured_drugs_and_rows_by_label(adata):
    adata = adata.copy()
    adata.obs["split"] = "train"
    middle = (adata.obs["dosage"] == 2.0) & adata.obs["perturbation"].isin(["d0", "d1", "d2"])
    adata.obs.loc[middle, "split"] = "unseen_dose"
    adata.obs.loc[adata.obs["perturbation"] == "d3", "split"] = "unseen_drug"
    table = compare_baselines(adata, methods=FAST)
    assert table.index.get_level_values("split").unique().tolist() == ["unseen_dose", "unseen_drug"]
    assert table.loc["unseen_dose", "n_contexts"].tolist() == [3] * 5
    assert "nearest_dose" not in table.loc["unseen_drug"].index
    both = compare_baselines(adata, methods=["drugmean", "nearest_dose"])
    assert both.index.tolist() == [("unseen_dose", "drugmean"), ("unseen_dose", "nearest_dose")]
    # Two training doses, equally far on the log scale.
    np.testing.assert_allclose(both.iloc[0], both.iloc[1])
    # The middle dose lies half way between the others, on the log scale and in effect.
    assert table.loc[("unseen_dose", "nearest_dose"), "energy_distance"] < 0.06


def test_model_is_compared_on_the_same_contexts(adata, table):
    perfect = held_out(adata)[::-1, ::-1].copy()
    none = perfect.copy()
    control = adata[adata.obs["perturbation"] == "control"].X
    none.X = control[np.random.default_rng(0).integers(control.shape[0], size=none.n_obs)][:, ::-1]
    found = compare_baselines(adata, methods=FAST, predicted={"perfect": perfect, "none": none})
    pd.testing.assert_frame_equal(found.loc["test"].loc[table.loc["test"].index], table.loc["test"])
    assert found.loc["test"].index.tolist()[-2:] == ["perfect", "none"]
    model = found.loc[("test", "perfect")]
    assert model["mean_shift_error"] == pytest.approx(0, abs=1e-12)
    assert model["mean_shift_correlation"] == pytest.approx(1)
    assert model["wasserstein1"] == pytest.approx(0, abs=1e-12)
    assert model["centred_correlation"] == pytest.approx(1)
    assert model["discrimination"] == 1
    assert model["energy_distance"] < 0
    gap = found.loc[("test", "none"), "energy_distance"] / table.loc[("test", "control"), "energy_distance"]
    assert gap == pytest.approx(1, abs=0.1)
    assert compare_baselines(adata, methods=["control"], predicted=perfect).index[-1] == ("test", "model")


def test_predictions_with_default_names_and_single_precision_doses(adata):
    renamed = adata.copy()
    renamed.obs = renamed.obs.rename(columns={"perturbation": "drug", "dosage": "uM"})
    renamed.obs["uM"] *= 0.1
    predicted = held_out(adata)
    predicted.obs["dosage"] = (0.1 * predicted.obs["dosage"]).astype(np.float32)
    found = compare_baselines(
        renamed, methods=["control"], predicted=predicted, perturbation_key="drug", dosage_key="uM"
    )
    assert found.loc[("test", "model"), "mean_shift_error"] == pytest.approx(0, abs=1e-12)


def test_contexts_one_by_one(adata, table):
    found = compare_baselines(adata, methods=FAST, per_context=True)
    assert len(found) == 4 * 6
    assert found.columns[:5].tolist() == ["split", "method", "perturbation", "dosage", "n_cells"]
    assert (found["n_cells"] == 40).all()
    assert set(found["dosage"]) == set(DOSES)
    ridge = found[found["method"] == "ridge"]
    assert ridge["perturbation"].value_counts().to_dict() == {"d10": 3, "d11": 3}
    np.testing.assert_allclose(ridge["mmd"].mean(), table.loc[("test", "ridge"), "mmd"])


def test_size_factors_layer_and_dense_counts_are_equivalent(adata):
    scaled = adata.copy()
    size = np.random.default_rng(1).uniform(0.5, 2, scaled.n_obs)
    scaled.obs["size"] = size
    scaled.layers["counts"] = adata.X.toarray() * size[:, None]
    scaled.X = None
    one = compare_baselines(adata, methods=["control", "ridge"])
    two = compare_baselines(scaled, methods=["control", "ridge"], layer="counts", size_factor_key="size")
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-6)


def test_cells_without_label_are_left_out(adata):
    some = adata.copy()
    some.obs["split"] = some.obs["split"].astype("category")
    some.obs.loc[some.obs["perturbation"] == "d10", "split"] = np.nan
    assert (compare_baselines(some, methods=FAST)["n_contexts"] == 3).all()


def test_one_hot_without_embedding_and_one_dose(adata):
    one = adata[(adata.obs["dosage"] == 1.0) | (adata.obs["perturbation"] == "control")].copy()
    del one.uns["drug_embedding"]
    table = compare_baselines(one, drug_embedding_key=None, dosage_key=None, methods=FAST)
    assert table.loc["test"].index.tolist() == ["control", "trainmean", "ridge"]
    # Nothing is known about a drug that was never measured, so its prediction is near the mean of all.
    error = table.loc["test", "mean_shift_error"]
    assert error["ridge"] == pytest.approx(error["trainmean"], rel=0.1)


def test_all_baselines_run_and_embeddings_may_be_per_cell(adata):
    cells = adata.copy()
    features = cells.uns.pop("drug_embedding")
    labels = cells.obs["perturbation"].replace("control", "d0")
    cells.obsm["drug_embedding"] = features.loc[labels].to_numpy()
    found, expected = compare_baselines(cells), compare_baselines(adata)
    assert found.loc["test"].index.tolist() == [
        *("control", "trainmean", "dosemean", "nearest_drug", "ridge", "krr", "random_forest")
    ]
    pd.testing.assert_frame_equal(found, expected)


def without(adata, *, drug) -> AnnData:
    return adata[adata.obs["perturbation"] != drug].copy()


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"split_key": "fold"}, KeyError, "fold"),
        (None, {"methods": ["lasso"]}, ValueError, "Unknown `methods`: 'lasso'"),
        (
            None,
            {"methods": ["nearest_dose", "drugmean"]},
            ValueError,
            "'nearest_dose', 'drugmean' predict.*'trainmean'",
        ),
        (None, {"intervals": 95}, ValueError, "`intervals` between 0 and 1, such as 0.95, found 95"),
        (None, {"intervals": 0.95, "per_context": True}, ValueError, "one of `intervals` and `per_context`"),
        (None, {"drug_embedding_key": "fingerprint"}, KeyError, "fingerprint"),
        (None, {"layer": "raw"}, KeyError, "raw"),
        (None, {"size_factor_key": "size"}, KeyError, "size"),
        (lambda a: a.obs.__setitem__("split", "train"), {}, ValueError, "marks perturbed cells as 'train'"),
        (lambda a: a.obs.__setitem__("split", "test"), {}, ValueError, "has 0 'control' cells marked 'train'"),
        (
            lambda a: a.obs.__setitem__("split", np.where(np.arange(a.n_obs) % 2, "train", "test")),
            {},
            ValueError,
            "36 contexts have cells on several sides of .* 'd0 at 1'",
        ),
        (lambda a: a.X.data.__setitem__(0, -1.0), {}, ValueError, "negative values in 'adata'.*`log1p=False`"),
        (lambda a: a.X.data.__setitem__(0, np.nan), {}, ValueError, "NaN"),
    ],
)
def test_wrong_input(adata, change, options, error, message):
    adata = adata.copy()
    if change is not None:
        change(adata)
    with pytest.raises(error, match=message):
        compare_baselines(adata, **{"methods": ["control"], **options})


def test_wrong_predictions(adata):
    predicted = held_out(adata)
    with pytest.raises(ValueError, match="'model' have fewer than two cells of 3 held-out contexts: 'd11 at 1'"):
        compare_baselines(adata, predicted=without(predicted, drug="d11"))
    with pytest.raises(ValueError, match="names of baselines: 'ridge'.*other names"):
        compare_baselines(adata, predicted={"ridge": predicted})
    with pytest.raises(ValueError, match="lacks 2 of the 6 genes"):
        compare_baselines(adata, predicted=predicted[:, :4].copy())
    predicted.obs = predicted.obs.rename(columns={"perturbation": "drug"})
    with pytest.raises(KeyError, match="perturbation"):
        compare_baselines(adata, predicted={"mine": predicted})


def test_too_few_predicted_cells_are_told(adata):
    """A prediction that is nearly right: of few cells, much of its error is their noise."""
    test, rng = held_out(adata), np.random.default_rng(1)
    groups = [test.obs["perturbation"], test.obs["dosage"]]
    means = 1.1 * pd.DataFrame(test.X.toarray(), test.obs_names).groupby(groups, observed=True).transform("mean")

    def predicted(n: int) -> AnnData:
        obs = pd.concat([test.obs] * n, ignore_index=True).rename(index=str)
        return AnnData(rng.poisson(np.tile(means, (n, 1))).astype(np.float32), obs=obs, var=test.var)

    with pytest.warns(UserWarning, match="% of the `mean_shift_error` of 'model' is the noise of 40 predicted cells"):
        few = compare_baselines(adata, predicted=predicted(1), methods=["control"]).loc[("test", "model")]
    many = compare_baselines(adata, predicted=predicted(30), methods=["control"]).loc[("test", "model")]
    assert many["mean_shift_error"] < few["mean_shift_error"]
    assert many["mean_shift_correlation"] > few["mean_shift_correlation"]


def test_memory_of_predictions_does_not_grow_with_contexts_times_cells():
    n_contexts, n_cells = 1500, 30
    names = np.array([f"d{k // 3}" for k in range(n_contexts)])
    doses = np.tile(DOSES, n_contexts // 3)
    table = pd.DataFrame({"perturbation": names, "dosage": doses})
    order = np.random.default_rng(0).permutation(n_contexts * n_cells)
    obs = pd.DataFrame({"perturbation": np.repeat(names, n_cells), "dosage": np.repeat(doses, n_cells)}).iloc[order]
    predicted = AnnData(obs=obs.set_index(obs.index.astype(str)))
    keys = Keys("split", "perturbation", "control", "dosage", None, None, None)
    tracemalloc.start()
    rows = predicted_cells(predicted, table, keys, "model")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * n_contexts * n_contexts * n_cells  # bytes, of one truth value for each pair
    for k in (0, 700, n_contexts - 1):
        assert len(rows[k]) == n_cells
        own = predicted.obs.iloc[rows[k]]
        assert (own["perturbation"] == names[k]).all()
        assert (own["dosage"] == doses[k]).all()
