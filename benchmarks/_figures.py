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
_PANEL = (3.2, 2.6)


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
        1, len(scores), figsize=(_PANEL[0] * len(scores), _PANEL[1]), layout="constrained", squeeze=False
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
        elif frame[score].max() <= 1.0:
            ax.set_ylim(-0.02, 1.04)
        ax.set(xlabel=x, ylabel=label)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, -1].legend(frameon=False, title=by)
    FOLDER.mkdir(parents=True, exist_ok=True)
    fig.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    plt.close(fig)
    panels = " and ".join(scores.values())
    return f"![{panels} over {x}](_static/benchmarks/{name}.svg)"
