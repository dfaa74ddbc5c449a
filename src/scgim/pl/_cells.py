"""Measured and predicted cells on the scale of the plots: log1p, standardised on control cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scgim._backed import StoredMatrix, readable
from scgim._size_factors import known_size_factors
from scgim._validation import merge_doses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


@dataclass
class ControlScale:
    """Mean and standard deviation of control cells (of log1p of size-normalised counts), a number a gene."""

    mean: np.ndarray
    sd: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Standardised values, cells x genes; NaN for genes that do not vary among controls."""
        return (values - self.mean) / np.where(self.sd > 1e-8, self.sd, np.nan)


def has_cells(adata: AnnData, params: dict[str, Any]) -> bool:
    """Whether `adata` still has the measured cells of the screen."""
    keys = [params["perturbation_key"], *([params["dosage_key"]] if params.get("dosage_key") else [])]
    has_matrix = params.get("layer") in adata.layers if params.get("layer") else adata.X is not None
    return bool(adata.n_obs) and has_matrix and all(key in adata.obs for key in keys)


def of_level(adata: AnnData, params: dict[str, Any]) -> AnnData:
    """Cells of the level of the effect modifier, such as one cell line, that results are of; all cells where they are of all."""
    key = params.get("effect_modifier_key")
    if key is None or key not in adata.obs:
        return adata
    return adata[(adata.obs[key].astype(str) == params["level"]).to_numpy()]


def of_covariates(adata: AnnData, predicted: AnnData, perturbation_key: str) -> AnnData:
    """Cells with the values of categorical covariates, such as one cell line, that all predicted cells have alike."""
    cells = pd.Series(data=True, index=adata.obs_names)
    for name in predicted.obs.columns.intersection(adata.obs.columns).drop(perturbation_key, errors="ignore"):
        values = predicted.obs[name].astype(str).unique()
        if len(values) == 1 and not pd.api.types.is_numeric_dtype(adata.obs[name]):
            cells &= adata.obs[name].astype(str).isin(values)
    return adata if cells.all() else adata[cells.to_numpy()]


def contexts(adata: AnnData, perturbation_key: str, dosage_key: str | None, control: str) -> pd.DataFrame:
    """Perturbation (string) and dosage (float; 0 where doses are not known or of controls) of each cell."""
    names = adata.obs[perturbation_key].astype(str).to_numpy()
    if dosage_key is None or dosage_key not in adata.obs:
        doses = np.where(names == control, 0.0, np.nan)
    else:
        doses = adata.obs[dosage_key].astype(float).to_numpy()
        known = np.isfinite(doses)  # combinations have none
        doses = np.where(known, merge_doses(np.where(known, doses, 0.0)), np.nan)
    return pd.DataFrame({"perturbation": names, "dosage": doses})


def expression(
    adata: AnnData,
    rows: np.ndarray,
    genes: Sequence[str],
    *,
    layer: str | None,
    is_count: bool,
    size_factors: np.ndarray | None = None,
    log: bool = True,
) -> np.ndarray:
    """Expression of some cells and genes, cells x genes: log1p of counts over size factor, or the values themselves.

    `rows` are positions of cells; `size_factors` belong to all cells; without `log`, counts over size factor.
    """
    matrix = readable(adata.layers[layer] if layer else adata.X)
    values = matrix[rows].read() if isinstance(matrix, StoredMatrix) else matrix[rows]
    values = values[:, adata.var_names.get_indexer(list(genes))]
    values = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=float)
    if not is_count:
        return values
    if size_factors is not None:
        values = values / size_factors[rows, None]
    return np.log1p(values) if log else values


def size_factors(
    adata: AnnData, params: dict[str, Any], layer: str | None, is_control: np.ndarray
) -> tuple[np.ndarray, float]:
    """Size factor of each measured cell, as the model has it, over that of a typical control cell; and the latter.

    A column of totals is as good as one of factors around 1, but log1p of counts over totals would be hardly more than 0.
    """
    counts = readable(adata.layers[layer] if layer else adata.X)
    factors = known_size_factors(adata.obs, params.get("size_factor_key"), counts, params.get("mean_total"))
    typical = float(np.median(factors[is_control]))
    return factors / typical, typical


def is_count_data(adata: AnnData, layer: str | None) -> bool:
    """Whether the values of the first cells are counts, and not changed by a normalisation after the fit."""
    matrix = adata.layers[layer] if layer else adata.X
    some = matrix[: min(adata.n_obs, 200)]
    values = some.data if sparse.issparse(some) else np.asarray(some)
    return bool(np.all(values >= 0) and np.all(values == np.round(values)))
