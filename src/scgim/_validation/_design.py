"""Checks of the columns that describe cells: perturbation, dosage, size factor, covariates."""

from __future__ import annotations

import warnings
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgim._validation._messages import check_column, check_key, numeric_values, quote_some
from scgim._validation._suggestions import close_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_NO_LABELS = (
    "",
    "nan",
    "none",
    "na",
    "n/a",
    "<na>",
    "null",
    "unknown",
    "unassigned",
)  # what missing labels become as text
_SAME_DOSE = 1e-6  # relative difference that rounding makes: numbers of 32 bits keep about seven digits
_MAX_LEVELS = 100  # effects are drugs by levels by genes: for memory
_VEHICLES = ("control", "ctrl", "dmso", "vehicle", "untreated", "mock", "pbs", "nt", "ntc", "non-targeting")


def check_perturbations(
    obs: pd.DataFrame, perturbation_key: str, control: str, may_be_single: Iterable[str] = ()
) -> pd.Categorical:
    """Labels of all cells as a categorical of strings (unused categories dropped) after checking the design.

    Labels that `may_be_single` have a single cell are let pass: those of combinations and their members, which tell of each other.

    Raises
    ------
    KeyError
        The column is missing.
    ValueError
        There are cells without label, no control cells, nothing but controls, or a perturbation with a single cell.
    """
    if not isinstance(control, str):
        raise TypeError(
            f"`control` is {control!r} ({type(control).__name__}). Labels are compared as text: pass `control={str(control)!r}`."
        )
    column, where = check_column(obs, perturbation_key, "perturbation_key"), f"adata.obs[{perturbation_key!r}]"
    missing = int(column.isna().sum())
    if missing:
        raise ValueError(
            f"{missing} cells have no label (NaN) in `{where}`. Remove them or, if they are controls, call them "
            f"{control!r}."
        )
    # Labels are strings throughout: scvi-tools lets a new category equal to the number 0 pass unseen.
    labels = pd.Categorical(column.astype(str))
    counts = pd.Series(labels).value_counts()
    if control not in counts.index:
        close = close_names(control, counts.index)
        close += [name for name in counts.index if name.lower() in _VEHICLES]
        hint = f"Did you mean `control={close[0]!r}`? " if close else ""
        raise ValueError(
            f"No control cells: `{where}` has no {control!r}. {hint}"
            f"Its categories are {quote_some(sorted(counts.index), 10)}. Name the one of the controls: `control=...`."
        )
    if len(counts) == 1:
        raise ValueError(f"All cells are {control!r} in `{where}`. At least one perturbation is needed.")
    single = sorted(set(counts.index[counts == 1]) - set(may_be_single))
    if single:
        raise ValueError(
            f"{len(single)} labels in `{where}` have a single cell: {quote_some(single)}. Remove them: "
            f"`n = {where}.value_counts(); adata = adata[{where}.isin(n.index[n > 1])].copy()`."
        )
    if "" in counts.index:
        raise ValueError(f"Some cells have an empty label in `{where}`. Remove them, or name what was done to them.")
    for sentence in odd_labels(counts.index, control, where):
        warnings.warn(sentence, UserWarning, stacklevel=3)
    return labels


def odd_labels(labels: Iterable[str], control: str, where: str) -> list[str]:
    """Sentences on labels that look like none, or like another control; empty where there are none."""
    found = []
    missing = [name for name in labels if name.strip().lower() in _NO_LABELS and name != control]
    if missing:
        found.append(
            f"Labels in `{where}` look like missing ones: {quote_some(missing)}. They are taken for perturbations; remove their cells "
            "if they are none."
        )
    spellings: dict[str, list[str]] = {}
    for name in labels:
        spellings.setdefault(" ".join(name.lower().split()), []).append(name)
    twice = [name for names in spellings.values() if len(names) > 1 and control not in names for name in names]
    if twice:
        found.append(
            f"Labels in `{where}` differ by capitals or spaces only, {quote_some(twice)}, and are taken for different perturbations. If they "
            f"are the same, give them one name: `{where} = {where}.astype(str).str.strip().replace(...)`."
        )
    controls = {control.strip().lower(), *_VEHICLES}
    alike = [name for name in labels if name != control and name.strip().lower() in controls]
    if alike:
        found.append(
            f"{quote_some(alike)} in `{where}` reads like a control, beside {control!r}, and is taken for a perturbation. If it is the "
            f"same, rename it: `{where} = {where}.replace({alike[0]!r}, {control!r})`."
        )
    return found


def check_dosage(obs: pd.DataFrame, dosage_key: str | None, perturbation_key: str, control: str) -> np.ndarray:
    """Doses of all cells, shape (cells,), float64; 1 for treated cells and 0 for controls when `dosage_key` is None.

    Doses that differ by rounding only are one dose (:func:`merge_doses`).
    """
    is_control = (obs[perturbation_key].astype(str) == control).to_numpy()
    if dosage_key is None:
        return np.where(is_control, 0.0, 1.0)
    where = f"adata.obs[{dosage_key!r}]"
    dosage = numeric_values(check_column(obs, dosage_key, "dosage_key"), where)
    for name, bad in (("NaN", np.isnan(dosage)), ("infinite", np.isinf(dosage)), ("negative", dosage < 0)):
        if bad.any():
            of = quote_some(obs[perturbation_key].astype(str)[bad].unique())
            raise ValueError(
                f"Found {name} doses in `{where}` ({int(bad.sum())} cells of {of}). "
                "Doses are finite and positive, and 0 for controls."
            )
    dosed = is_control & (dosage > 0)
    if dosed.any():
        raise ValueError(
            f"{int(dosed.sum())} control cells ({control!r}) have a dose above 0 in `{where}` (such as "
            f"{dosage[dosed][0]:g}). Set it to 0: `adata.obs.loc[adata.obs[{perturbation_key!r}] == {control!r}, "
            f"{dosage_key!r}] = 0`."
        )
    undosed = ~is_control & (dosage == 0)
    if undosed.any():
        of = quote_some(obs[perturbation_key].astype(str)[undosed].unique())
        raise ValueError(
            f"{int(undosed.sum())} treated cells have dose 0 in `{where}` (of {of}). If they got no drug, call them "
            f"{control!r} in `adata.obs[{perturbation_key!r}]`; otherwise give their dose."
        )
    return merge_doses(dosage)


def merge_doses(dosage: np.ndarray) -> np.ndarray:
    """Doses (cells,), those apart by rounding replaced by the one that most of these cells have."""
    values, code, counts = np.unique(dosage, return_inverse=True, return_counts=True)
    new = np.diff(values, prepend=-np.inf) > _SAME_DOSE * values
    cluster = np.cumsum(new) - 1
    order = np.lexsort((counts, cluster))  # the most frequent of each cluster comes last
    usual = np.empty(cluster[-1] + 1 if len(values) else 0)
    usual[cluster[order]] = values[order]
    return usual[cluster][code]


def match_doses(dosage: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Doses (cells,), those apart from a known one by rounding replaced by it."""
    known = np.unique(known)
    nearest = known[np.abs(dosage[:, None] - known).argmin(1)] if len(known) else dosage
    return np.where(np.abs(dosage - nearest) <= _SAME_DOSE * np.abs(nearest), nearest, dosage)


def check_query_dosage(dosage: Any, n: int) -> np.ndarray:
    """Doses to predict as float64 of shape (n,), from a number or one number a row."""
    values = pd.Series([dosage]) if isinstance(dosage, (Real, str)) else pd.Series(np.asarray(dosage).ravel())
    if values.empty:
        raise ValueError("`dosage` is empty. Give one number or several, or leave it out.")
    if (
        values.dtype == object
        and values.map(lambda value: isinstance(value, Real) and not isinstance(value, bool)).all()
    ):
        values = values.astype(np.float64)  # numbers from a table of mixed columns
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        bad = next(
            (value for value in values if isinstance(value, (str, bool)) or not isinstance(value, Real)), values[0]
        )
        kind = "text" if isinstance(bad, str) else type(bad).__name__
        raise ValueError(f"`dosage` holds {kind} such as {bad!r}. Give numbers in one unit (10.0 and not '10uM').")
    doses = values.to_numpy(dtype=np.float64, na_value=np.nan)
    if len(doses) == 1:
        doses = np.repeat(doses, n)
    if len(doses) != n:
        raise ValueError(f"`dosage` has {len(doses)} values for {n} rows of `drug_embedding`. Give one number or {n}.")
    if not (np.isfinite(doses) & (doses >= 0)).all():
        bad = doses[~(np.isfinite(doses) & (doses >= 0))][0]
        raise ValueError(f"`dosage` contains {bad:g}. Doses are finite and not negative, in the units of the fit.")
    return doses


def check_interval(level: Any) -> None:
    """Raise a ValueError unless `level`, the share that intervals hold, lies between 0 and 1."""
    if isinstance(level, str) or not 0 < level < 1:
        other = " A level of the effect modifier is given as `covariates`." if isinstance(level, str) else ""
        raise ValueError(
            f"Expected `level`, the share that intervals hold, between 0 and 1 (such as 0.95), found {level!r}.{other}"
        )


def check_size_factors(obs: pd.DataFrame, size_factor_key: str) -> np.ndarray:
    """Size factors of all cells, shape (cells,), float64, positive and finite."""
    where = f"adata.obs[{size_factor_key!r}]"
    factors = numeric_values(check_column(obs, size_factor_key, "size_factor_key"), where)
    bad = ~(np.isfinite(factors) & (factors > 0))
    if bad.any():
        raise ValueError(f"{int(bad.sum())} cells have a size factor in `{where}` that is not positive and finite.")
    return factors


def check_regulators(var: pd.DataFrame, regulator_key: str) -> np.ndarray:
    """Which genes may regulate others, boolean, shape (genes,)."""
    check_key(regulator_key, var.columns, where="adata.var", argument="regulator_key")
    column, where = var[regulator_key], f"adata.var[{regulator_key!r}]"
    missing = column.isna()
    if missing.any():
        raise ValueError(
            f"{int(missing.sum())} genes have no value (NaN) in `{where}`: {quote_some(var.index[missing])}. Say True or False "
            f"of each, such as by `{where} = {where}.fillna(False).astype(bool)`."
        )
    if not pd.api.types.is_bool_dtype(column):
        raise ValueError(
            f"`{where}` must be boolean, found {column.dtype} with values such as {quote_some(pd.unique(column), 3)}. Convert "
            "it, or mark genes by `scgim.pp.mark_regulators`."
        )
    regulators = column.to_numpy(dtype=bool)
    if regulators.sum() < 2:
        raise ValueError(
            f"`{where}` marks {int(regulators.sum())} of {len(regulators)} genes as regulators; a network needs two or more. "
            "Mark more, or leave out `regulator_key` if any gene may regulate."
        )
    return regulators


def check_levels(design: pd.DataFrame, effect_modifier_key: str, control: str) -> list[str]:
    """Levels of the effect modifier, sorted, of cells with columns `perturbation` and `level`.

    Raises
    ------
    ValueError
        There is but one level, or a level has no control cells.
    """
    where = f"adata.obs[{effect_modifier_key!r}]"
    levels = sorted(design["level"].unique())
    if len(levels) < 2:
        raise ValueError(
            f"All cells are {levels[0]!r} in `{where}`. An effect modifier has two levels or more: leave out `effect_modifier_key`."
        )
    is_control = design["perturbation"] == control
    without = sorted(set(levels) - set(design.loc[is_control, "level"]))
    if without:
        raise ValueError(
            f"Levels of `{where}` have no control cells ({control!r}): {quote_some(without)}. What drugs do there cannot be told from "
            "what these cells are. Add their controls, or leave out their cells."
        )
    if len(levels) > _MAX_LEVELS:
        raise ValueError(
            f"`{where}` has {len(levels)} levels, and effects of {_MAX_LEVELS} at most are told apart. Is it a column of categories?"
        )
    if design.loc[~is_control, "level"].nunique() < 2:
        raise ValueError(
            f"Drugs were measured in one level of `{where}` only, {design.loc[~is_control, 'level'].iloc[0]!r}, so that nothing is "
            "known of how effects differ. Leave out `effect_modifier_key`, and give the column as a covariate."
        )
    return levels


def check_covariates(values: pd.DataFrame, known: Mapping[str, Sequence[Any]]) -> None:
    """Raise when `values` (rows x covariates) lack a covariate of the model or hold a value that it was not fitted on.

    Parameters
    ----------
    values
        Covariates, one column each.
    known
        Values seen in training for each categorical covariate.
    """
    for key, seen in known.items():
        check_key(key, values.columns, where="covariates", argument="covariate")
        names = {str(value) for value in seen}
        unseen = [value for value in pd.unique(values[key].astype(str)) if value not in names]
        if unseen:
            raise ValueError(
                f"Covariate {key!r} has values that were not in the training data: {quote_some(unseen)}. "
                f"Known values: {quote_some(seen, 20)}."
            )
