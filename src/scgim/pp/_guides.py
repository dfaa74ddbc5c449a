"""Targets of CRISPR guides, which are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgim._validation import check_key, quote_some

if TYPE_CHECKING:
    from anndata import AnnData


def guide_targets(
    adata: AnnData, perturbation_key: str = "perturbation", control: str = "control", probability: float = 0.95
) -> pd.DataFrame:
    """Prior of the targets of perturbations that are named after a measured gene, as knock-outs usually are.

    Parameters
    ----------
    adata
        Screen.
    perturbation_key
        Column of `obs` with the perturbation of each cell.
    control
        Name of the control in that column.
    probability
        Probability that such a perturbation acts on its gene; less than 1, since guides fail.

    Returns
    -------
    Data frame of these perturbations x their genes for `target_prior` of :class:`scgim.model.GIM`, NaN off the diagonal;
    perturbations that share the fit without a known target are left out.

    Raises
    ------
    KeyError
        `perturbation_key` is not a column of `obs`.
    ValueError
        `probability` is not strictly between 0 and 1, or no perturbation is named after a gene.
    """
    check_key(perturbation_key, adata.obs.columns, where="adata.obs", argument="perturbation_key")
    if not 0 < probability < 1:
        raise ValueError(f"`probability` must lie strictly between 0 and 1, found {probability}.")
    names = pd.Index(adata.obs[perturbation_key].astype(str).unique()).drop(control, errors="ignore").sort_values()
    known = names.intersection(adata.var_names.astype(str))
    if not len(known):
        raise ValueError(
            f"No perturbation in `adata.obs[{perturbation_key!r}]` is named after a gene of `adata`: found "
            f"{quote_some(names)}. Make a data frame of probabilities with perturbations as index and genes as columns."
        )
    return pd.DataFrame(np.where(np.eye(len(known), dtype=bool), probability, np.nan), known, known)
