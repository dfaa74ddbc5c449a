r"""Hill curves in dose, and values between the doses that were measured.

.. math:: \psi_j(u, c) = E_{uj} \frac{c^{n_{uj}}}{EC_{50,uj}^{n_{uj}} + c^{n_{uj}}}

for perturbation u, gene j and dosage c; zero in controls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NO_DOSE = -50.0  # log dosage of screens without doses, below any that could be asked for
AT_ANY_DOSE = 2 * NO_DOSE  # log midpoint of curves that have risen in full wherever they are looked at
_SAME_DOSE = 1e-6  # log dosages that differ by less are rounded alike
# Exponents to choose from, about evenly spaced in logarithms, and their prior, two thirds of which lie between 0.8 and
# 2.7. Conventions; other grids and priors are in the tables `sensitivity-*` of docs/benchmarks.md.
_EXPONENTS = (0.5, 0.8, 1.1, 1.5, 2.0, 2.7, 3.6, 5.0)
_LOG_EXPONENT_LOC, _LOG_EXPONENT_SD = math.log(1.5), 0.6
# Midpoints to choose from: this many, to 1.5 e-folds beyond the measured doses, where a curve of exponent 1.5 has risen
# to a tenth.
_N_MIDPOINTS, _BEYOND = 21, 1.5
_MIN_SPREAD = 0.7  # of the midpoint before data: a factor of two, where doses span less
_EVERY = 6  # every sixth curve is enough to fit the prior: one or two exponents a midpoint; convention, for time
_N_POINTS = 24  # doses at which responses are kept: screens have no more as a rule, unless drugs are measured in units of their own


def hill_curve(log_dosage: Tensor | float, log_ec50: Tensor, hill: Tensor) -> Tensor:
    """c^n / (EC50^n + c^n), between 0 and 1; 0 where `log_dosage` is -inf."""
    return torch.sigmoid(hill * (log_dosage - log_ec50))


def interpolation(log_dosage: Tensor, grid: Tensor) -> Tensor:
    """Weights of the points of a grid (m,) at log dosages (Q,): linear between points, shape (Q, m).

    What was measured at some doses is carried no further: above the grid its last point holds, below it the first, in proportion
    to the dosage.
    """
    log_dosage = log_dosage.to(grid).reshape(-1, 1)
    inside = log_dosage.clamp(grid[0], grid[-1])
    weights = torch.zeros(len(log_dosage), len(grid), dtype=grid.dtype)
    upper = torch.searchsorted(grid, inside).clamp(1, max(1, len(grid) - 1))
    if len(grid) == 1:
        weights[:] = 1.0
    else:
        low, high = grid[upper - 1], grid[upper]
        share = (inside - low) / (high - low)
        weights.scatter_(1, upper - 1, 1 - share).scatter_(1, upper, share)
    return weights * torch.exp((log_dosage - grid[0]).clamp_max(0.0))


@dataclass(frozen=True)
class CurveGrid:
    """Shapes of dose-response curves and their log prior, over measured log dosages from `low` to `high`."""

    log_ec50: Tensor
    hill: Tensor
    log_prior: Tensor

    @staticmethod
    def over(low: float, high: float) -> CurveGrid:
        """Midpoints from well below to well above the measured range, and usual exponents."""
        midpoints = torch.linspace(low - _BEYOND, high + _BEYOND, _N_MIDPOINTS, dtype=torch.float64)
        exponents = torch.tensor(_EXPONENTS, dtype=torch.float64)
        log_ec50, hill = (t.flatten() for t in torch.meshgrid(midpoints, exponents, indexing="ij"))
        centre, spread = 0.5 * (low + high), max(_MIN_SPREAD, 0.5 * (high - low))
        log_prior = -0.5 * ((log_ec50 - centre) / spread).square()
        log_prior = log_prior - 0.5 * ((hill.log() - _LOG_EXPONENT_LOC) / _LOG_EXPONENT_SD).square()
        return CurveGrid(log_ec50, hill, log_prior - log_prior.logsumexp(0))

    @staticmethod
    def flat() -> CurveGrid:
        """The same effect at any dosage above zero: screens without doses."""
        one = torch.ones(1, dtype=torch.float64)
        return CurveGrid(AT_ANY_DOSE * one, one, 0.0 * one)  # risen in full where responses are kept

    def coarse(self) -> CurveGrid:
        """A sixth of the curves, enough to fit the prior."""
        keep = slice(1, None, _EVERY) if len(self.log_ec50) > _EVERY else slice(None)
        log_prior = self.log_prior[keep]
        return CurveGrid(self.log_ec50[keep], self.hill[keep], log_prior - log_prior.logsumexp(0))

    def values(self, log_dosage: Tensor) -> Tensor:
        """Curves at log dosages (K,), shape (K, S)."""
        return hill_curve(log_dosage[:, None], self.log_ec50, self.hill)


def dose_grid(log_dosage: Tensor, n_points: int = _N_POINTS) -> Tensor:
    """Log dosages at which responses are kept: those measured, or as many as asked for between the least and the largest."""
    measured = torch.unique(log_dosage.double())
    apart = torch.ones(len(measured), dtype=torch.bool)
    apart[1:] = measured.diff() > _SAME_DOSE
    measured = measured[apart]
    if len(measured) <= n_points:
        return measured
    return torch.linspace(float(measured[0]), float(measured[-1]), n_points, dtype=torch.float64)


def on_grid(values: Tensor, group: Tensor, log_dosage: Tensor, grid: Tensor, n_groups: int) -> Tensor:
    """Values (K, d) at the doses of each drug, carried to a grid of doses: linear between them, shape (U, m, d)."""
    out = values.new_zeros(n_groups, len(grid), values.shape[1])
    for rows in groups_of(group):
        doses, code = torch.unique(log_dosage[rows].double(), return_inverse=True)  # sorted; levels share doses
        own = values.new_zeros(len(doses), values.shape[1]).index_add_(0, code, values[rows])
        own = own / torch.bincount(code)[:, None]
        out[group[rows[0]]] = interpolation(grid, doses) @ own
    return out


def groups_of(labels: Tensor) -> list[Tensor]:
    """Rows of each label."""
    order = torch.argsort(labels, stable=True)
    return list(order.split(torch.unique(labels, return_counts=True)[1].tolist()))
