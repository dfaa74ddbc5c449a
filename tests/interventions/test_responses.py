"""Responses of whole contexts: leaving out in closed form against refits, limits of the prediction, grids of doses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scgim.interventions._curves import dose_grid, groups_of, on_grid
from scgim.interventions._generator import DrugKernel
from scgim.interventions._responses import Contexts, ResponseSurface, Settings, choose_settings, covariance, left_out

N_DRUGS, N_GENES = 9, 6
DOSES = torch.tensor([-1.0, 0.0, 1.5]).double()
SETTINGS = [
    Settings(),
    Settings(length=1.0, variance=10.0, features=1.0, width=1.0),
    Settings(length=math.inf, variance=0.3, features=0.6, width=0.0),
    Settings(length=4.0, variance=3.0, features=0.3, width=0.3),
]


def design(n_drugs: int = N_DRUGS, seed: int = 0) -> tuple[torch.Tensor, Contexts, DrugKernel]:
    """Responses and contexts of drugs, all at all doses, whose order is mixed."""
    generator = torch.Generator().manual_seed(seed)
    kernel = DrugKernel(torch.randn(n_drugs, 3, generator=generator, dtype=torch.float64))
    order = torch.randperm(n_drugs * len(DOSES), generator=generator)
    drug = torch.arange(n_drugs).repeat_interleave(len(DOSES))[order]
    contexts = Contexts(drug, DOSES.repeat(n_drugs)[order], kernel.features[drug])
    responses = 2.0 + torch.randn(len(drug), N_GENES, generator=generator, dtype=torch.float64)
    return responses, contexts, kernel


def refit(responses, contexts: Contexts, kernel, settings: Settings, by: torch.Tensor) -> torch.Tensor:
    """Each label left out in turn, all else fitted anew; what is taken out of the responses beforehand stays."""
    centre, out = responses.mean(0), torch.empty_like(responses)
    for rows in groups_of(by):
        rest = torch.nonzero(by != by[rows[0]])[:, 0]
        known = contexts.rows(rest)
        own = covariance(known, known, kernel, settings) + torch.eye(len(rest), dtype=torch.float64)
        cross = covariance(contexts.rows(rows), known, kernel, settings)
        out[rows] = cross @ torch.linalg.solve(own, responses[rest] - centre) + centre
    return out


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("by_drug", [True, False])
def test_leaving_out_in_closed_form_is_a_refit(settings, by_drug):
    responses, contexts, kernel = design()
    by = contexts.drug if by_drug else torch.arange(len(responses))
    found = left_out(responses, contexts, kernel, settings, by)
    torch.testing.assert_close(found, refit(responses, contexts, kernel, settings, by), rtol=1e-6, atol=1e-7)
    # what is left out says nothing of itself
    moved = responses.clone()
    moved[by == by[0]] += 5.0
    again = left_out(moved, contexts, kernel, settings, by)
    torch.testing.assert_close(again[by == by[0]], found[by == by[0]], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("settings", SETTINGS[1:])
def test_leaving_a_drug_out_is_the_surface_of_the_others(settings):
    """That the mean is taken out beforehand, of all drugs, changes little: the level refits it."""
    responses, contexts, kernel = design()
    found = left_out(responses, contexts, kernel, settings, contexts.drug)
    rest, rows = (torch.nonzero(mask)[:, 0] for mask in (contexts.drug != 4, contexts.drug == 4))
    surface = ResponseSurface(responses[rest], contexts.rows(rest), kernel, settings)
    torch.testing.assert_close(surface(contexts.rows(rows)), found[rows], rtol=1e-3, atol=1e-3)


def new_drug(features: torch.Tensor) -> Contexts:
    return Contexts(torch.full((len(DOSES),), -1), DOSES, features.expand(len(DOSES), -1))


def test_a_new_drug_without_features_does_what_the_mean_drug_does():
    responses, contexts, kernel = design(n_drugs=40)
    responses += torch.tensor([3.0, -2.0, 1.0, 0.5, 4.0, -5.0]) * (contexts.log_dosage[:, None] + 1.5)
    mean = torch.stack([responses[contexts.log_dosage == dose].mean(0) for dose in DOSES])
    for variance, tolerance in ((0.03, 1e-2), (1.0, 1e-2), (30.0, 3e-2)):  # the curve of the mean has a prior too
        surface = ResponseSurface(responses, contexts, kernel, Settings(variance=variance, features=0.0))
        found = surface(new_drug(kernel.features[:1]))  # features do not matter
        scale = float(mean.abs().max())
        torch.testing.assert_close(found, mean, rtol=0, atol=tolerance * scale)
        # a drug left out is predicted by the mean of the others
        others = left_out(responses, contexts, kernel, Settings(variance=variance), contexts.drug)
        rows = (contexts.drug == 3) & (contexts.log_dosage == DOSES[1])
        expected = responses[(contexts.drug != 3) & (contexts.log_dosage == DOSES[1])].mean(0)
        torch.testing.assert_close(others[rows][0], expected, rtol=0, atol=tolerance * scale)


def test_features_far_away_say_no_more_than_those_measured():
    responses, contexts, kernel = design()
    for width in (0.0, 1.0):
        surface = ResponseSurface(responses, contexts, kernel, Settings(variance=30.0, features=1.0, width=width))
        far = surface(new_drug(1e6 * kernel.features[:1]))
        assert torch.isfinite(far).all()
        low, high = responses.amin(0), responses.amax(0)
        assert ((far > low - (high - low)) & (far < high + (high - low))).all()


def squared(responses: torch.Tensor):
    return lambda predicted, rows: (responses[rows] - predicted).square().sum(1)


def test_settings_follow_what_predicts_drugs_left_out():
    """Responses that follow the features, that do not, and a screen of one dose."""
    generator = torch.Generator().manual_seed(0)
    noise, contexts, kernel = design(n_drugs=30)
    noise = noise - 2.0
    slopes = torch.randn(3, N_GENES, generator=generator, dtype=torch.float64)
    featured = 3 * contexts.features @ slopes + 0.3 * noise
    found = choose_settings(featured, contexts, kernel, contexts.drug, squared(featured))
    assert found.features >= 0.6
    assert found.variance >= 3.0
    predicted = left_out(featured, contexts, kernel, found, contexts.drug)
    assert squared(featured)(predicted, slice(None)).sum() < 0.1 * featured.square().sum()
    plain = choose_settings(featured, contexts, kernel, contexts.drug, squared(featured), features=False)
    assert plain.features == 0.0
    nothing = choose_settings(noise, contexts, kernel, contexts.drug, squared(noise))
    told = nothing.variance * nothing.features
    assert told <= 0.3
    one = Contexts(contexts.drug, torch.zeros(len(noise)).double(), contexts.features)
    assert choose_settings(noise, one, kernel, contexts.drug, squared(noise)).length == Settings().length


def test_neighbouring_doses_predict_a_dose_left_out():
    noise, contexts, kernel = design(n_drugs=20)
    own = torch.randn(20, N_GENES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    smooth = 4 * own[contexts.drug] + 0.3 * noise
    labels = torch.arange(len(smooth))
    found = choose_settings(smooth, contexts, None, labels, squared(smooth))
    assert found.features == 0.0
    assert found.length >= 4.0
    predicted = left_out(smooth, contexts, None, found, labels)
    assert squared(smooth)(predicted, slice(None)).sum() < 0.05 * smooth.square().sum()


def test_a_sample_of_many_drugs_chooses_and_fits(monkeypatch):
    responses, contexts, kernel = design(n_drugs=60)
    monkeypatch.setattr("scgim.interventions._responses._MAX_CONTEXTS", 30)
    monkeypatch.setattr("scgim.interventions._responses._MAX_FITTED", 50)
    seen = []

    def loss(predicted: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows)
        return squared(responses)(predicted, rows)

    settings = choose_settings(responses, contexts, kernel, contexts.drug, loss)
    assert len(seen[0]) == 30
    assert (torch.bincount(contexts.drug[seen[0]])[contexts.drug[seen[0]]] == 3).all()  # whole drugs
    surface = ResponseSurface(responses, contexts, kernel, settings)
    assert len(surface.dual) == 50
    assert torch.isfinite(surface(contexts)).all()


def test_dose_grid_is_of_the_measured_doses_or_spans_them():
    measured = torch.tensor([2.0, -1.0, 2.0, 0.5, 0.5 + 1e-9]).double()
    np.testing.assert_allclose(dose_grid(measured), [-1.0, 0.5, 2.0])
    many = dose_grid(torch.linspace(-6.0, 8.0, 50).double())
    np.testing.assert_allclose(many, np.linspace(-6.0, 8.0, 24))
    np.testing.assert_allclose(dose_grid(torch.linspace(0.0, 1.0, 9), n_points=9), np.linspace(0, 1, 9), rtol=1e-6)
    assert dose_grid(torch.full((5,), -50.0)).tolist() == [-50.0]


def test_values_are_carried_to_a_grid_drug_by_drug():
    """Exact where a drug was measured, linear between its doses, its last one above them and in proportion below."""
    group = torch.tensor([1, 0, 1, 1])
    log_dosage = torch.tensor([2.0, 1.0, 0.0, 1.0]).double()
    values = torch.tensor([[4.0, 1.0], [7.0, -7.0], [0.0, 3.0], [2.0, 5.0]]).double()
    grid = torch.tensor([-1.0, 0.0, 1.0, 1.5, 2.0, 3.0]).double()
    found = on_grid(values, group, log_dosage, grid, 3)
    e = math.exp(-1.0)
    expected = [[0.0, 3.0 * e], [0.0, 3.0], [2.0, 5.0], [3.0, 3.0], [4.0, 1.0], [4.0, 1.0]]
    np.testing.assert_allclose(found[1], expected, atol=1e-12)
    share = np.array([e**2, e, 1, 1, 1, 1])
    np.testing.assert_allclose(found[0], share[:, None] * [7.0, -7.0])
    np.testing.assert_array_equal(found[2], np.zeros((6, 2)))  # a drug without contexts
