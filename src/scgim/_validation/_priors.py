"""Checks of what is known beforehand of targets and edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgim._validation._messages import quote_some

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def prior_log_odds(
    prior: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], name: str, row_kind: str
) -> NDArray[np.float64]:
    """Log odds of a data frame of probabilities, in the given order; NaN where it says nothing.

    Raises
    ------
    TypeError
        It is no data frame of numbers.
    ValueError
        Names occur twice or none is known, or probabilities are not strictly between 0 and 1.
    """
    if not isinstance(prior, pd.DataFrame):
        raise TypeError(f"`{name}` must be a pandas DataFrame of probabilities, found {type(prior).__name__}.")
    frame = prior.set_axis(prior.index.astype(str), axis=0).set_axis(prior.columns.astype(str), axis=1)
    for kind, found, known in ((row_kind, frame.index, rows), ("genes", frame.columns, columns)):
        if not found.is_unique:
            raise ValueError(f"`{name}` names {kind} twice: {quote_some(found[found.duplicated()].unique())}.")
        if not len(found.intersection(pd.Index(known))):
            raise ValueError(
                f"`{name}` names none of the {kind} of the screen: found {quote_some(found)}, expected some of "
                f"{quote_some(known)}. Its index must be {row_kind} and its columns genes."
            )
    try:
        values = frame.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must hold numbers, found {sorted(set(map(str, frame.dtypes)))}.") from error
    wrong = ~np.isnan(values) & ~((values > 0) & (values < 1))
    if wrong.any():
        raise ValueError(
            f"`{name}` must hold probabilities strictly between 0 and 1, found {quote_some(np.unique(values[wrong]))}. A "
            "certainty would override the data; say 0.99 or 0.01, or NaN where nothing is known."
        )
    logits = pd.DataFrame(np.log(values) - np.log1p(-values), frame.index, frame.columns)
    return logits.reindex(index=list(rows), columns=list(columns)).to_numpy()
