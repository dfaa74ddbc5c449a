from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgim.metrics._intervals import mean_limits


def scores(n_drugs: int, seed: int = 0) -> tuple[pd.DataFrame, pd.Series]:
    """Three doses of each drug, which share what the drug is like."""
    rng = np.random.default_rng(seed)
    of_drug = np.repeat(rng.normal(size=n_drugs), 3)
    table = pd.DataFrame({"error": of_drug + 0.01 * rng.normal(size=3 * n_drugs), "same": 0.5})
    return table, pd.Series(np.repeat(np.arange(n_drugs), 3))


def width(limits: pd.Series, name: str = "error") -> float:
    return limits[f"{name}_upper"] - limits[f"{name}_lower"]


def test_limits_enclose_the_mean_and_are_seeded():
    table, drugs = scores(20)
    limits = mean_limits(table, drugs, level=0.95, seed=1)
    assert limits.index.tolist() == ["error_lower", "error_upper", "same_lower", "same_upper"]
    assert limits["error_lower"] < table["error"].mean() < limits["error_upper"]
    assert limits["same_lower"] == limits["same_upper"] == 0.5
    pd.testing.assert_series_equal(limits, mean_limits(table, drugs, level=0.95, seed=1))
    assert not limits.equals(mean_limits(table, drugs, level=0.95, seed=2))
    assert width(mean_limits(table, drugs, level=0.5, seed=1)) < width(limits)


def test_width_is_that_of_a_mean_of_drugs_and_not_of_contexts():
    table, drugs = scores(50)
    by_drug = table["error"].groupby(drugs).mean()
    standard_error = by_drug.std(ddof=0) / np.sqrt(50)
    assert width(mean_limits(table, drugs, level=0.95, seed=0)) == pytest.approx(2 * 1.96 * standard_error, rel=0.07)
    few = width(mean_limits(*scores(12), level=0.95, seed=0))
    assert few > 1.3 * width(mean_limits(*scores(48), level=0.95, seed=0))


def test_contexts_weigh_alike_where_drugs_have_different_numbers_of_doses():
    table, drugs = pd.DataFrame({"error": [0.0, 0.0, 0.0, 4.0]}), pd.Series(["a", "a", "a", "b"])
    limits = mean_limits(table, drugs, level=0.98, seed=0)
    assert limits.tolist() == [0.0, 4.0]
    # A quarter of the draws of two drugs is twice the one or twice the other, and half is the mean of contexts.
    assert mean_limits(table, drugs, level=0.4, seed=0).tolist() == [1.0, 1.0]


def test_contexts_without_a_score_do_not_count_and_one_drug_says_nothing():
    table, drugs = scores(10)
    expected = mean_limits(table, drugs, level=0.9, seed=0)
    more = pd.concat([table, pd.DataFrame({"error": [np.nan], "same": [0.5]})])
    limits = mean_limits(more, pd.concat([drugs, pd.Series([0])]), level=0.9, seed=0)
    pd.testing.assert_series_equal(limits, expected)
    assert mean_limits(table.iloc[:3], drugs.iloc[:3], level=0.9, seed=0).isna().all()
    nothing = mean_limits(table.assign(error=np.nan), drugs, level=0.9, seed=0)
    assert nothing.isna().tolist() == [True, True, False, False]
