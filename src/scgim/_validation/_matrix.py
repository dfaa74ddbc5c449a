"""Checks of the matrix to be modelled and of its genes and cells."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.abc import CSCDataset
from scipy import sparse

from scgim._backed import is_stored
from scgim._validation._messages import check_key, quote_some

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BLOCK_VALUES = 2**22  # values looked at in one go, so that a backed or sparse matrix is never densified as a whole
_SPARSE_MATRICES = (sparse.csr_matrix, sparse.csc_matrix)
_SPARSE_ARRAYS = (sparse.csr_array, sparse.csc_array)


def check_annotated(adata: Any) -> None:
    """Raise a TypeError for anything but an AnnData, and say how to get one."""
    if isinstance(adata, AnnData):
        return
    if isinstance(adata, (str, os.PathLike)):
        advice = f"Read it first: `adata = anndata.read_h5ad({str(adata)!r})`."
    elif hasattr(adata, "mod"):
        advice = f"Pass one of its modalities: `adata = mdata[{next(iter(adata.mod), 'rna')!r}]`."
    else:
        advice = "Expected cells x genes: `anndata.AnnData(counts, obs=..., var=...)`."
    raise TypeError(f"`adata` is a `{type(adata).__name__}`, not an AnnData. {advice}")


def check_matrix_type(adata: AnnData, layer: str | None = None, *, allow_stored: bool = False) -> None:
    """Raise when the matrix to be modelled is of a kind that cannot be read, and say how to convert it.

    With `allow_stored` it may lie in a file, if rows can be read from it.
    """
    if adata.is_view:
        own = "to_memory" if adata.isbacked else "copy"
        raise ValueError(
            f"`adata` is a view of another AnnData. Make it an object of its own: `adata = adata.{own}()`."
        )
    if layer is not None:
        check_key(layer, adata.layers.keys(), where="adata.layers", argument="layer")
    X = adata.X if layer is None else adata.layers[layer]
    where = matrix_name(layer)
    if is_stored(X) and not allow_stored:
        raise ValueError(f"`{where}` lies in a file. Load it first: `adata = adata.to_memory()`.")
    if isinstance(X, CSCDataset):
        raise ValueError(
            f"`{where}` lies in a file column by column, so that cells cannot be read from it. Load it, "
            "`adata = adata.to_memory()`, or write it again as a `scipy.sparse.csr_matrix`."
        )
    if X is None:
        raise ValueError(f"`{where}` is empty. Put raw counts there or name the layer that has them: `layer=...`.")
    if isinstance(X, _SPARSE_ARRAYS):
        new = "csr_matrix" if X.format == "csr" else "csc_matrix"
        raise TypeError(
            f"`{where}` is a scipy `{type(X).__name__}`, which scvi-tools cannot read. "
            f"Convert it: `{where} = scipy.sparse.{new}({where})`."
        )
    if not (isinstance(X, (np.ndarray, *_SPARSE_MATRICES)) or is_stored(X)):
        raise TypeError(
            f"`{where}` is a `{type(X).__module__}.{type(X).__name__}`. Expected a numpy array or a scipy "
            f"`csr_matrix`: `{where} = scipy.sparse.csr_matrix({where})`."
        )
    if not (np.issubdtype(X.dtype, np.integer) or np.issubdtype(X.dtype, np.floating)):
        raise TypeError(f"`{where}` has dtype {X.dtype}. Expected numbers: `{where} = {where}.astype('float32')`.")


def matrix_name(layer: str | None) -> str:
    """Name of the modelled matrix as the user would write it."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def check_counts(X: Any, *, where: str) -> None:
    """Raise a ValueError unless all stored values of `X` (cells x genes; dense, sparse or backed) are counts."""
    advice = (
        "Expected raw counts: give them with `layer=...` (those in `adata.raw`: `adata = adata.raw.to_adata()`), or use "
        "`likelihood='normal'` for continuous data."
    )
    for values in _stored_values(X):
        _raise_if_not_finite(values, where, advice)
        if values.size and values.min() < 0:
            bad = values[values < 0]
            raise ValueError(f"Found negative values in `{where}` (such as {bad[0]:.4g}). {advice}")
        if np.issubdtype(values.dtype, np.floating):
            fractional = np.rint(values) != values
            if fractional.any():
                bad = values[fractional]
                raise ValueError(f"Found fractional values in `{where}` (such as {bad[0]:.4g}). {advice}")


def largest_count(X: Any) -> float | None:
    """Largest of the values of `X` where all are counts; None where some are not."""
    try:
        check_counts(X, where="")
    except ValueError:
        return None
    return max((float(values.max()) for values in _stored_values(X) if values.size), default=0.0)


def check_continuous(X: Any, *, where: str) -> None:
    """Raise a ValueError unless all stored values of `X` (cells x genes; dense, sparse or backed) are finite."""
    for values in _stored_values(X):
        _raise_if_not_finite(values, where, "Remove or impute them before the fit.")


def check_nonempty(
    X: Any, var_names: Sequence[str], obs_names: Sequence[str], *, where: str, empty_cells: bool = False
) -> None:
    """Raise a ValueError for all-zero cells, all-zero genes, fewer than two genes, or duplicated gene names.

    `empty_cells` lets cells without counts pass: where the genes are a few of all that were measured, and size factors come from all, to
    leave them out would be to select by the outcome.
    """
    check_var_names(var_names)
    if len(obs_names) == 0:
        raise ValueError(f"`{where}` has no cells.")
    cells, genes = np.zeros(len(obs_names), bool), np.zeros(len(var_names), bool)
    for rows, columns, block in iterate_blocks(X):
        nonzero = block != 0
        cells[rows] |= np.asarray(nonzero.sum(axis=1)).ravel() > 0
        genes[columns] |= np.asarray(nonzero.sum(axis=0)).ravel() > 0
    if not genes.all():
        names = np.asarray(var_names)[~genes]
        raise ValueError(
            f"{len(names)} of {len(genes)} genes have no counts at all in `{where}`: {quote_some(names)}. "
            "Remove them: `sc.pp.filter_genes(adata, min_cells=1)`."
        )
    if not (cells.all() or empty_cells):
        names = np.asarray(obs_names)[~cells]
        raise ValueError(
            f"{len(names)} of {len(cells)} cells have no counts at all in `{where}`: {quote_some(names)}. "
            "Remove them (`sc.pp.filter_cells(adata, min_counts=1)`) or, if the genes are a few of those measured, keep them and "
            "name size factors from all genes as `size_factor_key`."
        )


def check_var_names(var_names: Sequence[str]) -> None:
    """Raise a ValueError for fewer than two genes or duplicated gene names."""
    names = pd.Index(var_names)
    if len(names) < 2:
        raise ValueError(f"`adata` has {len(names)} gene(s). A network needs at least two: keep more genes.")
    if not names.is_unique:
        repeated = names[names.duplicated()].unique()
        raise ValueError(
            f"Gene names in `adata.var_names` are duplicated: {quote_some(repeated)}. "
            "Make them unique: `adata.var_names_make_unique()`."
        )


def check_gene_names(found: Sequence[str], expected: Sequence[str], *, where: str = "adata") -> None:
    """Raise a ValueError unless `found` are the genes of the model in the order of the model."""
    genes, wanted = pd.Index(found), pd.Index(expected)
    if genes.equals(wanted):
        return
    missing, extra = wanted.difference(genes, sort=False), genes.difference(wanted, sort=False)
    subset = "Take them as in the training data: `adata = adata[:, training_adata.var_names].copy()`."
    if len(missing):
        raise ValueError(
            f"`{where}` lacks {len(missing)} of the {len(wanted)} genes that the model was fitted on: "
            f"{quote_some(missing)}{f'; it has {len(extra)} others: {quote_some(extra)}' if len(extra) else ''}. "
            "Add them or fit a model on the genes that both have."
        )
    if len(extra):
        raise ValueError(f"`{where}` has {len(extra)} genes unknown to the model: {quote_some(extra)}. {subset}")
    if not genes.is_unique:
        raise ValueError(f"Gene names in `{where}` are duplicated: {quote_some(genes[genes.duplicated()].unique())}.")
    first = int(np.flatnonzero(genes != wanted)[0])
    raise ValueError(
        f"`{where}` has the genes of the model in another order (gene {first} is {genes[first]!r}, expected "
        f"{wanted[first]!r}). {subset}"
    )


def iterate_blocks(X: Any) -> Iterator[tuple[slice, slice, Any]]:
    """Row blocks (column blocks for CSC) of a dense, sparse or backed matrix, with their row and column slices."""
    n_rows, n_columns = X.shape
    by_column = getattr(X, "format", None) == "csc"
    n, width = (n_columns, n_rows) if by_column else (n_rows, n_columns)
    step = max(1, _BLOCK_VALUES // max(1, width))
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        yield (slice(None), part, X[:, part]) if by_column else (part, slice(None), X[part])


def _stored_values(X: Any) -> Iterator[np.ndarray]:
    """Stored values of a matrix in blocks, each a flat array."""
    if sparse.issparse(X) and hasattr(X, "data"):
        for start in range(0, len(X.data), _BLOCK_VALUES):
            yield X.data[start : start + _BLOCK_VALUES]
        return
    for _, _, block in iterate_blocks(X):
        yield block.data if sparse.issparse(block) else np.asarray(block).ravel()


def _raise_if_not_finite(values: np.ndarray, where: str, advice: str) -> None:
    if not np.issubdtype(values.dtype, np.floating):
        return
    finite = np.isfinite(values)
    if not finite.all():
        kind = "NaN" if np.isnan(values).any() else "infinite"
        raise ValueError(f"Found {kind} values in `{where}`. {advice}")
