"""Intervals of mean scores, by resampling drugs."""

from __future__ import annotations

import numpy as np
import pandas as pd

_N_DRAWS = 2000  # of a bootstrap, the usual number for percentiles of 95 %


def mean_limits(scores: pd.DataFrame, drugs: pd.Series, *, level: float, seed: int) -> pd.Series:
    """Limits of the mean of each column over contexts, as `<column>_lower` and `<column>_upper`; percentiles of a bootstrap over drugs.

    A drug is drawn with all its contexts: they share its features and its targets, so their errors go together, and drawn one by
    one they would pass for more evidence than they are. One drug alone tells nothing of others, and gives NaN.
    """
    if (n_drugs := drugs.nunique()) < 2:
        lower = upper = np.full(scores.shape[1], np.nan)
    else:
        by_drug = scores.groupby(drugs.to_numpy(), sort=False)
        times = np.random.default_rng(seed).multinomial(n_drugs, np.full(n_drugs, 1 / n_drugs), size=_N_DRAWS)
        with np.errstate(invalid="ignore"):  # no context with a score among the drugs drawn
            means = (times @ by_drug.sum().to_numpy()) / (times @ by_drug.count().to_numpy())
        tail = (1 - level) / 2
        lower, upper = pd.DataFrame(means).quantile([tail, 1 - tail]).to_numpy()
    limits = np.stack([lower, upper], axis=1).ravel()
    return pd.Series(limits, [f"{column}_{side}" for column in scores for side in ("lower", "upper")])
