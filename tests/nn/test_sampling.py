"""Draws of targets and effects are stratified over the cells of a drug."""

from __future__ import annotations

import numpy as np
import torch

from scgim.interventions._interventions import Interventions


def interventions(probs: list[float]) -> Interventions:
    probs = torch.tensor([probs], dtype=torch.float64)
    one = torch.ones_like(probs)
    return Interventions(probs, 2.0 * one, 0.5 * one, 0 * one, 0 * one, one)


def test_shares_and_means_are_those_expected():
    known, n = interventions([0.0, 0.1, 0.5, 0.93, 1.0]), 200
    log_dosage = torch.zeros(1, dtype=torch.float64)
    effects, targets = known.sample(log_dosage, n, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(targets.double().mean(1), known.target_probs, atol=1.001 / n)
    # of a gene that is a target for certain, the noise is stratified as well
    np.testing.assert_allclose(effects[0, :, 4].mean(), known.direct(log_dosage)[0, 4], atol=0.25 * 3 / n)
    np.testing.assert_allclose(effects[0, :, 4].std(), 0.25, rtol=0.02)
    # of others it is not, within the cells that have the effect
    np.testing.assert_allclose(effects[0].mean(0), known.direct(log_dosage)[0], atol=0.1)
    assert not effects[..., 0].any()


def test_genes_are_drawn_independently():
    known = interventions([0.5] * 6)
    _, targets = known.sample(torch.zeros(1).double(), 4000, torch.Generator().manual_seed(1))
    correlation = np.corrcoef(targets[0].double().numpy().T)
    assert np.abs(correlation - np.eye(6)).max() < 0.07


def test_one_cell_is_one_draw():
    known = interventions([0.5, 0.5])
    drawn = [known.sample(torch.zeros(1).double(), 1, torch.Generator().manual_seed(s))[1][0, 0] for s in range(400)]
    np.testing.assert_allclose(torch.stack(drawn).double().mean(0), 0.5, atol=0.1)
