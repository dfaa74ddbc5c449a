"""Screens read from files on this machine: where no download is possible, or no lasting address is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
from scipy import sparse

from scgim._validation import check_counts, matrix_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def read_local(path: str | Path | None, pattern: str, columns: Sequence[str], *, origin: str) -> AnnData:
    """Counts and annotation of the cells of an `h5ad` file.

    Parameters
    ----------
    path
        The file, or a folder with one file whose name matches `pattern`.
    pattern
        Pattern of that name, such as `"kang*.h5ad"`.
    columns
        Columns of `obs` that are needed.
    origin
        Where the data come from, for messages.

    Returns
    -------
    Raw counts (CSR, from the layer `"counts"` if there is one) with `obs` and `var` of the file.

    Raises
    ------
    FileNotFoundError
        There is no such file, or no one file in the folder.
    KeyError
        Columns are missing.
    ValueError
        Values are no counts.
    """
    file = _one_file(path, pattern, origin)
    adata = anndata.read_h5ad(file)
    missing = [name for name in columns if name not in adata.obs]
    if missing:
        raise KeyError(
            f"`{file.name}` lacks the columns {missing} of `obs`; it has {list(adata.obs)}. Rename those that hold the same. {origin}"
        )
    layer = "counts" if "counts" in adata.layers else None
    counts = adata.X if layer is None else adata.layers[layer]
    check_counts(counts, where=matrix_name(layer))
    return anndata.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=adata.obs, var=adata.var)


def _one_file(path: str | Path | None, pattern: str, origin: str) -> Path:
    if path is None:
        raise FileNotFoundError(f"`path` is None: give the file, or a folder with `{pattern}`. {origin}")
    given = Path(path).expanduser()
    if given.is_file():
        return given
    found = sorted(given.glob(pattern)) if given.is_dir() else []
    if len(found) != 1:
        what = (
            f"{len(found)} files are called like `{pattern}`" if given.is_dir() else "There is no such file or folder"
        )
        raise FileNotFoundError(f"{what}: `{given}`. {origin}")
    return found[0]
