"""Tables and figures of what fits cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from benchmarks._figures import curves
from benchmarks._records import goal, mean_and_spread

if TYPE_CHECKING:
    from collections.abc import Callable

_PARTS = {"search": "of these, search", "descent": "descent", "inference": "inference"}
_COST = {"cpu": "CPU s", **_PARTS, "wall": "wall-clock s", "memory_mb": "peak MB"}
_PREDICTION = {"first_prediction": "s of the first `predict_mean`", "prediction": "s of `predict`, 100 cells each"}
_ACCURACY = {"edge_auprc": "edge AUPRC", "target_auprc": "target AUPRC"}
_USE = {
    "annotate": "s of `annotate`",
    "prediction_measured": "s of `predict_mean`, 5 measured drugs",
    "first_prediction": "s of `predict_mean`, 5 new drugs",
}
_STEPS = {
    "step": "s a step",
    "floor": "s of bare arithmetic",
    "ratio": "ratio",
    "epoch": "s an epoch",
    "scvi_epoch": "s of SCVI, batch 1,024",
    "scvi_epoch_default": "s of SCVI, batch 128",
    "ratio_scvi": "epoch over SCVI's",
}
_COLUMNS = {
    "cells": (("cells",), _COST),
    "genes": (("genes",), _COST),
    "regulators": (("genes",), {**_COST, **_ACCURACY}),
    "lines": (("genes", "regulators"), {**_COST, **_USE, **_ACCURACY}),
    "contexts": (("drugs", "contexts"), _COST),
    "features": (("features",), _COST | _PREDICTION),
    "library": (("drugs",), _COST | _PREDICTION),
    "stored": (("cells", "counts"), {"memory_before_mb": "MB before", **_COST}),
    "steps": (("genes",), _STEPS),
}


def tables(suite: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tables of a suite by name."""
    by, columns = _COLUMNS[suite]
    found = {f"scale-{suite}": mean_and_spread(frame, by, columns)}
    goals = _GOALS[suite](frame) if suite in _GOALS else []
    if goals:  # none where what they are about was not run
        found[f"scale-{suite}-goals"] = pd.DataFrame(goals)
    return found


def exponents(suite: str, frame: pd.DataFrame) -> str:
    """Sentence with the fitted exponents of cost."""
    by = _COLUMNS[suite][0][0]
    names = ["cpu", *_PARTS, *_PREDICTION, "memory_mb"]
    headings = _COST | _PREDICTION
    x = frame[by].to_numpy(float)
    if len(np.unique(x)) < 3 or "cpu" not in frame:
        return ""
    found = [
        f"{headings[name].removeprefix('of these, ')} {slope(x, frame[name].to_numpy(float)):.2f}"
        for name in names
        if name in frame and frame[name].notna().all()
    ]
    return f"Exponents of {by}, by least squares of the logarithms: {', '.join(found)}."


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Exponent of y in x."""
    return float(np.polyfit(np.log(x), np.log(np.maximum(y, 1e-2)), 1)[0])


def figure(suite: str, frame: pd.DataFrame) -> str:
    """Curves of time and memory; Markdown that shows them."""
    by = _COLUMNS[suite][0][0]
    scores = {"cpu": "CPU seconds", "memory_mb": "peak memory, MB"}
    return curves(frame.assign(fit="scGIM"), by, scores, "fit", f"scale-{suite}", log_y=tuple(scores))


def _cells_goals(frame: pd.DataFrame) -> list[dict]:
    part = frame[frame["cells"] == 100_000]
    return [
        goal("100,000 cells: minutes", part["wall"].max() / 60, 5, at_least=False),
        goal("100,000 cells: peak memory, GB", part["memory_mb"].max() / 1000, 3, at_least=False),
    ]


def _genes_goals(frame: pd.DataFrame) -> list[dict]:
    wall, cpu = (frame.groupby("genes")[name].max() / 60 for name in ("wall", "cpu"))
    rows = []
    if 1000 in wall:
        rows.append(goal("1,000 genes: minutes", wall[1000], 15, at_least=False))
    if 2000 in cpu:
        rows.append(goal("2,000 genes: CPU minutes", cpu[2000], 30, at_least=False))
    return rows


def _regulators_goals(frame: pd.DataFrame) -> list[dict]:
    part = frame[frame["genes"] == 5000]
    if part.empty:
        return []
    return [
        goal("5,000 genes, 500 regulators: CPU minutes", part["cpu"].max() / 60, 15, at_least=False),
        goal("5,000 genes, 500 regulators: peak memory, GB", part["memory_mb"].max() / 1000, 6, at_least=False),
    ]


def _lines_goals(frame: pd.DataFrame) -> list[dict]:
    rows = []
    for who, bound in (("200, told", 15), ("any", 30)):
        part = frame[frame["regulators"] == who]
        if len(part):
            rows.append(goal(f"regulators {who}: CPU minutes", part["cpu"].max() / 60, bound, at_least=False))
            rows.append(goal(f"regulators {who}: peak memory, GB", part["memory_mb"].max() / 1000, 6, at_least=False))
    return rows


def _steps_goals(frame: pd.DataFrame) -> list[dict]:
    part = frame[frame["genes"] == 200]
    rows = [goal("200 genes: epoch over SCVI's", part["ratio_scvi"].max(), 1.0, at_least=False)]
    for n, part in frame.groupby("genes"):
        rows.append(goal(f"{n} genes: step over bare arithmetic", part["ratio"].max(), 1.5, at_least=False))
    return rows


_GOALS: dict[str, Callable[[pd.DataFrame], list[dict]]] = {
    "cells": _cells_goals,
    "genes": _genes_goals,
    "regulators": _regulators_goals,
    "lines": _lines_goals,
    "steps": _steps_goals,
}
FIGURES = ("cells", "genes")
