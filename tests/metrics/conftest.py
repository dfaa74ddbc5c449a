from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def _coarse_grids():
    """Fewer penalties to choose from, over the same range: the searches take most of the time of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scgim.metrics._baselines._ALPHAS", np.logspace(-4, 3, 4))
        patch.setattr("scgim.metrics._baselines._KERNEL_ALPHAS", np.logspace(-3, 2, 3))
        patch.setattr("scgim.metrics._baselines._KERNEL_WIDTHS", np.array([0.01, 0.1]))
        patch.setattr("scgim.metrics._baselines._N_TREES", 40)
        yield
