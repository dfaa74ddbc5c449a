"""Dose-response curves of the direct effects of a drug, as a table."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from scvi import settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from scgim.interventions._interventions import Interventions

_COLUMNS = ["gene", "dosage", "effect", "lower", "upper", "target_prob", "emax", "ec50", "hill"]
_LIKELY = 0.5  # probability of a target whose curve is shown where none is asked for
_N_DOSES, _BEYOND = 50, np.log(10)  # from a tenth of the smallest dosage to ten times the largest: convention


def usual_log_dosages(low: float, high: float) -> NDArray[np.float64]:
    """Log dosages of a curve, from below the measured ones (`low` to `high`) to above."""
    return np.linspace(low - _BEYOND, high + _BEYOND, _N_DOSES)


def likely_targets(probs: NDArray[np.float64], genes: Sequence[str], drug: str) -> NDArray[np.int64]:
    """Positions of the genes that are targets of a drug with a probability above one half; a warning where there are none."""
    chosen = np.flatnonzero(probs > _LIKELY)
    if not len(chosen):
        best = int(probs.argmax())
        warnings.warn(
            f"No gene is a target of {drug!r} with a probability above one half, so that there are no curves; {genes[best]!r} comes first, with "
            f"{probs[best]:.2f}. Name genes for their curves all the same: `genes=[{genes[best]!r}]`.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    return chosen


def curve_table(
    drug: Interventions, chosen: Iterable[int], genes: Sequence[str], log_dosage: NDArray[np.float64], level: float
) -> pd.DataFrame:
    """Effects of one drug on chosen genes (positions) at log dosages (m,), with intervals that hold with probability `level`."""
    rows = drug.rows(torch.zeros(len(log_dosage), dtype=torch.long))
    curve, z = rows.curve(torch.as_tensor(log_dosage)).numpy(), norm.ppf(0.5 + level / 2)
    frames = []
    for j in chosen:
        names = ("target_probs", "emax", "emax_sd", "log_ec50", "hill")
        probability, emax, sd, log_ec50, hill = (float(getattr(drug, name)[0, j]) for name in names)
        frame = pd.DataFrame({"gene": genes[j], "dosage": np.exp(log_dosage)})
        frame["effect"] = emax * curve[:, j]
        frame["lower"], frame["upper"] = (emax - z * sd) * curve[:, j], (emax + z * sd) * curve[:, j]
        constants = {"target_prob": probability, "emax": emax, "ec50": np.exp(log_ec50), "hill": hill}
        frames.append(frame.assign(**constants))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_COLUMNS)
