"""Constants are changed one at a time and put back; the suites run and have their tables."""

from __future__ import annotations

import importlib

import numpy as np
import pandas as pd
import pytest


def load(name: str):
    return importlib.import_module(f"benchmarks.{name}")


def test_every_constant_exists_and_is_put_back():
    suites, changed = load("sensitivity.suites"), load("sensitivity.measure").changed
    for constants in suites.CHANGES.values():
        for values in constants.values():
            for change in values.values():
                for name, value in change.attributes.items():
                    module, _, attribute = name.rpartition(".")
                    before = getattr(importlib.import_module(module), attribute)
                    assert before != value, name
                    with changed({name: value}):
                        assert getattr(importlib.import_module(module), attribute) is value
                    assert getattr(importlib.import_module(module), attribute) is before


def test_suites_name_every_fit_once_and_each_has_its_table_in_the_documentation():
    page = load("_report").DOCS.read_text(encoding="utf-8")
    for name, suite in load("sensitivity.suites").SUITES.items():
        jobs = suite([0, 1])
        assert len({job.identity for job in jobs}) == len(jobs)
        assert [job.labels["value"] for job in jobs].count("") == 2  # as it is, in each world
        assert "Expected:" in suite.__doc__
        assert f"<!-- sensitivity-{name}:start -->" in page


def test_tables_compare_with_the_fit_of_the_same_world():
    tables = load("sensitivity.tables")
    rows = [
        ("as it is", "", 0, 0.5, 0.2),
        ("as it is", "", 1, 0.7, 0.4),
        ("edge prior", "half", 0, 0.4, 0.2),
        ("edge prior", "half", 1, 0.5, 0.6),
        ("margin", "half", 0, 0.5, 0.1),
        ("margin", "half", 1, 0.71, 0.2),
        ("margin", "double", 2, 0.1, 0.1),  # of a world that has nothing to compare with
    ]
    frame = pd.DataFrame(rows, columns=["constant", "value", "seed", "edge_auprc", "unseen_dose"]).assign(cpu=3.0)
    found = tables.tables("gnw", frame)["sensitivity-gnw"].set_index(["constant", "value"])
    assert found.loc[("as it is", ""), "edge AUPRC"].startswith("0.6 ±")
    assert found.loc[("edge prior", "half"), "edge AUPRC"] == "-0.150 (-0.200 to -0.100)"
    assert found.loc[("edge prior", "half"), "energy distance, unseen doses"] == "+25 % (+0 to +50)"
    assert len(found) == 3
    clear = list(tables.notable(frame))
    assert clear == [
        "edge prior, half (edge AUPRC worse)",
        "margin, half (energy distance, unseen doses better)",
    ]
    assert "; ".join(clear) in tables.remarks(frame)[0]


def test_one_dose_of_each_drug_of_genenetweaver_is_held_out(data_dir):
    path = data_dir / "gnw" / "size10_1.h5ad"
    if not path.exists():
        pytest.skip(f"no `{path.name}` in `{path.parent}`")
    adata = load("sensitivity.measure").read_gnw(path)
    treated = adata.obs[adata.obs["perturbation"] != "control"]
    held_out = treated[treated["split"] == "unseen_dose"].groupby("perturbation", observed=True)["dosage"].nunique()
    assert held_out.tolist() == [1] * 20
    assert set(adata.obs.loc[adata.obs["perturbation"] == "control", "split"]) == {"train"}
    assert adata.varp["true_adjacency"].shape == (10, 10)
    np.testing.assert_array_equal(adata.varm["true_targets"].columns, sorted(held_out.index, key=lambda n: int(n[5:])))


@pytest.mark.slow
def test_a_suite_runs_from_the_command_line(tmp_path, capsys):
    options = ["kinetic", "--seeds", "0", "--quick", "--max-jobs", "2", "--work", str(tmp_path)]
    assert load("sensitivity.run").main(options) == 0
    assert "sensitivity-kinetic" in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "results" / "quick_sensitivity_kinetic.csv")
    assert rows["constant"].tolist() == ["as it is", "seed of the fit"]
    assert rows[["edge_auprc", "target_auprc", "unseen_dose", "unseen_drug"]].notna().all(axis=None)
