"""Other methods read the worlds as they are, are scored like ours, and those that fail say so; the world of BoolODE has the truth it claims."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


def load(name: str):
    return importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(scope="module")
def kinetic(tmp_path_factory):
    """The small kinetic world, and its job and place."""
    folder = tmp_path_factory.mktemp("peers")
    peers, place = load("worlds.peers"), load("_worlds").Place(folder, folder, quick=True)
    job = peers.jobs_of([0], ["correlation"])[-1]
    return peers.open_world(job, place, folder), job, place


@pytest.fixture(scope="module")
def blood():
    hsc, data = load("worlds.hsc"), ROOT.parent / "shared" / "data"
    if not (data / hsc.CELLS).exists():
        pytest.skip(f"The world of BoolODE is not in {data}.")
    return hsc.read(data)


def test_contexts_and_truth_are_those_of_the_cells(kinetic, tmp_path):
    adata, *_ = kinetic
    peers = load("worlds.peers")
    drugs = peers.write(adata, tmp_path / "data.npz", counts=True)
    z = np.load(tmp_path / "data.npz")
    train = adata[adata.obs["split"] == "train"]
    assert len(z["ctx"]) == train.n_obs
    np.testing.assert_array_equal(z["ctx"] == 0, train.obs["perturbation"] == "control")
    for i in (1, len(drugs)):
        own = train.obs[z["ctx"] == i]
        assert set(own["perturbation"]) == {drugs[i - 1]}
        assert own["dosage"].nunique() == 1
        np.testing.assert_array_equal(z["ctx_targets"][i], adata.varm["true_targets"][drugs[i - 1]])


def test_statistics_are_scored_and_knowing_who_regulates_helps(kinetic):
    adata, job, place = kinetic
    peers, python = load("worlds.peers"), Path(sys.executable)
    row = peers.measure_one(job, place, place.work, {"numpy": python}, 100.0)
    found, cpu = peers.theirs(adata, job, python, 100.0)
    assert row[0]["edge_auprc"] == peers.scores(found, adata)["edge_auprc"]
    assert row[0]["edge_auprc_told"] > row[0]["edge_auprc"]
    assert "edge_precision" not in row[0]
    assert cpu >= 0
    perfect = {"target": adata.varm["true_targets"][peers.drugs_of(adata)].T.to_numpy()}
    assert peers.scores(perfect, adata)["target_auprc"] == 1


def test_a_method_that_fails_has_a_row_that_says_why():
    peers = load("worlds.peers")
    frame = pd.DataFrame([{"world": "kinetic", "method": "correlation, controls", "edge_auprc": 0.2, "cpu": 1.0}])
    failed = pd.DataFrame([{"world": "size10_1", "method": "D-SPIN", "error": "TimeoutError: stopped"}])
    table = peers.tables(frame, failed)["worlds-peers"]
    assert table["method"].tolist() == ["D-SPIN", "correlation, controls"]
    assert table["failed"].tolist()[0] == "TimeoutError: stopped"
    assert table["fits"].tolist() == [0, 1]


def test_jobs_are_named_once_and_the_table_has_its_place():
    peers = load("worlds.peers")
    jobs = peers.jobs_of([0, 1], peers.METHODS)
    assert len({job.identity for job in jobs}) == len(jobs)
    assert "<!-- worlds-peers:start -->" in load("_report").DOCS.read_text(encoding="utf-8")


def test_regulators_of_blood_are_those_of_the_boolean_model(blood):
    edges = pd.DataFrame(blood.varp["true_adjacency"].toarray(), blood.var_names, blood.var_names)
    assert edges["Fog1"].pipe(lambda column: list(column[column].index)) == ["Gata1"]
    assert set(edges.index[edges["Gfi1"]]) == {"Cebpa", "EgrNab"}
    assert set(edges.index[edges["Eklf"]]) == {"Gata1", "Fli1"}
    assert edges.to_numpy().sum() == 26


def test_two_signs_agree_on_the_targets_of_blood(blood):
    """The order of the perturbations, and cells above all others."""
    targets = blood.varm["true_targets"]
    names = [f"Perturb_{i}" for i in range(22)]
    assert [targets.index[targets[name]].tolist() for name in names] == [[gene] for gene in blood.var_names] * 2
    values = pd.DataFrame(blood.X, columns=blood.var_names)
    highest = values.groupby(blood.obs["perturbation"].astype(str).to_numpy()).max()
    mean = values.groupby(blood.obs["perturbation"].astype(str).to_numpy()).mean()
    for name, gene in zip(names[11:], blood.var_names, strict=True):
        assert highest.loc[name, gene] > highest[gene].drop(name).max()
    for name, gene in zip(names[:11], blood.var_names, strict=True):
        assert mean.loc[name, gene] < 0.5 * mean[gene].median()
