"""Mechanisms see their parents only, and report their slopes as autograd does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim.nn._mechanism import MECHANISMS, draw_weights, linear_part, make_mechanism, through_network

ADJACENCY = np.zeros((4, 4), dtype=bool)
ADJACENCY[[0, 0, 1, 2], [1, 3, 2, 3]] = True


@pytest.fixture(params=MECHANISMS)
def mechanism(request):
    """A mechanism on a graph of four genes, all of its parameters drawn at random."""
    out = make_mechanism(request.param, 4, 5).double()
    out.set_graph(ADJACENCY)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in out.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return out.double()


def jacobian(mechanism, h: torch.Tensor) -> torch.Tensor:
    """Mean derivative of each output (columns) in each input (rows), by autograd."""
    full = torch.autograd.functional.jacobian(lambda v: mechanism(v[None])[0], h[0])
    for row in h[1:]:
        full = full + torch.autograd.functional.jacobian(lambda v: mechanism(v[None])[0], row)
    return full.T / len(h)


def test_slopes_are_those_of_autograd(mechanism):
    h = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double()
    np.testing.assert_allclose(mechanism.slopes(h).detach(), jacobian(mechanism, h), atol=1e-10)


def test_only_parents_matter(mechanism):
    h = torch.randn(1, 4).double()
    assert (np.abs(jacobian(mechanism, h).numpy()) > 0).tolist() == ADJACENCY.tolist()


def test_parents_at_the_control_mean_contribute_nothing(mechanism):
    np.testing.assert_allclose(mechanism(torch.zeros(3, 4).double()).detach(), 0, atol=1e-12)


def test_some_genes_at_a_time(mechanism):
    h = torch.randn(6, 4).double()
    genes = torch.tensor([3, 1])
    torch.testing.assert_close(mechanism(h, genes), mechanism(h)[:, genes])


def test_prior_masks_fit_the_parameters(mechanism):
    parameters = dict(mechanism.named_parameters())
    masks = dict(zip(parameters, mechanism.prior_masks(), strict=True))
    for name, mask in masks.items():
        assert mask.shape == parameters[name].shape, name
        assert mask.dtype == torch.bool
    weight = next(mask for name, mask in masks.items() if name.endswith("weight"))
    np.testing.assert_array_equal(weight, ADJACENCY)


def test_linear_is_a_masked_product():
    mechanism = make_mechanism("linear", 4, 0)
    mechanism.set_graph(ADJACENCY)
    with torch.no_grad():
        mechanism.weight.fill_(2.0)
    h = torch.arange(8.0).reshape(2, 4)
    np.testing.assert_allclose(mechanism(h).detach(), h.numpy() @ (2.0 * ADJACENCY))


@pytest.mark.parametrize("kind", MECHANISMS)
def test_weights_of_edges_that_are_gone_are_forgotten(kind):
    mechanism = make_mechanism(kind, 4, 3)
    mechanism.set_graph(ADJACENCY)
    linear = getattr(mechanism, "linear", mechanism)
    with torch.no_grad():
        linear.weight.fill_(1.0)
    fewer = ADJACENCY.copy()
    fewer[0, 3] = False
    mechanism.set_graph(fewer)
    np.testing.assert_array_equal(linear.weight.detach(), fewer)


def test_hidden_layers_start_at_no_effect_and_are_reproducible():
    a, b = (make_mechanism("mlp", 4, 3) for _ in range(2))
    for m in (a, b):
        m.set_graph(ADJACENCY)
    assert (a.second == 0).all()
    torch.testing.assert_close(a.first, b.first, rtol=0, atol=0)
    np.testing.assert_array_equal(a(torch.randn(3, 4)).detach(), 0)


@pytest.mark.parametrize("kind", MECHANISMS)
def test_weights_of_regulators_alone_do_what_all_weights_do(kind):
    """Genes 0 to 2 may regulate; the fourth has no weights, and nothing else differs."""
    told = make_mechanism(kind, 4, 5, np.arange(4) < 3).double()
    whole = make_mechanism(kind, 4, 5).double()
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 4, generator=rng).double() * torch.as_tensor(ADJACENCY)
    h = torch.randn(7, 4, generator=rng).double()
    for own in (told, whole):
        own.set_graph(ADJACENCY)
        own.double()
        with torch.no_grad():
            linear_part(own).weight.copy_(linear_part(own).of_sources(weight))
    assert linear_part(told).weight.shape == (3, 4)
    torch.testing.assert_close(told(h), whole(h))
    torch.testing.assert_close(told(h, torch.tensor([3, 1])), whole(h, torch.tensor([3, 1])))
    torch.testing.assert_close(told.slopes(h), whole.slopes(h))
    assert told.slopes(h).shape == (4, 4)
    masks = dict(zip(dict(told.named_parameters()), told.prior_masks(), strict=True))
    assert masks["weight" if kind == "linear" else "linear.weight"].tolist() == ADJACENCY[:3].tolist()
    told.set_graph(np.zeros((4, 4), dtype=bool))
    assert not linear_part(told).weight.any()


def test_errors_of_weights_of_regulators_are_drawn():
    fitted, drawn = (make_mechanism("linear", 4, 5, np.arange(4) < 3) for _ in range(2))
    for own in (fitted, drawn):
        own.set_graph(ADJACENCY)
    sd = 0.5 * torch.as_tensor(ADJACENCY).double()
    draws = []
    for seed in range(300):
        draw_weights(drawn, fitted, sd, torch.Generator().manual_seed(seed))
        draws.append(drawn.weight.detach().clone())
    np.testing.assert_allclose(torch.stack(draws).std(0), sd[:3], atol=0.08)


def test_what_goes_through_the_network_is_the_inverse():
    slopes = torch.as_tensor(np.where(ADJACENCY, 0.7, 0.0))
    np.testing.assert_allclose(through_network(slopes), np.linalg.inv(np.eye(4) - slopes.numpy()), atol=1e-12)
    np.testing.assert_array_equal(through_network(torch.zeros(3, 3).double()), np.eye(3))
