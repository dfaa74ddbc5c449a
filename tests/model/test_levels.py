"""Effects that differ between cell lines: a world in which one drug acts in two of three lines, and another is missing in one."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData
from scipy import sparse

import scgim
from scgim.model import GIM

LINES, DRUGS, GENES = ["a549", "k562", "mcf7"], [f"drug_{u}" for u in range(6)], 12
SELECTIVE, MISSING = "drug_0", "drug_1"  # drug_0 does nothing in k562; drug_1 was not measured in mcf7
SETUP = {"size_factor_key": "size_factor", "drug_embedding_key": None, "effect_modifier_key": "line"}


def effect(drug: str, line: str) -> np.ndarray:
    """Change of log means: each drug acts on two genes; gene 1 follows gene 0."""
    out, u = np.zeros(GENES), DRUGS.index(drug)
    if not (drug == SELECTIVE and line == "k562"):
        out[[u, u + 6]] = 1.2, -0.8
    return out


def world(n: int = 60, seed: int = 0) -> AnnData:
    """Counts of mean 5; baselines differ between lines by up to a factor of three."""
    rng = np.random.default_rng(seed)
    baseline = np.log(5) + np.array([[0.5], [0.0], [-0.5]]) * rng.choice([-1, 1], GENES)
    values, obs = [], []
    for k, line in enumerate(LINES):
        for drug in ["control", *DRUGS]:
            for dose in [0.0] if drug == "control" else [1.0, 4.0]:
                if drug == MISSING and line == "mcf7":
                    continue
                size = rng.lognormal(0, 0.2, 4 * n if drug == "control" else n)
                log_mean = np.tile(baseline[k], (len(size), 1))
                if drug != "control":
                    log_mean += effect(drug, line) * dose / (1 + dose)
                x = rng.poisson(size[:, None] * np.exp(log_mean))
                log_mean[:, 1] += 0.8 * (np.log1p(x[:, 0] / size) - np.log1p(5))
                x[:, 1] = rng.poisson(size * np.exp(log_mean[:, 1]))
                values.append(x)
                cells = {"perturbation": drug, "dosage": dose, "line": line, "size_factor": size}
                obs.append(pd.DataFrame(cells))
    frame = pd.concat(obs, ignore_index=True).astype({"line": "category"})
    adata = AnnData(sparse.csr_matrix(np.concatenate(values).astype(np.float32)), obs=frame.rename(index=str))
    adata.var_names = [f"gene_{j}" for j in range(GENES)]
    return adata


def fit(adata: AnnData, **setup) -> GIM:
    scvi.settings.seed = 0
    GIM.setup_anndata(adata, **{**SETUP, **setup})
    model = GIM(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def model() -> GIM:
    return fit(world())


def test_contexts_name_the_line(model):
    assert model.contexts.names == ["perturbation", "dosage", "line"]
    assert len(model.contexts) == 6 * 2 * 3 - 2
    assert (MISSING, 1.0, "mcf7") not in model.contexts
    effects = model.get_effects()
    assert effects.index.equals(model.contexts)


def test_a_drug_is_a_target_of_the_lines_in_which_it_acts(model):
    targets = model.get_targets([SELECTIVE, "drug_2"], 4.0)["gene_6"].xs(4.0, level="dosage")
    assert targets[SELECTIVE, "a549"] > 0.9
    assert targets[SELECTIVE, "mcf7"] > 0.9
    assert targets[SELECTIVE, "k562"] < 0.2
    effects = model.get_effects(SELECTIVE, 4.0)["gene_6"].droplevel([0, 1])
    np.testing.assert_allclose(effects[["a549", "mcf7"]], -0.64, atol=0.12)
    assert abs(effects["k562"]) < 0.1
    same = model.get_effects("drug_2", 4.0)["gene_8"].to_numpy()
    np.testing.assert_allclose(same, -0.64, atol=0.12)


def test_one_level_can_be_asked_for(model):
    all_lines, one = model.get_effects(), model.get_effects(level="k562")
    assert one.index.get_level_values("line").unique().tolist() == ["k562"]
    shared = one.index.intersection(all_lines.index)
    np.testing.assert_allclose(one.loc[shared], all_lines.loc[shared])
    assert len(model.get_targets("drug_2", 1.0, level=["k562", "mcf7"])) == 2
    with pytest.raises(ValueError, match="were not in the training data: 'hela'"):
        model.get_targets(level="hela")


def test_differences_are_tested(model):
    table = model.get_modifiers()
    assert table.index[0] == SELECTIVE
    assert table.loc[SELECTIVE, "p_adjusted"] < 1e-6
    assert table.loc[SELECTIVE, "level"] == "k562"
    assert (table.drop(index=SELECTIVE)["p_value"] > 1e-3).all()
    assert table.loc[MISSING, "n_levels"] == 2
    assert table.loc[SELECTIVE, "spread"] > 3 * table.drop(index=SELECTIVE)["spread"].max()


def mean_change(model: GIM, drug: str, line: str) -> np.ndarray:
    """Predicted log fold change of means at the larger dose."""
    options = {"n_samples": 4000, "covariates": {"line": line}, "seed": 0}
    treated, control = model.predict([drug], 4.0, **options), model.predict_combination({}, **options)
    assert (treated.obs["line"] == line).all()
    means = [np.asarray(a.X.sum(0)).ravel() / a.obs["size_factor"].sum() for a in (treated, control)]
    return np.log(means[0] / means[1])


@pytest.mark.parametrize("line", LINES)
def test_predicted_cells_have_the_effects_of_their_line(model, line):
    for drug in (SELECTIVE, "drug_3"):
        wanted = effect(drug, line)[2:] * 0.8
        np.testing.assert_allclose(mean_change(model, drug, line)[2:], wanted, atol=0.25)


def test_a_line_in_which_a_drug_was_not_measured(model):
    """Effects come from the other lines, and are less sure."""
    np.testing.assert_allclose(mean_change(model, MISSING, "mcf7")[2:], effect(MISSING, "mcf7")[2:] * 0.8, atol=0.25)
    _, sd = model.get_effects([MISSING], 4.0, return_sd=True)
    gene = sd["gene_7"].droplevel([0, 1])
    assert gene["mcf7"] > gene["a549"]


def test_without_a_line_cells_are_those_of_all_controls(model):
    cells = model.predict([SELECTIVE], 4.0, n_samples=3000, seed=0)
    share = cells.obs["line"].value_counts(normalize=True)
    np.testing.assert_allclose(share, 1 / 3, atol=0.05)
    per_size = cells.X.toarray()[:, 6] / cells.obs["size_factor"].to_numpy()
    by_line = pd.Series(per_size, cells.obs["line"].to_numpy()).groupby(level=0).mean()
    observed = model.adata[(model.adata.obs["perturbation"] == SELECTIVE) & (model.adata.obs["dosage"] == 4.0)]
    truth = pd.Series(
        observed.X.toarray()[:, 6] / observed.obs["size_factor"].to_numpy(), observed.obs["line"].astype(str).to_numpy()
    )
    np.testing.assert_allclose(by_line, truth.groupby(level=0).mean(), rtol=0.3)


def test_means_with_intervals_are_those_of_the_line(model):
    means = [model.predict_mean([SELECTIVE], 4.0, covariates={"line": line}, n_draws=20) for line in ("a549", "k562")]
    change = [m.to_df("log_fold_change")["gene_6"].iloc[0] for m in means]
    assert change[0] == pytest.approx(-0.64, abs=0.15)
    assert abs(change[1]) < 0.12


def test_total_effects_of_levels(model):
    totals = model.get_total_effects(SELECTIVE, 4.0, n_samples=2000)
    assert totals.index.names == ["perturbation", "dosage", "line"]
    a549, k562 = (totals.xs(line, level="line").iloc[0] for line in ("a549", "k562"))
    assert a549["gene_1"] > 0.4  # through gene 0
    assert abs(k562["gene_1"]) < 0.15


def test_it_survives_saving(model, tmp_path):
    model.save(str(tmp_path / "model"))
    again = GIM.load(str(tmp_path / "model"), adata=model.adata)
    pd.testing.assert_frame_equal(again.get_effects(), model.get_effects())
    pd.testing.assert_frame_equal(again.get_modifiers(), model.get_modifiers())
    a, b = (m.predict(["drug_2"], 1.0, covariates={"line": "mcf7"}, seed=1).X.toarray() for m in (model, again))
    np.testing.assert_array_equal(a, b)


def test_annotation_of_one_line(model):
    adata = model.adata.copy()
    model.annotate(adata, n_samples=200)
    model.annotate(adata, level="k562", key_added="k562", n_samples=200)
    assert adata.varm["gim_shifts"].loc["gene_6", SELECTIVE] < -0.25
    assert abs(adata.varm["k562_shifts"].loc["gene_6", SELECTIVE]) < 0.1
    assert adata.uns["k562"]["params"]["level"] == "k562"
    assert adata.uns["gim"]["perturbations"].loc[SELECTIVE, "n_doses"] == 2


def test_scores_use_the_effects_of_the_line(model):
    scores = model.score()["log_likelihood"]
    assert scores.index.names == ["perturbation", "dosage", "line"]
    swapped = model.adata[(model.adata.obs["perturbation"] == SELECTIVE) & (model.adata.obs["line"] == "k562")].copy()
    swapped.obs["perturbation"] = "drug_3"  # which does act there
    assert model.score(swapped)["log_likelihood"].max() < scores[SELECTIVE].xs("k562", level="line").min()


def test_new_drugs_in_each_line():
    """By features alone; what a new drug does in the line of which it is not known that it differs is what it does in others."""
    adata = world()
    rng = np.random.default_rng(0)
    adata.uns["features"] = pd.DataFrame(rng.normal(size=(6, 3)), DRUGS)
    model = fit(adata, drug_embedding_key="features")
    new = pd.DataFrame(rng.normal(size=(2, 3)), ["new_0", "new_1"], columns=adata.uns["features"].columns)
    effects = model.get_effects(new, 4.0)
    assert effects.shape == (6, GENES)
    assert np.isfinite(effects).all(axis=None)
    cells = model.predict(new, 4.0, covariates={"line": "k562"}, n_samples=50, seed=0)
    assert (cells.obs["line"] == "k562").all()


def test_a_level_without_controls_is_refused():
    adata = world(n=5)
    adata = adata[~((adata.obs["line"] == "k562") & (adata.obs["perturbation"] == "control"))].copy()
    with pytest.raises(ValueError, match=r"no control cells \('control'\): 'k562'"):
        GIM.setup_anndata(adata, **SETUP)


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("nothing", KeyError, "nothing"),
        (["line"], TypeError, "Expected the name of one column"),
        ("one", ValueError, "two levels or more"),
        ("missing", ValueError, r"have no value \(NaN\)"),
        ("each", ValueError, "levels, and effects of|no control cells"),
    ],
)
def test_wrong_modifiers_get_a_message(key, error, message):
    adata = world(n=5)
    adata.obs["one"] = "same"
    adata.obs["missing"] = adata.obs["line"].where(adata.obs["line"] != "mcf7")
    adata.obs["each"] = adata.obs_names.to_numpy()
    with pytest.raises(error, match=message):
        GIM.setup_anndata(adata, **{**SETUP, "effect_modifier_key": key})


def test_a_modifier_in_one_level_of_which_drugs_were_measured():
    adata = world(n=5)
    adata = adata[(adata.obs["line"] == "k562") | (adata.obs["perturbation"] == "control")].copy()
    with pytest.raises(ValueError, match="measured in one level"):
        GIM.setup_anndata(adata, **SETUP)


def test_levels_cannot_be_asked_of_a_model_without(model):
    adata = world(n=5)
    GIM.setup_anndata(adata, **{**SETUP, "effect_modifier_key": None, "categorical_covariate_keys": ["line"]})
    plain = GIM(adata)
    plain.is_trained_ = True
    with pytest.raises(ValueError, match="without `effect_modifier_key`"):
        plain.get_modifiers()
    with pytest.raises(ValueError, match="without `effect_modifier_key`"):
        plain.get_effects(level="k562")


def test_lines_can_be_held_out():
    adata = world(n=5)
    scgim.pp.split_by_context(adata, "levels", effect_modifier_key="line", fraction=0.4, seed=1)
    held_out = adata.obs[adata.obs["split"] == "test"].groupby("perturbation", observed=True)["line"].nunique()
    measured = (
        adata.obs[adata.obs["perturbation"] != "control"].groupby("perturbation", observed=True)["line"].nunique()
    )
    assert (held_out == 1).all()
    assert (held_out.reindex(measured.index) < measured).all()
    with pytest.raises(ValueError, match="do not go together"):
        scgim.pp.split_by_context(adata, "levels")


def test_the_screen_is_checked_by_levels():
    options = {"drug_embedding_key": None, "effect_modifier_key": "line"}
    table = scgim.pp.check_screen(world(), **options)
    assert table.loc["controls by 'line'", ["value", "verdict"]].tolist() == ["3 levels, 240 to 240 a level", "ok"]
    assert table.loc["drugs in several levels of 'line'", "value"] == "6 of 6"
    adata = world()
    only_controls = adata[(adata.obs["line"] != "mcf7") | (adata.obs["perturbation"] == "control")].copy()
    advice = scgim.pp.check_screen(only_controls, **options).loc["drugs in several levels of 'line'", "advice"]
    assert "'mcf7' have controls only" in advice
    without = adata[(adata.obs["line"] != "mcf7") | (adata.obs["perturbation"] != "control")].copy()
    assert scgim.pp.check_screen(without, **options).loc["controls by 'line'", "verdict"] == "fail"
    with pytest.raises(KeyError, match="effect_modifier_key"):
        scgim.pp.check_screen(adata, drug_embedding_key=None, effect_modifier_key="nothing")


def test_baselines_are_compared_line_by_line():
    """`drugmean` is the mean shift of the same drug in the other lines, each against its own controls."""
    adata = world()
    scgim.pp.split_by_context(adata, "levels", effect_modifier_key="line", fraction=0.3, seed=0)
    options = {"drug_embedding_key": None, "effect_modifier_key": "line", "size_factor_key": "size_factor"}
    table = scgim.metrics.compare_baselines(adata, methods=["control", "drugmean"], per_context=True, **options)
    assert table.columns[:5].tolist() == ["split", "method", "perturbation", "dosage", "level"]
    log = np.log1p(adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None])
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    sd = log[is_control].std(0)

    def shift(drug: str, dose: float, line: str) -> np.ndarray:
        own = (adata.obs["line"] == line).to_numpy()
        treated = (adata.obs["perturbation"] == drug).to_numpy() & (adata.obs["dosage"] == dose).to_numpy()
        return (log[own & treated].mean(0) - log[own & is_control].mean(0)) / sd

    row = table[table["method"] == "drugmean"].iloc[0]
    split = adata.obs[(adata.obs["perturbation"] == row["perturbation"]) & (adata.obs["split"] == "train")]
    others = split["line"].unique()
    mean = np.mean([shift(row["perturbation"], dose, line) for line in others for dose in (1.0, 4.0)], axis=0)
    observed = shift(row["perturbation"], row["dosage"], row["level"])
    assert row["mean_shift_error"] == pytest.approx(((mean - observed) ** 2).mean(), rel=1e-4)

    train = adata[adata.obs["split"] == "train"].copy()
    model, test = fit(train), adata.obs[adata.obs["split"] == "test"]
    asked = test[["perturbation", "dosage", "line"]].drop_duplicates()
    cells = [
        model.predict([drug], dose, covariates={"line": line}, n_samples=1000)
        for drug, dose, line in asked.itertuples(index=False)
    ]
    predicted = ad.concat(cells, index_unique="-")
    table = scgim.metrics.compare_baselines(
        adata, predicted=predicted, methods=["control", "drugmean"], per_context=True, **options
    )
    table = table[table["perturbation"] != SELECTIVE]  # whether it acts in the line left out, nothing tells
    error = table.groupby("method")["mean_shift_error"].mean()
    assert error["model"] < 0.15 * error["control"]
    assert error["model"] < 0.7 * error["drugmean"]


def test_plots_show_the_cells_of_the_line(model):
    """Points of a dose response are changes in the cells of the line against its own controls."""
    adata = model.adata.copy()
    for line in ("a549", "k562"):
        model.annotate(adata, level=line, key_added=line, n_samples=100)
    heights = {}
    for line in ("a549", "k562"):
        axes = scgim.pl.dose_response(adata, [SELECTIVE], ["gene_6"], key=line, show=False)
        panel = np.ravel(axes)[0]
        points = [line_.get_ydata() for line_ in panel.lines if line_.get_marker() not in ("None", "", None)]
        heights[line] = float(np.concatenate(points).min())
        plt.close("all")
    assert heights["a549"] < -0.4
    assert heights["k562"] > -0.25


def test_curves_and_ranks_are_those_of_the_line(model):
    curves = [
        model.get_dose_response(SELECTIVE, "gene_6", [4.0], covariates={"line": name}) for name in ("a549", "k562")
    ]
    assert curves[0]["effect"].iloc[0] < -0.5
    assert abs(curves[1]["effect"].iloc[0]) < 0.1
    with pytest.raises(ValueError, match="by the effect modifier only: 'line'"):
        model.get_dose_response(SELECTIVE, covariates={"lin": "k562"})
    options = {"dosage": 4.0, "n_draws": 20}
    down = {"down": ["gene_6"]}
    scores = [model.rank_drugs(DRUGS, down, covariates={"line": name}, **options)["score"] for name in ("a549", "k562")]
    assert scores[0].idxmax() == SELECTIVE
    assert scores[0][SELECTIVE] == pytest.approx(0.64, abs=0.15)
    assert abs(scores[1][SELECTIVE]) < 0.15


def test_hard_interventions_have_levels():
    """The probability of a target is that of the cells with its mechanism cut, in each line."""
    adata = world(n=40)
    scvi.settings.seed = 0
    GIM.setup_anndata(adata, **SETUP)
    model = GIM(adata, intervention="hard")
    model.train(accelerator="cpu", enable_progress_bar=False)
    probs = model.get_targets([SELECTIVE, "drug_2"], 4.0).droplevel("dosage")
    assert probs.loc[(SELECTIVE, "a549"), "gene_6"] > 0.9
    assert probs.loc[(SELECTIVE, "k562"), "gene_6"] < 0.5
    common = model.module.knowledge.target_probs[DRUGS.index("drug_2")].numpy()
    np.testing.assert_array_less(probs.loc["drug_2"].max(axis=0).to_numpy(), common + 1e-9)


def test_continuous_values_have_levels():
    adata = world(n=40)
    adata = adata[~((adata.obs["perturbation"] == "drug_2") & (adata.obs["line"] == "mcf7"))].copy()
    adata.X = np.log1p(adata.X.toarray())
    scvi.settings.seed = 0
    GIM.setup_anndata(adata, **{**SETUP, "size_factor_key": None})
    model = GIM(adata, likelihood="normal")
    model.train(accelerator="cpu", enable_progress_bar=False)
    effects = model.get_effects(["drug_2", SELECTIVE], 4.0)["gene_8"].droplevel("dosage")
    assert effects["drug_2", "mcf7"] == pytest.approx(effects["drug_2"][["a549", "k562"]].mean(), rel=0.15)
    assert effects["drug_2"].max() < -0.5
    gene = model.get_effects([SELECTIVE], 4.0)["gene_6"].droplevel([0, 1])
    assert gene["a549"] < -0.5
    assert abs(gene["k562"]) < 0.15
