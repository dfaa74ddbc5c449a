"""Feedback that was found, as a table and as a warning."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scvi import settings

from scgim._departures import MIN_GAIN
from scgim._validation import quote_some

if TYPE_CHECKING:
    from scgim.structure._feedback import Loop

_N_SHOWN = 3  # in a message
_MAX_EVIDENCE = 50.0  # what is more certain does not show in a probability


def feedback_table(loops: list[Loop], genes: list[str]) -> pd.DataFrame:
    """One row a loop, with the names of its genes."""
    names = [[genes[g] for g in loop.genes] for loop in loops]
    evidence = np.array([loop.evidence for loop in loops], dtype=float)
    forward = np.array([loop.forward_evidence for loop in loops], dtype=float)
    weight = np.array([loop.weight for loop in loops], dtype=float)
    forward_weight = np.array([loop.forward_weight for loop in loops], dtype=float)
    certainty = np.array([loop.certainty for loop in loops], dtype=float).clip(-_MAX_EVIDENCE, _MAX_EVIDENCE)
    return pd.DataFrame(
        {
            "loop": [" -> ".join([*own, own[0]]) for own in names],
            "source": [own[-1] for own in names],
            "target": [own[0] for own in names],
            "weight": weight,
            "evidence": evidence,
            "forward_weight": forward_weight,
            "forward_evidence": forward,
            "gain": weight * forward_weight,
            "probability": 1 / (1 + np.exp(-certainty)),
        }
    ).astype({"loop": object, "source": object, "target": object})


def strongest(table: pd.DataFrame) -> pd.DataFrame:
    """Loops that both directions speak for clearly."""
    # mechanisms of another form can pass for a weak loop
    return table[table[["evidence", "forward_evidence"]].min(axis=1) > MIN_GAIN]


def warn_of_feedback(table: pd.DataFrame | None) -> None:
    """Name the loops that the data ask for and the graph leaves out."""
    clear = None if table is None else strongest(table)
    if clear is None or clear.empty:
        return
    warnings.warn(
        f"The cells ask for feedback, which the graph cannot have: {quote_some(clear['loop'], _N_SHOWN)}. Of these genes some direct effects and edges stand for what the "
        "loop does; `get_feedback()` has the evidence for both directions.",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )
