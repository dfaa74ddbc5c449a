"""Joint estimation: features of the other drugs help where they tell something, and change nothing where they do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from scgim._priors import ShiftPrior
from scgim.interventions import _effects
from scgim.interventions._curves import CurveGrid
from scgim.interventions._effects import estimate_interventions
from scgim.interventions._joint import Screen, estimate_jointly, informed_prior

N_DRUGS, N_GENES, N_CLASSES = 40, 20, 5
PRIOR = ShiftPrior(0.05, slab_var=1.0, spike_var=1e-3)


def screen(noise: float, *, informative: bool) -> tuple[Screen, np.ndarray]:
    """Drugs of five classes, each with two targets of its own, measured with noise at two doses; and who acts on which gene."""
    rng = np.random.default_rng(0)
    classes = np.arange(N_DRUGS) % N_CLASSES
    targets = np.zeros((N_DRUGS, N_GENES))
    targets[np.arange(N_DRUGS), 2 * classes] = targets[np.arange(N_DRUGS), 2 * classes + 1] = 1.0
    heights = targets * np.where(np.arange(N_GENES) % 2, -1.2, 1.2) * rng.uniform(0.7, 1.3, (N_DRUGS, 1))
    group = np.repeat(np.arange(N_DRUGS), 2)
    shift = heights[group] * np.tile([0.5, 0.7], N_DRUGS)[:, None] + noise * rng.normal(size=(2 * N_DRUGS, N_GENES))
    features = np.eye(N_CLASSES)[classes if informative else rng.permutation(classes)]
    features = features + 0.05 * rng.normal(size=features.shape)
    log_dosage = np.tile(np.log([1.0, 2.3]), N_DRUGS)
    parts = (torch.as_tensor(v) for v in (shift, np.full(shift.shape, noise**-2), group, log_dosage, features))
    ends = (float(log_dosage.min()), float(log_dosage.max()))
    return Screen(*parts, CurveGrid.over(*ends), ends), targets


def auprc(found, targets: np.ndarray) -> float:
    return average_precision_score(targets.ravel(), found.interventions.target_probs.numpy().ravel())


def alone(data: Screen, prior: ShiftPrior = PRIOR):
    return estimate_interventions(data.shift, data.information, data.group, data.log_dosage, data.curves, prior)


def test_informative_features_find_targets_that_noise_hides():
    data, targets = screen(0.5, informative=True)
    found, without = estimate_jointly(data, PRIOR), alone(data)
    assert found.evidence > without.evidence + 2.0
    assert auprc(without, targets) < 0.8
    assert auprc(found, targets) > auprc(without, targets) + 0.15


def test_what_there_is_beside_direct_effects_is_chosen_without_features(monkeypatch):
    data, _ = screen(0.5, informative=True)
    programme = torch.as_tensor(np.random.default_rng(1).normal(size=(2 * N_DRUGS, 1))) * torch.linspace(-1, 1, N_GENES)
    data = replace(data, shift=data.shift + programme)
    first, forms = alone(data), []
    assert first.form.n_programmes == 1
    fit = _effects._fit

    def noted(*asked):
        found = fit(*asked)
        forms.append(found and found.form)
        return found

    monkeypatch.setattr(_effects, "_fit", noted)
    again = data.estimate(PRIOR, first.form)
    assert forms == [first.form]  # one fit, where the choice takes several
    assert again.evidence == first.evidence
    torch.testing.assert_close(again.interventions.target_probs, first.interventions.target_probs, rtol=0, atol=0)
    forms.clear()
    alone(data)
    n_to_choose = len(forms)
    assert n_to_choose > 2
    forms.clear()
    found = estimate_jointly(data, PRIOR)
    assert found.prior.known is not None
    assert 1 <= len(forms[n_to_choose:]) <= 3  # rounds
    assert set(forms[n_to_choose:]) == {first.form}


def test_shuffled_features_cost_nothing():
    """Which genes are targets at all may still be learned from other drugs; which drug acts on which may not."""
    data, targets = screen(0.5, informative=False)
    found, without = estimate_jointly(data, PRIOR), alone(data)
    assert auprc(found, targets) > auprc(without, targets) - 0.01
    if found.prior.known is not None:
        probs = torch.sigmoid(found.prior.known).numpy()
        assert np.corrcoef(probs.ravel(), targets.ravel())[0, 1] < 0.45
        assert probs[:, 10:].max() < probs[:, :10].mean()


@pytest.mark.parametrize("kept", [None, 7])
def test_without_features_or_with_few_drugs_nothing_is_done(kept):
    data, _ = screen(0.5, informative=True)
    if kept is None:
        data = replace(data, features=None)
    else:
        rows = data.group < kept
        parts = {name: getattr(data, name)[rows] for name in ("shift", "information", "group", "log_dosage")}
        data = replace(data, features=data.features[:kept], **parts)
    assert estimate_jointly(data, PRIOR).prior.known is None


def test_what_is_known_beforehand_stays():
    data, _ = screen(0.5, informative=True)
    known = torch.full((N_DRUGS, N_GENES), torch.nan, dtype=torch.float64)
    known[0, 3], known[1, 0] = 4.0, -4.0
    prior = informed_prior(data, alone(data), replace(PRIOR, known=known))
    assert (prior.known[0, 3], prior.known[1, 0]) == (4.0, -4.0)
    assert prior.known.isfinite().all()


def test_a_drug_does_not_enter_its_own_prior():
    """Another estimate of one drug leaves the prior of that drug as it was, but for the settings that all drugs share."""
    data, _ = screen(0.1, informative=True)
    first = alone(data)
    probs = first.interventions.target_probs.clone()
    probs[0] = 1.0 - probs[0]
    other = first._replace(interventions=replace(first.interventions, target_probs=probs))
    before, after = (torch.sigmoid(informed_prior(data, found, PRIOR).known) for found in (first, other))
    assert (before[0] - after[0]).abs().max() < 0.2
    assert before[0, :2].min() > 0.5  # by the other drugs of its class
