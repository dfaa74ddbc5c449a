"""Drugs of the kinetic world: what they act on, how strongly, at which dose, and what their features tell of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from benchmarks.worlds.kinetic import Settings

_MOST_TARGETS = 3
_REGULATOR_SHARE = 0.5  # drugs on genes that regulate nothing would say nothing of the network
_OFF_TARGET = 0.25


@dataclass(frozen=True)
class Drugs:
    """Drugs x genes, but for `power` and `features`.

    Parameters
    ----------
    effect
        Largest change of the logarithm of production; zero where a drug does not act.
    log_ec50
        Logarithm of the dose of half that change.
    power
        Steepness of the dose curves, one a drug.
    features
        Drugs x features.
    """

    effect: np.ndarray
    log_ec50: np.ndarray
    power: np.ndarray
    features: np.ndarray

    def log_factor(self, drug: int, dose: float) -> np.ndarray:
        """Change of the logarithm of production of every gene."""
        return self.effect[drug] / (1 + np.exp(self.power[drug] * (self.log_ec50[drug] - np.log(dose))))


def draw_drugs(settings: Settings, regulators: np.ndarray, rng: np.random.Generator) -> Drugs:
    """Drugs in classes with common targets; strengths and EC50s differ within a class, and some drugs have a target more."""
    n = settings.n_drugs + settings.n_new_drugs
    n_classes = settings.n_classes or n
    classes = [_class_effect(settings.n_genes, regulators, rng) for _ in range(n_classes)]
    class_ec50 = rng.normal(0, 0.7, (n_classes, settings.n_genes))
    # In turn, so that every class of a new drug has measured ones, where there are fewer classes than measured drugs.
    member = np.arange(n) % n_classes
    effect = np.stack([classes[c] for c in member])
    effect *= np.exp(rng.normal(0, 0.25, effect.shape))
    for row in effect:
        if rng.random() < _OFF_TARGET and np.count_nonzero(row) < _MOST_TARGETS:
            row[rng.choice(np.flatnonzero(row == 0))] = _strength(rng)
    log_ec50 = class_ec50[member] + rng.normal(0, 0.4, effect.shape)
    return Drugs(effect, log_ec50, rng.uniform(1, 2, n), _features(settings, effect, log_ec50, rng))


def _strength(rng: np.random.Generator) -> float:
    return rng.choice([-1, 1]) * rng.uniform(0.8, 2)


def _class_effect(n_genes: int, regulators: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    effect = np.zeros(n_genes)
    for _ in range(rng.integers(1, _MOST_TARGETS + 1)):
        among = regulators if len(regulators) and rng.random() < _REGULATOR_SHARE else np.arange(n_genes)
        effect[rng.choice(among)] = _strength(rng)
    return effect


def _features(settings: Settings, effect: np.ndarray, log_ec50: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random mixture of effects and of EC50s where the drug acts, with noise."""
    known = np.concatenate([effect, log_ec50 * (effect != 0)], axis=1)
    values = known @ rng.normal(size=(known.shape[1], settings.n_features))
    values /= values.std()
    if settings.nonlinear_features:
        values = np.tanh(2 * values)
        values /= values.std()
    return values + rng.normal(0, settings.feature_noise, values.shape)
