"""Measured changes of means, in the unit of effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgim.pl._cells import contexts, expression, size_factors

if TYPE_CHECKING:
    from anndata import AnnData

_CONSTANT = 1e-8  # a standard deviation of rounding
PSEUDOCOUNT = 0.5  # counts at the mean of controls: a gene without counts has a finite log fold change all the same


def measured_changes(
    adata: AnnData,
    perturbations: list[str],
    genes: list[str],
    params: dict[str, Any],
    layer: str | None,
    unit: pd.Series | None = None,
) -> pd.DataFrame:
    """Change of the mean from control at each measured dose, in the unit of the effects.

    Columns `perturbation`, `gene`, `dosage`, `mean` (log fold change of the mean of size-normalised counts, or the
    difference in the `unit` of each gene, the standard deviation of control cells if it is not known) and `error` (its standard error).
    """
    is_count = params["likelihood"] != "normal"
    cells = contexts(adata, params["perturbation_key"], params.get("dosage_key"), params["control"])
    is_control = (cells["perturbation"] == params["control"]).to_numpy()
    factors = None
    if is_count:
        factors, _ = size_factors(adata, params, layer, is_control)

    def moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        values = expression(adata, rows, genes, layer=layer, is_count=is_count, size_factors=factors, log=False)
        return values.mean(axis=0), values.var(axis=0, ddof=min(1, len(rows) - 1)), len(rows)

    control = moments(np.flatnonzero(is_control))
    sd = np.sqrt(control[1]) if unit is None else unit[genes].to_numpy()
    chosen = cells[cells["perturbation"].isin(perturbations)]
    tables = []
    for (perturbation, dose), group in chosen.groupby(["perturbation", "dosage"], sort=True):
        treated = moments(group.index.to_numpy())
        mean, error = _log_fold_change(treated, control) if is_count else _difference(treated, control, sd)
        columns = {"perturbation": perturbation, "gene": genes, "dosage": dose}
        tables.append(pd.DataFrame({**columns, "mean": mean, "error": error}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _log_fold_change(treated: tuple[Any, Any, int], control: tuple[Any, Any, int]) -> tuple[np.ndarray, np.ndarray]:
    """Log fold change of a mean with its standard error, from means, variances and numbers; NaN without control counts."""
    mean0, variance0, n0 = control
    mean, variance, n = treated
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (n * mean + PSEUDOCOUNT) / (n + PSEUDOCOUNT / mean0)
        # counts vary at least as much as Poisson ones, also where all that were seen are 0
        error = np.sqrt(np.maximum(variance, mean) / n / mean**2 + variance0 / n0 / mean0**2)
        change = np.log(mean / mean0)
    return np.where(mean0 > 0, change, np.nan), np.where(mean0 > 0, error, np.nan)


def _difference(
    treated: tuple[Any, Any, int], control: tuple[Any, Any, int], sd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Difference of means in standard deviations, with its standard error; NaN where controls do not vary."""
    sd = np.where(sd > _CONSTANT, sd, np.nan)
    error = np.sqrt(treated[1] / treated[2] + control[1] / control[2])
    return (treated[0] - control[0]) / sd, error / sd
