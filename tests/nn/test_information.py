"""Information of effects and edges against the Hessian of the log-likelihood."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim.nn._information import _CELLS_WORTH, FitInformation, InformationAccumulator, overdispersion_of
from scgim.nn._likelihood import observation, score_and_information
from scgim.nn._mechanism import parent_table

ADJACENCY = np.zeros((3, 3), dtype=bool)
ADJACENCY[[0, 0, 1], [1, 2, 2]] = True
N, K = 40, 3


def problem(likelihood: str):
    """Cells, contexts and parameters of a small model, and its log-likelihood in direct effects and weights."""
    rng = np.random.default_rng(0)
    context = torch.as_tensor(rng.integers(K, size=N))
    h = torch.as_tensor(rng.normal(size=(N, 3)))
    x = torch.as_tensor(rng.poisson(2.0, size=(N, 3)).astype(float))
    log_size, log_scale = torch.as_tensor(0.2 * rng.normal(size=(N, 1))), torch.tensor([0.5, 1.0, 0.0]).double()
    weight = torch.as_tensor(0.3 * rng.normal(size=(3, 3)) * ADJACENCY)
    shift = torch.as_tensor(0.3 * rng.normal(size=(K, 3)))

    def log_likelihood(shift: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return observation(likelihood, shift[context] + h @ weight, log_size, log_scale).log_prob(x).sum()

    return context, h, x, log_size, log_scale, shift, weight, log_likelihood


def accumulate(likelihood: str, n_batches: int = 1) -> tuple[FitInformation, tuple]:
    everything = problem(likelihood)
    context, h, x, log_size, log_scale, shift, weight, _ = everything
    index, mask = (torch.as_tensor(t) for t in parent_table(ADJACENCY))
    accumulator = InformationAccumulator(K, index, mask.double())
    for name in ("score", "information", "squares", "evidence", "edges", "cross"):
        setattr(accumulator, name, getattr(accumulator, name).double())
    for rows in torch.arange(N).split(-(-N // n_batches)):
        predictor = shift[context[rows]] + h[rows] @ weight
        score, information = score_and_information(likelihood, x[rows], predictor, log_size[rows], log_scale)
        accumulator.update(context[rows], h[rows], score, information, evidence=score)
    return accumulator.finalise(), everything


@pytest.mark.parametrize("likelihood", ["poisson", "normal"])  # where observed and expected information agree
@pytest.mark.parametrize("n_batches", [1, 3])
def test_against_the_hessian(likelihood, n_batches):
    found, (*_, shift, weight, log_likelihood) = accumulate(likelihood, n_batches)
    gradient = torch.autograd.functional.jacobian(log_likelihood, (shift, weight))[0]
    hessian = torch.autograd.functional.hessian(log_likelihood, (shift, weight))
    np.testing.assert_allclose(found.score, gradient, rtol=1e-6)
    np.testing.assert_allclose(found.evidence, gradient, rtol=1e-6)
    index, mask = parent_table(ADJACENCY)
    for j in range(3):
        n_parents = int(mask[j].sum())
        parents = index[j, :n_parents]
        of_shift = -hessian[0][0][:, j, :, j]
        np.testing.assert_allclose(found.information[:, j], of_shift.diagonal(), rtol=1e-6)
        np.testing.assert_allclose(of_shift, torch.diag(of_shift.diagonal()), atol=1e-12)
        of_edges = -hessian[1][1][parents][:, j][:, parents, j]
        np.testing.assert_allclose(found.edge_information[j, :n_parents, :n_parents], of_edges, rtol=1e-6)
        np.testing.assert_allclose(
            found.cross_information[:, j, :n_parents], -hessian[0][1][:, j][:, parents, j], rtol=1e-6
        )
        assert (found.edge_information[j, n_parents:] == 0).all()


def test_edge_covariance_is_that_of_the_joint_posterior():
    found, (*_, shift, weight, log_likelihood) = accumulate("poisson")
    precision = torch.tensor([[1e6], [2.0], [0.5]]).double().expand(K, 3)
    hessian = torch.autograd.functional.hessian(log_likelihood, (shift, weight))
    covariance = found.edge_covariance(precision)
    joint = torch.zeros(K + 2, K + 2).double()
    joint[:K, :K] = -hessian[0][0][:, 2, :, 2] + torch.diag(precision[:, 2])
    joint[:K, K:] = -hessian[0][1][:, 2][:, :2, 2]
    joint[K:, :K] = joint[:K, K:].T
    joint[K:, K:] = -hessian[1][1][:2, 2][:, :2, 2]
    np.testing.assert_allclose(covariance[2], torch.linalg.inv(joint)[K:, K:], rtol=1e-6)


def test_genes_without_parents_have_no_covariance():
    found, _ = accumulate("poisson")
    assert (found.edge_covariance(torch.ones(K, 3).double())[0] == 0).all()


def test_blocks_of_genes_add_up_to_the_same(monkeypatch):
    whole, _ = accumulate("nb")
    monkeypatch.setattr("scgim.nn._information._BLOCK_VALUES", 1)
    blocks, _ = accumulate("nb")
    for name in FitInformation.__dataclass_fields__:
        torch.testing.assert_close(getattr(blocks, name), getattr(whole, name))


def test_overdispersion_is_the_variance_of_scores_over_information_shrunk_to_one():
    scores = torch.tensor([[1.0, 3.0], [-1.0, 3.0], [1.0, 3.0], [-1.0, 9.0]]).double()
    information = torch.tensor([[2.0, 1.0]]).double()
    found = overdispersion_of(
        scores.sum(0, keepdim=True), scores.square().sum(0, keepdim=True), information, torch.tensor([4.0])
    )
    squares = 4 * scores[:, 1].var(correction=0)  # about their mean
    np.testing.assert_allclose(
        found, [[(_CELLS_WORTH + 4 * 2) / (_CELLS_WORTH + 4), (_CELLS_WORTH + 4 * squares) / (_CELLS_WORTH + 4)]]
    )


@pytest.mark.parametrize("n_batches", [1, 3])
def test_overdispersion_of_contexts_is_that_of_their_cells(n_batches):
    found, (context, h, x, log_size, log_scale, shift, weight, _) = accumulate("nb", n_batches)
    score, information = score_and_information("nb", x, shift[context] + h @ weight, log_size, log_scale)
    for k in range(K):
        own, n = context == k, int((context == k).sum())
        varies = score[own].var(0, correction=0) / information[own].mean(0)
        expected = ((_CELLS_WORTH + n * varies) / (_CELLS_WORTH + n)).clamp_min(1.0)
        torch.testing.assert_close(found.overdispersion[k], expected)


def test_overdispersion_is_never_below_one():
    """Nor where there are no cells, or one, whose score says nothing of how scores vary."""
    score, squares = torch.tensor([[0.0], [5.0], [0.0]]), torch.tensor([[0.0], [25.0], [1e-3]])
    found = overdispersion_of(score, squares, torch.tensor([[0.0], [1.0], [8.0]]), torch.tensor([0.0, 1.0, 8.0]))
    np.testing.assert_array_equal(found, np.ones((3, 1)))


def test_scores_of_the_likelihood_itself_are_not_overdispersed():
    """Counts drawn by it, 4,000 cells: within five standard errors of their variance."""
    rng, n, mean, r = np.random.default_rng(0), 4000, 2.0, 1.5
    x = torch.as_tensor(rng.negative_binomial(r, r / (r + mean), size=(n, 1)).astype(float))
    predictor, log_size, log_scale = torch.full((n, 1), np.log(mean)), torch.zeros(n, 1), torch.tensor([np.log(r)])
    score, information = score_and_information("nb", x, predictor, log_size, log_scale)
    sums = (score.sum(0)[None], score.square().sum(0)[None], information.sum(0)[None], torch.tensor([float(n)]))
    assert overdispersion_of(*sums) < 1.15
