"""Levels of an effect modifier, such as cell lines: controls of each, and drugs that were measured in several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgim._validation import quote_some
from scgim.pp._report import FAIL, Row, Screen, row

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_CONTEXT = {True: 3, False: 20}  # observations of a drug and dose, on a plate or not
_MIN_CONTROLS = 50  # of a level: means to 0.14 standard deviations; convention


def _contexts(screen: Screen, level: np.ndarray, key: str) -> Row:
    """Observations of each drug and dose in each level: effects of a level come from these, and from what levels have in common."""
    treated = ~screen.is_control
    sizes = pd.Series(level[treated]).groupby([screen.contexts[treated], level[treated]]).size()
    enough = MIN_CONTEXT[screen.is_plate]
    small = sizes[sizes < enough].sort_values(kind="stable")
    shown = quote_some([f"{context} in {of}" for context, of in small.index], 3)
    advice = (
        f"{len(small)} of {len(sizes)} have fewer than {enough} ({shown}): what differs between levels there is uncertain, and shrunk to what "
        "they have in common."
    )
    found = f"median {sizes.median():g}, least {sizes.min()} in {sizes.idxmin()[1]!r}"
    return row(f"{screen.unit}s per context and {key!r}", found, advice if len(small) else "")


def levels(screen: Screen) -> Iterator[Row]:
    """What effects that differ between levels can rest on, if there is a modifier."""
    key = screen.effect_modifier_key
    if key is None:
        return
    level = screen.adata.obs[key].astype(str).to_numpy()
    treated = level[~screen.is_control]
    controls = pd.Series(level[screen.is_control]).value_counts().reindex(np.unique(level), fill_value=0)
    without, few = controls.index[controls == 0], controls.index[(controls > 0) & (controls < _MIN_CONTROLS)]
    advice = f"{quote_some(without)} have none: add them, or leave out these {screen.unit}s." if len(without) else ""
    if len(few) and not advice:
        advice = (
            f"{quote_some(few)} have fewer than {_MIN_CONTROLS}: all effects there are off by what their mean is off."
        )
    found = f"{len(controls)} levels, {controls.min()} to {controls.max()} a level"
    yield row(f"controls by {key!r}", found, advice, verdict=FAIL if len(without) else "warn")
    if screen.dosage is not None:
        yield _contexts(screen, level, key)
    never = sorted(set(controls.index) - set(treated))
    drugs = pd.Series(treated).groupby(np.asarray(screen.labels)[~screen.is_control].astype(str)).nunique()
    several = int((drugs > 1).sum())
    advice = ""
    if not several:
        advice = "No drug was measured in two levels, so that nothing is known of how effects differ: give the column as a covariate."
    elif never:
        advice = f"{quote_some(never)} have controls only: what drugs do there is carried over from the others."
    yield row(f"drugs in several levels of {key!r}", f"{several} of {len(drugs)}", advice)
