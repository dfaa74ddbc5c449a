"""Tables of what a constant changes, world by world."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from benchmarks import _report
from benchmarks._records import spread
from benchmarks.sensitivity.suites import AS_IT_IS

if TYPE_CHECKING:
    from collections.abc import Iterator

SCORES = {"edge_auprc": "edge AUPRC", "target_auprc": "target AUPRC"}
ERRORS = {"unseen_dose": "energy distance, unseen doses", "unseen_drug": "energy distance, unseen drugs"}
# What counts as a change: of a score, and of an error as a share of what it is. Differences between fits of alike data are of this size.
_NOTABLE = {**dict.fromkeys(SCORES, 0.02), **dict.fromkeys(ERRORS, 0.1)}


def changes(frame: pd.DataFrame) -> pd.DataFrame:
    """Differences to the fit of the same world with all constants as they are; of errors, as a share of that."""
    names = [name for name in [*SCORES, *ERRORS] if name in frame]
    usual = frame[frame["constant"] == AS_IT_IS].set_index("seed")[names]
    frame = frame[(frame["constant"] != AS_IT_IS) & frame["seed"].isin(usual.index)].copy()
    before = usual.loc[frame["seed"]].to_numpy()
    share = np.array([name in ERRORS for name in names])
    frame[names] = (frame[names].to_numpy() - before) / np.where(share, before, 1.0)
    return frame


def tables(suite: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Scores as constants are, in the first row, and below it what changes."""
    headings = {name: text for name, text in (SCORES | ERRORS).items() if name in frame}
    usual = frame[frame["constant"] == AS_IT_IS]
    rows = [_row(AS_IT_IS, "", usual, {name: spread(usual[name]) for name in headings}, headings)]
    for (constant, value), group in changes(frame).groupby(["constant", "value"], sort=False):
        cells = {name: _signed(group[name], percent=name in ERRORS) for name in headings}
        rows.append(_row(constant, value, group, cells, headings))
    return {f"sensitivity-{suite}": pd.DataFrame(rows)}


def _row(constant: str, value: str, group: pd.DataFrame, cells: dict[str, str], headings: dict[str, str]) -> dict:
    scores = {headings[name]: cell for name, cell in cells.items()}
    return {"constant": constant, "value": value, **scores, "CPU s": f"{group['cpu'].mean():.3g}", "fits": len(group)}


def _signed(values: pd.Series, *, percent: bool) -> str:
    """Mean change with its sign, and the range over worlds."""
    values = values.dropna() * (100 if percent else 1)
    low, mean, high = (f"{x:+.0f}" if percent else f"{x:+.3f}" for x in (values.min(), values.mean(), values.max()))
    unit = " %" if percent else ""
    return f"{mean}{unit}" + (f" ({low} to {high})" if len(values) > 1 else "")


def notable(frame: pd.DataFrame) -> Iterator[str]:
    """Changes that are large on average and have the same sign in all worlds, in words."""
    for (constant, value), group in changes(frame).groupby(["constant", "value"], sort=False):
        for name in [name for name in _NOTABLE if name in group]:
            values = group[name].dropna()
            if len(values) and abs(values.mean()) >= _NOTABLE[name] and abs(np.sign(values).sum()) == len(values):
                worse = (values.mean() > 0) == (name in ERRORS)
                yield f"{constant}, {value} ({(SCORES | ERRORS)[name]} {'worse' if worse else 'better'})"


def remarks(frame: pd.DataFrame) -> list[str]:
    """Sentences below a table."""
    found = list(notable(frame))
    score, share = _report.format_value(_NOTABLE["edge_auprc"]), f"{100 * _NOTABLE['unseen_dose']:.0f} %"
    return [
        "First row: mean ± standard deviation over worlds. Others: mean change, and its range over worlds, to the fit of the same world with all "
        f"constants as they are; of distances in per cent. Changes of the same sign in all worlds, by {score} of a score or {share} of a distance "
        f"on average: {'; '.join(found) if found else 'none'}."
    ]
