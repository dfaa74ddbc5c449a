"""The benchmarks of cost run, on tiny screens, and fit exponents."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


def load(name: str):
    return importlib.import_module(f"benchmarks.scale.{name}")


@pytest.mark.parametrize("suite", ["library", "stored"])
def test_a_suite_runs_from_the_command_line(suite, tmp_path, capsys):
    options = [suite, "--quick", "--max-jobs", "1", "--work", str(tmp_path)]
    assert load("run").main(options) == 0
    assert f"scale-{suite}" in capsys.readouterr().out
    row = pd.read_csv(tmp_path / "results" / f"quick_scale_{suite}.csv").iloc[0]
    assert row[["search", "descent", "inference"]].gt(0).all()
    assert row["search"] + row["descent"] + row["inference"] <= row["cpu"] + 0.1
    assert row["memory_mb"] >= row["memory_before_mb"] > 0


def test_suites_name_every_fit_once_and_each_has_a_table_in_the_documentation():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name, suite in load("suites").SUITES.items():
        jobs = suite([0, 1])
        assert len({job.identity + str(job.labels) for job in jobs}) == len(jobs)
        assert "Expected:" in suite.__doc__
        assert f"<!-- scale-{name}:start -->" in page
        assert set(load("tables")._COLUMNS[name][0]) <= set(jobs[0].labels)


def test_exponents_are_slopes_of_logarithms():
    x = np.array([10.0, 100.0, 1000.0])
    assert load("tables").slope(x, 3 * x**1.5) == pytest.approx(1.5)
    frame = pd.DataFrame(
        {"genes": x, "cpu": 2 * x**2, "search": x, "descent": x, "inference": x, "memory_mb": 5 + 0 * x}
    )
    assert "CPU s 2.00, search 1.00" in load("tables").exponents("genes", frame)


def test_the_bare_arithmetic_is_the_likelihood():
    import torch
    from pyro.distributions import NegativeBinomial

    x, log_mean, log_scale = (
        torch.tensor([0.0, 3.0, 11.0]),
        torch.tensor([0.2, 1.0, -1.0]),
        torch.tensor([1.0, 0.3, 2.0]),
    )
    expected = NegativeBinomial(total_count=log_scale.exp(), logits=log_mean - log_scale).log_prob(x)
    torch.testing.assert_close(load("arithmetic")._nb(x, log_mean, log_scale), expected)
