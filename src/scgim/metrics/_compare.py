"""Baselines, and predictions of a model, on held-out contexts of a screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scgim._constants import REGISTRY
from scgim._stored import is_stored
from scgim._validation import (
    check_continuous,
    check_dosage,
    check_gene_names,
    check_key,
    check_perturbations,
    check_size_factors,
    quote_some,
    resolve_embedding,
)
from scgim.metrics._baselines import BASELINES, Contexts
from scgim.metrics._prediction import scaled_metrics
from scgim.metrics._scale import ControlScale, subsample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

_CONTEXT = ["perturbation", "dosage"]


class _Keys(NamedTuple):
    """Where things are in an AnnData."""

    split: str
    perturbation: str
    control: str
    dosage: str | None
    drug_embedding: str | None
    layer: str | None
    size_factor: str | None


class _Screen(NamedTuple):
    """What the comparison needs of an AnnData."""

    X: Any
    """Expression, cells x genes."""
    contexts: pd.DataFrame
    """One row a treated context: perturbation, dosage, split, and the positions of its cells."""
    control: np.ndarray
    """Positions of control cells."""
    features: pd.DataFrame
    """Features of every drug."""


def _expression(adata: AnnData, keys: _Keys, log1p: bool, name: str) -> Any:
    """Counts with fast access to rows, divided by size factors if there are any."""
    if keys.layer is not None:
        check_key(keys.layer, adata.layers.keys(), where="adata.layers", argument="layer")
    X = adata.X if keys.layer is None else adata.layers[keys.layer]
    if is_stored(X):
        raise ValueError(f"X of {name!r} lies in a file. Load it first: `adata = adata.to_memory()`.")
    X = X.tocsr() if sparse.issparse(X) else np.asarray(X)
    check_continuous(X, where=f"X of {name!r}")
    if log1p and X.min() < 0:
        raise ValueError(f"Found negative values in {name!r}. Give raw counts, or `log1p=False` for continuous data.")
    if keys.size_factor is None:
        return X
    inverse = 1 / check_size_factors(adata.obs, keys.size_factor)
    return sparse.diags(inverse).tocsr() @ X if sparse.issparse(X) else X * inverse[:, None]


def _context_table(cells: pd.DataFrame, where: str) -> pd.DataFrame:
    groups = cells.groupby(_CONTEXT, observed=True, sort=True)
    mixed = groups["split"].nunique()
    mixed = mixed[mixed > 1]
    if len(mixed):
        names = quote_some([f"{drug} at {dose:g}" for drug, dose in mixed.index])
        raise ValueError(
            f"{len(mixed)} contexts have cells on several sides of `{where}`: {names}. Split whole contexts: "
            "`scgim.data.split_by_context(adata)`."
        )
    table = groups["split"].first().reset_index()
    table["cells"] = list(groups.indices.values())
    return table


def _features(adata: AnnData, perturbations: pd.Categorical, control: str, key: str | None) -> pd.DataFrame:
    """Features of every drug; one-hot if there are none."""
    if key is not None:
        return resolve_embedding(adata, key, perturbations, control=control)
    drugs = [name for name in perturbations.categories if name != control]
    return pd.DataFrame(np.eye(len(drugs)), index=drugs)


def _read(adata: AnnData, keys: _Keys, log1p: bool) -> _Screen:
    perturbations = check_perturbations(adata.obs, keys.perturbation, keys.control)
    dosage = check_dosage(adata.obs, keys.dosage, keys.perturbation, keys.control)
    check_key(keys.split, adata.obs.columns, where="adata.obs", argument="split_key")
    where = f"adata.obs[{keys.split!r}]"
    split = adata.obs[keys.split].astype(object).to_numpy()
    cells = pd.DataFrame({"perturbation": perturbations.astype(object), "dosage": dosage, "split": split})
    is_control = cells["perturbation"] == keys.control
    training_controls = np.flatnonzero(is_control & (cells["split"] == "train"))
    if len(training_controls) < 2:
        raise ValueError(
            f"`{where}` has {len(training_controls)} {keys.control!r} cells marked 'train'. Mark controls so."
        )
    # Groups leave out cells without a label, and the rest keep their positions.
    cells.loc[is_control | cells["split"].isna(), "perturbation"] = None
    contexts = _context_table(cells, where)
    if contexts["split"].nunique() < 2 or "train" not in set(contexts["split"]):
        raise ValueError(
            f"`{where}` marks perturbed cells as {quote_some(contexts['split'].unique())}. Expected 'train' and at least one "
            "other label: `scgim.data.split_by_context(adata)`."
        )
    features = _features(adata, perturbations, keys.control, keys.drug_embedding)
    X = _expression(adata, keys, log1p, "adata")
    return _Screen(X, contexts, training_controls, features)


def _arrays(screen: _Screen, table: pd.DataFrame, scale: ControlScale) -> Contexts:
    """Contexts of a table with their features and mean shifts."""
    drug = table["perturbation"].to_numpy()
    shift = np.stack([scale.mean(screen.X[cells]) for cells in table["cells"]])
    return Contexts(drug, table["dosage"].to_numpy(), screen.features.loc[drug].to_numpy(dtype=float), shift)


def _predicted_cells(predicted: AnnData, table: pd.DataFrame, keys: _Keys, name: str) -> list[np.ndarray]:
    """Positions of the predicted cells of every context."""
    obs, where = predicted.obs, f"predictions {name!r}, obs"
    perturbation = keys.perturbation if keys.perturbation in obs else REGISTRY.PERTURBATION
    check_key(perturbation, obs.columns, where=where, argument="perturbation_key")
    same_drug = obs[perturbation].astype(str).to_numpy() == table["perturbation"].to_numpy()[:, None]
    same_dose = np.ones_like(same_drug)
    if keys.dosage is not None:
        dosage = keys.dosage if keys.dosage in obs else REGISTRY.DOSAGE
        check_key(dosage, obs.columns, where=where, argument="dosage_key")
        same_dose = np.isclose(obs[dosage].to_numpy(dtype=float), table["dosage"].to_numpy()[:, None], rtol=1e-4)
    rows = [np.flatnonzero(same) for same in same_drug & same_dose]
    few = np.array([len(cells) < 2 for cells in rows])
    if few.any():
        missing = [f"{drug} at {dose:g}" for drug, dose in table.loc[few, _CONTEXT].itertuples(index=False)]
        raise ValueError(
            f"The predictions {name!r} have fewer than two cells of {len(missing)} held-out contexts: {quote_some(missing)}. "
            "Predict every held-out drug at its doses."
        )
    return rows


def _models(predicted: AnnData | Mapping[str, AnnData] | None, adata: AnnData) -> dict[str, AnnData]:
    """Predictions by name, with genes in the order of the data."""
    if predicted is None:
        return {}
    models = dict(predicted) if isinstance(predicted, Mapping) else {"model": predicted}
    for name, model in models.items():
        if set(model.var_names) != set(adata.var_names):
            check_gene_names(model.var_names, adata.var_names, where=f"predictions {name!r}")
        models[name] = model[:, adata.var_names]
    return models


def _summary(results: pd.DataFrame, *, per_context: bool) -> pd.DataFrame:
    # A method without a prediction for some context would be averaged over fewer, so it is left out for that label.
    missing = results["mean_shift_error"].isna()
    results = results[~missing.groupby([results["split"], results["method"]]).transform("any")]
    if per_context:
        return results.reset_index(drop=True)
    groups = results.drop(columns=[*_CONTEXT, "n_cells"]).groupby(["split", "method"], sort=False)
    return groups.mean().assign(n_contexts=groups.size())


def compare_baselines(
    adata: AnnData,
    *,
    predicted: AnnData | Mapping[str, AnnData] | None = None,
    split_key: str = "split",
    methods: Sequence[str] | None = None,
    perturbation_key: str = "perturbation",
    control: str = "control",
    dosage_key: str | None = "dosage",
    drug_embedding_key: str | None = "drug_embedding",
    layer: str | None = None,
    size_factor_key: str | None = None,
    log1p: bool = True,
    max_cells: int = 200,
    per_context: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """How well simple baselines, and a model, predict the held-out contexts of a screen.

    All is compared in log1p space standardised on training controls, as :func:`distribution_metrics` does, and averaged over contexts.
    The baselines predict a mean shift, and control cells moved by it as cells:

    - `control`: no effect; `trainmean`: the mean shift of all training contexts
    - `nearest_dose`: the same drug at the nearest training dose (log scale); only where every held-out drug has one
    - `nearest_drug`: the training drug with the nearest features, at its nearest dose
    - `ridge`: ridge regression on features f and dose c as f, f c, f c², c, c²; `krr`: Gaussian kernel ridge regression on the same
    - `random_forest`: 200 trees on f and c

    The dose c is its logarithm where training doses span a factor of ten or more. Penalties and kernel width are chosen by cross-validation over drugs. Random forest and kernel ridge take minutes beyond some
    thousand training contexts; leave them out by `methods`.

    Parameters
    ----------
    adata
        A screen with measured cells of training and held-out contexts, such as :func:`scgim.data.split_by_context` marks them.
    predicted
        Predictions of a model for all held-out contexts, as :meth:`scgim.model.GIM.predict` returns them, or several of them by name.
        Doses and names must be those of `adata`; predicted counts are read from `X`.
    split_key
        Column of obs with `"train"` and one or more labels of held-out contexts. Cells without label (NaN) are left out.
    methods
        Names of the baselines, all by default.
    perturbation_key, control, dosage_key, drug_embedding_key, layer
        Where things are, as in :meth:`scgim.model.GIM.setup_anndata`. Without embedding, drugs are one-hot and there is no
        `nearest_drug`.
    size_factor_key
        Size factors in obs (also in that of the predictions) by which counts are divided first; raw counts by default.
    log1p
        Take log1p; switch off for continuous data.
    max_cells
        Cells drawn from each context for the distances between distributions.
    per_context
        Return every context by itself instead of means.
    seed
        Seed of that draw.

    Returns
    -------
    DataFrame
        Index (split, method): a row for each label of held-out contexts and each method; models are called `model` or by their
        names and come last. Columns are the metrics of :func:`distribution_metrics` and `n_contexts`. With `per_context` a row for
        each method and context, with columns `split`, `method`, `perturbation`, `dosage`, `n_cells` and the metrics.

    Raises
    ------
    KeyError
        If a column, layer or embedding is missing.
    ValueError
        If contexts lie on both sides, one side is empty, predictions lack a context, or a method is unknown.

    Examples
    --------
    >>> scgim.data.split_by_context(adata, "drugs")
    >>> test = adata.obs.loc[adata.obs["split"] == "test", ["perturbation", "dosage"]].drop_duplicates()
    >>> features = adata.uns["drug_embedding"].loc[test["perturbation"]]
    >>> scgim.metrics.compare_baselines(adata, predicted=model.predict(features, test["dosage"].to_numpy())).loc["test"]
    """
    methods = list(BASELINES) if methods is None else list(methods)
    unknown = [method for method in methods if method not in BASELINES]
    if unknown:
        raise ValueError(f"Unknown `methods`: {quote_some(unknown)}. Expected some of {quote_some(BASELINES, 10)}.")
    models = _models(predicted, adata)
    keys = _Keys(split_key, perturbation_key, control, dosage_key, drug_embedding_key, layer, size_factor_key)
    screen = _read(adata, keys, log1p)
    expression = {name: _expression(model, keys._replace(layer=None), log1p, name) for name, model in models.items()}
    scale = ControlScale(screen.X[screen.control], log1p=log1p)
    in_training = screen.contexts["split"] == "train"
    held_out = screen.contexts[~in_training].sort_values("split", kind="stable", ignore_index=True)
    cells = {name: _predicted_cells(model, held_out, keys, name) for name, model in models.items()}
    train, test = (_arrays(screen, table, scale) for table in (screen.contexts[in_training], held_out))
    if drug_embedding_key is None:
        methods = [method for method in methods if method != "nearest_drug"]
    shifts = {method: BASELINES[method](train, test) for method in methods}

    def draw(X: Any, rows: np.ndarray, *stream: int) -> np.ndarray:
        return scale.transform(subsample(X[rows], max_cells, np.random.default_rng([seed, *stream])))

    controls = draw(screen.X, screen.control, 0)
    results = []
    for k, context in enumerate(held_out.itertuples()):
        observed = draw(screen.X, context.cells, 1, k)
        entry = {key: getattr(context, key) for key in ("split", *_CONTEXT)} | {"n_cells": len(context.cells)}
        for method, shift in shifts.items():
            scores = scaled_metrics(observed, controls + shift[k], test.shift[k], shift[k])
            results.append({"method": method, **entry, **scores})
        for name, X in expression.items():
            rows = cells[name][k]
            scores = scaled_metrics(observed, draw(X, rows, 2, k), test.shift[k], scale.mean(X[rows]))
            results.append({"method": name, **entry, **scores})
    return _summary(pd.DataFrame(results), per_context=per_context)
