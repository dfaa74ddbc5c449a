"""The plan: what it minimises and its learning rate."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scgim.model import GIM
from scgim.module import GIMModule
from scgim.train import GIMTrainingPlan
from scgim.train._plan import default_max_epochs


@pytest.fixture
def plan() -> GIMTrainingPlan:
    module = GIMModule(3, np.array([-1, 0, 1]), None, 0, "nb", "linear", "shift", 2)
    plan = GIMTrainingPlan(module, lr=0.1, max_epochs=100)
    plan.n_obs_training = 60
    return plan


def batch(n: int = 12) -> dict[str, torch.Tensor]:
    x = torch.poisson(torch.full((n, 3), 2.0), torch.Generator().manual_seed(0))
    return {"x": x, "context": torch.arange(n) % 3, "covariates": torch.zeros(n, 0), "log_size": torch.zeros(n, 1)}


def test_joint_density_is_that_of_all_cells_and_of_the_priors(plan):
    with torch.no_grad():
        plan.module.shift.add_(0.3)
    joint = sum(plan._log_joint(batch()).values())
    cells, module = batch(), plan.module
    shift = (module.shift * module.treated[:, None])[cells["context"]]
    targets = torch.zeros(12, 3, dtype=torch.bool)
    likelihood = module.log_likelihood(cells["x"], cells["covariates"], cells["log_size"], shift, targets).sum()
    priors = sum(
        prior.log_prob(dict(module.named_parameters())[name]).sum() for name, prior in module._priors().items()
    )
    torch.testing.assert_close(joint, likelihood * 60 / 12 + priors)


def test_number_of_cells_reaches_the_module(plan):
    assert plan.module.n_obs == plan.n_obs_training == 60


def test_validation_is_per_cell_and_leaves_the_scale_alone(plan):
    plan.validation_step(batch(), 0)
    (total, n), _ = plan._validation[0], plan._validation
    assert n == 12
    assert plan.module.n_obs == 60
    cells, module = batch(), plan.module
    zeros = torch.zeros(12, 3)
    expected = module.log_likelihood(cells["x"], cells["covariates"], cells["log_size"], zeros, zeros.bool()).sum()
    np.testing.assert_allclose(total, expected.item(), rtol=1e-5)


def test_learning_rate_is_flat_then_falls_to_a_hundredth(plan):
    configured = plan.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]
    rates = []
    for _ in range(105):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates[:31], 0.1)
    assert (np.diff(rates[30:100]) < 0).all()
    np.testing.assert_allclose(rates[65], 0.05)
    np.testing.assert_allclose(rates[100:], 0.001)


def test_only_trainable_parameters_are_optimised(plan):
    (group,) = plan.configure_optimizers()["optimizer"].param_groups
    names = {id(p): name for name, p in plan.module.named_parameters()}
    found = {names[id(p)] for p in group["params"]}
    assert {"intercept", "log_scale", "shift", "mechanism.weight"} <= found
    assert "target_logits" not in found  # of hard interventions
    assert "covariate_effect" not in found  # there are none


def test_other_optimisers():
    module = GIMModule(3, np.array([-1, 0]), None, 0, "nb", "linear", "shift", 2)
    plan = GIMTrainingPlan(module, optim=torch.optim.SGD, optim_kwargs={"momentum": 0.5}, lr=0.3)
    optimizer = plan.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.5
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_default_epochs():
    assert default_max_epochs(10**7, 1024) == 10
    assert default_max_epochs(100, 1024) == 400
    assert default_max_epochs(20_000, 1024, n_steps=400) == 20


@pytest.mark.parametrize(
    ("n_wells", "is_continuous", "is_linear", "epochs"),
    [(371, True, True, 100), (720, True, True, 400), (371, False, True, 400), (371, True, False, 400)],
)
def test_plates_of_continuous_values_take_fewer_steps(n_wells, is_continuous, is_linear, epochs):
    """60 genes, of which 720 wells are enough."""
    module = SimpleNamespace(mechanism=SimpleNamespace(is_linear=is_linear))
    model = SimpleNamespace(gene_names_=range(60), _is_continuous=is_continuous, module=module)
    assert GIM._usual_epochs(model, n_wells, 1024) == epochs


def test_arguments_work_or_are_refused(plan):
    assert isinstance(plan.configure_optimizers()["optimizer"], torch.optim.Adam)
    options = {"lr": 0.3, "optim": torch.optim.SGD, "optim_kwargs": {"momentum": 0.5}}
    group = GIMTrainingPlan(plan.module, **options).configure_optimizers()["optimizer"].param_groups[0]
    assert (group["lr"], group["momentum"]) == (0.3, 0.5)
    for name, value in {"scale_elbo": 2.0, "n_epochs_kl_warmup": 10, "loss_fn": None, "learning_rate": 1.0}.items():
        with pytest.raises(ValueError, match=f"holds \\['{name}'\\].*It takes \\['lr', 'max_epochs'"):
            GIMTrainingPlan(plan.module, **{name: value})
