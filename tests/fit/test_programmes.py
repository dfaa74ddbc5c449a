"""Programmes from estimates of effects to drawn effects: with dose, in the drugs that have them, and in no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scgim.fit._inference as inference
from scgim.fit._inference import infer_targets
from scgim.module import GIMModule
from scgim.nn._information import FitInformation

D, DOSES = 16, np.array([0.5, 1.0, 4.0])
STRENGTH = np.array([1.5, -1.2, 1.0, -1.0, 0.8, 1.3, 0.0, 0.0])
GROUP = np.concatenate([[-1], np.repeat(np.arange(8), 3)])
CURVE = DOSES / (1 + DOSES)
PRECISION = 400.0


def infer(strength: np.ndarray, seed: int = 0, shared: float = 0.0) -> tuple[GIMModule, np.ndarray]:
    """A module told of effects that drugs share, each as strong as its dose; and these effects, (K, d).

    Estimates have errors of their own and errors that all `shared`, as those of the controls are.
    """
    rng = np.random.default_rng(seed)
    loading = rng.choice([-1.0, 1.0], D) * rng.uniform(0.7, 1.2, D)
    truth = np.vstack([np.zeros(D), np.outer(np.outer(strength, CURVE).ravel(), loading)])
    module = GIMModule(D, GROUP, np.log([1.0, *np.tile(DOSES, 8)]), 0, "nb", "linear", "shift", 3)
    noise = PRECISION**-0.5 * (rng.normal(size=truth.shape) + shared * rng.normal(size=D))
    with torch.no_grad():
        module.shift.copy_(torch.as_tensor((truth + noise) * (GROUP >= 0)[:, None]))
    nothing = torch.zeros(len(GROUP), D).double()
    sums = (nothing, nothing + PRECISION, nothing, nothing, nothing, nothing, nothing[:, 0])
    infer_targets(module, FitInformation(*sums, overdispersion=nothing + 1), None)
    return module, truth


@pytest.fixture(scope="module")
def told() -> tuple[GIMModule, np.ndarray]:
    return infer(STRENGTH)


def drawn(module: GIMModule, log_dosage: float) -> np.ndarray:
    """Mean effects in many drawn cells of each drug, (U, d)."""
    dosage = torch.full((8,), log_dosage).double()
    return module.knowledge.interventions().sample(dosage, 200, torch.Generator().manual_seed(0))[0].mean(1).numpy()


@pytest.mark.parametrize("k", range(3))
def test_drawn_cells_have_the_programme_at_measured_doses(told, k):
    module, truth = told
    np.testing.assert_allclose(drawn(module, np.log(DOSES[k])), truth[1:].reshape(8, 3, D)[:, k], atol=0.15)


def test_programmes_are_no_targets(told):
    module, truth = told
    np.testing.assert_allclose(module.knowledge.background, truth[1:].reshape(8, 3, D), atol=0.2)
    assert module.knowledge.target_probs.mean() < 0.1


def test_between_doses_they_lie_between_and_beyond_them_they_hold(told):
    module, truth = told
    low, high = truth[1:].reshape(8, 3, D)[:, 1], truth[1:].reshape(8, 3, D)[:, 2]
    np.testing.assert_allclose(drawn(module, np.log(2.0)), 0.5 * (low + high), atol=0.15)
    np.testing.assert_allclose(drawn(module, np.log(40.0)), high, atol=0.15)
    np.testing.assert_allclose(drawn(module, np.log(0.05)), 0.1 * truth[1:].reshape(8, 3, D)[:, 0], atol=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_errors_of_the_controls_are_no_programme(seed):
    """A weak change that all contexts share has some evidence, but not enough."""
    module, _ = infer(np.zeros(8), seed, shared=0.45)
    np.testing.assert_array_equal(module.knowledge.background, 0.0)


def test_doses_left_out_are_those_of_targets_alone(monkeypatch):
    """Programmes are taken out before curves are judged on the doses that were left out."""
    given = []

    def note(shift, *arguments):
        given.append(shift)
        return inference_left_out(shift, *arguments)

    inference_left_out = inference.effects_left_out
    monkeypatch.setattr(inference, "effects_left_out", note)
    _, truth = infer(STRENGTH)
    assert given[0].square().mean().sqrt() < 0.1
    assert np.sqrt((truth[1:] ** 2).mean()) > 0.4
