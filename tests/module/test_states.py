"""Hidden states in the module: what they add where genes are fitted and where cells are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim.module import GIMModule
from scgim.structure._states import HiddenStates
from scgim.structure._statistics import ContextStatistics

D, N = 4, 200_000
LOADINGS = torch.tensor([[0.6], [0.5], [0.0], [-0.7]]).double()
STRETCH = torch.tensor([1.0, 1.5, 1.0, 1.0]).double()


def states() -> HiddenStates:
    weights = torch.zeros(D, D).double()
    weights[0, 2] = 0.5
    return HiddenStates(weights, LOADINGS, torch.full((D,), 0.4).double())


def statistics() -> ContextStatistics:
    return ContextStatistics(
        gram=torch.eye(D).double(),
        means=torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 2]]).double(),
        n_cells=torch.tensor([50.0, 50]).double(),
        group=torch.tensor([-1, 0]),
        n_genes=D,
        observed=torch.tensor([True, True]),
        covariate_slopes=torch.tensor([[0.0, 0, 3, 0]]).double(),
        covariate_centre=torch.tensor([0.5]).double(),
    )


@pytest.fixture
def module() -> GIMModule:
    module = GIMModule(D, np.array([-1, 0]), None, 1, "normal", "linear", "shift", 3)
    module.states.write(states(), statistics(), STRETCH)
    return module


def test_cells_are_compared_with_their_context_and_covariates(module):
    h, covariates = torch.tensor([[1.5, 0, 0.7, 2]]), torch.tensor([[0.9]])
    deviations = module.states.deviations(h, torch.tensor([1]), covariates)
    np.testing.assert_allclose(deviations, [[0.5, 0, 0.7 - 3 * (0.9 - 0.5), 0]], atol=1e-6)


def test_predictors_have_what_other_genes_tell_of_the_states(module):
    h, context, covariates = torch.randn(6, D), torch.tensor([0, 0, 0, 1, 1, 1]), torch.zeros(6, 1)
    size = torch.zeros(6, 1)
    with_states, _ = module.predictors(h, context, covariates, size)
    added = module.states.offsets(h, context, covariates)
    module.states.write(None, statistics(), STRETCH)
    without, _ = module.predictors(h, context, covariates, size)
    np.testing.assert_allclose((with_states - without).detach(), added, atol=1e-6)
    assert added.abs().max() > 0.1


def test_drawn_cells_have_the_covariance_that_states_make(module):
    """With the variance that was open where states were read taken off the noise."""
    with torch.no_grad():
        module.log_scale.copy_(-(0.4 + module.states.open_var).log())
    nothing = torch.zeros(N, D)
    rng = torch.Generator().manual_seed(0)
    x, _ = module.sample_cells(nothing, nothing.bool(), torch.zeros(N, 1), torch.zeros(N, 1), rng)
    loadings = (LOADINGS * STRETCH[:, None]).numpy()
    np.testing.assert_allclose(np.cov(x.numpy().T), 0.4 * np.eye(D) + loadings @ loadings.T, atol=0.015)


def test_states_are_kept_with_the_module(module):
    fresh = GIMModule(D, np.array([-1, 0]), None, 1, "normal", "linear", "shift", 3)
    fresh.load_state_dict(module.state_dict())
    assert fresh.states.n == 1
    np.testing.assert_array_equal(fresh.states.without_own, module.states.without_own)


def test_modules_saved_before_there_were_states_have_none(module):
    old = {name: value for name, value in module.state_dict().items() if not name.startswith("states.")}
    module.load_state_dict(old)
    assert module.states.n == 0


def test_tables_of_what_there_is_not_take_no_memory(module):
    """States and depth have a table as large as the network; it comes and goes with them, also where a module is put back."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.states.write(None, statistics(), STRETCH)
    assert module.states.without_own.numel() == module.depth.weights.numel() == 0
    without = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(before)
    assert module.states.without_own.shape == (D, D)
    module.load_state_dict(without)
    assert (module.states.n, module.states.without_own.numel()) == (0, 0)
