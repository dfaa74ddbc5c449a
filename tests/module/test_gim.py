"""The module: its density, its draws against closed forms, and what Pyro sees."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyro
import pytest
import scipy.stats
import torch

from scgim.interventions._curves import NO_DOSE
from scgim.module import GIMModule
from scgim.module._gim import SpikeAndSlab
from scgim.nn._likelihood import CommonNoise

D, GROUP = 4, np.array([-1, 0, 0, 1])
ADJACENCY = np.zeros((D, D), dtype=bool)
ADJACENCY[[0, 0, 1, 2], [1, 3, 2, 3]] = True


class Batch(NamedTuple):
    x: torch.Tensor
    context: torch.Tensor
    covariates: torch.Tensor
    log_size: torch.Tensor


def make(likelihood: str = "normal", mechanism: str = "linear", intervention: str = "shift", n_covariates: int = 0):
    """A module with parameters drawn at random, on a graph of four genes."""
    dosage = np.log([1e-300, 1.0, 2.0, 1.0])
    module = GIMModule(D, GROUP, dosage, n_covariates, likelihood, mechanism, intervention, 3)
    module.mechanism.set_graph(ADJACENCY)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
        if likelihood == "normal":
            module.log_scale.zero_()
    return module


def batch(n: int = 12, n_covariates: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.poisson(torch.full((n, D), 3.0), generator)
    covariates = torch.randn(n, n_covariates, generator=generator)
    return Batch(x, torch.arange(n) % len(GROUP), covariates, 0.2 * torch.randn(n, 1, generator=generator))


def draw(
    module: GIMModule, shift: torch.Tensor, targets: torch.Tensor, n: int = 40_000, *, coupled: bool = False, **kwargs
):
    rng = torch.Generator().manual_seed(0)
    shift, targets = shift.expand(n, D), targets.expand(n, D)
    covariates = torch.zeros(n, module.covariate_effect.shape[0])
    noise = CommonNoise(rng) if coupled else rng
    return module.sample_cells(shift, targets, covariates, torch.zeros(n, 1), noise, **kwargs)


NONE = torch.zeros(D, dtype=torch.bool)


def test_linear_normal_total_effect_is_the_direct_one_carried_down_all_paths():
    """Mean under a shift: psi (I - W)^-1 above that of controls."""
    module = make()
    psi = torch.tensor([0.5, 0.0, -1.0, 0.2])
    (control, _), (treated, _) = (draw(module, shift, NONE) for shift in (torch.zeros(D), psi))
    W = module.mechanism.weight.detach().numpy() * ADJACENCY
    expected = psi.numpy() @ np.linalg.inv(np.eye(D) - W)
    np.testing.assert_allclose(treated.mean(0) - control.mean(0), expected, atol=1e-4)  # the same noise in both
    intercept = module.intercept.detach().numpy() @ np.linalg.inv(np.eye(D) - W)
    np.testing.assert_allclose(control.mean(0), intercept, atol=0.05)
    total = np.linalg.inv(np.eye(D) - W)
    np.testing.assert_allclose(np.cov(control.T), total.T @ total, rtol=0.1, atol=0.05)


def test_continuous_values_are_drawn_in_their_units():
    module = make()
    plain, _ = draw(module, torch.zeros(D), NONE)
    module.centre.fill_(100.0)
    module.spread.fill_(5.0)
    scaled, mean = draw(module, torch.zeros(D), NONE)
    np.testing.assert_allclose(scaled, 100 + 5 * plain, rtol=1e-4)
    assert (mean > 50).all()


def test_hard_interventions_cut_the_parents():
    module = make(intervention="hard")
    target = torch.tensor([False, False, False, True])
    psi = torch.tensor([0.0, 0.0, 0.0, 0.7])
    x, mean = draw(module, psi, target)
    np.testing.assert_allclose(mean[:, 3], module.intercept[3].item() + 0.7, rtol=1e-5)
    assert np.abs(np.corrcoef(x.T)[3, :3]).max() < 0.02
    control, _ = draw(module, torch.zeros(D), NONE)
    np.testing.assert_allclose(x[:, :3], control[:, :3], atol=1e-5)
    kept, _ = draw(make(intervention="shift"), psi, target)
    assert np.abs(np.corrcoef(kept.T)[3, :3]).max() > 0.1


def test_genes_can_be_held():
    module = make()
    x, _ = draw(module, torch.zeros(D), NONE, fixed={2: 1.5})
    np.testing.assert_array_equal(x[:, 2], 1.5)
    control, _ = draw(module, torch.zeros(D), NONE)
    np.testing.assert_allclose(x[:, :2], control[:, :2], atol=1e-6)  # nothing flows upstream
    assert (x[:, 3] - control[:, 3]).abs().max() > 0.1


@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_a_shift_multiplies_the_mean_of_a_root(likelihood):
    module = make(likelihood)
    _, control = draw(module, torch.zeros(D), NONE, n=10)
    _, treated = draw(module, torch.tensor([0.8, 0, 0, 0]), NONE, n=10)
    np.testing.assert_allclose(treated[:, 0] / control[:, 0], np.exp(0.8), rtol=1e-5)


@pytest.mark.parametrize("likelihood", ["nb", "poisson", "normal"])
@pytest.mark.parametrize("mechanism", ["linear", "mlp"])
def test_log_likelihood_of_shifts_by_scipy(likelihood, mechanism):
    module = make(likelihood, mechanism, n_covariates=2)
    cells = batch(n_covariates=2)
    shift = torch.randn(len(cells.x), D, generator=torch.Generator().manual_seed(2))
    found = module.log_likelihood(cells.x, cells.covariates, cells.log_size, shift, NONE.expand(len(cells.x), D))
    with torch.no_grad():
        h = cells.x if likelihood == "normal" else torch.log1p(cells.x / cells.log_size.exp())
        eta = module.intercept + cells.covariates @ module.covariate_effect + shift + module.mechanism(h)
        eta, scale, x = eta.numpy(), module.log_scale.exp().numpy(), cells.x.numpy()
    mean = np.exp(eta + cells.log_size.numpy())
    expected = {
        "nb": lambda: scipy.stats.nbinom(scale, scale / (scale + mean)).logpmf(x),
        "poisson": lambda: scipy.stats.poisson(mean).logpmf(x),
        "normal": lambda: scipy.stats.norm(eta, scale**-0.5).logpdf(x),
    }[likelihood]()
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-4, atol=1e-4)


def joint(module: GIMModule, cells: Batch) -> dict[str, torch.Tensor]:
    guide = pyro.poutine.trace(module.guide).get_trace(*cells)
    trace = pyro.poutine.trace(pyro.poutine.replay(module.model, guide)).get_trace(*cells)
    trace.compute_log_prob(lambda name, site: name != "cells")
    return {name: site["log_prob_sum"] for name, site in trace.nodes.items() if "log_prob_sum" in site}


@pytest.mark.parametrize("mechanism", ["linear", "mlp"])
@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_the_model_scores_cells_under_the_effects_of_their_contexts(likelihood, mechanism):
    module, cells = make(likelihood, mechanism, n_covariates=1), batch(n_covariates=1)
    shift = module.shift * torch.as_tensor(GROUP >= 0)[:, None]  # controls have none
    expected = module.log_likelihood(
        cells.x, cells.covariates, cells.log_size, shift[cells.context], NONE.expand(len(cells.x), D)
    ).sum()
    torch.testing.assert_close(joint(module, cells)["x"], expected)


def test_the_likelihood_is_scaled_up_to_all_cells():
    module, cells = make("nb"), batch()
    alone = joint(module, cells)["x"]
    module.n_obs = 120
    torch.testing.assert_close(joint(module, cells)["x"], 10 * alone)


def test_hard_targets_are_averaged_over():
    module, cells = make("nb", intervention="hard"), batch()
    with torch.no_grad():
        module.target_logits.copy_(torch.tensor([[0.3, -1.0, 2.0, 0.0], [1.0, 1.0, -2.0, -2.0]]))
    treated = torch.as_tensor(GROUP >= 0)[cells.context]
    probs = torch.sigmoid(module.target_logits)[torch.as_tensor(GROUP).clamp_min(0)[cells.context]] * treated[:, None]
    shift = module.shift[cells.context]
    args = cells.x, cells.covariates, cells.log_size
    on = module.log_likelihood(*args, shift, torch.ones(len(cells.x), D, dtype=torch.bool))
    off = module.log_likelihood(*args, torch.zeros_like(shift), NONE.expand(len(cells.x), D))
    torch.testing.assert_close(joint(module, cells)["x"], (probs * on + (1 - probs) * off).sum())
    divergence = -joint(module, cells)["targets"]
    p, q = torch.sigmoid(module.target_logits), module.knowledge.prior[0].float()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
    torch.testing.assert_close(divergence, expected)


def test_priors_are_normal_over_what_is_in_use():
    module, cells = make("nb", "mlp"), batch()
    sites = joint(module, cells)
    weight = module.mechanism.linear.weight[torch.as_tensor(ADJACENCY)]
    torch.testing.assert_close(
        sites["mechanism.linear.weight"], torch.distributions.Normal(0, 1).log_prob(weight).sum()
    )
    torch.testing.assert_close(sites["intercept"], torch.distributions.Normal(0, 1).log_prob(module.intercept).sum())


@pytest.mark.parametrize("mechanism", ["linear", "mlp"])
@pytest.mark.parametrize("intervention", ["shift", "hard"])
def test_every_parameter_has_a_gradient(mechanism, intervention):
    module, cells = make("nb", mechanism, intervention, n_covariates=1), batch(n_covariates=1)
    (-sum(joint(module, cells).values())).backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
    weight = getattr(module.mechanism, "linear", module.mechanism).weight
    assert (weight.grad[~torch.as_tensor(ADJACENCY)] == 0).all()


def test_guide_and_model_have_the_same_sites_and_leave_no_trace():
    module, cells = make("nb", "mlp", n_covariates=1), batch(n_covariates=1)
    guide, model = (pyro.poutine.trace(f).get_trace(*cells) for f in (module.guide, module.model))
    latent = {name for name, site in model.nodes.items() if site["type"] == "sample" and not site["is_observed"]}
    assert set(guide.stochastic_nodes) == latent - {"cells"}
    assert len(pyro.get_param_store()) == 0


def test_spike_and_slab_draws_share_targets_over_doses():
    prior = SpikeAndSlab(torch.tensor([0, 0, 1, -1]), 2000, torch.tensor(0.2), torch.tensor(0.01), torch.tensor(2.0))
    pyro.set_rng_seed(0)
    draws = prior.sample()
    assert draws.shape == (4, 2000)
    assert (draws[3] == 0).all()
    on = draws.abs() > 0.06
    assert (on[0] == on[1]).float().mean() > 0.98  # slab draws are rarely that small
    np.testing.assert_allclose(on[2].float().mean(), 0.2, atol=0.03)
    np.testing.assert_allclose(draws[2][on[2]].std(), 2.0, rtol=0.1)
    assert prior.log_prob(draws).shape == ()


def test_controls_have_no_say_in_the_targets_of_the_first_perturbation():
    parameters = torch.tensor([0.2, 0.01, 2.0])
    effects = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    treated = SpikeAndSlab(torch.tensor([0, 1]), 5, *parameters).log_prob(effects[1:])
    torch.testing.assert_close(SpikeAndSlab(torch.tensor([-1, 0, 1]), 5, *parameters).log_prob(effects), treated)


def test_context_helpers():
    module = make()
    np.testing.assert_array_equal(module.treated, [False, True, True, True])
    np.testing.assert_allclose(module.knowledge.dosage_range(), (0.0, np.log(2.0)), atol=1e-12)
    assert module.device == torch.device("cpu")
    flat = GIMModule(D, GROUP, None, 0, "nb", "linear", "shift", 3)
    assert len(flat.knowledge.curve_grid().log_ec50) == 1
    assert len(module.knowledge.curve_grid().log_ec50) > 1


def test_parents_act_no_further_than_in_training():
    module = make()
    whole = draw(module, torch.zeros(D), NONE)[1][:, 3] - module.intercept[3]
    assert whole.std() > 0.2
    with torch.no_grad():
        module.knowledge.reach[:, 3] = torch.tensor([-0.1, 0.2])
    x, mean = draw(module, torch.tensor([0.0, 0.0, 0.0, 0.7]), NONE)
    torch.testing.assert_close(mean[:, 3] - module.intercept[3] - 0.7, whole.clamp(-0.1, 0.2), rtol=0, atol=1e-5)
    control, _ = draw(make(), torch.zeros(D), NONE)
    torch.testing.assert_close(x[:, :3], control[:, :3], rtol=0, atol=0)


@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_coupled_draws_differ_downstream_only(likelihood):
    """Genes that a shift does not reach are drawn alike, those that it reaches never the other way."""
    module = make(likelihood)
    shift = torch.tensor([0.0, 1.0, 0.0, 0.0])  # of gene 1, the parent of 2, the parent of 3
    (control, _), (treated, mean) = (draw(module, s, NONE, n=500, coupled=True) for s in (torch.zeros(D), shift))
    torch.testing.assert_close(treated[:, 0], control[:, 0], rtol=0, atol=0)
    assert (treated[:, 1] >= control[:, 1]).all()
    assert (treated[:, 1] > control[:, 1]).any()
    assert (treated[:, 3] != control[:, 3]).any()
    leaf, _ = draw(module, torch.tensor([0.0, 0.0, 0.0, -2.0]), NONE, n=500, coupled=True)
    torch.testing.assert_close(leaf[:, :3], control[:, :3], rtol=0, atol=0)
    assert (leaf[:, 3] <= control[:, 3]).all()
    assert torch.isfinite(mean).all()


@pytest.mark.parametrize("likelihood", ["normal", "poisson"])
@pytest.mark.parametrize("mechanism", ["linear", "mlp"])
def test_effects_are_carried_down_all_paths(likelihood, mechanism):
    """Gene by gene: what an effect does to a gene and then, times the slopes, to its children."""
    module = make(likelihood, mechanism)
    with torch.no_grad():
        module.intercept_loc.copy_(torch.tensor([-1.0, 0.0, 1.0, 3.0]))
        module.spread.copy_(torch.tensor([0.5, 1.0, 2.0, 0.7]))
    h = torch.randn(512, D, generator=torch.Generator().manual_seed(0))
    slopes = module.mechanism.slopes(h).detach().double()
    mean = module.intercept_loc.double().exp()
    own = torch.ones(D).double() if likelihood == "normal" else mean / (1 + mean) / module.spread.double()
    effects = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, -1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]).double()
    expected = torch.zeros_like(effects)
    for gene in range(D):  # in topological order
        expected[:, gene] = own[gene] * (effects[:, gene] + expected @ slopes[:, gene])
    torch.testing.assert_close(effects @ module.carry(), expected)


def test_responses_are_those_of_treated_contexts():
    module = make()
    with torch.no_grad():
        module.knowledge.response.copy_(torch.arange(len(GROUP) * D).reshape(len(GROUP), D))
        module.knowledge.response_precision.fill_(1.0)
    found = module.responses()
    np.testing.assert_array_equal(found.group, [0, 0, 1])
    np.testing.assert_allclose(found.log_dosage, np.log([1.0, 2.0, 1.0]))
    np.testing.assert_allclose(found.grid, np.log([1.0, 2.0]))
    np.testing.assert_array_equal(found.estimates, np.arange(D, 4 * D).reshape(3, D))
    assert module.knowledge.background.shape == (2, 2, D)
    without = GIMModule(D, GROUP, None, 0, "nb", "linear", "shift", 3)
    assert len(without.responses().estimates) == 0  # nothing was measured yet
    without.knowledge.response_precision.fill_(1.0)
    assert without.responses().grid.tolist() == [NO_DOSE]
    assert (without.responses().log_dosage == NO_DOSE).all()
    # what is kept there holds at any dosage
    with torch.no_grad():
        without.knowledge.background.fill_(0.5)
        known = without.knowledge
        for name, value in {
            "target_probs": 1.0,
            "emax": 1.0,
            "log_ec50": float(known.curve_grid().log_ec50),
            "hill": 1.0,
        }.items():
            getattr(known, name).fill_(value)
    for log_dosage in (NO_DOSE, -10.0, 0.0, 10.0):
        at = torch.full((2,), log_dosage, dtype=torch.float64)
        np.testing.assert_allclose(without.knowledge.interventions().mean(at), 1.5)
