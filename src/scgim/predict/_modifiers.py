"""Whether effects differ between the levels of a modifier, by Cochran's test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import chi2, false_discovery_control

if TYPE_CHECKING:
    from scgim.interventions._interventions import Interventions

_TINY = 1e-12  # where one level has all the precision, nothing is known of the spread
_COLUMNS = ["n_levels", "n_targets", "spread", "statistic", "df", "p_value", "p_adjusted", "gene", "level"]


def modifier_table(found: Interventions, names: list[str], genes: list[str], levels: list[str]) -> pd.DataFrame:
    """One row a perturbation measured in two levels or more.

    Errors of estimates hold the spread of what genes show without being targets, so that levels whose effects differ by no more agree.
    """
    heights, information = (part.numpy() for part in found.levels.at_top(found))  # type: ignore[union-attr]
    rows = {}
    for u, name in enumerate(names):
        measured = information[u].max(1) > 0
        if measured.sum() < 2:
            continue
        chosen = np.flatnonzero(found.target_probs[u].numpy() > 0.5)
        if not len(chosen):
            # no effect that could differ; the gene that looks most like a target would be a choice by chance
            nothing = {"n_targets": 0, "spread": 0.0, "statistic": 0.0, "df": 0, "p_value": 1.0}
            rows[name] = {"n_levels": int(measured.sum()), **nothing}
            continue
        effect, precision = (part[u][np.ix_(measured, chosen)] for part in (heights, information))
        mean = (precision * effect).sum(0) / precision.sum(0)
        off = precision * (effect - mean) ** 2
        rows[name] = _row(off, precision, np.flatnonzero(measured), chosen, genes, levels)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("perturbation")
    if table.empty:
        return pd.DataFrame(columns=_COLUMNS).rename_axis("perturbation")
    table["p_adjusted"] = false_discovery_control(table["p_value"])
    table = table.sort_values(["p_value", "statistic"], ascending=[True, False])
    return table.reindex(columns=_COLUMNS)


def _row(off: np.ndarray, precision: np.ndarray, measured: np.ndarray, chosen: np.ndarray, genes, levels) -> dict:
    """Test and size of the differences; `off` are squared differences in units of their errors, (levels, targets)."""
    n, q = len(measured), off.sum(0)
    # of DerSimonian and Laird: what is left of the differences once chance is taken out
    scale = precision.sum(0) - (precision**2).sum(0) / precision.sum(0)
    between = np.maximum(0.0, (q - (n - 1)) / np.maximum(scale, _TINY))
    level, gene = np.unravel_index(off.argmax(), off.shape)
    df = (n - 1) * len(chosen)
    return {
        "n_levels": n,
        "n_targets": len(chosen),
        "spread": float(np.sqrt(between.mean())),
        "statistic": float(q.sum()),
        "df": df,
        "p_value": float(chi2.sf(q.sum(), df)),
        "gene": genes[chosen[gene]],
        "level": levels[measured[level]],
    }
