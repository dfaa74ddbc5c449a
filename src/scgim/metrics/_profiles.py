"""How well mean profiles tell contexts apart. The mean response, which is easy to predict, earns nothing here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from scgim.metrics._prediction import r2_scores

# Distances are computed with rounding errors; a tie is one up to these.
_TIE = 1e-9  # distances that differ by less are equal, but for rounding


def _profiles(observed: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(observed, pd.DataFrame) and isinstance(predicted, pd.DataFrame):
        for axis, name in enumerate(("index", "columns")):
            if not observed.axes[axis].equals(predicted.axes[axis]):
                raise ValueError(
                    f"`observed` and `predicted` differ in their {name}. Give both the same contexts and genes in the same "
                    "order: `predicted.loc[observed.index, observed.columns]`."
                )
    x, y = np.asarray(observed, dtype=float), np.asarray(predicted, dtype=float)
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(
            f"Expected `observed` and `predicted` as contexts x genes of one shape, found {x.shape} and {y.shape}."
        )
    for values, name in ((x, "observed"), (y, "predicted")):
        if not np.isfinite(values).all():
            raise ValueError(
                f"`{name}` has NaN or infinite values. Leave out contexts without a profile on either side."
            )
    return x, y


def centred_correlation(observed: Any, predicted: Any, reference: Any) -> np.ndarray:
    r"""Pearson correlation r, over genes, of what sets the observed and the predicted profile of a context apart from a mean profile.

    .. math:: r_k = \operatorname{cor}(y_k - m, \hat{y}_k - m)

    Where:
        - :math:`y_k, \hat{y}_k`: observed and predicted mean profile of context :math:`k`
        - :math:`m`: the reference, the mean profile of the perturbed *training* contexts

    Most perturbations change many genes alike, by stress for example, and a correlation of shifts from control is large for any
    prediction that has this common response. Centred on it, as in the Systema evaluation :cite:p:`vinas2025systema`, the common
    response earns nothing. The control mean is in neither difference, so its noise is not shared either.

    A prediction is worth something where it is above what needs no drug: where a common response grows with the dose, a mean of
    drugs at that dose earns some correlation; and where many drugs do next to nothing, so does a prediction of no effect, which
    sets them apart from the mean.

    Parameters
    ----------
    observed, predicted
        Mean profiles, contexts x genes, array or data frame: mean log1p expression or shifts from control, the same on both sides.
    reference
        One number a gene on the same scale; from training contexts, or else it tells what was held out.

    Returns
    -------
    ndarray
        One number a context, between -1 and 1. 0 where a profile equals the reference, or differs from it by a constant.

    Raises
    ------
    ValueError
        If shapes or labels differ, or values are not finite.

    Examples
    --------
    >>> centred_correlation([[1.0, 2.0, 4.0]], [[1.0, 2.0, 3.0]], reference=[1.0, 2.0, 3.0])
    array([0.])
    """
    x, y = _profiles(observed, predicted)
    mean = np.asarray(reference, dtype=float)
    if mean.shape != x.shape[1:]:
        raise ValueError(
            f"Expected `reference` as one number for each of {x.shape[1]} genes, found shape {mean.shape}. "
            "Take the mean over training contexts: `profiles.mean(axis=0)`."
        )
    return np.array([r2_scores(a, b)["pearson_r"] for a, b in zip(x - mean, y - mean, strict=True)])


def discrimination(observed: Any, predicted: Any) -> np.ndarray:
    r"""Whether the prediction for a context is nearer to what was observed in it than predictions for other contexts are.

    .. math:: \frac{1}{K - 1} \sum_{j \neq k} \left( [d_{kj} > d_{kk}] + \tfrac{1}{2} [d_{kj} = d_{kk}] \right)

    Where:
        - :math:`d_{kj}`: Euclidean distance between the observed profile of context :math:`k` and the prediction for context :math:`j`
        - :math:`K`: number of contexts

    It is the rank of the right prediction among all of them, normalised: 1 if it is the nearest, 0.5 by chance, 0 if it is the
    farthest. Predictions that are the same for all contexts tie, and each context earns exactly 0.5.

    Ranked are *predictions, given an observed profile*. Some benchmarks rank observed profiles, given a prediction. Constant
    predictions then earn 0.5 on average only, contexts that differ in strength or in noise are not compared fairly, and
    exaggerated predictions gain while cautious ones, shrunken to the mean as unsure ones should be, lose.

    Parameters
    ----------
    observed, predicted
        Mean profiles, contexts x genes, array or data frame: mean log1p expression or shifts from control, the same on both sides.

    Returns
    -------
    ndarray
        One number a context, between 0 and 1; NaN if there is one context only.

    Raises
    ------
    ValueError
        If shapes or labels differ, or values are not finite.

    Examples
    --------
    >>> discrimination([[0.0], [1.0], [3.0]], [[0.1], [1.5], [1.2]])
    array([1. , 0.5, 0.5])
    """
    x, y = _profiles(observed, predicted)
    if len(x) < 2:
        return np.full(len(x), np.nan)
    distance = cdist(x, y)
    own = np.diag(distance)[:, None]
    tied = np.isclose(distance, own, rtol=_TIE, atol=0.0)
    wins = ((distance > own) & ~tied).sum(axis=1)
    # A context ties with itself.
    return (wins + (tied.sum(axis=1) - 1) / 2) / (len(x) - 1)
