"""Interferon beta in blood cells (Kang et al. 2018, Nat Biotechnol 36:89)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scgim.datasets._local import read_local

if TYPE_CHECKING:
    from pathlib import Path

_COLUMNS = ["group_id", "cluster_id", "patient"]
_ORIGIN = (
    "The data are GEO series GSE96583; with cell types they are also in the Bioconductor package muscData (`Kang18_8vs8`). Nothing is "
    "downloaded: save counts and annotation as `h5ad` with the columns `group_id` ('ctrl' or 'stim'), `cluster_id` (cell type) and "
    "`patient` of `obs`."
)


def kang_2018(path: str | Path | None) -> AnnData:
    """Blood cells of several patients, untreated or six hours after interferon beta, by cell type.

    Parameters
    ----------
    path
        An `h5ad` file, or a folder with one `kang*.h5ad`, with raw counts in the layer `"counts"` or in `X` and the columns `group_id`
        (`"ctrl"` or `"stim"`), `cluster_id` and `patient` of `obs`. Nothing is downloaded. The data are GEO series GSE96583, and with cell
        types in the Bioconductor package muscData.

    Returns
    -------
    Raw counts (CSR). `obs`: `perturbation` (`"interferon"` or `"control"`), `dosage` (1, and 0 for controls), `cell_type`, `patient` and
    `n_umi`, the counts of a cell over all genes of the file. There are no drug features: use
    `setup_anndata(..., drug_embedding_key=None)`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    KeyError
        Columns are missing.
    ValueError
        Values are no counts, or `group_id` has other values.

    Examples
    --------
    >>> adata = scgim.datasets.kang_2018("data/kang.h5ad")
    """
    raw = read_local(path, "kang*.h5ad", _COLUMNS, origin=_ORIGIN)
    group = raw.obs["group_id"].astype(str)
    odd = sorted(set(group) - {"ctrl", "stim"})
    if odd:
        raise ValueError(f"`group_id` has the values {odd}; expected 'ctrl' and 'stim'. {_ORIGIN}")
    treated = (group == "stim").to_numpy()
    obs = pd.DataFrame(
        {
            "perturbation": np.where(treated, "interferon", "control"),
            "dosage": treated.astype(float),
            "cell_type": raw.obs["cluster_id"].astype(str),
            "patient": raw.obs["patient"].astype(str),
            "n_umi": np.asarray(raw.X.sum(axis=1)).ravel(),
        },
        index=raw.obs_names,
    )
    adata = AnnData(raw.X, obs=obs, var=raw.var)
    adata.strings_to_categoricals()
    return adata
