"""Tables of the suites on worlds of other form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks._records import mean_and_spread, spread
from benchmarks.worlds.measure import BASELINES, OURS

if TYPE_CHECKING:
    import pandas as pd

BY = {
    "kinetic": ["mean count"],
    "variants": ["world"],
    "regulators": ["mean count", "measurement", "regulators"],
    "sciplex": ["cells"],
    "gnw": ["world"],
    "hsc": ["world"],
    "planted": ["cells", "targets"],
}
RATIO = "scGIM over the bar"
SPLITS = {"unseen_dose": "unseen doses", "unseen_drug": "unseen drugs"}
STRUCTURE = {
    "edge_auprc": "edge AUPRC",
    "edge_auprc_correlation": "correlation",
    "edge_auprc_correlation_told": "correlation, regulators told",
    "edge_precision": "edge precision",
    "edge_recall": "edge recall",
    "target_auprc": "target AUPRC",
    "target_auprc_ttest": "t-test",
    "target_precision": "target precision",
    "target_recall": "target recall",
    "target_ece": "target calibration error",
    "new_target_auprc": "target AUPRC, new drugs",
    "cpu": "CPU s",
}
PLANTED = {
    "target_auprc": "target AUPRC",
    "target_auprc_ttest": "t-test",
    "target_auprc_told_sizes": "told the sizes",
    "target_precision": "target precision",
    "target_recall": "target recall",
    "target_ece": "target calibration error",
    "called_of_nothing": "genes called for a drug that does nothing",
    "left_out": "intervals of no targets that leave out zero",
    "mean_prob": "mean probability",
    "true_share": "true share",
    "n_states": "hidden states",
    "cpu": "CPU s",
}
# Those that a comparison does not have are left out.
METRICS = {
    "centred_correlation": "centred correlation (r)",
    "discrimination": "discrimination",
    "energy_distance": "energy distance",
    "mean_shift_error": "error of mean shift",
    "mean_shift_correlation": "correlation of mean shifts (r)",
}


def ratios(frame: pd.DataFrame, by: list[str], score: str = "energy_distance") -> pd.DataFrame:
    """A row a world and split: the score of each method, and ours over the best of the baselines."""
    wide = frame.pivot_table(score, [*by, "seed", "split"], "method", sort=False)
    wide[RATIO] = wide[OURS] / wide[[name for name in BASELINES if name in wide]].min(axis=1)
    return wide.reset_index()


def tables(suite: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tables of a suite by name."""
    by = BY[suite]
    if suite in ("gnw", "hsc"):
        return {f"worlds-{suite}": mean_and_spread(frame, by, STRUCTURE)}
    if suite == "planted":
        return {"worlds-planted": mean_and_spread(frame, by, PLANTED)}
    frame = frame.sort_values("split", kind="stable")
    metrics = mean_and_spread(frame.replace({"split": SPLITS}), ["split", *by, "method"], METRICS | {"cpu": "CPU s"})
    if suite == "sciplex":
        return {"worlds-sciplex": metrics}
    if suite == "regulators":
        own = frame[(frame["method"] == OURS) & (frame["split"] == "unseen_drug")]
        return {"worlds-regulators": mean_and_spread(own, by, STRUCTURE)}
    wide = ratios(frame, by)
    methods = [name for name in [*BASELINES, OURS] if name in wide]
    columns = {name: name.replace("_", " ") for name in [*methods, RATIO]}
    ours = frame[(frame["method"] == OURS) & (frame["split"] == "unseen_drug")]
    found = {
        f"worlds-{suite}": mean_and_spread(wide.replace({"split": SPLITS}), ["split", *by], columns),
        f"worlds-{suite}-structure": mean_and_spread(ours, by, STRUCTURE),
    }
    if suite == "kinetic":
        found["worlds-kinetic-metrics"] = metrics
    return found


def remarks(suite: str, frame: pd.DataFrame) -> list[str]:
    """Sentences below the tables."""
    if suite in ("gnw", "hsc"):
        return [
            "Edges by absolute correlation in controls and targets by the largest t statistic over doses are shown beside ours; mean ± "
            "standard deviation over seeds of the fit."
        ]
    if suite == "planted":
        return [
            'Targets by the largest t statistic are shown beside ours, and "told the sizes" a ceiling, no peer: likelihood ratios of each gene by '
            "itself, told how large the effects are that were planted. Mean ± standard deviation over worlds."
        ]
    if suite == "sciplex":
        return [
            "Each line is compared with its own controls and the baselines are fitted to it alone; the scores are means over contexts and lines. "
            f"Cells trained on: {spread(frame['n_cells'])}.",
            *(_winners(frame, split) for split in SPLITS),
        ]
    ours = frame[(frame["method"] == OURS) & (frame["split"] == "unseen_drug")]
    if suite == "regulators":
        return [
            "Regulators are told by `regulator_key`, or found. Correlation is that in controls, of all pairs and of those whose first gene "
            "is a regulator."
        ]
    return [
        "Energy distance in control-standardised log1p space of counts divided by size factors, mean ± standard deviation over worlds; "
        "the bar is the best of the baselines in the same world. Edges by absolute correlation in controls, which has no direction, and "
        f"targets by the largest t statistic over doses are shown beside ours. CPU seconds of a fit: {spread(ours['cpu'])}."
    ]


def _winners(frame: pd.DataFrame, split: str) -> str:
    """Which method is best by correlation of shifts and which by energy distance: the same, or not."""
    means = frame[frame["split"] == split].groupby("method")[[name for name in METRICS if name in frame]].mean()
    best = [f"{means[name].idxmax()} by {METRICS[name]}" for name in means if "correlation" in name]
    return f"Best on {SPLITS[split]}: {', '.join(best)}, {means['energy_distance'].idxmin()} by energy distance."
