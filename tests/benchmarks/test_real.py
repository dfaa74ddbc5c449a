from __future__ import annotations

import importlib

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def real():
    """Import a script of benchmarks/real."""
    return lambda name: importlib.import_module(f"benchmarks.real.{name}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_knock_outs_on_a_part_of_the_screen(real, data_dir):
    papalexi = real("papalexi")
    if not (data_dir / papalexi.FILE).exists():
        pytest.skip(f"no `{papalexi.FILE}` in `{data_dir}`")
    tables = papalexi.run(data_dir, quick=True)
    targets = tables["papalexi-targets"].set_index("knock-out")
    assert set(targets.index) == {
        "STAT1", "STAT2", "STAT3", "JAK2", "NFKBIA", "CMTM6", "UBE2L6", "IFNGR2", "TNFRSF14",
    }  # fmt: skip
    assert targets["probability"].between(0, 1).all()
    assert targets.loc["STAT1", "rank: t-test"] == 1
    ranks = targets.filter(like="rank: ")
    assert ((ranks >= 1) & (ranks <= 30)).all(axis=None)
    summary = tables["papalexi-summary"].set_index("method")
    assert summary.loc["t-test", "mean reciprocal rank"] == pytest.approx((1 / targets["rank: t-test"]).mean())
    pathway = tables["papalexi-pathway"]
    assert pathway[["edge probability", "path probability"]].apply(lambda c: c.between(0, 1)).all(axis=None)


def test_ties_are_broken_by_the_next_frame(real):
    first = pd.DataFrame([[1.0, 1.0, 0.5]], index=["x"], columns=list("abc"))
    second = pd.DataFrame([[1.0, 2.0, 9.0]], index=["x"], columns=list("abc"))
    assert real("_knock_outs").rank_genes(first, second).loc["x"].tolist() == [2, 1, 3]


def test_best_path_has_the_largest_product(real):
    edges = pd.DataFrame({"source": list("aab"), "target": list("cbc"), "probability": [0.3, 0.8, 0.5]})
    path, probability = real("papalexi").best_path(edges, "a", "c")
    assert path == ["a", "b", "c"]
    assert probability == pytest.approx(0.4)
    assert real("papalexi").best_path(edges, "c", "a") == ([], 0.0)


def test_every_context_is_held_out_once(real):
    import anndata as ad

    obs = pd.DataFrame({"perturbation": ["control"] * 2 + [d for d in "abcd" for _ in range(6)]})
    obs["perturbation"] = obs["perturbation"].astype("category")
    obs["dosage"] = [0.0] * 2 + [0.1, 0.1, 1.0, 1.0, 10.0, 10.0] * 4
    adata = ad.AnnData(np.ones((len(obs), 1)), obs.set_index(obs.index.astype(str)))
    macseq = real("macseq")
    doses = np.stack([split == "test" for split in macseq.dose_folds(adata)])
    drugs = np.stack([split == "test" for split in macseq.drug_folds(adata, 2, 0)])
    for held_out in (doses, drugs):
        assert held_out.sum(axis=0).tolist() == [0, 0] + [1] * 24
    assert doses.sum(axis=1).tolist() == [8, 8, 8]


def test_bootstrap_compares_with_the_best_baseline(real):
    macseq = real("macseq")
    error = {"control": 4.0, "trainmean": 2.0, macseq.MODEL: 1.0, macseq.NOISE: 0.5}
    scores = ["centred_correlation", "discrimination", "mean_shift_correlation"]
    rows = [
        {"perturbation": drug, "method": method, "mean_shift_error": value, **dict.fromkeys(scores, value / 10)}
        for method, value in error.items()
        for drug in "abc"
    ]
    table = macseq.bootstrap_table(pd.DataFrame(rows)).set_index("method")
    assert table.loc["scGIM", "ratio to best baseline"] == 0.5
    assert table.loc["scGIM", "of the ratio"] == "0.5 to 0.5"
    assert "trainmean (best baseline)" in table.index
    assert table.loc["scGIM", ["centred correlation", "discrimination"]].tolist() == pytest.approx([0.1, 0.1])


def test_consensus_graph_is_read(real, data_dir):
    sachs = real("sachs")
    if not (data_dir / sachs.GRAPH).exists():
        pytest.skip(f"no `{sachs.GRAPH}` in `{data_dir}`")
    adata = sachs.load(data_dir, quick=True)
    graph = sachs.consensus(data_dir, adata.var_names)
    assert graph.to_numpy().sum() == 20
    assert graph.loc["mek", "erk"] == 1
    assert adata.obs["perturbation"].value_counts().to_dict() == dict.fromkeys(
        [sachs.CONTROL, "icam2", *sachs.TARGETS], 100
    )


def test_controls_of_drug_pairs_have_the_noise_that_sums_leave(real):
    import anndata as ad

    cellbox, rng = real("cellbox"), np.random.default_rng(0)
    labels = [("a", "1"), ("b", "2"), ("c", "3"), ("a+b", "1+2"), ("a+c", "1+3"), ("b+c", "2+3")] * 30
    obs = pd.DataFrame(labels, columns=["perturbation", "dosage"], index=[f"s{i}" for i in range(len(labels))])
    effects = {("a", 1.0): 1.0, ("b", 2.0): -2.0, ("c", 3.0): 3.0}
    conditions = cellbox.members(obs)
    columns = sorted(effects)
    x = cellbox.design(conditions, columns)
    assert x[3].tolist() == [1.0, 1.0, 0.0]
    means = x @ np.array([effects[column] for column in columns])
    values = means[:, None] + rng.normal(0, [0.5, 2.0], (len(obs), 2))
    ready = cellbox.with_controls(ad.AnnData(values.astype(np.float32), obs=obs), 0)
    controls = ready[ready.obs["perturbation"] == "control"].X
    np.testing.assert_allclose(controls.std(axis=0), [0.5, 2.0], rtol=0.25)


def test_pairs_are_those_of_members_that_were_measured(real):
    import anndata as ad

    labels = ["control", "a", "b", "a+b", "b+c", "c+d"]
    adata = ad.AnnData(
        np.ones((6, 2), dtype=np.float32), obs=pd.DataFrame({"perturbation": labels}, index=list("abcdef"))
    )
    assert real("norman").pairs_of(adata) == ["a+b"]


def test_log_fold_changes_add_up(real):
    import anndata as ad
    from scipy import sparse

    def cells(mean):
        x = sparse.csr_matrix(np.full((4, 1), mean, dtype=np.float32))
        return ad.AnnData(x, obs=pd.DataFrame({"size_factor": 1.0}, index=list("abcd")))

    norman = real("norman")
    found = norman.additive({"control": cells(1.0), "a": cells(2.0), "b": cells(3.0)}, ["a", "b"])
    np.testing.assert_allclose(found, np.log1p(6.0) - np.log1p(1.0), rtol=0.03)  # and the little that is added to means


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_knocked_out_genes_are_found_among_all(real, data_dir):
    """What the README leads with, but for the descent: all nine among the first few, and few others called."""
    papalexi = real("papalexi")
    if not (data_dir / papalexi.FILE).exists():
        pytest.skip(f"no `{papalexi.FILE}` in `{data_dir}`")
    adata = papalexi.load(data_dir, quick=False)
    model, _ = papalexi.fit(adata, seed=0, max_epochs=1)
    probability = model.get_targets().droplevel("dosage")
    own = real("_knock_outs").measured_targets(adata)
    assert len(own) == 9
    assert all(probability.loc[name, name] > 0.5 for name in own)
    assert (probability.loc[own] > 0.5).to_numpy().sum() <= 9 + 364 / 3  # a third of what a t-test calls


def test_measured_targets_are_modelled_and_calls_are_counted(real):
    import anndata as ad

    shrna = real("shrna")
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"perturbation": pd.Categorical(["control"] * 4 + ["g0"] * 4 + ["x"] * 4)})
    x = rng.normal(size=(12, 5)) * [0.1, 1.0, 3.0, 2.0, 0.5]
    x[4:8, 0] -= 5
    adata = ad.AnnData(x, obs.set_index(obs.index.astype(str)), pd.DataFrame(index=[f"g{j}" for j in range(5)]))
    assert shrna.modelled_genes(adata, 3).tolist() == ["g0", "g2", "g3"]
    simple = shrna.simple_rankings(adata)
    assert simple["change"].ranks.loc["g0", "g0"] == 1
    assert simple["t-test"].called.loc["g0", "g0"]
    table = real("_knock_outs").summary_table(simple, {})
    assert table.loc["t-test", "called, median"] == simple["t-test"].called.sum(axis=1).median()
    assert np.isnan(table.loc["change", "called, median"])
