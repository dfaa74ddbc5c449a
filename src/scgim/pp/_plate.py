"""Positions of wells on a plate."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd

from scgim._validation import check_key, quote_some

if TYPE_CHECKING:
    from anndata import AnnData

_WELL = re.compile(r"\s*([A-Z]|A[A-F])0*([1-9]|[1-3][0-9]|4[0-8])\s*", re.IGNORECASE)  # up to 1536 wells
_MAX_LEVELS = 48  # columns of a plate of 1536 wells
_WELL_NAMES = ("well", "well_id", "well_position", "rna_well", "det_well")
_AXIS_NAMES = {
    "row": ("plate_row", "well_row", "row"),
    "column": ("plate_column", "plate_col", "well_column", "well_col", "column", "col"),
}


def plate_position(adata: AnnData, well_key: str = "well") -> pd.DataFrame:
    """Plate row and column of each well, from names such as "A03", "P24" or "b7".

    Positions matter since wells at the edge of a plate dry out and warm up sooner. Give a column as
    `categorical_covariate_keys=["plate_row"]` to :meth:`scgim.model.GIM.setup_anndata` where
    :func:`scgim.pp.check_screen` finds that its effects can be told from those of the drugs.

    Parameters
    ----------
    adata
        Screen.
    well_key
        Column of `adata.obs` with the names of the wells.

    Returns
    -------
    Data frame of two categorical columns, `plate_row` ("A", "B", ...) and `plate_column` ("1", "2", ...), one row an
    observation. They are stored in `adata.obs`.

    Raises
    ------
    KeyError
        `well_key` is not a column of `obs`.
    ValueError
        A name is missing, or is not that of a well on a plate of up to 1536 wells.

    Examples
    --------
    >>> scgim.pp.plate_position(adata)
    >>> scgim.model.GIM.setup_anndata(adata, categorical_covariate_keys=["plate_row"])
    """
    check_key(well_key, adata.obs.columns, where="adata.obs", argument="well_key")
    wells, where = adata.obs[well_key], f"adata.obs[{well_key!r}]"
    position = _parse(wells)
    bad = position["plate_row"].isna()
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(bad)} values in `{where}` are not names of wells: "
            f"{quote_some(wells[bad].astype(object).unique())}. Expected a row of one or two letters and a column number, "
            f"such as 'A03'. Cut the name out, as with `{where}.str.extract(r'([A-Z]+[0-9]+)$', expand=False)`, or remove "
            "what lies in no well."
        )
    for key in position:
        adata.obs[key] = position[key]
    return position


def _parse(wells: pd.Series) -> pd.DataFrame:
    """Rows and columns as categories in the order of the plate, missing where a name is not that of a well."""
    parts = pd.DataFrame(
        [match.groups() if (match := _WELL.fullmatch(str(name))) else (None, None) for name in wells],
        index=wells.index,
        columns=["plate_row", "plate_column"],
        dtype=object,
    )
    rows = parts["plate_row"].str.upper()
    order = sorted(rows.dropna().unique(), key=lambda row: (len(row), row))
    columns = sorted(parts["plate_column"].dropna().unique(), key=int)
    parts["plate_row"] = pd.Categorical(rows, order)
    parts["plate_column"] = pd.Categorical(parts["plate_column"], columns)
    return parts


def find_position(obs: pd.DataFrame) -> dict[str, tuple[str, pd.Series]]:
    """For "row" and "column", where found: the column of `obs` that tells it, by its usual names, and its values."""
    names = {str(key).lower(): key for key in obs}
    found = {}
    for key in (names[name] for name in _WELL_NAMES if name in names):
        position = _parse(obs[key])
        if not position.isna().any(axis=None):
            found = {"row": (str(key), position["plate_row"]), "column": (str(key), position["plate_column"])}
            break
    for axis, usual in _AXIS_NAMES.items():
        for key in (names[name] for name in reversed(usual) if name in names):
            if obs[key].notna().all() and obs[key].nunique() <= _MAX_LEVELS:
                found[axis] = (str(key), obs[key])
    return found
