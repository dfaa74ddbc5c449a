"""Tables and figures of the suites on structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from benchmarks._figures import curves
from benchmarks._records import goal, mean_and_spread

if TYPE_CHECKING:
    from collections.abc import Callable

EDGES = {"edge_auprc": "edge AUPRC", "edge_f1": "edge F1", "shd": "edge errors (SHD)"}
TARGETS = {"target_auprc": "target AUPRC", "target_f1": "target F1"}
COST = {"cpu": "CPU s"}
CALIBRATION = {"edge_ece": "edge calibration error", "target_ece": "target calibration error"}
STATES = {"n_states": "states found", "variance_ratio": "variance in simulated controls over that observed"}
DEPTH = {"depth_error": "error of log size factors", "variance_ratio": STATES["variance_ratio"]}
DECISIONS = {
    "edge_precision": "edge precision",
    "edge_recall": "edge recall",
    "target_precision": "target precision",
    "target_recall": "target recall",
}
NEW_DRUGS = {
    "new_target_auprc": "target AUPRC, new drugs",
    "new_energy": "energy distance, new drugs",
    "new_energy_ratio": "of the better regression",
    "new_energy_trainmean": "mean training shift",
}
_CURVES = {"edge_auprc": "edge AUPRC", "target_auprc": "target AUPRC"}


@dataclass(frozen=True)
class Report:
    """How a suite is shown.

    Parameters
    ----------
    by
        Labels that make a row.
    columns
        Scores and their headings.
    goals
        Rows of the table of goals, from the records.
    figure
        Draws the figure from the records; returns Markdown.
    """

    by: tuple[str, ...]
    columns: dict[str, str]
    goals: Callable[[pd.DataFrame], list[dict]] | None = None
    figure: Callable[[pd.DataFrame], str] | None = None


def tables(suite: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tables of a suite by name."""
    report = REPORTS[suite]
    found = {f"structure-{suite}": mean_and_spread(frame, report.by, report.columns)}
    if report.goals is not None:
        found[f"structure-{suite}-goals"] = pd.DataFrame(report.goals(frame))
    return found


def _main_goals(frame: pd.DataFrame) -> list[dict]:
    counts, floats = (frame[frame["view"] == view] for view in ("count", "float"))
    bounds = {"edge_auprc": 0.98, "edge_f1": 0.97, "target_auprc": 0.98, "target_f1": 0.94}
    rows = [
        goal(f"counts: {(EDGES | TARGETS)[name]}", counts[name].mean(), bound, at_least=True)
        for name, bound in bounds.items()
    ]
    upper = {"shd": 1.5, "edge_ece": 0.05, "target_ece": 0.05, "cpu": 15}
    headings = EDGES | CALIBRATION | COST
    rows += [
        goal(f"counts: {headings[name]}", counts[name].mean(), bound, at_least=False) for name, bound in upper.items()
    ]
    for graph, bound in (("er", 0.85), ("sf", 0.9)):
        value = floats.loc[floats["graph"] == graph, "edge_auprc"].mean()
        rows.append(goal(f"Gaussian, {graph}: edge AUPRC", value, bound, at_least=True))
    return [*rows, goal("Gaussian: target AUPRC", floats["target_auprc"].mean(), 0.85, at_least=True)]


def _size_goals(frame: pd.DataFrame) -> list[dict]:
    large, largest = frame[frame["genes"] == 500], frame[frame["genes"] == 1000]
    return [
        goal("500 genes: edge AUPRC", large["edge_auprc"].mean(), 0.95, at_least=True),
        goal("500 genes: CPU minutes, the longest", large["cpu"].max() / 60, 15, at_least=False),
        goal("500 genes: peak memory, GB, the largest", large["memory_mb"].max() / 1000, 4, at_least=False),
        goal("1,000 genes: fits that ran", len(largest), 1, at_least=True),
    ]


def _noise_goals(frame: pd.DataFrame) -> list[dict]:
    rows = []
    for mean, bounds in ((1.0, (1.4, 1.2)), (10.0, (1.4, 1.2))):
        at_mean = frame[frame["mean count"] == mean].groupby("fitted")[list(_CURVES)].mean()
        for (score, heading), bound in zip(_CURVES.items(), bounds, strict=True):
            values = at_mean[score].reindex(["latent", "direct", "hidden expression"])
            rows.append(
                goal(
                    f"mean count {mean:g}: {heading} over the plain model's",
                    values.iloc[0] / values.iloc[1],
                    bound,
                    at_least=True,
                )
            )
            survives = {"quantity": f"mean count {mean:g}: {heading} over that of hidden expression", "goal": ""}
            rows.append(survives | {"measured": values.iloc[0] / values.iloc[2], "met": ""})
    return rows


def _joint_goals(frame: pd.DataFrame) -> list[dict]:
    """Target AUPRC with features less that without."""
    means = frame.groupby(["cells a context", "features"])["target_auprc"].mean().unstack("features")
    means = means.reindex(columns=["none", "informative", "shuffled"])
    gain = means.sub(means["none"], axis=0)
    few, many = means.index.min(), means.index.max()
    heading = "cells a context: gain in target AUPRC by"
    rows = [
        goal(f"{few} {heading} informative features", gain.loc[few, "informative"], 0.02, at_least=True),
        goal(
            f"{few} {heading} informative features, over that at {many}",
            gain.loc[few, "informative"] - gain.loc[many, "informative"],
            0.0,
            at_least=True,
        ),
    ]
    return rows + [
        goal(f"{n} {heading} shuffled features", value, -0.01, at_least=True) for n, value in gain["shuffled"].items()
    ]


def _states_goals(frame: pd.DataFrame) -> list[dict]:
    means = frame.groupby("world")[["edge_auprc", "n_states"]].mean()
    rows = [
        goal(f"{world}: edge AUPRC", means.loc[world, "edge_auprc"], bound, at_least=True)
        for world, bound in {"1 hidden cause": 0.95, "3 hidden causes": 0.85}.items()
    ]
    none = [world for world in means.index if world.startswith("none")]
    return [*rows, goal("none: states found", means.loc[none, "n_states"].mean(), 0, at_least=False)]


def _depth_goals(frame: pd.DataFrame) -> list[dict]:
    means = frame.groupby(["world", "size factors"])[["edge_auprc", "depth_error"]].mean()
    estimated = means.xs("estimated", level=1)
    return [
        goal("depth varies: edge AUPRC", estimated.loc["depth varies", "edge_auprc"], 0.95, at_least=True),
        goal("none: error of log size factors", estimated.loc["none", "depth_error"], 0, at_least=False),
    ]


def _size_figure(frame: pd.DataFrame) -> str:
    scores = {"edge_auprc": "edge AUPRC", "target_auprc": "target AUPRC", "cpu": "CPU seconds"}
    return curves(frame, "genes", scores, "graph", "structure-size", log_y=("cpu",))


def _drugs_figure(frame: pd.DataFrame) -> str:
    lines = frame.assign(world=frame["graph"] + ", " + frame["view"])
    return curves(lines, "drugs", _CURVES, "world", "structure-drugs")


def _density_figure(frame: pd.DataFrame) -> str:
    lines = frame.assign(world=frame["graph"] + ", " + frame["view"])
    return curves(lines, "edges a gene", _CURVES, "world", "structure-density")


def _features_figure(frame: pd.DataFrame) -> str:
    scores = {"new_target_auprc": "target AUPRC, new drugs", "new_energy": "energy distance, new drugs"}
    lines = frame[frame["noise"] == 0.1].assign(features="noise 0.1")
    return curves(lines, "dimension", scores, "features", "structure-features")


def _noise_figure(frame: pd.DataFrame) -> str:
    return curves(frame, "mean count", _CURVES, "fitted", "structure-noise")


REPORTS = {
    "main": Report(("graph", "view"), EDGES | TARGETS | DECISIONS | CALIBRATION | COST, _main_goals),
    "size": Report(("genes", "graph"), EDGES | TARGETS | COST | {"memory_mb": "peak MB"}, _size_goals, _size_figure),
    "combined": Report(("world", "graph"), EDGES | TARGETS | COST),
    "density": Report(("edges a gene", "graph", "view"), EDGES | TARGETS | COST, figure=_density_figure),
    "drugs": Report(("drugs", "graph", "view"), EDGES | TARGETS | COST, figure=_drugs_figure),
    "features": Report(
        ("dimension", "noise"), {"edge_auprc": "edge AUPRC", **TARGETS, **NEW_DRUGS}, figure=_features_figure
    ),
    "joint": Report(
        ("cells a context", "features"),
        {**TARGETS, "target_ece": CALIBRATION["target_ece"], "edge_auprc": EDGES["edge_auprc"], **COST},
        _joint_goals,
    ),
    "hard": Report(("graph", "view"), EDGES | TARGETS | CALIBRATION | COST),
    "mlp": Report(("graph", "fitted"), EDGES | TARGETS | CALIBRATION | COST),
    "noise": Report(("mean count", "graph", "fitted"), EDGES | TARGETS | COST, _noise_goals, _noise_figure),
    "misspecification": Report(("world", "fitted"), EDGES | DECISIONS | TARGETS | CALIBRATION),
    "depth": Report(("world", "size factors"), DEPTH | EDGES | DECISIONS | TARGETS | CALIBRATION | COST, _depth_goals),
    "states": Report(("world",), STATES | EDGES | DECISIONS | TARGETS | CALIBRATION | COST, _states_goals),
}
