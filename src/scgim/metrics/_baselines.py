"""Simple predictions of the mean shift of contexts (one drug at one dose each): the bar that a model has to clear."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import RandomForestRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

if TYPE_CHECKING:
    from collections.abc import Callable

    from sklearn.base import BaseEstimator

# What the baselines choose from, by cross-validation; wide enough to hold the best of most screens. Conventions.
_ALPHAS = np.logspace(-4, 3, 11)
_KERNEL_ALPHAS = np.logspace(-3, 2, 6)
_KERNEL_WIDTHS = np.array([0.01, 0.03, 0.1, 0.5])
_N_FOLDS = 5
_DECADE = 10.0  # of doses, from which their logarithm is taken: convention
_N_TREES = 200  # convention; more only steady the mean
_TINY = 1e-12  # so that a dose of zero has a logarithm


@dataclass
class Contexts:
    """Contexts with their drug features; one row a context in every array."""

    drug: np.ndarray
    dosage: np.ndarray
    features: np.ndarray
    """Drug features, contexts x features; no columns if there are none."""
    shift: np.ndarray
    """Mean shift from control, contexts x genes; not looked at in contexts to predict."""


def _log_dose(dosage: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(dosage, _TINY))


def control(train: Contexts, test: Contexts) -> np.ndarray:
    """No effect."""
    return np.zeros((len(test.drug), train.shift.shape[1]))


def trainmean(train: Contexts, test: Contexts) -> np.ndarray:
    """Mean of the shifts measured."""
    return np.tile(train.shift.mean(0), (len(test.drug), 1))


def _at_dose(train: Contexts, drug: str, log_dose: float) -> np.ndarray:
    """Shift of a training drug at a dose: linear in the logarithm between its doses, that of the nearest one beyond them."""
    own = np.flatnonzero(train.drug == drug)
    doses, code = np.unique(_log_dose(train.dosage[own]), return_inverse=True)
    shift = np.stack([train.shift[own[code == k]].mean(0) for k in range(len(doses))])  # levels share doses
    position = np.interp(log_dose, doses, np.arange(len(doses)))
    below = int(position)
    above = min(below + 1, len(doses) - 1)
    share = position - below
    return (1 - share) * shift[below] + share * shift[above]


def dosemean(train: Contexts, test: Contexts) -> np.ndarray:
    """Mean over training drugs of their shifts at the dose, each drug alike; the response that drugs have in common at it."""
    drugs = np.unique(train.drug)
    # Once for each dose, so that contexts of one dose get the same prediction to the last bit and tie where they are ranked.
    doses, dose_of = np.unique(_log_dose(test.dosage), return_inverse=True)
    means = [np.mean([_at_dose(train, drug, dose) for drug in drugs], axis=0) for dose in doses]
    return np.stack(means)[dose_of]


def drugmean(train: Contexts, test: Contexts) -> np.ndarray:
    """Mean shift over the training doses of the same drug; NaN for drugs that were never measured."""
    shift = np.full((len(test.drug), train.shift.shape[1]), np.nan)
    for drug in np.intersect1d(test.drug, train.drug):
        shift[test.drug == drug] = train.shift[train.drug == drug].mean(0)
    return shift


def nearest_dose(train: Contexts, test: Contexts) -> np.ndarray:
    """Shift of the same drug at the nearest dose on the log scale, the mean of both where two are equally near.

    NaN for drugs that were never measured.
    """
    shift = np.full((len(test.drug), train.shift.shape[1]), np.nan)
    for row, (drug, dose) in enumerate(zip(test.drug, _log_dose(test.dosage), strict=True)):
        measured = train.drug == drug
        if measured.any():
            distance = np.abs(_log_dose(train.dosage[measured]) - dose)
            shift[row] = train.shift[measured][np.isclose(distance, distance.min())].mean(0)
    return shift


def nearest_drug(train: Contexts, test: Contexts) -> np.ndarray:
    """Shift of the other drug nearest by features, at its nearest dose; NaN where there is no other drug."""
    distance = cdist(test.features, train.features)
    distance[test.drug[:, None] == train.drug[None]] = np.inf
    proxy = replace(test, drug=train.drug[distance.argmin(1)])
    return np.where(np.isinf(distance).all(axis=1)[:, None], np.nan, nearest_dose(train, proxy))


def _prepare(train: Contexts, test: Contexts) -> tuple[Contexts, Contexts]:
    """Features centred and divided by one number, so that they keep their relative sizes; doses as logarithms where they span decades.

    Powers of a dose that spans decades are ruled by the largest one, and far off beyond it.
    """
    centre = train.features.mean(0)
    scale = (train.features - centre).std() or 1.0
    spans_decades = train.dosage.max() >= _DECADE * train.dosage.min()

    def prepared(contexts: Contexts) -> Contexts:
        dosage = _log_dose(contexts.dosage) if spans_decades else contexts.dosage
        return replace(contexts, features=(contexts.features - centre) / scale, dosage=dosage)

    return prepared(train), prepared(test)


def _polynomial(contexts: Contexts) -> np.ndarray:
    """f, f c, f c^2, c, c^2 for features f and dose c."""
    f, c = contexts.features, contexts.dosage[:, None]
    return np.concatenate([f, f * c, f * c**2, c, c**2], axis=1)


def _features_and_dose(contexts: Contexts) -> np.ndarray:
    return np.concatenate([contexts.features, contexts.dosage[:, None]], axis=1)


def _predict_tuned(regressor: BaseEstimator, grid: dict, train: Contexts, test: Contexts) -> np.ndarray:
    """Predict with the parameters that are best on left-out drugs.

    Whether every column is brought to unit variance is one of them: that helps where features have different units, and hurts
    where small ones are noise, as with principal components.
    """
    train, test = _prepare(train, test)
    X, X_new = _polynomial(train), _polynomial(test)
    pipeline = Pipeline([("scale", StandardScaler()), ("fit", regressor)])
    model = TransformedTargetRegressor(pipeline, transformer=StandardScaler(with_std=False), check_inverse=False)
    grid = {"regressor__scale__with_std": [True, False]} | {f"regressor__fit__{key}": grid[key] for key in grid}
    n_folds = min(_N_FOLDS, len(np.unique(train.drug)))
    if n_folds < 2:
        middle = {name: values[len(values) // 2] for name, values in grid.items()}
        return model.set_params(**middle).fit(X, train.shift).predict(X_new)
    search = GridSearchCV(model, grid, scoring="neg_mean_squared_error", cv=GroupKFold(n_folds))
    return search.fit(X, train.shift, groups=train.drug).predict(X_new)


def _n_columns(contexts: Contexts) -> int:
    return _polynomial(contexts).shape[1]


def ridge(train: Contexts, test: Contexts) -> np.ndarray:
    """Ridge regression on features, dose, dose squared and their products, penalty by cross-validation over drugs."""
    return _predict_tuned(Ridge(), {"alpha": _ALPHAS * _n_columns(train)}, train, test)


def krr(train: Contexts, test: Contexts) -> np.ndarray:
    """Kernel ridge regression on the same, with a Gaussian kernel; penalty and width by cross-validation over drugs."""
    grid = {"alpha": _KERNEL_ALPHAS, "gamma": _KERNEL_WIDTHS / _n_columns(train)}
    return _predict_tuned(KernelRidge(kernel="rbf"), grid, train, test)


def random_forest(train: Contexts, test: Contexts) -> np.ndarray:
    """Random forest on features and dose."""
    model = RandomForestRegressor(_N_TREES, max_features=1 / 3, random_state=0)
    model.fit(_features_and_dose(train), train.shift.squeeze(1) if train.shift.shape[1] == 1 else train.shift)
    return model.predict(_features_and_dose(test)).reshape(len(test.drug), -1)


BASELINES: dict[str, Callable[[Contexts, Contexts], np.ndarray]] = {
    "control": control,
    "trainmean": trainmean,
    "dosemean": dosemean,
    "drugmean": drugmean,
    "nearest_dose": nearest_dose,
    "nearest_drug": nearest_drug,
    "ridge": ridge,
    "krr": krr,
    "random_forest": random_forest,
}
