"""Held-out splits at the level of contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from scgim._validation import (
    check_column,
    check_dosage,
    check_perturbations,
    in_combinations,
    quote_some,
    separate_combinations,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData

    from scgim._validation import Members

_MODES = ("drugs", "doses", "highest_dose", "levels", "combinations")


def _held_out_drugs(
    contexts: pd.DataFrame, fraction: float, rng: np.random.Generator, combinations: dict[str, Members]
) -> pd.Series:
    """Contexts of some drugs, alone or together with others."""
    members = [list(combinations.get(name, [name])) for name in contexts["perturbation"]]
    drugs = np.array(sorted({drug for own in members for drug in own}), dtype=object)
    if len(drugs) < 2:
        raise ValueError(
            f"Only {drugs[0]!r} was measured; holding out a drug needs at least two. Use hold_out='doses'."
        )
    n_held_out = min(max(1, round(fraction * len(drugs))), len(drugs) - 1)
    held_out = set(rng.choice(drugs, n_held_out, replace=False))
    out = pd.Series([not held_out.isdisjoint(own) for own in members], contexts.index)
    if out.all():
        raise ValueError(
            "All contexts hold one of the drugs that would be held out, alone or in a combination. Lower `fraction`, or name drugs."
        )
    return out


def _held_out_combinations(
    contexts: pd.DataFrame, fraction: float, rng: np.random.Generator, combinations: dict[str, Members]
) -> np.ndarray:
    together = contexts.index[contexts["perturbation"].isin(combinations)]
    if not len(together):
        raise ValueError(
            "No cell has several drugs, so no combination can be held out. Name the `combination_separator`."
        )
    n_held_out = min(max(1, round(fraction * len(together))), len(together))
    return contexts.index.isin(rng.choice(together, n_held_out, replace=False))


def _need_doses(contexts: pd.DataFrame) -> pd.DataFrame:
    """Contexts of drugs with more than one dose."""
    several = contexts[contexts.groupby("perturbation")["dosage"].transform("size") > 1]
    if several.empty:
        raise ValueError("No perturbation has two doses or more, so no dose can be held out. Use hold_out='drugs'.")
    return several


def _held_out_doses(contexts: pd.DataFrame, fraction: float, rng: np.random.Generator) -> pd.Series:
    candidates = _need_doses(contexts).sample(frac=1, random_state=rng)
    # One dose of each drug is exempt, so that every drug stays in training.
    candidates = candidates[candidates.duplicated("perturbation")]
    n_held_out = min(max(1, round(fraction * len(contexts))), len(candidates))
    return contexts.index.isin(candidates.index[rng.permutation(len(candidates))[:n_held_out]])


def _held_out_levels(cells: pd.DataFrame, fraction: float, rng: np.random.Generator) -> pd.Series:
    """Which cells are of levels that are held out for their drug."""
    pairs = cells[["perturbation", "level"]].drop_duplicates().sort_values(["perturbation", "level"])
    several = pairs[pairs.groupby("perturbation")["level"].transform("size") > 1]
    if several.empty:
        raise ValueError("No perturbation was measured in two levels or more, so none can be held out.")
    chosen = []
    for _, own in several.groupby("perturbation"):
        n = min(max(1, round(fraction * len(own))), len(own) - 1)
        chosen.append(own.iloc[rng.choice(len(own), n, replace=False)])
    held_out = pd.MultiIndex.from_frame(pd.concat(chosen))
    return pd.Series(pd.MultiIndex.from_frame(cells[["perturbation", "level"]]).isin(held_out), cells.index)


def _held_out_names(contexts: pd.DataFrame, names: Iterable, control: str) -> np.ndarray:
    held_out = np.zeros(len(contexts), dtype=bool)
    for name in names:
        drug, dose = name if isinstance(name, tuple) else (name, None)
        if drug == control:
            raise ValueError(f"`hold_out` names {control!r}, but controls are always in training. Leave it out.")
        of_drug = (contexts["perturbation"] == str(drug)).to_numpy()
        if not of_drug.any():
            known = quote_some(contexts["perturbation"].unique(), 10)
            raise ValueError(f"`hold_out` names {drug!r}, which has no cells. Perturbations: {known}.")
        chosen = of_drug if dose is None else of_drug & np.isclose(contexts["dosage"], dose, atol=0.0)
        if not chosen.any():
            known = quote_some(contexts.loc[of_drug, "dosage"], 10)
            raise ValueError(f"`hold_out` names {drug!r} at dose {dose!r}, which has no cells. Its doses: {known}.")
        held_out |= chosen
    if held_out.all():
        raise ValueError("`hold_out` names every context; nothing is left to train on.")
    return held_out


def split_by_context(
    adata: AnnData,
    hold_out: Literal["drugs", "doses", "highest_dose", "levels", "combinations"]
    | Iterable[str | tuple[str, float]] = "drugs",
    *,
    fraction: float = 0.2,
    perturbation_key: str = "perturbation",
    control: str = "control",
    dosage_key: str | None = "dosage",
    effect_modifier_key: str | None = None,
    combination_separator: str | None = None,
    seed: int = 0,
    key_added: str = "split",
) -> None:
    """Mark whole contexts (one drug at one dose) as held out, to measure predictions of what was never seen.

    Writes `adata.obs[key_added]`, categorical with `"train"` and `"test"`, and returns nothing. All cells of a context
    fall on one side, and controls are always `"train"`. A split by cell would not do: cells of the same drug and dose on both sides
    make every method look good.

    Parameters
    ----------
    adata
        A drug screen.
    hold_out
        `"drugs"`: a random `fraction` of the drugs, with all their doses (unseen drugs). `"doses"`: a random `fraction` of
        all contexts, at least one dose of each drug staying in training (unseen doses). `"highest_dose"`: the largest dose of
        every drug that has several. `"levels"`: each drug in a random `fraction` of the levels of `effect_modifier_key` in which it was
        measured, such as cell lines, but not in all (drugs in lines of which they saw others). `"combinations"`: a random `fraction` of the
        combinations of drugs. Or names: a list of drugs (or combinations, as :attr:`scgim.model.GIM.perturbations` names them), or of
        tuples (drug, dose).
    fraction
        Share held out, in (0, 1), for `"drugs"`, `"doses"`, `"levels"` and `"combinations"`; at least one is held out.
    perturbation_key, control, dosage_key
        Column of perturbations in obs, its category for controls, and column of doses (`None`: one dose).
    effect_modifier_key
        Column of levels in obs, for `"levels"`.
    combination_separator
        Sign between the drugs of a combination, as in :meth:`scgim.model.GIM.setup_anndata`. A drug that is held out by `"drugs"` is so in all
        its combinations.
    seed
        Seed of the random choice.
    key_added
        Column written.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If `hold_out` is not a known mode, names no cells or the control, or leaves nothing to train on; if `fraction` is
        not between 0 and 1; if labels or doses are not as :meth:`scgim.model.GIM.setup_anndata` wants them.

    Examples
    --------
    >>> scgim.pp.split_by_context(adata, "drugs", fraction=0.25)
    >>> train = adata[adata.obs["split"] == "train"].copy()
    """
    obs, combinations = separate_combinations(adata.obs, perturbation_key, control, dosage_key, combination_separator)
    perturbations = check_perturbations(obs, perturbation_key, control, in_combinations(combinations))
    dosage = check_dosage(obs, dosage_key, perturbation_key, control)
    cells = pd.DataFrame({"perturbation": perturbations.astype(object), "dosage": dosage})
    if not 0 < fraction < 1:
        raise ValueError(f"Expected `fraction` between 0 and 1, found {fraction!r}.")
    treated = cells["perturbation"] != control
    contexts = cells[treated].drop_duplicates().sort_values(["perturbation", "dosage"], ignore_index=True)
    rng = np.random.default_rng(seed)
    if (hold_out == "levels") != (effect_modifier_key is not None):
        raise ValueError(
            f"`hold_out={hold_out!r}` and `effect_modifier_key={effect_modifier_key!r}` do not go together: levels are held out by "
            "`hold_out='levels', effect_modifier_key='cell_line'`, say."
        )
    if effect_modifier_key is not None:
        level = check_column(adata.obs, effect_modifier_key, "effect_modifier_key").astype(str).to_numpy()
        test = _held_out_levels(cells.assign(level=level)[treated], fraction, rng).reindex(
            cells.index, fill_value=False
        )
        adata.obs[key_added] = pd.Categorical(np.where(test, "test", "train"), categories=["train", "test"])
        return
    if isinstance(hold_out, str) and hold_out not in _MODES:
        raise ValueError(
            f"Expected `hold_out` to be one of {list(_MODES)} or a list of perturbations, found {hold_out!r}."
        )
    if not isinstance(hold_out, str):
        held_out = _held_out_names(contexts, hold_out, control)
    elif hold_out == "drugs":
        held_out = _held_out_drugs(contexts, fraction, rng, combinations)
    elif hold_out == "combinations":
        held_out = _held_out_combinations(contexts, fraction, rng, combinations)
    elif hold_out == "doses":
        held_out = _held_out_doses(contexts, fraction, rng)
    else:
        largest = _need_doses(contexts).groupby("perturbation")["dosage"].idxmax()
        held_out = contexts.index.isin(largest)
    test = pd.MultiIndex.from_frame(cells).isin(pd.MultiIndex.from_frame(contexts[np.asarray(held_out)]))
    adata.obs[key_added] = pd.Categorical(np.where(test, "test", "train"), categories=["train", "test"])
