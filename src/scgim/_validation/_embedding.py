"""Drug features: found in an AnnData, or given for drugs to predict."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scgim._validation._combinations import check_no_combination
from scgim._validation._matrix import iterate_blocks
from scgim._validation._messages import check_key, quote_some
from scgim._validation._suggestions import close_names

if TYPE_CHECKING:
    from collections.abc import Sequence


def resolve_embedding(adata: AnnData, key: str, perturbations: Sequence[str], *, control: str) -> pd.DataFrame:
    """One row of features a perturbation (control left out; sorted by name), from `adata.uns` or `adata.obsm`.

    Parameters
    ----------
    adata
        Annotated counts with `uns[key]`, a data frame with one row a drug, or `obsm[key]`, one row a cell. When both
        are there the data frame is taken.
    key
        Name of the embedding.
    perturbations
        Labels of all cells, shape (cells,), as :func:`check_perturbations` returns them.
    control
        Label of the control cells, whose features are never looked at.

    Returns
    -------
    Features, perturbations x features, float64. Columns are strings: names, or "0", "1", ... for unnamed arrays.
    """
    labels = pd.Categorical(perturbations)
    drugs = [name for name in labels.categories if name != control]
    check_key(key, [*adata.uns, *adata.obsm], where="adata.uns` or `adata.obsm", argument="drug_embedding_key")
    if key in adata.uns:
        where, frame = f"adata.uns[{key!r}]", _embedding_from_uns(adata.uns[key], key, drugs)
    else:
        where, frame = f"adata.obsm[{key!r}]", _embedding_from_obsm(adata.obsm[key], key, labels, drugs)
    if frame.columns.nlevels > 1:
        raise ValueError(
            f"Columns of `{where}` have {frame.columns.nlevels} levels. Give each feature one name: "
            "`frame.columns = ['_'.join(map(str, c)) for c in frame.columns]`."
        )
    frame.columns = frame.columns.astype(str)
    if not frame.columns.is_unique:
        repeated = frame.columns[frame.columns.duplicated()].unique()
        raise ValueError(f"Columns of `{where}` are duplicated: {quote_some(repeated)}. Rename or drop them.")
    _check_features(frame, where)
    _check_variation(frame, where)
    return frame


def check_query_embedding(
    embedding: Any,
    feature_names: Sequence[str] | None,
    perturbation_names: Sequence[str],
    separator: str | None = None,
) -> pd.DataFrame:
    """Features of the drugs to predict, rows x features in the order of `feature_names`; index = names.

    Parameters
    ----------
    embedding
        Data frame (one row a drug, index = names; columns matched by name), array (rows x features, or one row), a
        series (one drug), or the names of measured perturbations, which need no features (a frame without columns
        comes back).
    feature_names
        Features of the fitted model; None when it was fitted without embeddings.
    perturbation_names
        Names of the measured perturbations. Rows of an unnamed array are called "drug_0", "drug_1", ... .
    separator
        What separates the drugs of a combination, which is no row; None where combinations are perturbations of their own.
    """
    if isinstance(embedding, str):
        embedding = [embedding]
    if isinstance(embedding, (pd.Series, pd.Categorical, pd.api.extensions.ExtensionArray)) and _is_text(embedding):
        embedding = list(embedding)  # names, as `adata.obs["perturbation"].unique()` gives them
    if not (sparse.issparse(embedding) or hasattr(embedding, "__len__")):
        raise TypeError(
            f"`drug_embedding` is {embedding!r} ({type(embedding).__name__}). Give names of measured perturbations as text, or features, one "
            "row a drug."
        )
    if isinstance(embedding, AnnData):
        raise TypeError(
            "`drug_embedding` is an AnnData. Give names of perturbations, or the features, such as `adata.uns['drug_embedding']`."
        )
    if not sparse.issparse(embedding) and len(embedding) == 0:
        raise ValueError("`drug_embedding` has no rows. Give one row a drug to predict.")
    if isinstance(embedding, (list, tuple, pd.Index, np.ndarray)) and _is_text(embedding):
        return _measured(pd.DataFrame(index=pd.Index(embedding, dtype=object)), perturbation_names, separator)
    if feature_names is None:
        if isinstance(embedding, pd.DataFrame):
            return _measured(pd.DataFrame(index=embedding.index.astype(str)), perturbation_names, separator)
        raise ValueError(
            "The model was set up without drug embeddings (`drug_embedding_key=None`), so only measured perturbations "
            f"can be predicted, by name: {quote_some(perturbation_names)}."
        )
    if isinstance(embedding, pd.Series):
        embedding = embedding.to_frame().T.infer_objects()
    if isinstance(embedding, pd.DataFrame):
        frame = _match_columns(embedding, list(feature_names))
    else:
        frame = _frame_from_array(embedding, list(feature_names))
    if isinstance(frame.index, pd.RangeIndex):
        frame.index = _unused_names(len(frame), set(perturbation_names))
    frame.index = frame.index.astype(str)
    if separator is not None:
        check_no_combination([name for name in frame.index if separator in name], perturbation_names, separator)
    _check_features(frame, "drug_embedding")
    return frame.astype(np.float64)


def _is_text(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _embedding_from_uns(frame: Any, key: str, drugs: list[str]) -> pd.DataFrame:
    where = f"adata.uns[{key!r}]"
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(
            f"`{where}` is a `{type(frame).__name__}`. Expected a data frame with one row a drug: "
            # names, since AnnData writes no frame whose columns are numbers
            f"`{where} = pd.DataFrame(features, index=drug_names).add_prefix('feature_')`."
        )
    index = frame.index.astype(str)
    wanted = index.isin(drugs)
    if not index[wanted].is_unique:
        repeated = index[wanted][index[wanted].duplicated()].unique()
        raise ValueError(f"Drugs in `{where}.index` are duplicated: {quote_some(repeated)}. Keep one row a drug.")
    missing = [name for name in drugs if name not in index]
    if missing:
        close = close_names(missing[0], index)
        hint = f" {close[0]!r} reads like {missing[0]!r}, but names must be equal." if close else ""
        raise ValueError(
            f"{len(missing)} of {len(drugs)} perturbations have no row in `{where}`: {quote_some(missing)}. Its index "
            f"has {quote_some(index)}.{hint} Add their features or leave their cells out."
        )
    return frame.set_axis(index, axis=0).loc[drugs].copy()


def _embedding_from_obsm(values: Any, key: str, labels: pd.Categorical, drugs: list[str]) -> pd.DataFrame:
    where = f"adata.obsm[{key!r}]"
    columns = values.columns if isinstance(values, pd.DataFrame) else pd.RangeIndex(values.shape[1])
    if isinstance(values, pd.DataFrame):
        _check_numeric_columns(values, where)
        values = values.to_numpy(dtype=np.float64)
    values = values.tocsr() if sparse.issparse(values) else np.asarray(values)
    if not np.issubdtype(values.dtype, np.number) and values.dtype != bool:
        raise ValueError(f"`{where}` has dtype {values.dtype}. Expected numbers.")
    codes = np.asarray(labels.codes)
    first = np.zeros(len(labels.categories), dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    table = _dense(values[first])
    treated = np.isin(codes, labels.categories.get_indexer(drugs))
    for rows, _, block in iterate_blocks(values):
        same = np.isclose(_dense(block), table[codes[rows]], equal_nan=True).all(axis=1) | ~treated[rows]
        if not same.all():
            drug = labels.categories[codes[rows][~same][0]]
            raise ValueError(
                f"Cells of {drug!r} have different rows in `{where}`. Features belong to a drug, so that its cells "
                f"share them; doses go to `dosage_key`. Give one row a drug: `adata.uns[{key!r}] = pd.DataFrame(...)`."
            )
    return pd.DataFrame(table, index=labels.categories, columns=columns).loc[drugs]


def _dense(block: Any) -> np.ndarray:
    return np.asarray(block.toarray() if sparse.issparse(block) else block)


def _check_numeric_columns(frame: pd.DataFrame, where: str) -> None:
    text = [name for name, dtype in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
    if text:
        raise ValueError(f"Columns of `{where}` are not numeric: {quote_some(text)}. Encode or drop them.")


def _check_features(frame: pd.DataFrame, where: str) -> None:
    if frame.shape[1] == 0:
        raise ValueError(f"`{where}` has no columns. Give at least one feature a drug.")
    _check_numeric_columns(frame, where)
    bad = ~np.isfinite(frame.to_numpy(dtype=np.float64)).all(axis=1)
    if bad.any():
        raise ValueError(
            f"Found NaN or infinite features in `{where}` for {quote_some(frame.index[bad])}. Impute them or drop the "
            "columns concerned."
        )


def _check_variation(frame: pd.DataFrame, where: str) -> None:
    if len(frame) < 2:
        return
    values = frame.to_numpy(dtype=np.float64)
    constant = (values == values[0]).all(axis=0)
    if constant.all():
        raise ValueError(
            f"`{where}` is constant: all {len(frame)} perturbations have the same features. Give features that differ, "
            "or use `drug_embedding_key=None`."
        )
    # A bit that no drug sets is ordinary in a fingerprint; a constant measured feature is more often a mistake.
    constant &= ~np.isin(values[0], (0.0, 1.0))
    if constant.any():
        warnings.warn(
            f"{int(constant.sum())} columns of `{where}` are the same for all perturbations and carry no information: "
            f"{quote_some(frame.columns[constant])}. Drop them to silence this.",
            UserWarning,
            stacklevel=4,
        )


def _measured(frame: pd.DataFrame, perturbation_names: Sequence[str], separator: str | None) -> pd.DataFrame:
    known = set(perturbation_names)
    unseen = [name for name in frame.index if name not in known]
    if unseen:
        check_no_combination(unseen, perturbation_names, separator)
        close = close_names(unseen[0], perturbation_names)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"{quote_some(dict.fromkeys(unseen))} not among the measured perturbations ({quote_some(perturbation_names)}).{hint} A drug that "
            "was never measured is predicted from its features: give them as `drug_embedding`, to a model set up with "
            "`drug_embedding_key`. Control cells are `model.predict_combination({})`; a knock-out of a gene that was not measured is "
            "`model.intervene`."
        )
    return frame


def _match_columns(frame: pd.DataFrame, feature_names: list[str]) -> pd.DataFrame:
    frame = frame.set_axis(frame.columns.astype(str), axis=1)
    missing = [name for name in feature_names if name not in frame.columns]
    extra = [name for name in frame.columns if name not in set(feature_names)]
    if missing or extra or not frame.columns.is_unique:
        found = [f"lacks {quote_some(missing)}"] if missing else []
        found += [f"has unknown {quote_some(extra)}"] if extra else []
        raise ValueError(
            f"Columns of `drug_embedding` ({frame.shape[1]}) are not the {len(feature_names)} features of the fit: it "
            f"{' and '.join(found) or 'repeats columns'}. Compute the features as for the training data."
        )
    return frame[feature_names].copy()


def _frame_from_array(values: Any, feature_names: list[str]) -> pd.DataFrame:
    given = values
    values = np.atleast_2d(values.toarray() if sparse.issparse(values) else np.asarray(values))
    if values.dtype.kind not in "biuf":
        raise TypeError(
            f"`drug_embedding` is a {type(given).__name__} of neither names nor numbers. Give names of measured perturbations as a list of text, "
            "or features, one row a drug."
        )
    if values.ndim != 2 or values.shape[1] != len(feature_names):
        raise ValueError(
            f"`drug_embedding` has shape {values.shape}. Expected (drugs, {len(feature_names)}): the model was fitted on "
            f"{len(feature_names)} features ({quote_some(feature_names, 3)}). Measured perturbations are named by text, such as ['1']."
        )
    return pd.DataFrame(values, columns=feature_names)


def _unused_names(n: int, taken: set[str]) -> list[str]:
    prefix = "drug"
    while any(f"{prefix}_{i}" in taken for i in range(n)):
        prefix = f"new_{prefix}"
    return [f"{prefix}_{i}" for i in range(n)]
