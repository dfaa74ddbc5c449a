"""The report of a drug, from an AnnData whose stored results are known."""

from __future__ import annotations

import re

import anndata as ad
import networkx as nx
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scgim
from scgim._constants import Key
from scgim._report import expected_counts
from scgim.tl._report import _cautions_of_listed, _Drug

GENES = ["a", "b", "c", "d", "e"]
DRUGS = ["x/1", "y", "z"]


def frame(rows: list[list[float]]) -> pd.DataFrame:
    """Genes x drugs from one row a drug."""
    return pd.DataFrame(np.array(rows, dtype=float).T, GENES, ["x\N{DIVISION SLASH}1", "y", "z"])


@pytest.fixture
def adata() -> ad.AnnData:
    """Genes a -> b -> c with a of the drug "x/1", d a target of all three; e changes though nothing reaches it."""
    names = ["control"] * 10 + ["x/1"] * 40 + ["y"] * 4 + ["z"] * 40
    dosage = [0.0] * 10 + [1.0, 10.0] * 20 + [10.0] * 4 + [1.0, 10.0] * 20
    obs = pd.DataFrame({"drug": names, "dose": dosage}, [f"cell{i}" for i in range(len(names))])
    adata = ad.AnnData(np.ones((len(names), 5), np.float32), obs=obs, var=pd.DataFrame(index=GENES))
    weights = np.zeros((5, 5))
    weights[0, 1], weights[1, 2] = 0.8, -0.5
    adata.varp[Key.varp.edge_weights("gim")] = sparse.csr_matrix(weights)
    adata.varp[Key.varp.edge_probs("gim")] = sparse.csr_matrix(np.where(weights, 0.9, 0.0))
    stored = {
        Key.varm.targets: [[0.99, 0.02, 0.01, 0.8, 0.3], [0.1] * 3 + [0.9, 0.0], [0.0] * 3 + [0.9, 0.0]],
        Key.varm.shifts: [[1.2, 0.0, 0.0, -0.4, 0.0], [0.0] * 3 + [-0.5, 0.0], [0.0] * 3 + [-0.5, 0.0]],
        Key.varm.shift_sds: [[0.1, 0.0, 0.0, 0.3, 0.0], [0.0] * 3 + [0.1, 0.0], [0.0] * 3 + [0.1, 0.0]],
        Key.varm.total_effects: [[1.2, 0.9, -0.4, -0.4, 0.2], [0.0] * 3 + [-0.5, 0.0], [0.0] * 3 + [-0.5, 0.0]],
        Key.varm.emax: [[1.3, 0.0, 0.0, -0.5, 0.0]] * 3,
        Key.varm.ec50: [[2.0, 3.0, 3.0, 40.0, 3.0]] * 3,
        Key.varm.hill: [[1.5] * 5] * 3,
    }
    for slot, rows in stored.items():
        adata.varm[slot("gim")] = frame(rows)
    adata.var[Key.var.controls_agree("gim")] = [True, True, True, False, True]
    table = pd.DataFrame(
        {"n_cells": [40, 4, 40], "n_doses": [2, 1, 2], "max_dosage": 10.0}, ["x\N{DIVISION SLASH}1", "y", "z"]
    )
    params = {"perturbation_key": "drug", "control": "control", "dosage_key": "dose"}
    adata.uns["gim"] = {Key.uns.PERTURBATIONS: table, Key.uns.PARAMS: params}
    return adata


def test_targets_and_what_follows(adata):
    report = scgim.tl.report(adata, "x/1")
    targets = report["targets"]
    assert targets.index.tolist() == ["a", "d"]
    assert targets.loc["a", ["probability", "effect", "effect_sd", "ec50"]].tolist() == [0.99, 1.2, 0.1, 2.0]
    assert targets["ec50_measured"].tolist() == [True, False]
    assert targets["n_perturbations"].tolist() == [1, 3]
    follows = report["follows"]
    assert follows.index.tolist() == ["b", "c", "e"]
    assert follows["by_way_of"].tolist() == ["a → b", "a → b → c", ""]
    assert report.values["cells_trained_on"] == 40
    assert report.values["doses"] == "1 to 10 (2)"
    assert report.values["undecided_genes"] == 1
    assert report.values["change_reached_from_targets"] == pytest.approx(2.9 / 3.1)
    assert scgim.tl.report(adata, "x/1", min_effect=0.5)["follows"].index.tolist() == ["b"]
    assert scgim.tl.report(adata, "x/1", min_prob=0.9)["targets"].index.tolist() == ["a"]


def test_cautions_say_what_is_wrong(adata):
    text = "\n".join(scgim.tl.report(adata, "x/1").cautions)
    assert "The EC50 of d lies outside the doses measured" in text
    assert "differ from observed ones in d" in text
    assert "The effect on d is less than two standard deviations" in text
    assert "half of the perturbations" not in text  # of three drugs, all may well share a target
    few = "\n".join(scgim.tl.report(adata, "y").cautions)
    assert "4 cells a dose" in few
    assert "one dose" in few
    none = scgim.tl.report(adata, "z", min_prob=0.95)
    assert none.cautions[0].startswith("No gene is called a target; the likeliest is d with 0.9")
    assert "Targets: direct effects at the largest dose, with their standard deviation\nnone" in repr(none)
    adata.varm[Key.varm.total_effects("gim")].loc["e"] = 9.0
    assert "of the change lies in targets" in scgim.tl.report(adata, "x/1").cautions[-1]


def test_a_reference_of_drugs_and_regulons(adata):
    known = pd.DataFrame(
        {"source": ["x/1", "x/1", "a", "c", "b", "TF"], "target": ["d", "unmeasured", "b", "b", "b", "a"]}
    )
    report = scgim.tl.report(adata, "x/1", reference=known)
    targets = report["known_targets"]
    assert targets.index.tolist() == ["d", "unmeasured"]
    assert targets.loc["d", ["probability", "rank"]].tolist() == [0.8, 2.0]
    assert targets.loc["unmeasured"].isna().all()
    edges = report["known_edges"]
    assert edges[["source", "target"]].to_numpy().tolist() == [["a", "b"], ["b", "c"]]
    assert edges["in_reference"].tolist() == ["as directed", "reversed"]
    assert edges["weight"].tolist() == [0.8, -0.5]
    assert report.values["edges_in_reference"] == "1 of 2 (0.2 by chance)"  # two of twenty pairs are known
    assert report.values["known_targets_measured"] == 1
    with pytest.raises(KeyError, match="columns 'source' and 'target'"):
        scgim.tl.report(adata, "x/1", reference=pd.DataFrame({"tf": ["a"]}))
    with pytest.raises(ValueError, match="names neither 'x/1'"):
        scgim.tl.report(adata, "x/1", reference=pd.DataFrame({"source": ["q"], "target": ["a"]}))


def test_it_prints_and_shows(adata):
    report = scgim.tl.report(adata, "x/1")
    text = repr(report)
    assert text.startswith("x/1: what was found\n===")
    assert re.search(r"^a +0\.99 +1\.2 +0\.1", text, re.MULTILINE)
    assert "Cautions\n- " in text
    shown = report._repr_html_()
    assert "<h4>Targets</h4>" in shown
    assert "a → b → c" in shown
    assert "<li>" in shown
    with pytest.raises(KeyError, match="no table 'edges'"):
        report["edges"]


def test_long_tables_are_cut_and_say_so():
    table = pd.DataFrame({"value": np.arange(20.0)}, [f"g{i}" for i in range(20)])
    report = scgim.tl.Report("long", {}, {"genes": table})
    assert "... and 8 more" in repr(report)
    assert "... and 8 more" in report._repr_html_()
    assert len(report["genes"]) == 20


def test_without_results_it_says_what_to_do(adata):
    with pytest.raises(KeyError, match="Unknown perturbation 'w'"):
        scgim.tl.report(adata, "w")
    with pytest.raises(TypeError, match=r"model\.report\(\)"):
        scgim.tl.report("y", "y")
    with pytest.raises(KeyError, match=r"model\.annotate\(adata\)"):
        scgim.tl.report(adata, "y", key="other")


def test_a_report_survives_a_file_and_needs_no_cells(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert repr(scgim.tl.report(again, "x/1")) == repr(scgim.tl.report(adata, "x/1"))
    bare = scgim.tl.report(adata[:10].copy(), "x/1")  # controls only: of the doses, the largest is known
    assert bare.values["doses"] == "up to 10 (2)"
    assert bare["targets"]["ec50_measured"].tolist() == [True, False]


def test_numbers_are_written_out_and_doses_have_their_unit(adata):
    adata.uns["dosage_unit"] = "nM"
    adata.obs["dose"] *= 1000
    adata.varm[Key.varm.ec50("gim")] *= 1000
    text = repr(scgim.tl.report(adata, "x/1"))
    assert "1000 to 10000 nM (2)" in text
    assert " 2000 " in text
    assert "e+0" not in text


def test_changes_of_other_genes_come_with_their_doubt(adata):
    assert "total_effect_sd" not in scgim.tl.report(adata, "x/1")["follows"]  # as annotated by earlier versions
    sds = frame([[0.1, 0.6, 0.1, 0.1, 0.2]] * 3)
    adata.varm[Key.varm.total_effect_sds("gim")] = sds
    report = scgim.tl.report(adata, "x/1")
    assert report["follows"].index.tolist() == ["c", "b", "e"]  # clear, though smaller, and then the others
    assert report["follows"]["total_effect_sd"].tolist() == [0.1, 0.6, 0.2]
    assert any("2 of the 3 genes that follow is less than two standard deviations" in c for c in report.cautions)


def test_genes_of_few_counts_are_named(adata):
    adata.uns["gim"][Key.uns.CONTROLS] = pd.DataFrame({"mean": [0.2, 0.1, 0.3, 5.0, 9.0]}, GENES)
    adata.uns["gim"][Key.uns.PARAMS]["likelihood"] = "nb"
    report = scgim.tl.report(adata, "x/1")
    assert report["follows"]["counts"].tolist() == [4.0, 12.0, 360.0]  # of b, c and e, in 40 cells
    (caution,) = [c for c in report.cautions if "Fewer than 20 counts" in c]
    assert "of b, c in its cells" in caution  # a is raised threefold, from 8 counts to 27
    adata.uns["gim"][Key.uns.PARAMS]["likelihood"] = "normal"
    assert "counts" not in scgim.tl.report(adata, "x/1")["follows"]


@pytest.mark.parametrize(
    ("n_children", "probability", "is_hub"), [(10, 0.99, True), (9, 0.99, False), (12, 0.6, False)]
)
def test_a_parent_of_very_many_genes_is_a_caution(n_children, probability, is_hub):
    graph = nx.DiGraph([("t", "hub"), *(("hub", f"g{k}") for k in range(n_children))])
    nx.set_edge_attributes(graph, probability, "probability")
    genes = pd.DataFrame({"n_perturbations": 0, "total_effect": 1.0}, list(graph))
    drug = _Drug("x", genes, (1.0, 1.0), pd.Series({"n_perturbations": 1}), graph, False, "")
    tables = {"targets": genes.loc[["t"]], "follows": genes.loc[["g0"]]}
    cautions = _cautions_of_listed(drug, tables, {"t": ["t"], "g0": ["t", "hub", "g0"]})
    assert [c.startswith(f"hub: parent of {n_children} of {len(genes)} genes") for c in cautions] == [True] * is_hub


def test_counts_of_all_levels_say_nothing_of_one():
    controls = pd.DataFrame({"mean": [2.0]}, ["a"])
    of_drugs = pd.DataFrame({"n_cells": [40]}, ["x"])
    entries = {Key.uns.CONTROLS: controls, Key.uns.PERTURBATIONS: of_drugs, Key.uns.PARAMS: {"likelihood": "nb"}}
    assert expected_counts(entries, "x", pd.Index(["a"])).tolist() == [80.0]
    entries[Key.uns.PARAMS]["level"] = "k562"
    assert expected_counts(entries, "x", pd.Index(["a"])) is None
