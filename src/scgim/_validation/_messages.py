"""Parts that messages about wrong input share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgim._validation._suggestions import close_names

if TYPE_CHECKING:
    from collections.abc import Iterable


# Keys that may be None, and what that says.
_MAY_BE_NONE = {
    "dosage_key": "`dosage_key=None` if each perturbation has one dose",
    "drug_embedding_key": "`drug_embedding_key=None` if there are no features",
}


def quote_some(names: Iterable[Any], n: int = 5) -> str:
    """List the first `n` names for a message: "'a', 'b' and 3 more"."""
    names = list(names)
    shown = ", ".join(repr(str(name)) for name in names[:n])
    return shown if len(names) <= n else f"{shown} and {len(names) - n} more"


def check_key(key: str, available: Iterable[Any], *, where: str, argument: str) -> None:
    """Raise a KeyError with the closest existing name when `key` is not among `available`."""
    names = [str(name) for name in available]
    if key in names:
        return
    close = close_names(key, names)
    hint = f"Did you mean {close[0]!r}?" if close else f"It has: {quote_some(names, 10) or 'nothing'}."
    none = f", or {_MAY_BE_NONE[argument]}" if argument in _MAY_BE_NONE else ""
    raise KeyError(f"`{argument}={key!r}` is not in `{where}`. {hint} Pass the right name as `{argument}=...`{none}.")


def check_genes(genes: Any, known: Iterable[str]) -> list[str]:
    """One gene or several as a list without repeats; ValueError where there are none, or one is not among those of the model."""
    names = [str(gene) for gene in ([genes] if isinstance(genes, str) or not hasattr(genes, "__iter__") else genes)]
    if not names:
        raise ValueError("`genes` is empty. Name one gene or several, or leave it out.")
    check_known_genes(names, known)
    return list(dict.fromkeys(names))


def check_known_genes(names: Iterable[str], known: Iterable[str]) -> None:
    """ValueError where a gene is not among those of the model."""
    known = dict.fromkeys(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        close = close_names(unknown[0], known)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"Genes {quote_some(unknown)} are not in the model.{hint} `model.gene_names_` lists those that are."
        )


def check_column(obs: pd.DataFrame, key: str, argument: str) -> pd.Series:
    """A column of `adata.obs`, which must be there, once.

    Raises
    ------
    KeyError
        It is not there.
    ValueError
        Several columns have this name.
    """
    check_key(key, obs.columns, where="adata.obs", argument=argument)
    column = obs[key]
    if isinstance(column, pd.DataFrame):
        raise ValueError(
            f"`adata.obs` has {column.shape[1]} columns called {key!r}. Keep one: "
            "`adata.obs = adata.obs.loc[:, ~adata.obs.columns.duplicated()]`."
        )
    return column


def numeric_values(column: pd.Series, where: str) -> np.ndarray:
    """Values of a column as float64; text is an error, also where it looks like a number."""
    if isinstance(column.dtype, pd.CategoricalDtype) and pd.api.types.is_numeric_dtype(column.cat.categories):
        column = column.astype(np.float64)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    parsed = pd.to_numeric(column.astype(object), errors="coerce")
    bad = column[parsed.isna() & column.notna()]
    if len(bad):
        raise ValueError(
            f"`{where}` holds text such as {str(bad.iloc[0])!r}. Give numbers in one unit (10.0 and not '10uM')."
        )
    raise ValueError(f"`{where}` has dtype {column.dtype}. Convert it to numbers: `{where} = {where}.astype(float)`.")
