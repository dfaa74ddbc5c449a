"""What the benchmarks on real drug screens share: folds of drugs, and errors with intervals over drugs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anndata import AnnData

N_BOOTSTRAP = 5000
MODEL = "scGIM"
NOISE = "noise"
# Shown where a comparison has them, with their headings.
CORRELATIONS = {
    "centred_correlation": "centred correlation",
    "discrimination": "discrimination",
    "mean_shift_correlation": "correlation of shifts",
}


def drug_folds(adata: AnnData, n_folds: int, seed: int) -> Iterator[pd.Series]:
    """Splits that hold out whole drugs."""
    drugs = np.array([name for name in adata.obs["perturbation"].cat.categories if name != "control"])
    for held_out in np.array_split(np.random.default_rng(seed).permutation(drugs), n_folds):
        yield pd.Series(np.where(adata.obs["perturbation"].isin(held_out), "test", "train"), adata.obs_names)


def bootstrap_table(errors: pd.DataFrame, extra: Mapping[str, str] | None = None, seed: int = 0) -> pd.DataFrame:
    """Mean error of each method, and how it compares with the best baseline, with intervals over drugs.

    `errors` has a row a method and context; `extra` maps further columns of it to headings, under which their means are shown.
    """
    by_drug = errors.pivot_table(index="perturbation", columns="method", values="mean_shift_error", observed=True)
    shown = {name: heading for name, heading in CORRELATIONS.items() if name in errors} | dict(extra or {})
    means = errors.groupby("method")[list(shown)].mean().rename(columns=shown)
    baselines = [method for method in errors["method"].unique() if method not in (MODEL, NOISE)]
    best = by_drug[baselines].mean().idxmin()
    rng = np.random.default_rng(seed)
    draws = by_drug.to_numpy()[rng.integers(len(by_drug), size=(N_BOOTSTRAP, len(by_drug)))].mean(axis=1)
    draws = pd.DataFrame(draws, columns=by_drug.columns)
    rows = []
    for method in [name for name in (NOISE, *baselines, MODEL) if name in by_drug]:
        ratio = draws[method] / draws[best]
        row = {"method": method + (" (best baseline)" if method == best else ""), "error": by_drug[method].mean()}
        row["95 % interval"] = interval(draws[method])
        row |= {
            "ratio to best baseline": by_drug[method].mean() / by_drug[best].mean(),
            "of the ratio": interval(ratio),
        }
        row |= means.loc[method].to_dict()
        rows.append(row)
    return pd.DataFrame(rows)


def interval(values: pd.Series) -> str:
    """Central 95 % of bootstrap draws."""
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{low:.3g} to {high:.3g}"
