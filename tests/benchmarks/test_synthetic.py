"""The benchmarks on simulated data run, on tiny worlds, and score as the generator's own scorer does."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench() -> Path:
    """Folder with the generator and the scorer; `SCGIM_BENCH` names it."""
    path = Path(os.environ.get("SCGIM_BENCH", ROOT.parent / "shared" / "bench"))
    if not (path / "make_synth.py").exists():
        pytest.skip(f"no generator in `{path}`; set SCGIM_BENCH to a folder that has make_synth.py and score.py")
    return path


@pytest.fixture(scope="module")
def place(bench, tmp_path_factory):
    """Tiny worlds, made once."""
    return load("_worlds").Place(bench, tmp_path_factory.mktemp("work"), quick=True)


def load(name: str):
    return importlib.import_module(f"benchmarks.{name}")


def a_job(**options):
    return load("_worlds").Job({"graph": "er"}, 0, {"graph": "er"}, **options)


def test_generated_world_has_cells_and_truth_in_place(place):
    adata, path = load("_worlds").open_world(a_job(), place)
    z = np.load(path)
    assert adata.obs["split"].value_counts().to_dict() == {"train": 1000, "unseen_dose": 1000, "unseen_drug": 240}
    np.testing.assert_array_equal(adata.varp["true_adjacency"].toarray(), z["A"] == 1)
    seen = adata.obs["split"] == "train"
    np.testing.assert_array_equal(adata.X[seen], z["X_count"])
    chosen = seen & (adata.obs["perturbation"] == "d3") & (adata.obs["dosage"] == 1.5)
    context = np.flatnonzero((z["ctx_drug"] == 3) & (z["ctx_dose"] == 1.5))
    np.testing.assert_array_equal(np.flatnonzero(chosen), np.flatnonzero(z["ctx"] == context))
    np.testing.assert_array_equal(adata.varm["true_targets"]["d3"], z["ctx_targets"][context[0]])
    np.testing.assert_allclose(adata.uns["drug_embedding"].loc["d11"], z["ood_ctx_feat"][z["ood_ctx_drug"] == 11][0])


def test_scores_of_a_fit_are_those_of_the_other_scorer(place, tmp_path):
    common, worlds = load("common"), load("_worlds")
    import scgim

    job = a_job()
    adata, data = worlds.open_world(job, place)
    model, cost = common.fit(job, adata, place)
    predicted, _ = common.predict_held_out(model, adata, 20, seed=0)
    of_cell = np.repeat(common.held_out_contexts(adata)["split"].to_numpy(), 20)
    splits = {"pood": "unseen_dose", "ood": "unseen_drug"}
    parts = {name: predicted[of_cell == split] for name, split in splits.items()}
    common.write_result(tmp_path / "r.npz", data, model, cost=cost, view="count", predicted=parts)
    theirs = common.bench_scores(place.bench, data, tmp_path / "r.npz", "count")
    mine = common.model_scores(model, adata)
    for name, other in {"edge_auprc": "e_auprc", "edge_f1": "e_f1", "shd": "shd", "target_auprc": "t_auprc"}.items():
        assert mine[name] == pytest.approx(theirs[other]), name
    with pytest.warns(UserWarning, match="noise of 20 predicted cells"):
        table = scgim.metrics.compare_baselines(adata, predicted={"scGIM": predicted}, methods=["trainmean"])
    energy = table.xs("scGIM", level="method")["energy_distance"]
    for name, split in splits.items():
        assert energy[split] == pytest.approx(theirs[f"{name}_energy"], rel=1e-3)
    assert cost.cpu > 0
    assert cost.memory_mb > 50


def test_features_are_made_worse_for_all_drugs_alike(place):
    worlds = load("_worlds")
    given = worlds.open_world(a_job(), place)[0].uns["drug_embedding"]
    tables = {
        c: worlds.open_world(a_job(features=c), place)[0].uns["drug_embedding"]
        for c in ("pca 2", "noise 1", "shuffled")
    }
    assert tables["pca 2"].shape == (13, 2)
    assert 0.7 < (tables["noise 1"] - given).to_numpy().std() / given.to_numpy().std() < 1.4
    assert set(tables["shuffled"].iloc[:10, 0]) == set(given.iloc[:10, 0])  # measured drugs among themselves
    assert not np.allclose(tables["shuffled"], given)


def fail_on_odd_seeds(job) -> list[dict]:
    if job.seed % 2:
        raise ValueError("an odd seed")
    return [{"score": float(job.seed)}]


def test_an_interrupted_run_goes_on_and_failures_are_tried_again(tmp_path, capsys):
    records, worlds = load("_records"), load("_worlds")
    jobs = [worlds.Job({"graph": "er"}, seed, {}) for seed in range(4)]
    path = tmp_path / "results.csv"
    assert records.run_jobs(jobs, fail_on_odd_seeds, records.Records(path), limit=2) == 1
    kept = records.Records(path)
    assert [kept.has(job) for job in jobs] == [True, False, False, False]
    assert records.run_jobs(jobs, fail_on_odd_seeds, kept, limit=None) == 2
    again = records.Records(path)
    assert again.of(jobs)["score"].tolist() == [0.0, 2.0]
    assert again.notes(jobs) == ["2 fits failed: ValueError: an odd seed."]
    assert "an odd seed" in capsys.readouterr().err
    assert records.Records(path, fresh=True).of(jobs).empty


def test_tables_have_a_row_a_setting_and_say_what_is_met():
    records, prediction = load("_records"), load("prediction.tables")
    scores = {"control": 1.0, "trainmean": 0.9, "ridge": 0.2, "krr": 0.1, "scGIM": 0.03}
    extra = dict.fromkeys(["mmd", "wasserstein1", "mean_shift_error"], 0.0)
    frame = pd.DataFrame(
        [
            {
                "graph": graph,
                "seed": seed,
                "split": split,
                "method": method,
                "energy_distance": value * (1 + seed),
                **extra,
            }
            for graph in ("er", "sf")
            for seed in (0, 1)
            for split in ("unseen_dose", "unseen_drug")
            for method, value in scores.items()
        ]
    )
    tables = prediction.tables("main", frame)
    assert len(tables["prediction-main"]) == 4
    assert tables["prediction-main"][prediction.RATIO].tolist() == ["0.3 ± 0"] * 4
    assert tables["prediction-main-goals"]["measured"].tolist() == pytest.approx([0.3, 0.3])
    assert tables["prediction-main-goals"]["met"].tolist() == ["yes", "yes"]
    assert records.goal("errors", 2.0, 1.5, at_least=False)["met"] == "no"


def test_suites_name_every_fit_once_and_each_has_a_table():
    for group in ("structure", "prediction"):
        suites = load(f"{group}.suites").SUITES
        shown = load(f"{group}.tables").REPORTS if group == "structure" else load(f"{group}.tables").BY
        assert set(shown) == set(suites)
        for suite in suites.values():
            jobs = suite([0, 1])
            assert len({job.identity for job in jobs}) == len(jobs)
            assert "Expected:" in suite.__doc__


def test_every_table_has_a_place_in_the_documentation():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    structure = load("structure.tables").REPORTS
    names = ["structure-peers", *(f"structure-{suite}" for suite in structure)]
    names += [f"prediction-{suite}{kind}" for suite in load("prediction.tables").BY for kind in ("", "-metrics")]
    for name in names:
        assert f"<!-- {name}:start -->" in page, name
        assert f"<!-- {name}:end -->" in page, name
    assert "| met |" not in page


def test_a_suite_runs_from_the_command_line(place, capsys):
    run = load("structure.run")
    options = [
        "main",
        "--seeds",
        "0",
        "--quick",
        "--max-jobs",
        "1",
        "--bench",
        str(place.bench),
        "--work",
        str(place.work),
    ]
    assert run.main(options) == 0
    printed = capsys.readouterr().out
    assert "structure-main-goals" in printed
    assert "3 of 4 fits are still to be run." in printed
    assert len(pd.read_csv(place.work / "results" / "quick_structure_main.csv")) == 1


def test_joint_estimation_is_fitted_with_and_without_features(tmp_path, capsys):
    suites, worlds = load("structure.suites"), load("_worlds")
    place = worlds.Place(tmp_path, tmp_path, quick=True)
    jobs = {job.labels["features"]: job for job in suites.joint([0])[:4]}
    tables = {name: worlds.open_world(job, place)[0].uns["drug_embedding"] for name, job in jobs.items()}
    assert jobs["none"].setup == {"drug_embedding_key": None}
    assert tables["informative"].equals(tables["none"])
    assert not np.allclose(tables["weak"], tables["informative"])
    assert not np.allclose(tables["shuffled"], tables["informative"])
    options = ["joint", "--seeds", "0", "--quick", "--max-jobs", "2", "--work", str(tmp_path)]
    assert load("structure.run").main(options) == 0
    assert "10 of 12 fits are still to be run." in capsys.readouterr().out
    found = pd.read_csv(tmp_path / "results" / "quick_structure_joint.csv")
    assert found["features"].tolist() == ["none", "informative"]
    assert found[["target_auprc", "target_ece", "edge_auprc"]].notna().all(axis=None)


def test_gain_of_features_is_that_over_none():
    scores = {"none": 0.8, "informative": 0.9, "weak": 0.85, "shuffled": 0.78}
    frame = pd.DataFrame(
        [
            {"cells a context": n, "features": name, "target_auprc": value if n == 5 else 0.95}
            for n in (5, 50)
            for name, value in scores.items()
        ]
    )
    goals = load("structure.tables").tables("joint", frame)["structure-joint-goals"]
    assert goals["measured"].tolist() == pytest.approx([0.1, 0.1, -0.02, 0.0])
    assert goals["met"].tolist() == ["yes", "yes", "no", "yes"]


def test_the_t_test_finds_targets_and_what_is_downstream(place, tmp_path):
    peers = load("structure.peer_methods")
    _, path = load("_worlds").open_world(a_job(), place)
    found = peers.marginal(peers.Data(str(path), "count"))
    truth = np.load(path)["ctx_targets"][1:]
    assert found["target"].shape == truth.shape
    assert found["target"][truth].mean() > 2 * found["target"][~truth].mean()
    peers.main("marginal", str(path), "float", str(tmp_path / "result.npz"))
    assert set(np.load(tmp_path / "result.npz").files) == {"meta", "target", "target_bin"}
