"""Drug library of the simulator: direct targets, dose curves and features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

FeatureKind = Literal["linear", "nonlinear"]
_ROUNDING, _TINY = 1e-9, 1e-300  # singular values below this share of the largest are zero, and so are all where it is


@dataclass
class DrugLibrary:
    """Direct effects of drugs; every array is drugs x genes. The curve parameters mean something on targets only."""

    targets: np.ndarray
    """True where the drug acts on the gene directly."""
    emax: np.ndarray
    """Effect at infinite dose; 0 where the gene is no target."""
    ec50: np.ndarray
    """Dose of half the effect."""
    hill: np.ndarray
    """Steepness of the curve."""

    def shift(self, drugs: np.ndarray, dosage: np.ndarray) -> np.ndarray:
        """Direct effect Emax c^n / (EC50^n + c^n) of contexts, contexts x genes, for a drug and a dose c a context."""
        dosage = np.asarray(dosage, dtype=float)[:, None]
        with np.errstate(divide="ignore", over="ignore"):
            return self.emax[drugs] / (1 + (self.ec50[drugs] / dosage) ** self.hill[drugs])


def random_drugs(
    n_drugs: int,
    n_genes: int,
    *,
    max_targets: int,
    emax: tuple[float, float],
    ec50: tuple[float, float],
    hill: tuple[float, float],
    rng: np.random.Generator,
) -> DrugLibrary:
    """Drugs with 1 to `max_targets` targets, effects of random sign, and curve parameters drawn uniformly from the ranges.

    Drugs are drawn one after another, so a longer library begins with the shorter one of the same generator.
    """
    library = DrugLibrary(
        targets=np.zeros((n_drugs, n_genes), dtype=bool),
        emax=np.zeros((n_drugs, n_genes)),
        ec50=np.zeros((n_drugs, n_genes)),
        hill=np.zeros((n_drugs, n_genes)),
    )
    for drug in range(n_drugs):
        n_targets = min(int(rng.integers(1, max_targets + 1)), n_genes)
        library.targets[drug, rng.choice(n_genes, n_targets, replace=False)] = True
        effect = rng.uniform(*emax, n_genes) * rng.choice([-1.0, 1.0], n_genes)
        library.emax[drug] = np.where(library.targets[drug], effect, 0.0)
        library.ec50[drug] = rng.uniform(*ec50, n_genes)
        library.hill[drug] = rng.uniform(*hill, n_genes)
    return library


def _principal_scores(effects: np.ndarray, n_train: int, n_features: int, rng: np.random.Generator) -> np.ndarray:
    """Scores of all drugs on the principal components of the training drugs, turned into `n_features` columns."""
    centred = effects - effects[:n_train].mean(0)
    _, singular, components = np.linalg.svd(centred[:n_train], full_matrices=False)
    rank = int((singular > _ROUNDING * max(singular.max(), _TINY)).sum())
    scores = centred @ components[: min(max(rank, 1), n_features)].T
    n_spare = n_features - scores.shape[1]
    if n_spare == 0:
        return scores
    rotation, _ = np.linalg.qr(rng.normal(size=(n_features, scores.shape[1])))
    return scores @ rotation.T


def drug_features(
    library: DrugLibrary,
    doses: np.ndarray,
    *,
    n_train: int,
    n_features: int,
    noise: float,
    kind: FeatureKind,
    rng: np.random.Generator,
) -> np.ndarray:
    """Features that tell about the direct effects, drugs x features.

    The dose-response curves of a drug on the grid `doses` are projected on the principal components of the first
    `n_train` drugs (spread over all columns by a rotation when there are more columns than components), brought to unit
    overall standard deviation and given Gaussian noise of standard deviation `noise`. `"nonlinear"` sends the scores
    through a random tanh layer first, so that the effects are no linear function of the features.
    """
    n_drugs = len(library.targets)
    curves = [library.shift(np.arange(n_drugs), np.full(n_drugs, dose)) for dose in doses]
    features = _principal_scores(np.concatenate(curves, axis=1), n_train, n_features, rng)
    features = features / (features[:n_train].std() or 1.0)
    if kind == "nonlinear":
        hidden = np.tanh(features @ rng.normal(size=(n_features, 3 * n_features)) / np.sqrt(n_features))
        features = hidden @ rng.normal(size=(3 * n_features, n_features)) / np.sqrt(3 * n_features)
        features = features / (features[:n_train].std() or 1.0)
    return features + noise * rng.normal(size=features.shape)
