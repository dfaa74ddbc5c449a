"""Mechanisms of the simulator: how the parents of one gene set its log mean. Parents come standardised on control cells."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

MechanismKind = Literal["linear", "mlp"]

_N_HIDDEN = 8  # units of a random mechanism: enough for bends and thresholds; convention
_N_CALIBRATION = 2000  # standard normal cells that its centre is found on


class Mechanism(Protocol):
    """Function of the parents of one gene, cells x parents, to a vector of cells."""

    def __call__(self, parents: np.ndarray) -> np.ndarray: ...

    def rescale(self, factor: float, centre: float = 0.0) -> None:
        """Replace the function f by `factor * (f - centre)`."""

    def slopes(self, parents: np.ndarray) -> np.ndarray:
        """Derivative by each parent, averaged over the cells given: one number a parent."""


class LinearMechanism:
    """f(h) = w . h"""

    def __init__(self, weights: np.ndarray):
        self.weights = weights

    def __call__(self, parents: np.ndarray) -> np.ndarray:
        return parents @ self.weights

    def rescale(self, factor: float, centre: float = 0.0) -> None:
        # A linear function of centred parents is centred.
        self.weights = self.weights * factor

    def slopes(self, parents: np.ndarray) -> np.ndarray:
        return self.weights


class MLPMechanism:
    """f(h) = v . tanh(h W + c) - centre, one hidden layer.

    Parent i enters with the magnitude of `weights[i]`, and on independent parents of unit variance f has mean zero and the
    variance of a linear mechanism with the same weights.
    """

    def __init__(self, weights: np.ndarray, rng: np.random.Generator):
        n_parents = len(weights)
        self.hidden = weights[:, None] * rng.normal(size=(n_parents, _N_HIDDEN)) / np.sqrt(n_parents)
        self.bias = rng.normal(size=_N_HIDDEN)
        self.out = rng.normal(size=_N_HIDDEN)
        self.centre = 0.0
        values = self(rng.normal(size=(_N_CALIBRATION, n_parents)))
        self.rescale(np.linalg.norm(weights) / values.std(), values.mean())

    def __call__(self, parents: np.ndarray) -> np.ndarray:
        return np.tanh(parents @ self.hidden + self.bias) @ self.out - self.centre

    def rescale(self, factor: float, centre: float = 0.0) -> None:
        self.out = self.out * factor
        self.centre = (self.centre + centre) * factor

    def slopes(self, parents: np.ndarray) -> np.ndarray:
        gate = 1 - np.tanh(parents @ self.hidden + self.bias) ** 2  # (cells, hidden)
        return self.hidden @ (gate.mean(0) * self.out)


def random_mechanism(kind: MechanismKind, n_parents: int, rng: np.random.Generator) -> Mechanism:
    """Mechanism with weights of random sign and size 0.5 to 2; its scale is set by the structural model that uses it."""
    weights = rng.uniform(0.5, 2.0, n_parents) * rng.choice([-1.0, 1.0], n_parents)
    if kind == "linear" or n_parents == 0:
        return LinearMechanism(weights)
    return MLPMechanism(weights, rng)
