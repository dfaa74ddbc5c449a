"""Shrinkage of differences: near nothing where there is nothing, all where there is much, and few large ones kept."""

from __future__ import annotations

import numpy as np
import torch

from scgim.fit._shrinkage import drawn_between, shrunken


def errors(truth: np.ndarray, sd: float = 0.1, seed: int = 0) -> tuple[float, float]:
    """Mean squared error of shrunken and of raw differences."""
    rng = np.random.default_rng(seed)
    seen = torch.as_tensor(truth + sd * rng.normal(size=truth.shape))
    found = shrunken(seen, torch.full(truth.shape, sd**2, dtype=torch.float64))
    return float(((found.numpy() - truth) ** 2).mean()), sd**2


def test_nothing_is_left_of_noise():
    error, raw = errors(np.zeros((100, 50)))
    assert error < 0.03 * raw


def test_what_is_large_everywhere_is_kept():
    error, raw = errors(np.random.default_rng(1).normal(0, 1, (100, 50)))
    assert error < 1.05 * raw


def test_small_differences_everywhere_are_shrunk_alike():
    """Of the variance of the errors: half is left, and the risk is half of it."""
    error, raw = errors(np.random.default_rng(1).normal(0, 0.1, (200, 50)))
    assert error < 0.57 * raw


def test_few_large_differences_are_kept_and_the_rest_is_noise():
    truth = np.zeros((100, 50))
    truth[:3] = 2.0
    error, raw = errors(truth)
    assert error < 0.1 * raw


def test_between_two_centres_lies_what_errs_least():
    rng = np.random.default_rng(0)
    truth = torch.as_tensor(rng.normal(0, 1, (200, 50)))
    noise = torch.full_like(truth, 0.25)
    seen = truth + 0.5 * torch.as_tensor(rng.normal(size=truth.shape))
    far = torch.zeros_like(truth)
    for first, second in ((truth, far), (far, truth)):  # one of them is right
        between = drawn_between(seen, first, second, noise)
        found = first + between.kept * (seen - first) + between.back * (second - first)
        assert ((found - truth) ** 2).mean() < 0.02
        assert ((between.kept >= 0) & (between.back >= 0) & (between.kept + between.back <= 1)).all()


def test_one_context_is_shrunk_as_by_james_and_stein():
    found = shrunken(torch.tensor([[1.0, 0.05]]).double(), torch.tensor([[0.01, 0.01]]).double())
    assert found[0, 0] > 0.95
    assert found[0, 1] == 0
