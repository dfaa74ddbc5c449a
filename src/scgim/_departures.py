r"""How what a gene's parents pass on to it between contexts may differ from what its mechanism says.

The slope of a mechanism is found on cells of a context, where parents vary by little and are measured with error; perturbations move them
by much more, and a line no longer holds. Between contexts the parents i of a gene therefore pass on

.. math:: \sum_i w_i m_i + \delta_{i1} m_i + \delta_{i2} m_i u_i^2, \qquad \delta \sim N(0, \tau^2),

with the movement m of a parent's mean against the control and u the same in units of the largest. What is left beside has a
variance that grows with what has passed: a mechanism that is wrong is wrong in proportion.
"""

from __future__ import annotations

import torch
from torch import Tensor

N_BENDS = 2
_MIN_MOVEMENT = 1e-9


def bends(moved: Tensor) -> Tensor:
    """Functions of movements (..., K) that mechanisms may miss: proportional and, for saturation or thresholds, cubic, (2, ..., K)."""
    largest = moved.abs().amax(-1, keepdim=True).clamp_min(_MIN_MOVEMENT)
    return torch.stack([moved, moved * (moved / largest).square()])
