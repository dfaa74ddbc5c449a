"""Fewer drug features by principal components."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA

from scgim._constants import Key
from scgim._validation import check_key, check_query_embedding

if TYPE_CHECKING:
    from collections.abc import Iterable


def pca_features(
    features: pd.DataFrame | AnnData,
    n_components: int = 20,
    *,
    reference: pd.DataFrame | AnnData | None = None,
    scale: bool = False,
    key: str = "drug_embedding",
    key_added: str = "drug_embedding_pca",
) -> pd.DataFrame:
    """Principal components of drug features.

    The components are those of the drugs in `reference`, so that drugs to predict get the same coordinates as the
    drugs of the fit::

        scgim.pp.pca_features(adata, 20)
        scgim.model.GIM.setup_anndata(adata, drug_embedding_key="drug_embedding_pca")
        ...
        model.predict(scgim.pp.pca_features(new_drugs, 20, reference=adata))

    Parameters
    ----------
    features
        Drugs x features, or an AnnData with such a data frame in `uns[key]`, which gets the result in
        `uns[key_added]`, and in `uns[f"{key_added}_loadings"]` what the components are made of: for each feature that
        differs between drugs the change of each component with one standard deviation of the feature, in standard
        deviations of the component. :func:`scgim.pl.feature_importance` reads it.
    n_components
        Number of components, at most one less than the number of drugs in `reference`.
    reference
        Drugs that define the components; by default `features` itself.
    scale
        Divide each feature by its standard deviation over the drugs of `reference` first: for descriptors in different
        units, not for fingerprints.
    key
        Entry of `uns` to read.
    key_added
        Entry of `uns` to write.

    Returns
    -------
    Data frame, drugs x components ("PC1", "PC2", ...), centred on the drugs of `reference`.

    Raises
    ------
    KeyError
        There is no `uns[key]`.
    ValueError
        `n_components` is too large, or the columns of `features` and `reference` differ.
    """
    table = _table(features, key)
    basis = table if reference is None else _table(reference, key)
    most = min(len(basis) - 1, basis.shape[1])
    if not 1 <= n_components <= most:
        raise ValueError(
            f"`n_components={n_components}` is out of range: {len(basis)} drugs with {basis.shape[1]} features have "
            f"between 1 and {most} components."
        )
    columns = [str(name) for name in basis.columns]
    values, fitted_on = (check_query_embedding(frame, columns, ()).to_numpy() for frame in (table, basis))
    if scale:
        sd = fitted_on.std(axis=0)
        sd = np.where(sd > 0, sd, 1.0)
        values, fitted_on = values / sd, fitted_on / sd
    pca = PCA(n_components, svd_solver="full").fit(fitted_on)
    names = [f"PC{i + 1}" for i in range(n_components)]
    result = pd.DataFrame(pca.transform(values), index=table.index, columns=names)
    if isinstance(features, AnnData):
        features.uns[key_added] = result
        spread = fitted_on.std(axis=0)[:, None], pca.transform(fitted_on).std(axis=0)
        loadings = pd.DataFrame(_ratio(pca.components_.T * spread[0], spread[1]), index=columns, columns=names)
        features.uns[key_added + Key.LOADINGS] = loadings[spread[0].ravel() > 0]
        if key + Key.SUBSTRUCTURES in features.uns:
            features.uns[key_added + Key.SUBSTRUCTURES] = features.uns[key + Key.SUBSTRUCTURES]
    return result


def _ratio(values: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """`values` in units of `spread`; 0 where that is 0, as of components beyond the rank of the features."""
    return np.divide(values, spread, out=np.zeros_like(values), where=spread > 1e-9)


def _table(features: pd.DataFrame | AnnData, key: str) -> pd.DataFrame:
    if not isinstance(features, AnnData):
        return features
    entries: Iterable[str] = [name for name, value in features.uns.items() if isinstance(value, pd.DataFrame)]
    check_key(key, entries, where="adata.uns", argument="key")
    return features.uns[key]
