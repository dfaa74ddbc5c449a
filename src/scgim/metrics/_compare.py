"""Baselines, and predictions of a model, on held-out contexts of a screen."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scgim._validation import quote_some
from scgim.metrics._baselines import BASELINES
from scgim.metrics._intervals import mean_limits
from scgim.metrics._prediction import scaled_metrics
from scgim.metrics._profiles import centred_correlation, discrimination
from scgim.metrics._scale import ControlScale, subsample
from scgim.metrics._screen import (
    CONTEXT,
    Keys,
    context_arrays,
    predicted_cells,
    read_expression,
    read_models,
    read_screen,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from anndata import AnnData

_MAX_NOISE = 0.1  # of the error of a prediction, may be that of a finite number of cells: convention
_COPIED = 2.0  # times the noise in less error: the cells are those observed, or were not drawn
_LABELS = ["split", "method", *CONTEXT, "level", "n_cells"]


class _Side(NamedTuple):
    """What was observed in the held-out contexts, or what a method predicts there."""

    shift: np.ndarray
    """Mean shift, contexts x genes; NaN where a method has no prediction."""
    draw: Callable[[int], np.ndarray]
    """Standardised cells of a context by its row, cells x genes."""


def _check_options(
    methods: Sequence[str] | None, models: Mapping[str, AnnData], intervals: float | None, *, per_context: bool
) -> list[str]:
    """Names of the baselines to run."""
    if intervals is not None and not 0 < intervals < 1:
        raise ValueError(f"Expected `intervals` between 0 and 1, such as 0.95, found {intervals}.")
    if intervals is not None and per_context:
        raise ValueError(
            "`intervals` are those of means over contexts. Leave out one of `intervals` and `per_context`."
        )
    methods = list(BASELINES) if methods is None else list(methods)
    unknown = [method for method in methods if method not in BASELINES]
    if unknown:
        raise ValueError(f"Unknown `methods`: {quote_some(unknown)}. Expected some of {quote_some(BASELINES, 10)}.")
    if taken := [name for name in models if name in methods]:
        raise ValueError(
            f"`predicted` has the names of baselines: {quote_some(taken)}. Give its predictions other names."
        )
    return methods


def _profile_scores(observed: np.ndarray, predicted: np.ndarray, reference: np.ndarray) -> list[dict[str, Any]]:
    """Scores of mean shifts beside those of other contexts, for each context."""
    centred, rank = centred_correlation(observed, predicted, reference), discrimination(observed, predicted)
    return [{"centred_correlation": r, "discrimination": d} for r, d in zip(centred, rank, strict=True)]


def _score(
    observed: _Side, methods: Mapping[str, _Side], rows: np.ndarray, reference: np.ndarray
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row, name and scores of every method in every context of one label."""
    # A method without a prediction for some context would be averaged over fewer, so it is left out for this label.
    methods = {name: side for name, side in methods.items() if not np.isnan(side.shift[rows]).any()}
    profiles = {
        name: _profile_scores(observed.shift[rows], side.shift[rows], reference) for name, side in methods.items()
    }
    for i, k in enumerate(rows):
        cells = observed.draw(k)
        for name, side in methods.items():
            distances = scaled_metrics(cells, side.draw(k), observed.shift[k], side.shift[k])
            yield k, {"method": name, **profiles[name][i], **distances}


def _warn_of_noise(name: str, error: float, noise: float, rows: Sequence[np.ndarray]) -> None:
    """Warn where a prediction is so close that the number of its cells shows."""
    share = noise / error if error else np.inf
    if _MAX_NOISE < share < _COPIED:
        warnings.warn(
            f"{min(share, 1.0):.0%} of the `mean_shift_error` of {name!r} is the noise of {min(map(len, rows))} predicted cells a context, and its "
            "correlations are too low. Predict more: `model.predict(..., n_samples=1000)`.",
            UserWarning,
            stacklevel=3,
        )


def _summary(results: pd.DataFrame, intervals: float | None, seed: int) -> pd.DataFrame:
    """Means over contexts, each followed by its limits if these are wanted."""
    metrics = [column for column in results if column not in _LABELS]
    groups = results.groupby(["split", "method"], sort=False)
    table = groups[metrics].mean()
    if intervals is not None:
        # One seed for all: methods are compared on the same draws of drugs.
        limits = [mean_limits(part[metrics], part["perturbation"], level=intervals, seed=seed) for _, part in groups]
        table = table.join(pd.DataFrame(limits, index=table.index))
        table = table[[f"{metric}{side}" for metric in metrics for side in ("", "_lower", "_upper")]]
    return table.assign(n_contexts=groups.size())


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
    effect_modifier_key: str | None = None,
    layer: str | None = None,
    size_factor_key: str | None = None,
    log1p: bool = True,
    max_cells: int = 200,
    per_context: bool = False,
    intervals: float | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """How well simple baselines, and a model, predict the held-out contexts of a screen.

    Look at the first two columns first. `centred_correlation` (:func:`centred_correlation`) is that of mean shifts less the mean shift of the
    training contexts, and `discrimination` (:func:`discrimination`) tells whether the prediction for a context is the nearest
    one to it among those for all contexts of its label: 0 and 0.5 are what the response earns that all drugs have in common. The rest, plain
    correlation above all, can be good for this response alone, so read it beside the rows `trainmean` and `dosemean`.

    All is compared in log1p space standardised on training controls, as :func:`distribution_metrics` does, and averaged over contexts.
    The baselines predict a mean shift, and control cells moved by it as cells:

    - `control`: no effect; `trainmean`: the mean shift of all training contexts
    - `dosemean`: the mean over training drugs of their shifts at the dose, each drug alike: linear in the logarithm of the dose
      between two doses measured, and that of the nearest dose beyond them. With one dose it is `trainmean`
    - `drugmean`: the mean shift of the same drug over its training doses; only where every held-out drug has some
    - `nearest_dose`: the same drug at the nearest training dose (log scale); only where every held-out drug has one
    - `nearest_drug`: the training drug with the nearest features, at its nearest dose
    - `ridge`: ridge regression on features f and dose c as f, f c, f c², c, c²; `krr`: Gaussian kernel ridge regression on the same
    - `random_forest`: 200 trees on f and c

    The dose c is its logarithm where training doses span a factor of ten or more. Penalties and kernel width are chosen by cross-validation over drugs. Random forest and kernel ridge take minutes beyond some
    thousand training contexts; leave them out by `methods`.

    Observed means are those of a context's cells and noisy where these are few, so a perfect prediction has an error above 0 and correlations below 1.

    Parameters
    ----------
    adata
        A screen with measured cells of training and held-out contexts, such as :func:`scgim.pp.split_by_context` marks them.
    predicted
        Predictions of a model for all held-out contexts, as :meth:`scgim.model.GIM.predict` returns them, or several of them by name.
        Doses and names must be those of `adata`; predicted counts are read from `X`. Mean shifts are those of log1p of these counts, which is
        not log1p of expected counts, and noisy where cells are few, while the baselines' shifts are not drawn: a warning tells where more cells
        (`n_samples`) would say more.
    split_key
        Column of obs with `"train"` and one or more labels of held-out contexts. Cells without label (NaN) are left out.
    methods
        Names of the baselines, all by default.
    perturbation_key, control, dosage_key, drug_embedding_key, layer
        Where things are, as in :meth:`scgim.model.GIM.setup_anndata`. Without embedding, drugs are one-hot and there is no
        `nearest_drug`.
    effect_modifier_key
        Column of obs (also in that of the predictions) with levels, such as cell lines, in which effects differ. A context is then a drug
        and dose in one level, and its mean shift that from the controls of its level. Baselines take what drugs do in all levels: where
        levels are held out, `drugmean` is the mean shift of the same drug in the other levels.
    size_factor_key
        Size factors in obs (also in that of the predictions) by which counts are divided first; raw counts by default.
    log1p
        Take log1p; switch off for continuous data.
    max_cells
        Cells drawn from each context for the distances between distributions.
    per_context
        Return every context by itself instead of means.
    intervals
        Level of intervals of the means, such as 0.95; none by default. Drugs are resampled with all their contexts, since contexts of one drug
        are not independent. They tell how means would vary with other drugs, not with other cells or another fit, are too narrow for
        fewer than some ten drugs, and NaN for one. Methods share the drugs, so intervals that overlap may still differ:
        take `per_context` and compare drug by drug.
    seed
        Seed of the draws of cells and of drugs.

    Returns
    -------
    DataFrame
        Index (split, method): a row for each label of held-out contexts and each method; models are called `model` or by their
        names and come last. Columns are `centred_correlation`, `discrimination` (NaN where a label has one context), the metrics of
        :func:`distribution_metrics` and `n_contexts`; with `intervals`, `<metric>_lower` and `<metric>_upper` follow each metric. With
        `per_context` a row for each method and context, with columns `split`, `method`, `perturbation`, `dosage`, `n_cells` and
        the metrics.

    Raises
    ------
    KeyError
        If a column, layer or embedding is missing.
    ValueError
        If contexts lie on both sides, one side is empty, predictions lack a context or have the name of a baseline, a method is unknown, none has a prediction for every
        context of a label, or `intervals` is not between 0 and 1 or wanted of single contexts.

    Examples
    --------
    >>> scgim.pp.split_by_context(adata, "drugs")
    >>> test = adata.obs.loc[adata.obs["split"] == "test", ["perturbation", "dosage"]].drop_duplicates()
    >>> features = adata.uns["drug_embedding"].loc[test["perturbation"]]
    >>> scgim.metrics.compare_baselines(adata, predicted=model.predict(features, test["dosage"].to_numpy())).loc["test"]
    """
    models = read_models(predicted, adata)
    methods = _check_options(methods, models, intervals, per_context=per_context)
    keys = Keys(
        split_key,
        perturbation_key,
        control,
        dosage_key,
        drug_embedding_key,
        layer,
        size_factor_key,
        effect_modifier_key,
    )
    screen = read_screen(adata, keys, log1p)
    expression = {
        name: read_expression(model, keys._replace(layer=None), log1p, name) for name, model in models.items()
    }
    scale = ControlScale(screen.X[screen.control], log1p=log1p)
    in_training = screen.contexts["split"] == "train"
    held_out = screen.contexts[~in_training].sort_values("split", kind="stable", ignore_index=True)
    cells = {name: predicted_cells(model, held_out, keys, name) for name, model in models.items()}
    train, test = (context_arrays(screen, table, scale) for table in (screen.contexts[in_training], held_out))
    if drug_embedding_key is None:
        methods = [method for method in methods if method != "nearest_drug"]

    def draw(X: Any, rows: np.ndarray, *stream: int) -> np.ndarray:
        return scale.transform(subsample(X[rows], max_cells, np.random.default_rng([seed, *stream])))

    controls = draw(screen.X, screen.control, 0)
    own_controls = {name: draw(screen.X, rows, 0) - scale.mean(screen.X[rows]) for name, rows in screen.levels.items()}
    offset = screen.offsets(held_out, scale)

    def moved_controls(method: str) -> _Side:
        shift = BASELINES[method](train, test)
        return _Side(shift, lambda k: own_controls.get(held_out.get("level", {}).get(k), controls) + shift[k])

    def cells_of_model(name: str) -> _Side:
        X, rows = expression[name], cells[name]
        shift = np.stack([scale.mean(X[own]) for own in rows]) - offset
        return _Side(shift, lambda k: draw(X, rows[k], 2, k) - offset[k])

    observed = _Side(test.shift, lambda k: draw(screen.X, held_out["cells"][k], 1, k) - offset[k])
    sides = {method: moved_controls(method) for method in methods} | {name: cells_of_model(name) for name in models}
    contexts = held_out[["split", *keys.context]].assign(n_cells=held_out["cells"].str.len()).to_dict("records")
    labels = [name for name in _LABELS if name != "level" or keys.level is not None]
    results = [
        dict.fromkeys(labels) | contexts[k] | scores
        for rows in held_out.groupby("split", sort=False).indices.values()
        for k, scores in _score(observed, sides, rows, train.shift.mean(0))
    ]
    if not results:
        raise ValueError(
            f"None of {quote_some(sides)} predicts all contexts of a label. Add methods that can, such as 'trainmean', or `predicted`."
        )
    table = pd.DataFrame(results)
    for name, rows in cells.items():
        noise = float(np.mean([scale.noise(expression[name][own]) for own in rows]))
        _warn_of_noise(name, table.loc[table["method"] == name, "mean_shift_error"].mean(), noise, rows)
    return table if per_context else _summary(table, intervals, seed)
