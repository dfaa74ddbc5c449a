"""Check of a screen's design before fitting."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scgim._backed import readable
from scgim._constants import MANY_GENES
from scgim._validation import (
    check_column,
    check_continuous,
    check_counts,
    check_dosage,
    check_key,
    check_matrix_type,
    check_nonempty,
    check_perturbations,
    check_regulators,
    check_size_factors,
    in_combinations,
    inseparable_drugs,
    iterate_blocks,
    joined_labels,
    matrix_name,
    numeric_values,
    odd_labels,
    quote_some,
    resolve_embedding,
    separate_combinations,
)
from scgim.pp._confounding import batches, covariates, positions
from scgim.pp._levels import MIN_CONTEXT, levels
from scgim.pp._plate import find_position
from scgim.pp._report import FAIL, Checks, Row, Screen, attempt, passes, row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# What a screen is told about. Conventions, most of them explained in the advice that goes with them.
_MANY_COUNTS = 500  # of an observation that may be a well
_LARGEST_LOG = 50  # larger values are not logarithms of expression
_MAX_REPLICATES, _ALIKE = 4, 0.5  # wells a context on a plate, and the share of contexts that have the same number
_LOW_DEPTH = 0.5  # of the controls' counts
_SOME_ZEROS = 0.01  # share of zeros that logarithms of intensities do not have
_MIN_CONTROLS = {True: 32, False: 100}  # of a plate or not: means of controls to 0.18 and 0.1 standard deviations
_MIN_DOSES = 3  # a curve has three numbers
_MIN_DRUGS = 10  # for features to say something of others


def check_screen(
    adata: AnnData,
    *,
    perturbation_key: str = "perturbation",
    control: str = "control",
    dosage_key: str | None = "dosage",
    drug_embedding_key: str | None = "drug_embedding",
    batch_key: str | None = None,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
    size_factor_key: str | None = None,
    regulator_key: str | None = None,
    effect_modifier_key: str | None = None,
    combination_separator: str | None = None,
    layer: str | None = None,
) -> pd.DataFrame:
    """Table of what in a screen's design helps or hinders a fit, with advice.

    It takes all arguments of :meth:`scgim.model.GIM.setup_anndata`.

    Parameters
    ----------
    adata
        Raw counts, or continuous values of a bulk plate, with the columns below.
    perturbation_key
        Column of `adata.obs` with the perturbations.
    control
        Label of the controls.
    dosage_key
        Column of `adata.obs` with the doses; None for one dose.
    drug_embedding_key
        Entry of `adata.uns` or `adata.obsm` with the drug features; None for none.
    batch_key
        Column of `adata.obs` with the batch or plate.
    categorical_covariate_keys
        Columns of `adata.obs` that are to be covariates of the model.
    continuous_covariate_keys
        The same of numbers.
    size_factor_key
        Column of `adata.obs` with size factors; None if they are to be estimated.
    regulator_key
        Boolean column of `adata.var`: genes that may regulate others; None if any may.
    effect_modifier_key
        Column of `adata.obs` in whose levels, such as cell lines, effects may differ; a covariate as well.
    combination_separator
        Sign between the drugs of a combination, and between their dosages; None if no cell has several drugs.
    layer
        Layer with the counts, in place of `adata.X`.

    Returns
    -------
    Data frame, one row a check (index), with columns `value` (what was found), `verdict` ("ok", "warn" or "fail") and
    `advice` (empty when ok), which is printed whole. `setup_anndata` raises on what fails here, except confounding, which no check of the data
    can forbid.

    Raises
    ------
    KeyError
        There is no column `perturbation_key`, `batch_key` or `effect_modifier_key`, or none of a categorical covariate.
    TypeError
        `categorical_covariate_keys` is one name in place of a list.
    ValueError
        There are no labels or no control cells, so that nothing else can be checked.

    Notes
    -----
    Thresholds for a warning are rules of thumb: 20 cells a context, 100 controls, 3 doses a drug, 10 drugs with
    features, half the controls' counts a cell, Cramer's V of 0.5 between batch and perturbation. Cramer's V is
    corrected for chance (Bergsma 2013): 0 is a balanced design and 1 a batch for each perturbation.

    A screen is taken for a bulk plate where at least half of its contexts (drug and dose) have the same number of
    observations, at most four, and these have continuous values, 500 counts or more (the median), or a position on a
    plate (columns such as `well`, or `row` and `column`). Then 32 control wells and 3 wells a context are asked for, and
    the report tells whether doses or drugs go along rows or columns of the plate.

    Effects cannot be told from those of covariates where the design leaves a sum of effects of covariates free that
    is constant within all contexts and differs between a context and the controls.
    """
    plain, combinations = separate_combinations(adata.obs, perturbation_key, control, dosage_key, combination_separator)
    if combinations:  # the same cells, each combination under one name
        obs = adata.obs.assign(**{name: plain[name] for name in plain})
        adata = AnnData(adata.X, obs=obs, var=adata.var, uns=adata.uns, obsm=adata.obsm, layers=adata.layers)
    labels = _labels(adata, perturbation_key, control)
    if batch_key is not None:
        check_key(batch_key, adata.obs.columns, where="adata.obs", argument="batch_key")
    keys = categorical_covariate_keys or []
    if isinstance(keys, str):
        raise TypeError(f"`categorical_covariate_keys` is the text {keys!r}. Expected a list: `[{keys!r}]`.")
    for key in keys:
        check_key(key, adata.obs.columns, where="adata.obs", argument="categorical_covariate_keys")
    if effect_modifier_key is not None:
        check_key(effect_modifier_key, adata.obs.columns, where="adata.obs", argument="effect_modifier_key")
    screen = Screen(
        adata,
        perturbation_key,
        control,
        dosage_key,
        drug_embedding_key,
        batch_key,
        layer,
        labels,
        list(keys),
        effect_modifier_key,
        combinations,
        list(continuous_covariate_keys or []),
        size_factor_key,
        regulator_key,
    )
    screen.is_plate = _is_plate(screen)
    rows: list[Row] = []
    checks: list[Callable[[Screen], Iterator[Row]]] = [
        _values,
        _genes,
        _observations,
        _doses,
        _features,
        _numbers,
        positions,
        batches,
        covariates,
        levels,
    ]
    for check in checks:
        rows.extend(check(screen))
    return Checks(pd.DataFrame(rows, columns=["check", "value", "verdict", "advice"]).set_index("check"))


def _labels(adata: AnnData, perturbation_key: str, control: str) -> pd.Categorical:
    """Labels of all cells; perturbations with a single cell are let through, since the table reports them."""
    check_key(perturbation_key, adata.obs.columns, where="adata.obs", argument="perturbation_key")
    column = adata.obs[perturbation_key]
    several = column.map(column.value_counts()).astype(float) != 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table says it
        check_perturbations(adata.obs[several | (column == control)], perturbation_key, control)
    return pd.Categorical(column.astype(str))


def _is_plate(screen: Screen) -> bool:
    """Whether observations are wells: few and equally many a context, as single cells never are, and more than a cell."""
    obs = screen.adata.obs
    context = [pd.Series(np.asarray(screen.labels, dtype=object), obs.index)]
    if screen.dosage_key in obs:
        context.append(obs[screen.dosage_key])
    sizes = pd.concat(context, axis=1)[~screen.is_control].value_counts()
    usual = sizes.mode().min()
    if not (usual <= _MAX_REPLICATES and (sizes == usual).mean() >= _ALIKE):
        return False
    if find_position(obs):
        return True
    if not passes(lambda: check_matrix_type(screen.adata, screen.layer, allow_stored=True)):
        return False
    return _is_continuous(screen) or float(np.median(_totals(screen))) >= _MANY_COUNTS


def _is_continuous(screen: Screen) -> bool:
    X, where = screen.values, matrix_name(screen.layer)
    return passes(lambda: check_continuous(X, where=where)) and not passes(lambda: check_counts(X, where=where))


def _totals(screen: Screen) -> np.ndarray:
    return np.asarray(readable(screen.values).sum(axis=1)).ravel()


def _values(screen: Screen) -> Iterator[Row]:
    adata, where, unit = screen.adata, matrix_name(screen.layer), screen.unit
    if screen.is_plate:
        yield row("kind", "bulk plate")
    kind, _ = attempt("matrix", lambda: check_matrix_type(adata, screen.layer, allow_stored=True))
    yield kind if kind[2] == FAIL else row("matrix", f"{adata.n_obs} {unit}s x {adata.n_vars} genes")
    if kind[2] == FAIL:
        return
    X = screen.values
    may_be_empty = screen.size_factor_key is not None
    nonempty = attempt(
        "empty",
        lambda: check_nonempty(X, adata.var_names, adata.obs_names, where=where, empty_cells=may_be_empty),
        "none",
    )[0]
    if screen.is_plate and _is_continuous(screen):
        yield _continuous(screen)
        yield nonempty
        return
    counts = _totals(screen)
    found = f"raw counts, median {np.median(counts):g} a well" if screen.is_plate else "raw counts"
    yield attempt("counts", lambda: check_counts(X, where=where), found)[0]
    yield nonempty
    totals = pd.Series(counts).groupby(screen.labels, observed=True).median()
    ratio = totals / totals[screen.control]
    poor = ratio.index[ratio < _LOW_DEPTH]
    advice = f"{quote_some(poor)} have less than half: dying cells or few reads. Look at them before trusting effects."
    yield row("depth", f"{ratio.min():.2f} x control at least", advice if len(poor) else "")


def _genes(screen: Screen) -> Iterator[Row]:
    """Which genes may regulate others; of many genes few should."""
    adata, key = screen.adata, screen.regulator_key
    if key is not None:
        checked, found = attempt("regulators", lambda: check_regulators(adata.var, key))
        yield checked if found is None else row("regulators", f"{int(found.sum())} of {adata.n_vars} genes")
    elif adata.n_vars >= MANY_GENES:
        advice = (
            "The search for the network takes long where any of so many genes may regulate. Mark those that may: "
            "`scgim.pp.mark_regulators(adata)` and `regulator_key='regulator'`; or take fewer genes: `scgim.pp.select_genes`."
        )
        yield row("regulators", f"any of {adata.n_vars} genes", advice)


def _numbers(screen: Screen) -> Iterator[Row]:
    """Size factors and continuous covariates, where there are any."""
    obs = screen.adata.obs
    if (key := screen.size_factor_key) is not None:
        checked, found = attempt("size factors", lambda: check_size_factors(obs, key))
        yield checked if found is None else row("size factors", f"{found.min():.3g} to {found.max():.3g}")
    for name in screen.continuous_keys:
        yield attempt(f"covariate {name}", partial(_finite_numbers, obs, name), "numbers")[0]


def _finite_numbers(obs: pd.DataFrame, key: str) -> None:
    """Raise unless a column holds finite numbers."""
    values = numeric_values(check_column(obs, key, "continuous_covariate_keys"), f"adata.obs[{key!r}]")
    missing = int((~np.isfinite(values)).sum())
    if missing:
        raise ValueError(f"{missing} cells have no value. Impute it, or leave them or the covariate out.")


def _continuous(screen: Screen) -> Row:
    """Row of a plate whose values are no counts: which likelihood suits them, and whether there must have been counts."""
    blocks = [block for *_, block in iterate_blocks(screen.values)]
    least, most = min(block.min() for block in blocks), max(block.max() for block in blocks)
    zeros = 1 - sum(int((block != 0).sum()) for block in blocks) / (screen.adata.n_obs * screen.adata.n_vars)
    advice = "Build the model with `likelihood='normal'`, which size factors do not enter."
    if least >= 0 and zeros > _SOME_ZEROS:
        advice += f" With {zeros:.0%} zeros they look like normalised counts: raw counts, if there are any, say more."
    if most > _LARGEST_LOG:
        advice += " Values this large are not logarithms: take those first."
    return row("values", f"continuous, {least:.3g} to {most:.3g}", advice)


def _observations(screen: Screen) -> Iterator[Row]:
    n, unit = int(screen.is_control.sum()), screen.unit
    few = (
        "Effects are differences to controls: 100 control cells or more make them stable."
        if n < _MIN_CONTROLS[False]
        else ""
    )
    if screen.is_plate:
        few = (
            f"Effects are differences to controls. The mean of {n} control wells is off by some {n**-0.5:.2f} standard "
            "deviations of a well, in the effects of all drugs alike. Have 32 or more, spread over the plate."
        )
    yield row(f"control {unit}s", n, few if n < _MIN_CONTROLS[screen.is_plate] else "")
    counts = pd.Series(screen.labels[~screen.is_control]).value_counts()
    counts = counts[counts > 0]
    single = sorted(set(counts.index[counts == 1]) - in_combinations(screen.combinations))
    advice = f"{quote_some(single)} have a single {unit}. Leave them out."
    yield row("perturbations", len(counts), advice if single else "", verdict=FAIL)
    if screen.combinations:
        alike = inseparable_drugs(screen.combinations, set(counts.index) - set(screen.combinations))
        advice = f"{quote_some(alike)} were only given together: what each of them does cannot be told."
        yield row("combinations", len(screen.combinations), advice if alike else "")
    elif joined := joined_labels(screen.labels.categories, screen.control):
        yield _joined(*joined, screen.effect_modifier_key)
    where = f"adata.obs[{screen.perturbation_key!r}]"
    odd = odd_labels(screen.labels.categories, screen.control, where)
    yield row("labels", "look odd" if odd else "ok", " ".join(odd))


def _joined(sign: str, names: list[str], effect_modifier_key: str | None) -> Row:
    """Row of labels that read like several drugs, where no separator was given."""
    advice = (
        f"{quote_some(names, 3)} read like several drugs. With `combination_separator={sign!r}` (and dosages such as '1{sign}10') they and "
        "single drugs tell of each other, and `get_interactions` compares them; without, each is a perturbation of its own."
    )
    if effect_modifier_key is not None:
        advice += " It takes no `effect_modifier_key`."
    return row("combinations", f"{len(names)} joined by {sign!r}", advice)


def _doses(screen: Screen) -> Iterator[Row]:
    obs = screen.adata.obs
    checked, dosage = attempt(
        "doses", lambda: check_dosage(obs, screen.dosage_key, screen.perturbation_key, screen.control)
    )
    if dosage is None:
        yield checked
        return
    screen.dosage = dosage
    treated = pd.DataFrame({"drug": screen.labels.astype(object), "dose": dosage})[~screen.is_control]
    alone = treated[~treated["drug"].isin(screen.combinations)]
    n_doses = (treated if alone.empty else alone).groupby("drug")["dose"].nunique()
    value = (
        f"{n_doses.min()} to {n_doses.max()} a drug" if n_doses.min() != n_doses.max() else f"{n_doses.min()} a drug"
    )
    curve = n_doses.min() < _MIN_DOSES and screen.dosage_key is not None
    advice = "Fewer than three doses do not fix a dose-response curve: EC50 and slope then come from the prior."
    yield row("doses", value, advice if curve else "")
    sizes = treated.groupby(["drug", "dose"]).size()
    enough = MIN_CONTEXT[screen.is_plate]
    small = sizes.index[sizes < enough]
    shown = quote_some(f"{drug} at {dose:g}" for drug, dose in small)
    advice = f"{len(small)} of {len(sizes)} contexts have fewer than {enough} {screen.unit}s ({shown}): "
    advice += "their effects are uncertain."
    if screen.is_plate:
        advice = (
            advice[:-1] + f" by up to {sizes.min() ** -0.5:.2f} standard deviations of a well, and weak ones remain "
        )
        advice += "unseen where other doses of the drug do not agree."
    yield row(
        f"{screen.unit}s per context", f"median {sizes.median():g}, least {sizes.min()}", advice if len(small) else ""
    )


def _labels_of_drugs(screen: Screen) -> pd.Categorical:
    """Labels of all cells, those of combinations, which have no features of their own, as controls."""
    if not screen.combinations:
        return screen.labels
    labels = pd.Series(np.asarray(screen.labels, dtype=object))
    drugs = (set(labels) | in_combinations(screen.combinations)) - set(screen.combinations)
    return pd.Categorical(labels.mask(labels.isin(screen.combinations), screen.control), categories=sorted(drugs))


def _features(screen: Screen) -> Iterator[Row]:
    key = screen.drug_embedding_key
    if key is None:
        yield row("features", "none", "Without drug features, drugs that were not measured cannot be predicted.")
        return
    checked, frame = attempt(
        "features",
        lambda: resolve_embedding(screen.adata, key, _labels_of_drugs(screen), control=screen.control),
    )
    if frame is None:
        yield checked
        return
    few = len(frame) < _MIN_DRUGS
    advice = "With fewer than ten drugs, features say little about drugs that were not measured."
    yield row("features", f"{frame.shape[0]} drugs x {frame.shape[1]}", advice if few else "")
    rank = int(np.linalg.matrix_rank(frame.to_numpy() - frame.to_numpy().mean(axis=0)))
    wide = frame.shape[1] > 2 * len(frame)
    advice = f"More columns than drugs can use: `scgim.pp.pca_features(adata, {rank})` tells these drugs apart as well and is faster."
    yield row("feature rank", f"{rank} of {min(len(frame) - 1, frame.shape[1])}", advice if wide else "")
    twins = frame.index[frame.duplicated(keep=False)]
    advice = f"{quote_some(twins)} share their features with another drug, so that only their {screen.unit}s tell them apart."
    yield row("equal features", len(twins), advice if len(twins) else "")
