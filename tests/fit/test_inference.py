"""What the fit says of effects and edges: derivatives by autograd, one Newton step, and a Fisher matrix inverted whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

from scgim.fit._inference import HiddenEffects, Looseness, edge_costs, gather_information, infer_edges, infer_targets
from scgim.interventions._stacking import NO_PRECISION
from scgim.nn._information import FitInformation

GROUP = np.array([-1, 0, 0, 1, 2])
PARENTS = [[], [], [0], [0, 1]]
SEEN = [1, 2, 4]  # treated contexts that have cells


class LogLikelihood(nn.Module):
    """Of all cells, given effects of contexts (K, d) and whether mechanisms are cut."""

    def __init__(self, module, cells):
        super().__init__()
        self.module, self.context = module, torch.as_tensor(cells.context)
        self.x, self.covariates = torch.as_tensor(cells.x), torch.as_tensor(cells.covariates)
        self.log_size = torch.as_tensor(cells.log_size)[:, None]

    def forward(self, shift: torch.Tensor, cut: bool = False) -> torch.Tensor:
        targets = torch.full(self.x.shape, cut)
        return self.module.log_likelihood(self.x, self.covariates, self.log_size, shift[self.context], targets)


def of_treated(module) -> torch.Tensor:
    """Effects of contexts, none in controls."""
    return (module.shift * torch.as_tensor(GROUP >= 0)[:, None]).detach()


def make(make_module, make_cells, likelihood: str, intervention: str = "shift"):
    module, cells = (
        make_module(likelihood, "linear", intervention, 1),
        make_cells(120, 1, counts=likelihood != "normal"),
    )
    module.centre.copy_(torch.tensor([1.4, 1.0, 0.8, 1.2]) if likelihood != "normal" else torch.full((4,), 5.0))
    module.spread.copy_(torch.tensor([0.5, 0.8, 0.4, 1.5]))
    return module, cells


@pytest.mark.parametrize("likelihood", ["nb", "poisson", "normal"])
def test_scores_are_derivatives_of_the_log_likelihood(make_module, make_cells, load, likelihood):
    module, cells = make(make_module, make_cells, likelihood)
    found = gather_information(module, load(cells))
    total = LogLikelihood(module, cells)
    expected = jacobian(lambda shift: total(shift).sum(), of_treated(module))
    np.testing.assert_allclose(found.score, expected, rtol=1e-3, atol=1e-3)
    assert not found.evidence.any()


@pytest.mark.parametrize("likelihood", ["poisson", "normal"])
def test_information_is_the_curvature_of_the_log_likelihood(make_module, make_cells, load, likelihood):
    """Of effects, of weights, and of both; for these likelihoods the observed curvature is the expected one."""
    module, cells = make(make_module, make_cells, likelihood)
    found = gather_information(module, load(cells))
    total = LogLikelihood(module, cells)
    value = lambda s, w: functional_call(total, {"module.mechanism.weight": w}, (s,)).sum()
    (effects, cross), (_, edges) = hessian(value, (of_treated(module), module.mechanism.weight.detach()))
    for j, parents in enumerate(PARENTS):
        p = range(len(parents))
        information = -effects[:, j, :, j].diagonal()
        np.testing.assert_allclose(found.information[:, j], information, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.cross_information[:, j, p], -cross[:, j, parents, j], rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(
            found.edge_information[j][np.ix_(p, p)], -edges[parents, j][:, parents, j], rtol=1e-3, atol=1e-2
        )


def test_information_of_overdispersed_counts_is_that_expected(make_module, make_cells, load):
    """r mu / (r + mu), with mu the mean."""
    module, cells = make(make_module, make_cells, "nb")
    found = gather_information(module, load(cells))
    h = module.parent_features(torch.as_tensor(cells.x), torch.as_tensor(cells.log_size)[:, None])
    weight = (module.mechanism.weight * module.adjacency).detach()
    eta = module.intercept + torch.as_tensor(cells.covariates) @ module.covariate_effect + h @ weight
    eta = (eta + of_treated(module)[cells.context]).detach().numpy() + cells.log_size[:, None]
    mean, r = np.exp(eta), module.log_scale.exp().detach().numpy()
    each = r * mean / (r + mean)
    expected = np.array([each[cells.context == k].sum(0) for k in range(5)])
    np.testing.assert_allclose(found.information, expected, rtol=1e-4)
    np.testing.assert_allclose(
        found.cross_information[1, 2, 0], (each[:, 2] * h[:, 0].numpy())[cells.context == 1].sum(), rtol=1e-3
    )


@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_hard_targets_are_judged_with_and_without_their_parents(make_module, make_cells, load, likelihood):
    """The evidence is how much better cells are explained by an effect in place of the parents; scores are those of the effect."""
    module, cells = make(make_module, make_cells, likelihood, "hard")
    found = gather_information(module, load(cells))
    total, shift = LogLikelihood(module, cells), of_treated(module)
    gain = (total(shift, cut=True) - total(torch.zeros_like(shift))).detach()
    expected = torch.zeros(5, 4).index_add_(0, torch.as_tensor(cells.context), gain)
    np.testing.assert_allclose(found.evidence, expected, rtol=1e-3, atol=1e-2)
    score = jacobian(lambda s: total(s, cut=True).sum(), shift)
    np.testing.assert_allclose(found.score, score, rtol=1e-3, atol=1e-2)


def told(score: float = 0.0, information: float = 0.0, evidence: float = 0.0) -> FitInformation:
    """The same of all genes in all contexts that have cells."""
    has_cells = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0]).double()[:, None].expand(5, 4)
    nothing = torch.zeros(0)
    sums = (score * has_cells, information * has_cells, nothing, nothing, evidence * has_cells, 0 * has_cells, nothing)
    return FitInformation(*sums, overdispersion=torch.ones(5, 4).double())


def test_effects_move_by_one_newton_step(make_module):
    module = make_module("nb")
    infer_targets(module, told(score=3.0, information=20.0), None)
    known = module.knowledge
    np.testing.assert_allclose(known.response[SEEN], module.shift.detach()[SEEN].double() + 3.0 / 20.0, rtol=1e-6)
    np.testing.assert_allclose(known.response_precision[SEEN], 20.0)
    # controls, and contexts without cells
    np.testing.assert_array_equal(known.response[[0, 3]], 0.0)
    np.testing.assert_array_equal(known.response_precision[[0, 3]], NO_PRECISION)


@pytest.mark.parametrize(("likelihood", "furthest"), [("nb", 15.0), ("poisson", 15.0), ("normal", 4e4)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_steps_of_counts_are_bounded(make_module, likelihood, furthest, sign):
    """Where there is nearly no information, it counts as a thousandth."""
    module = make_module(likelihood)
    with torch.no_grad():
        module.shift.zero_()
    infer_targets(module, told(score=40.0 * sign, information=1e-5), None)
    np.testing.assert_allclose(module.knowledge.response[SEEN], sign * furthest)
    np.testing.assert_allclose(module.knowledge.response_precision[SEEN], 1e-3)


@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_a_cell_of_many_counts_makes_an_effect_uncertain(make_module, make_cells, load, likelihood):
    """In its context and gene alone; the effect is that of the likelihood."""
    module, cells = make(make_module, make_cells, likelihood)
    before = gather_information(module, load(cells))
    cell, gene = int(np.flatnonzero(cells.context == 4)[0]), 3
    cells.x[cell, gene] = 2000
    information = gather_information(module, load(cells))
    assert information.overdispersion[4, gene] > 20
    others = torch.ones(5, 4, dtype=torch.bool)
    others[4, gene] = False
    torch.testing.assert_close(information.overdispersion[others], before.overdispersion[others])
    infer_targets(module, information, None)
    expected = (information.information / information.overdispersion)[SEEN]
    np.testing.assert_allclose(module.knowledge.response_precision[SEEN], expected, rtol=1e-6)
    step = (information.score / information.information)[SEEN]
    shift = (module.shift.detach()[SEEN].double() + step).clamp(-15, 15)
    np.testing.assert_allclose(module.knowledge.response[SEEN], shift, rtol=1e-6)


def test_an_effect_of_which_nearly_nothing_is_known_has_the_least_precision(make_module):
    module, information = make_module("nb"), told(information=0.01)
    infer_targets(module, replace(information, overdispersion=100 * information.overdispersion), None)
    np.testing.assert_allclose(module.knowledge.response_precision[SEEN], 1e-3)


def test_a_cell_of_many_counts_in_controls_of_a_level_makes_all_its_effects_uncertain(make_module):
    """Contexts 0 and 1 are the controls of two levels, of which the second has such a cell."""
    group, dosage = np.array([-1, -1, 0, 0, 1]), np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    module = make_module("nb", group=group, dosage=dosage, level=np.array([0, 1, 0, 0, 1]))
    information = told(information=20.0)
    information.overdispersion[1] = 4.0
    infer_targets(module, information, None)
    np.testing.assert_allclose(module.knowledge.response_precision[2], 1 / (1 / 20 + 1 / 20))
    np.testing.assert_allclose(module.knowledge.response_precision[4], 1 / (1 / 20 + 4 / 20))


def test_hard_targets_are_as_certain_as_their_likelihood_says(make_module):
    """By the evidence that parents are cut, whose scores do not tell how cells vary where they are not."""
    module, information = make_module("nb", intervention="hard"), told(information=20.0, evidence=3.0)
    infer_targets(module, replace(information, overdispersion=9 * information.overdispersion), None)
    np.testing.assert_allclose(module.knowledge.response_precision[SEEN], 20.0)


def test_continuous_values_are_as_certain_as_their_variance_says(make_module, make_cells, load):
    module, cells = make(make_module, make_cells, "normal")
    cells.x[int(np.flatnonzero(cells.context == 4)[0]), 3] = 2000
    information = gather_information(module, load(cells))
    infer_targets(module, information, None)
    np.testing.assert_allclose(module.knowledge.response_precision[SEEN], information.information[SEEN], rtol=1e-6)


def test_moments_have_their_share_in_targets(make_module):
    """Log odds are the mean of those by counts and by moments; effects are those of counts."""
    module = make_module("nb")
    with torch.no_grad():
        module.shift.zero_()

    def log_odds(precision: float | None) -> torch.Tensor:
        """Of the genes of measured drugs; gene 1 has moved in all, by moments of this precision."""
        shift, still = torch.zeros(5, 4).double(), torch.zeros(5, 4).double()
        shift[:, 1] = 3.0
        seen = torch.zeros(5, dtype=torch.bool)
        seen[SEEN] = True
        moments = (seen, shift, torch.full_like(shift, precision or 1.0), still, torch.zeros(4, 4).double(), 0.1, 4.0)
        of_moments = HiddenEffects(*moments) if precision else None
        infer_targets(module, told(information=20.0), None, departures=False, of_moments=of_moments)
        return module.knowledge.target_probs.double()[torch.unique(module.group[SEEN])].logit()

    by_counts, sure, unsure = log_odds(None), log_odds(400.0), log_odds(1e-3)
    assert (by_counts[:, 1] < -1).all()
    assert (sure[:, 1] > by_counts[:, 1] + 5).all()  # half of the twelve or so that moments give
    assert (sure[:, [0, 2, 3]] < 0).all()
    assert ((unsure - by_counts)[:, 1].abs() < 1).all()  # moments that say nothing leave what counts say
    np.testing.assert_allclose(module.knowledge.response[SEEN], 0.0)


def set_effects(module, effects: np.ndarray) -> None:
    with torch.no_grad():
        module.shift.copy_(torch.as_tensor(effects))


EFFECTS = np.array([[0.0] * 4, [2.6, 0.0, 0.1, 0.0], [0.1, 0.1, 0.0, -0.1], [9.0] * 4, [0.0, 0.0, 0.0, -2.2]])
ONE_EACH = np.array(
    [-1, 0, 1, 2, 3]
)  # a context for each drug, as in screens without doses; the third drug has no cells


def log_odds_by_hand(module, shift: np.ndarray, precision: float) -> np.ndarray:
    """Of targets, at the prior that was found, (U, d)."""
    prob, slab, spike = module.knowledge.prior.tolist()
    noise = 1 / precision + spike
    total = 1 / noise + 1 / slab
    mean = shift[1:] / noise / total
    return np.log(prob / (1 - prob)) + 0.5 * mean**2 * total - 0.5 * np.log(total * slab)


def test_targets_by_the_evidence_for_an_effect(make_module):
    """Without doses there is one curve, and the evidence is that of two normal distributions."""
    module = make_module("nb", dosage=None, group=ONE_EACH)
    set_effects(module, EFFECTS)
    infer_targets(module, told(information=10.0), None)
    known = module.knowledge
    odds = log_odds_by_hand(module, EFFECTS, 10.0)
    np.testing.assert_allclose(known.target_probs[[0, 1, 3]], 1 / (1 + np.exp(-odds[[0, 1, 3]])), rtol=1e-6)
    np.testing.assert_array_equal(known.target_probs[2], 0.0)
    assert known.target_probs[[0, 3], [0, 3]].min() > 0.95
    assert known.target_probs[1].max() < 0.3
    slab, noise = float(known.prior[1]), 0.1 + float(known.prior[2])
    total = 1 / noise + 1 / slab
    assert float(known.emax[0, 0]) == pytest.approx(2.6 / noise / total)
    assert float(known.emax_sd[0, 0]) == pytest.approx(total**-0.5)
    np.testing.assert_array_equal(known.background, 0.0)


def test_targets_that_are_given_stay_with_their_drug(make_module):
    """The drug before it has no cells, so that rows of what was measured are not rows of all drugs."""
    module = make_module("nb", dosage=None, group=ONE_EACH)
    module.knowledge.target_log_odds[3, 1], module.knowledge.target_is_known[3, 1] = 30.0, True
    set_effects(module, EFFECTS)
    infer_targets(module, told(information=10.0), None)
    assert float(module.knowledge.target_probs[3, 1]) > 0.999
    assert float(module.knowledge.target_probs[1, 1]) < 0.3
    expected = np.ones((4, 4), dtype=bool)
    expected[3, 1] = False
    np.testing.assert_array_equal(module.knowledge.known_targets().isnan(), expected)


@pytest.mark.parametrize("given", [False, True])
def test_hard_targets_by_the_evidence_that_parents_are_cut(make_module, given):
    """Its sum over contexts, the penalty for the size of the effect, and the prior odds."""
    module = make_module("nb", "linear", "hard")
    if given:
        module.knowledge.target_log_odds[2, 1], module.knowledge.target_is_known[2, 1] = 5.0, True
    set_effects(module, EFFECTS)
    infer_targets(module, told(information=10.0, evidence=1.5), None)
    prob, slab, _ = module.knowledge.prior.tolist()
    odds = np.full((3, 4), np.log(prob / (1 - prob)))
    if given:
        odds[2, 1] = 5.0
    per_context = 1.5 - 0.5 * np.log(1 + 10.0 * slab)
    odds += per_context * np.array([2, 0, 1])[:, None]
    np.testing.assert_allclose(module.knowledge.target_probs[[0, 2]], 1 / (1 + np.exp(-odds[[0, 2]])), rtol=1e-6)


def whole_covariance(information: FitInformation, precision: np.ndarray, j: int, p: int) -> np.ndarray:
    """Covariance of the weights of gene j from the Fisher matrix of its effects and weights together, inverted whole."""
    matrix = np.zeros((5 + p, 5 + p))
    matrix[:5, :5] = np.diag(information.information[:, j].numpy() + precision[:, j])
    matrix[:5, 5:] = information.cross_information[:, j, :p]
    matrix[5:, :5] = matrix[:5, 5:].T
    matrix[5:, 5:] = information.edge_information[j, :p, :p]
    return np.linalg.inv(matrix)[5:, 5:]


@pytest.mark.parametrize("mechanism", ["linear", "mlp"])
def test_errors_of_slopes_and_their_evidence(make_module, make_cells, load, mechanism):
    """Effects are summed out under their prior: loose where a gene is a target, tight elsewhere and in controls."""
    module, cells = make_module("nb", mechanism), make_cells()
    if mechanism == "mlp":
        with torch.no_grad():
            module.mechanism.second.add_(0.5)
    known, rng = module.knowledge, np.random.default_rng(0)
    known.prior.copy_(torch.tensor([0.1, 1.4, 0.02]))
    known.target_probs.copy_(torch.as_tensor(rng.uniform(size=(3, 4))))
    known.edge_log_odds.copy_(torch.as_tensor(rng.normal(-2.0, 1.0, (4, 4))))
    known.weight_sd.fill_(9.0)
    information = gather_information(module, load(cells))
    evidence = infer_edges(
        module, information, 300, Looseness(torch.zeros(1, 1), torch.zeros(len(module.centre), len(module.centre)))
    )
    on = known.target_probs.numpy()[[0, 0, 0, 1, 2]] * np.array([0, 1, 1, 1, 1])[:, None]
    slopes = module.mean_slopes().numpy()
    sd, expected = np.zeros((4, 4)), np.full((4, 4), -np.inf)
    for j, parents in enumerate(PARENTS):
        covariance = whole_covariance(information, 1 / (on * 1.4 + 0.02 + 1e-6), j, len(parents))
        sd[parents, j] = np.sqrt(np.diag(covariance))
        cost = 0.5 * np.log(300) - known.edge_log_odds.numpy()[parents, j]
        expected[parents, j] = 0.5 * (slopes[parents, j] / sd[parents, j]) ** 2 - cost
    np.testing.assert_allclose(known.weight_sd, sd, rtol=1e-5)
    np.testing.assert_allclose(evidence, expected, rtol=1e-5)


def test_the_price_of_an_edge():
    odds = np.array([[0.0, -2.0], [1.5, 0.0]])
    np.testing.assert_allclose(edge_costs(1000, odds), 0.5 * np.log(1000) + np.array([[0.0, 2.0], [-1.5, 0.0]]))
