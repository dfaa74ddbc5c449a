"""Tables and figures of the suites on prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from benchmarks._figures import curves
from benchmarks._records import goal, mean_and_spread, spread
from benchmarks.prediction.measure import OURS

if TYPE_CHECKING:
    from collections.abc import Callable

REGRESSIONS = ["ridge", "krr"]
RATIO = "scGIM over the bar"
METRICS = {
    "centred_correlation": "centred correlation (r)",
    "discrimination": "discrimination",
    "energy_distance": "energy distance",
    "mmd": "MMD",
    "wasserstein1": "Wasserstein-1",
    "mean_shift_error": "error of mean shift",
    "mean_shift_correlation": "correlation of mean shifts (r)",
    "mean_shift_determination": "determination of mean shifts",
}
# Labels that make a row, and the largest ratio to the bar that is wanted, by split and, where they differ, by number of drugs.
BY = {
    "main": ["graph"],
    "drugs200": ["graph"],
    "nonlinear": ["drugs", "graph"],
    "gaussian": ["graph"],
    "ablation": ["change"],
    "genes": ["genes"],
    "library": ["drugs"],
}
_DOSE, _DRUG = "unseen_dose", "unseen_drug"
_BOUNDS = {"main": {_DOSE: 0.4, _DRUG: 0.7}, "drugs200": {_DOSE: 0.4, _DRUG: 0.6}}
_NONLINEAR_BOUNDS = {40: {_DOSE: 0.4, _DRUG: 0.85}, 200: {_DOSE: 0.4, _DRUG: 0.7}}
_WORDS = {_DOSE: "unseen doses", _DRUG: "unseen drugs"}
_SHOWN = [OURS, "ridge", "krr", "random_forest", "trainmean", "dosemean"]


def ratios(frame: pd.DataFrame, by: list[str], score: str = "energy_distance") -> pd.DataFrame:
    """A row a data set and split: the score of each method, and ours over the better of the regressions."""
    wide = frame.pivot_table(score, [*by, "seed", "split"], "method", sort=False)
    wide[RATIO] = wide[OURS] / wide[REGRESSIONS].min(axis=1)
    return wide.reset_index()


def tables(suite: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tables of a suite by name."""
    by = BY[suite]
    frame = frame.sort_values("split", kind="stable")
    wide = ratios(frame, by)
    methods = [name for name in frame["method"].unique() if name in wide]
    columns = {name: name.replace("_", " ") for name in [*methods, RATIO]}
    found = {f"prediction-{suite}": mean_and_spread(wide.replace({"split": _WORDS}), ["split", *by], columns)}
    pooled = [label for label in by if label != "graph"]
    shown = frame if suite == "main" else frame[frame["method"].isin(_SHOWN)]
    metrics = mean_and_spread(shown.replace({"split": _WORDS}), ["split", *pooled, "method"], METRICS)
    found[f"prediction-{suite}-metrics"] = metrics
    goals = _goals(suite, frame, wide)
    if goals:
        found[f"prediction-{suite}-goals"] = pd.DataFrame(goals)
    return found


def _goals(suite: str, frame: pd.DataFrame, wide: pd.DataFrame) -> list[dict]:
    if suite == "ablation":
        errors = ratios(
            frame[(frame["change"] == "shuffled") & (frame["split"] == _DRUG)], ["change"], "mean_shift_error"
        )
        over = float(errors[OURS].mean() / errors["trainmean"].mean()) if len(errors) else np.nan
        return [
            goal("features of other drugs: error of mean shifts over that of trainmean", over, 1.05, at_least=False)
        ]
    if suite == "nonlinear":
        groups = [(f"{n} drugs, ", wide[wide["drugs"] == n], bounds) for n, bounds in _NONLINEAR_BOUNDS.items()]
    else:
        groups = [("", wide, _BOUNDS[suite])] if suite in _BOUNDS else []
    return [
        goal(
            f"{name}{_WORDS[split]}: {RATIO}",
            float(part.loc[part["split"] == split, RATIO].mean()),
            bound,
            at_least=False,
        )
        for name, part, bounds in groups
        for split, bound in bounds.items()
    ]


def remarks(frame: pd.DataFrame) -> list[str]:
    """Sentences below the tables: what the columns are, what the fits took, and what the other scorer says."""
    ours = frame[frame["method"] == OURS]
    notes = [
        "Energy distance in control-standardised log1p space (standardised values for continuous data), mean ± standard deviation over data sets; "
        f"the bar is the better of {' and '.join(REGRESSIONS)} on the same data set. "
        f"CPU seconds of a fit: {spread(ours.drop_duplicates(['cpu'])['cpu'])}."
    ]
    if "score_energy" in ours and ours["score_energy"].notna().any():
        pairs = [f"{_WORDS[s]} {spread(part['score_energy'])}" for s, part in ours.groupby("split")]
        notes.append(f"Energy distance of scGIM by the generator's own scorer: {', '.join(pairs)}.")
    return notes


def _against_size(x: str, suite: str) -> Callable[[pd.DataFrame], list[str]]:
    def draw(frame: pd.DataFrame) -> list[str]:
        wide = ratios(frame, [x]).replace({"split": _WORDS})
        return [curves(wide, x, {RATIO: RATIO}, "split", f"prediction-{suite}")]

    return draw


def _ablation_figures(frame: pd.DataFrame) -> list[str]:
    """Energy distance on new drugs over the number of principal components, and over the noise on features."""
    frame = frame[(frame["split"] == _DRUG) & frame["method"].isin(_SHOWN)].sort_values(
        "method", key=lambda m: m.map(_SHOWN.index)
    )
    images = []
    for kind, x, whole in (("pca", "principal components kept", 20.0), ("noise", "noise on features (sd)", 0.03)):
        words = frame["change"].str.split(" ")
        amount = words.str[1].where(words.str[0] == kind).astype(float).where(frame["change"] != "as given", whole)
        lines = frame.assign(**{x: amount}).dropna(subset=[x])
        scores = {"energy_distance": "energy distance, new drugs"}
        images.append(curves(lines, x, scores, "method", f"prediction-ablation-{kind}"))
    return images


FIGURES: dict[str, Callable[[pd.DataFrame], list[str]]] = {
    "ablation": _ablation_figures,
    "genes": _against_size("genes", "genes"),
    "library": _against_size("drugs", "library"),
}
