"""Curves of a score over a setting, for the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

FOLDER = Path(__file__).parents[1] / "docs" / "_static" / "benchmarks"
# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_PANEL, _LEGEND = (2.9, 2.5), 1.3


def curves(
    frame: pd.DataFrame,
    x: str,
    scores: Mapping[str, str],
    by: str,
    name: str,
    *,
    log_x: bool = True,
    log_y: tuple[str, ...] = (),
) -> str:
    """Draw a panel for each score, mean and spread over data sets, a line for each value of `by`; returns Markdown that shows it."""
    fig, axes = plt.subplots(
        1, len(scores), figsize=(_PANEL[0] * len(scores) + _LEGEND, _PANEL[1]), layout="constrained", squeeze=False
    )
    for ax, (score, label) in zip(axes[0], scores.items(), strict=True):
        for colour, (value, lines) in zip(_COLOURS, frame.groupby(by, sort=False), strict=False):
            points = lines.groupby(x)[score].agg(["mean", "std"]).fillna(0.0)
            ax.errorbar(
                points.index, points["mean"], points["std"], color=colour, marker="o", ms=4, capsize=2, label=str(value)
            )
        if log_x:
            ax.set_xscale("log")
            ticks = sorted(frame[x].unique())
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
        if score in log_y:
            ax.set_yscale("log")
        else:
            ax.set_ylim(bottom=0.0, top=1.04 if _is_share(frame[score]) else None)
        ax.set(xlabel=x, ylabel=label)
        ax.spines[["top", "right"]].set_visible(False)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, title=by, loc="outside right center")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({"svg.hashsalt": name}):  # the same figure, the same file
        fig.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    plt.close(fig)
    panels = " and ".join(scores.values())
    return f"![{panels} over {x}](_static/benchmarks/{name}.svg)"


def _is_share(values: pd.Series) -> bool:
    """Whether values reach, and keep below, one."""
    return 0.5 < values.max() <= 1.0
