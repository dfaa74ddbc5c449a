"""Screens in which cells got several drugs: registration, what single drugs and combinations tell of each other, and predictions."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData

from scgim.model import GIM

GENES = [f"gene_{j}" for j in range(8)]
EFFECTS = np.zeros((5, 8))
EFFECTS[[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]] = [1.2, -1.2, 1.2, 1.2, -1.2]
PAIRS = [(0, 1), (0, 2), (2, 3), (1, 4), (3, 4)]
PLANTED = {(2, 3): (6, 1.5)}  # gene and size of an interaction


def cells(rng: np.random.Generator, effect: np.ndarray, n: int) -> np.ndarray:
    """Counts of independent genes but for gene 0, which acts on gene 7."""
    x = rng.poisson(4 * np.exp(np.tile(effect, (n, 1)))).astype(np.float32)
    x[:, 7] = rng.poisson(3 * (1 + x[:, 0]) ** 0.5)
    return x


def screen(alone=(0, 1, 2, 3), pairs=PAIRS, n: int = 60, seed: int = 0, doses: bool = False) -> AnnData:
    """Drugs "a" to "e"; the last one in pairs only."""
    rng, names = np.random.default_rng(seed), "abcde"
    parts, labels = [cells(rng, np.zeros(8), 300)], ["control"] * 300
    for u in alone:
        parts.append(cells(rng, EFFECTS[u], n))
        labels += [names[u]] * n
    for u, v in pairs:
        effect = EFFECTS[u] + EFFECTS[v]
        if (u, v) in PLANTED:
            effect[PLANTED[u, v][0]] += PLANTED[u, v][1]
        parts.append(cells(rng, effect, n))
        labels += [f"{names[v]}+{names[u]}"] * n  # whatever the order
    obs = pd.DataFrame({"perturbation": labels, "size": 1.0}, index=[f"cell_{i}" for i in range(len(labels))])
    if doses:
        obs["dosage"] = ["0" if x == "control" else "+".join(["2"] * len(x.split("+"))) for x in labels]
    return AnnData(np.concatenate(parts), obs=obs, var=pd.DataFrame(index=GENES))


def set_up(adata: AnnData, **options) -> None:
    options = {"dosage_key": None, "drug_embedding_key": None, "combination_separator": "+", **options}
    GIM.setup_anndata(adata, size_factor_key="size", **options)


def fit(adata: AnnData, max_epochs: int = 10, **options) -> GIM:
    scvi.settings.seed = 0
    set_up(adata, **options)
    model = GIM(adata, likelihood="poisson")
    model.train(max_epochs, accelerator="cpu", enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return screen()


@pytest.fixture(scope="module")
def model(adata) -> GIM:
    return fit(adata)


def test_drugs_come_first_and_then_combinations(model):
    assert model.perturbations == ["a", "b", "c", "d", "e", "a+b", "a+c", "b+e", "c+d", "d+e"]
    assert model.combinations["c+d"] == {"c": 1.0, "d": 1.0}
    assert model.n_cells_["e"] == 0
    assert model.n_cells_["a+b"] > 50
    assert len(model.contexts) == 10


def test_a_drug_that_was_given_in_pairs_only_has_its_target_and_effect(model):
    targets, effects = (frame.droplevel("dosage").loc["e"] for frame in (model.get_targets(), model.get_effects()))
    assert targets["gene_4"] > 0.95
    assert targets.drop("gene_4").max() < 0.5
    assert effects["gene_4"] == pytest.approx(EFFECTS[4, 4], abs=0.2)


def test_a_combination_does_what_its_members_do(model):
    effects, targets = model.get_effects().droplevel("dosage"), model.get_targets().droplevel("dosage")
    np.testing.assert_allclose(effects.loc["a+b"], effects.loc["a"] + effects.loc["b"], atol=1e-9)
    either = 1 - (1 - targets.loc["a"]) * (1 - targets.loc["b"])
    np.testing.assert_allclose(targets.loc["a+b"], either, atol=1e-6)


def test_additive_pairs_sharpen_the_effects_of_their_members():
    """Few cells of each: errors of effects are those of singles and pairs together."""
    pairs = [(u, v) for u in range(4) for v in range(u) if (v, u) not in PLANTED]
    off = {}
    for name, of_pairs in (("alone", []), ("with pairs", pairs)):
        errors = []
        for seed in range(3):
            adata = screen(pairs=of_pairs, n=12, seed=seed)
            found = fit(adata, 3, combination_separator="+" if of_pairs else None).get_effects().droplevel("dosage")
            errors.append((found.loc[list("abcd")].to_numpy() - EFFECTS[:4]) ** 2)
        off[name] = np.mean(errors)
    assert off["with pairs"] < 0.75 * off["alone"]


def test_the_planted_interaction_is_found_and_hardly_anything_else(model):
    table = model.get_interactions()
    assert table.loc[0, ["perturbation", "gene"]].tolist() == ["c+d", "gene_6"]
    assert table.loc[0, "interaction"] == pytest.approx(1.5, abs=0.35)
    np.testing.assert_allclose(table["observed"] - table["expected"], table["interaction"])
    assert (table["p_adjusted"] < 0.05).sum() <= 2
    assert len(table) == 5 * 8


def test_measured_combinations_are_predicted_as_they_were_seen(model, adata):
    predicted = model.predict_combination([{"d": 1.0, "c": 1.0}, {"a": 1.0, "d": 1.0}], n_samples=3000)
    assert predicted.obs["perturbation"].unique().tolist() == ["d+c", "a+d"]
    seen = predicted[predicted.obs["perturbation"] == "d+c"].X.toarray().mean(axis=0)
    observed = adata[adata.obs["perturbation"] == "d+c"].X.mean(axis=0)
    np.testing.assert_allclose(seen, observed, rtol=0.12)
    # not measured: the sum, with no interaction
    new = predicted[predicted.obs["perturbation"] == "a+d"].X.toarray().mean(axis=0)
    np.testing.assert_allclose(new[[0, 3, 6]], 4 * np.exp([1.2, 1.2, 0.0]), rtol=0.12)


def test_everything_that_takes_perturbations_takes_combinations(model, adata):
    model.annotate(adata)
    assert list(adata.varm["gim_targets"].columns) == model.perturbations
    assert model.score(adata).loc[("c+d", 1.0), "n_cells"] == 60
    assert model.report().values["perturbations"] == 5
    assert model.get_total_effects(["a+b"], n_samples=200).shape == (1, 8)
    assert model.predict("a+b", n_samples=10).n_obs == 10
    interval = model.predict_mean([{"a": 1.0, "d": 1.0}], n_draws=4, n_samples=50)
    assert interval.n_obs == 1


def test_a_saved_model_knows_combinations(model, adata, tmp_path):
    model.save(tmp_path / "model")
    loaded = GIM.load(tmp_path / "model", adata=False, accelerator="cpu")
    assert loaded.combinations == model.combinations
    pd.testing.assert_frame_equal(loaded.get_interactions(), model.get_interactions())
    asked = [{"a": 1.0, "b": 1.0}, {"a": 1.0, "e": 1.0}]
    one, other = (m.predict_combination(asked, n_samples=20) for m in (model, loaded))
    np.testing.assert_array_equal(one.X.toarray(), other.X.toarray())


def test_other_cells_are_coded_by_the_combinations_of_the_model(model):
    other = screen(seed=1, n=3)
    assert set(model.score(other).index.get_level_values(0)) == {"control", *"abcd", *list(model.combinations)}


def test_cells_of_another_combination_have_no_score(model):
    with pytest.raises(ValueError, match="'a.d' was not measured and reads like a combination"):
        model.score(screen(pairs=[(0, 3)], n=10))


def test_dosages_of_combinations_are_text():
    adata = screen(doses=True)
    model = fit(adata, 2, dosage_key="dosage")
    assert model.combinations["a:2+b:2"] == {"a": 2.0, "b": 2.0}
    assert ("e", 2.0) in model.contexts
    effects = model.get_effects()
    np.testing.assert_allclose(
        effects.loc[("a:2+b:2", 2.0)], effects.loc["a"].iloc[0] + effects.loc["b"].iloc[0], atol=1e-9
    )
    at_two, at_one = (model._drugs.combined([{"a": x, "b": x}], None) for x in (2.0, 1.0))
    assert len(at_two.drug) == 1  # as it was measured
    assert len(at_one.drug) == 2


def test_features_are_those_of_drugs():
    adata = screen()
    adata.uns["features"] = pd.DataFrame(np.random.default_rng(0).normal(size=(6, 3)), list("abcdef"))
    model = fit(adata, 2, drug_embedding_key="features")
    assert model.drug_embedding.index.tolist() == list("abcde")
    new = adata.uns["features"].loc[["f"]]
    both = model.predict_combination({"f": 1.0, "a": 1.0}, new, n_samples=5)
    assert both.n_obs == 5


@pytest.mark.parametrize("separator", ["+", None])
def test_combinations_with_new_drugs_are_asked_of_the_method_that_takes_their_features(separator):
    adata = screen(alone=range(5), pairs=[(0, 1)], n=8)
    features = pd.DataFrame(np.random.default_rng(0).normal(size=(6, 3)), list("abcdef"))
    if separator is None:
        features.loc["b+a"] = 0.0
    adata.uns["features"] = features
    model = fit(adata, 1, drug_embedding_key="features", combination_separator=separator)
    signs = ("+", " + ", "&", "_")
    for asked in (*(f"a{sign}new" for sign in signs), "x+new"):
        first = asked[0]
        message = rf"{re.escape(repr(asked))} was not measured.*predict_combination\({{'{first}': 1.0, 'new': 1.0}}, drug_embedding\)"
        for call in (model.predict, model.predict_mean, model.get_targets, model.get_total_effects):
            with pytest.raises(ValueError, match=message):
                call([asked])
    with pytest.raises(ValueError, match=r"`model.predict_combination\({'e': 1.0, 'a': 1.0}\)`\.$"):
        model.predict_mean("e+a")
    with pytest.raises(ValueError, match="'new' not among.*predict_combination\\(combinations, drug_embedding\\)"):
        model.predict_mean({"a": 1.0, "new": 1.0})
    with pytest.raises(ValueError, match="Give it to `model.predict_combination`"):
        model.predict({"a": 1.0, "b": 1.0})
    of_pair = features.iloc[:1].set_axis(["a+new"])
    if separator is None:  # a perturbation of its own
        assert model.predict_mean(of_pair, n_draws=2).n_obs == 1
    else:
        with pytest.raises(ValueError, match="predict_combination"):
            model.predict_mean(of_pair)
    with pytest.raises(ValueError, match="'drug_z' not among the measured perturbations"):
        model.predict("drug_z")  # a name like any other


def test_the_control_and_a_dosage_of_zero_are_no_members():
    adata = screen(doses=True)
    labels = adata.obs["perturbation"].astype(object)
    adata.obs["perturbation"] = labels.where(labels != "a", "a+control")
    adata.obs.loc[labels == "a", "dosage"] = "2+0"
    set_up(adata, dosage_key="dosage")
    assert GIM(adata).perturbations[:5] == list("abcde")


def test_latent_networks_take_combinations():
    adata, rng = screen(), np.random.default_rng(1)
    hidden = rng.normal(0, 0.5, adata.shape)  # expression that varies beyond counting
    adata.X = rng.poisson(10 * np.maximum(adata.X, 0.5) * np.exp(hidden)).astype(np.float32)
    scvi.settings.seed = 0
    set_up(adata)
    model = GIM(adata, measurement="latent")
    model.train(accelerator="cpu", enable_progress_bar=False)
    assert model.get_targets().droplevel("dosage").loc["e", "gene_4"] > 0.9


def test_pairs_of_one_sample_each_are_let_pass():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"perturbation": ["control"] * 30 + ["a", "a", "b", "b", "c", "a+b", "a+c"]})
    values = rng.normal(size=(len(obs), 8))
    values[35] += 3.0  # of "a+b" on all genes
    adata = AnnData(values, obs=obs.set_axis([f"s{i}" for i in range(len(obs))]), var=pd.DataFrame(index=GENES))
    scvi.settings.seed = 0
    GIM.setup_anndata(adata, dosage_key=None, drug_embedding_key=None, combination_separator="+")
    model = GIM(adata, likelihood="normal")
    model.train(2, accelerator="cpu", enable_progress_bar=False)
    assert model.combinations.keys() == {"a+b", "a+c"}
    predicted = model.predict_combination({"a": 1.0, "b": 1.0}, n_samples=2000).X.mean()
    assert predicted > 0.35 * values[35].mean()  # of one sample, so shrunk


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "a+"}, "name is empty"),
        ({"label": "a+a"}, "names 'a' twice"),
        ({"dosage": "2"}, "Give that of each of its 2 drugs"),
        ({"dosage": "2+x"}, "as text such as '1\\+10'"),
        ({"dosage": "2+-1"}, "none is negative"),
        ({"separator": "a"}, "must be text that no name holds"),
        ({"separator": "&"}, "names two drugs separated by '&'"),
        ({"effect_modifier_key": "line"}, "cannot be used together"),
    ],
)
def test_what_cannot_be_read_says_so(change, message):
    adata = screen(n=4, doses=True)
    adata.obs["line"] = np.tile(["one", "two"], adata.n_obs)[: adata.n_obs]
    pair = adata.obs["perturbation"] == "b+a"
    if "label" in change:
        adata.obs.loc[pair, "perturbation"] = change.pop("label")
    if "dosage" in change:
        adata.obs.loc[pair, "dosage"] = change.pop("dosage")
    options = {"combination_separator": change.pop("separator", "+"), "dosage_key": "dosage", **change}
    if options["combination_separator"] == "&":
        adata.obs["dosage"] = (adata.obs["perturbation"] != "control").astype(float)
    with pytest.raises(ValueError, match=message):
        set_up(adata, **options)


def test_hard_interventions_do_not_add_up():
    adata = screen(n=4)
    set_up(adata)
    with pytest.raises(ValueError, match="need `intervention='shift'`"):
        GIM(adata, intervention="hard")


def test_drugs_that_were_only_given_together_are_named():
    adata = screen(pairs=[(0, 1), (3, 4)], alone=(0, 1), n=4)
    with pytest.warns(UserWarning, match=r"'d\+e' were only given together"):
        set_up(adata)


def test_without_a_separator_there_are_no_interactions():
    adata = screen(n=8)
    model = fit(adata, 1, combination_separator=None)
    assert "b+a" in model.perturbations
    with pytest.raises(ValueError, match="without `combination_separator`"):
        model.get_interactions()


def test_known_targets_of_members_are_those_of_their_combinations():
    adata = screen(n=8)
    set_up(adata)
    prior = pd.DataFrame({"gene_0": [0.9], "gene_1": [0.1]}, index=["a"])
    known = GIM(adata, target_prior=prior).module.knowledge
    row = 5  # "a+b"
    assert known.target_is_known[row].tolist() == [True] + [False] * 7  # of the other, that b does not act is not known
    assert float(known.prior_target_probs()[row, 0]) == pytest.approx(0.9)
