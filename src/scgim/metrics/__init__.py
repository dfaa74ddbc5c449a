"""How well graphs, targets and distributions of cells are recovered, on plain arrays; and the baselines to beat."""

from __future__ import annotations

from ._compare import compare_baselines
from ._prediction import (
    distribution_metrics,
    energy_distance,
    mean_shift_correlation,
    mean_shift_error,
    mmd,
    r2_scores,
    wasserstein1,
)
from ._profiles import centred_correlation, discrimination
from ._structure import edge_metrics, expected_calibration_error, structural_hamming_distance, target_metrics

__all__ = [
    "centred_correlation",
    "compare_baselines",
    "discrimination",
    "distribution_metrics",
    "edge_metrics",
    "energy_distance",
    "expected_calibration_error",
    "mean_shift_correlation",
    "mean_shift_error",
    "mmd",
    "r2_scores",
    "structural_hamming_distance",
    "target_metrics",
    "wasserstein1",
]
