from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return importlib.import_module("benchmarks._report")


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- one:start -->\nold\n<!-- one:end -->\nafter\n")
    return path


def test_numbers_have_three_digits(report):
    values = [1, 1.23456, 1234.5, 1e-5, float("nan"), float("inf"), True, np.float32(0.5), "x"]
    assert [report.format_value(v) for v in values] == ["1", "1.23", "1234", "1e-05", "", "inf", "yes", "0.5", "x"]


def test_table_has_the_index_unless_it_only_counts(report):
    frame = pd.DataFrame({"a|b": [0.5]}, index=pd.Index(["x"], name="method"))
    assert report.to_markdown(frame).splitlines() == [r"| method | a\|b |", "| :-- | --: |", "| x | 0.5 |"]
    assert report.to_markdown(frame.reset_index(drop=True)).splitlines()[-1] == "| 0.5 |"


def test_table_replaces_the_old_one_and_says_where_it_comes_from(report, page):
    provenance = report.Provenance("python run.py", [0, 1])
    for value in (1, 2):
        report.write_table("one", pd.DataFrame({"value": [value]}), provenance, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| 1 |" not in text
    assert "| 2 |" in text
    assert "`python run.py`; seeds 0, 1; scgim " in text


def test_table_without_a_place_is_an_error(report, page):
    with pytest.raises(ValueError, match="no place for table 'two'"):
        report.write_table("two", pd.DataFrame(), report.Provenance("python run.py", [0]), page)


def test_page_has_a_place_for_each_table(report):
    text = report.DOCS.read_text()
    names = [line.split("<!-- ")[1].split(":start")[0] for line in text.splitlines() if ":start -->" in line]
    assert len(names) == len(set(names)) >= 9
    assert all(text.count(f"<!-- {name}:end -->") == 1 for name in names)
