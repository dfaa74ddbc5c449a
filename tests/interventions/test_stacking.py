"""Sparse targets and dense responses together: each is trusted where drugs, or doses, left out say so, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from scgim.interventions._curves import NO_DOSE, CurveGrid, dose_grid
from scgim.interventions._interventions import Interventions
from scgim.interventions._stacking import _LEEWAY, DrugGenerator, Responses, measured_background, trust

N_DRUGS, N_NEW, N_GENES, N_FEATURES = 40, 40, 12, 4
LOG_DOSES = torch.tensor([0.5, 1.0, 2.0, 4.0]).double().log()
SD = 0.05
FIELDS = ("target_probs", "emax", "emax_sd", "log_ec50", "log_ec50_sd", "hill")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hill(probs: torch.Tensor, emax: torch.Tensor) -> Interventions:
    """Interventions of midpoint 1 and hill 1.5."""
    flat = torch.zeros_like(emax)
    values = (probs.double(), emax, flat + 0.05, flat, flat + 0.1, flat + 1.5)
    return Interventions(**dict(zip(FIELDS, values, strict=True)))


class World(NamedTuple):
    """Features (U, p), what is known of measured drugs, responses, and the effects (U, m, d) of measured and of new drugs."""

    features: torch.Tensor
    interventions: Interventions
    responses: Responses
    measured: torch.Tensor
    new_features: torch.Tensor
    new: torch.Tensor

    def generator(self, features: torch.Tensor | None = None) -> DrugGenerator:
        features = self.features if features is None else features
        span = (float(LOG_DOSES[0]), float(LOG_DOSES[-1]))
        return DrugGenerator(features, self.interventions, CurveGrid.over(*span), span, self.responses)

    def error(self, predicted: Interventions) -> tuple[float, float]:
        """Mean squared error of the effects on new drugs, and that of the mean of the measured drugs at each dose."""
        found = on_doses(predicted)
        of_mean = self.measured.mean(0) - self.new
        return float((found - self.new).square().mean()), float(of_mean.square().mean())


def on_doses(interventions: Interventions) -> torch.Tensor:
    """Expected effects at all doses, (Q, m, d)."""
    q = len(interventions.emax)
    return torch.stack([interventions.mean(dose.expand(q)) for dose in LOG_DOSES], 1)


def responses_of(effects: torch.Tensor, carry: torch.Tensor | None = None, seed: int = 1) -> Responses:
    """Contexts of drugs (U, m, d), measured with noise."""
    u, m, d = effects.shape
    estimates = effects.reshape(-1, d) + SD * random(u * m, d, seed=seed)
    group, log_dosage = torch.arange(u).repeat_interleave(m), LOG_DOSES[-m:].repeat(u)
    carry = torch.eye(d, dtype=torch.float64) if carry is None else carry
    return Responses(estimates, torch.full_like(estimates, SD**-2), group, log_dosage, dose_grid(log_dosage), carry)


def world_of(features: torch.Tensor, effects: torch.Tensor, known: Interventions, carry=None) -> World:
    n = N_DRUGS
    return World(
        features[:n],
        known.rows(torch.arange(n)),
        responses_of(effects[:n], carry),
        effects[:n],
        features[n:],
        effects[n:],
    )


def sparse_world(carry: torch.Tensor | None = None) -> World:
    """Four classes of drugs, told by the features, that act on one gene each with curves."""
    classes = torch.randint(4, (N_DRUGS + N_NEW,), generator=torch.Generator().manual_seed(2))
    features = torch.eye(4, dtype=torch.float64)[classes] + 0.05 * random(len(classes), 4)
    probs = torch.zeros(len(classes), N_GENES, dtype=torch.float64)
    probs[torch.arange(len(classes)), 2 * classes] = 1.0
    known = hill(probs, probs * torch.where(classes % 2 == 0, 2.0, -2.0)[:, None])
    return world_of(features, on_doses(known), known, carry)


def dense_world() -> World:
    """No drug has a target; two patterns over all genes follow the features, with dose."""
    features = random(N_DRUGS + N_NEW, N_FEATURES)
    patterns = features[:, :2] @ random(2, N_GENES, seed=3) + 0.5 * random(1, N_GENES, seed=4)
    share = torch.sigmoid(1.5 * LOG_DOSES)
    nothing = torch.zeros(len(features), N_GENES, dtype=torch.float64)
    return world_of(features, patterns[:, None] * share[:, None], hill(nothing, nothing))


def test_trust_grows_with_standard_errors_over_drugs():
    """0 up to one standard error, 1 from three, between by 1 - 1 / t^2."""
    group = torch.arange(6).repeat_interleave(2)
    spread = random(6)
    spread = (
        (spread - spread.mean()) / spread.std() * 6**0.5 / 2
    )  # half of it at each of two doses: one standard error is 1
    for t, share in ((-2.0, 0.0), (0.5, 0.0), (0.99, 0.0), (2.0, (1 - 1 / 4) / (1 - 1 / 9)), (3.01, 1.0), (50.0, 1.0)):
        gain = (spread + t / 2).repeat_interleave(2)
        assert trust(gain, group) == pytest.approx(share, abs=1e-9)
    assert 0 < trust((spread + 1.05 / 2).repeat_interleave(2), group) < 0.2
    assert trust(torch.ones(6), torch.arange(6)) == 1.0
    assert trust(torch.zeros(6), torch.arange(6)) == 0.0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_drugs_are_not_trusted(n):
    assert trust(torch.ones(4 * n) + 1e-3 * random(4 * n), torch.arange(4 * n) % n) == 0.0


def test_estimates_are_shrunk_to_the_mean_of_their_gene():
    effects = torch.zeros(30, 4, 3, dtype=torch.float64)
    effects[..., 0] = 2.0 + random(30, 4)
    effects[..., 1] = 1.0
    responses = responses_of(effects)
    found = responses.effects
    noisy = Responses(
        found, torch.full_like(found, 1e-6), responses.group, responses.log_dosage, responses.grid, responses.carry
    )
    assert (found - effects.reshape(-1, 3)).abs()[:, 0].max() < 0.25
    assert found[:, 1].std() < 0.6 * responses.estimates[:, 1].std()
    np.testing.assert_allclose(found[:, 1].mean(), 1.0, atol=0.02)
    assert found[:, 2].abs().max() < 0.8 * responses.estimates[:, 2].abs().max()
    np.testing.assert_array_equal(noisy.effects, torch.zeros_like(found))  # nothing is known


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_context_of_which_nothing_is_known_says_nothing_of_the_others(everywhere):
    """As one whose cells are held out, or a gene that a drug silences."""
    effects = random(30, 4, 3)
    known = responses_of(effects)
    genes = slice(None) if everywhere else slice(0, 1)
    estimates, precision = known.estimates.clone(), known.precision.clone()
    estimates[-1, genes], precision[-1, genes] = 0.0, 1e-6
    found = replace(known, estimates=estimates, precision=precision)
    torch.testing.assert_close(found.effects[:-1], known.effects[:-1], rtol=0.01, atol=0.01)
    torch.testing.assert_close(found.weight[:-1], known.weight[:-1], rtol=0.01, atol=0.01)
    assert found.effects[-1, genes].abs().max() < 0.3
    assert found.weight[-1, genes].max() < 1e-5


def test_contexts_of_some_perturbations_are_numbered_anew():
    responses = responses_of(random(5, 4, 3))
    some = responses.of(torch.tensor([4, 1]))
    np.testing.assert_array_equal(some.group, [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(some.estimates, responses.estimates[[4, 5, 6, 7, 16, 17, 18, 19]])


@pytest.mark.parametrize("through_network", [False, True])
def test_sparse_targets_that_follow_the_features_are_trusted(through_network):
    carry = torch.eye(N_GENES, dtype=torch.float64)
    if through_network:
        carry = carry + 0.3 * torch.triu(random(N_GENES, N_GENES, seed=7), 1)
    world = sparse_world(carry)
    generator = world.generator()
    assert generator.of_sparse > 0.6
    assert (
        generator.of_sparse + generator.of_dense > 0.95
    )  # the map is linear, which dense responses can follow as well
    predicted = generator(world.new_features)
    assert predicted.background_sd.max() < 0.05
    error, of_mean = world.error(predicted)
    assert error < 0.02 * of_mean


def test_sparse_targets_of_a_screen_without_doses():
    world = sparse_world()
    top = on_doses(world.interventions)[:, -1:]
    curves = CurveGrid.flat()
    flat = torch.full_like(world.interventions.emax, float(curves.log_ec50))
    known = replace(world.interventions, emax=top[:, 0], log_ec50=flat, hill=torch.ones_like(flat))
    at = torch.full((N_DRUGS,), NO_DOSE, dtype=torch.float64)
    responses = replace(responses_of(top), log_dosage=at, grid=dose_grid(at))
    generator = DrugGenerator(world.features, known, curves, (0.0, 0.0), responses)
    assert generator.of_sparse > 0.75
    predicted = generator(world.new_features)
    assert predicted.background.abs().max() < 0.15
    for log_dosage in (0.0, -3.0, 9.0):
        found = predicted.mean(torch.full((N_NEW,), log_dosage, dtype=torch.float64))
        assert (found - world.new[:, -1]).square().mean() < 0.02 * world.new[:, -1].square().mean()


@pytest.mark.parametrize("factor", [3.0, 1e3, 1e8])
def test_features_far_from_all_measured_lead_nowhere_else(factor):
    """A linear map that features predict well is not carried on without end, alone or through the network."""
    features = random(N_DRUGS + N_NEW, N_FEATURES)
    slopes = random(N_FEATURES, N_GENES, seed=3) * (torch.arange(N_GENES) < 5)
    known = hill((torch.arange(N_GENES) < 5).expand(len(features), -1), features @ slopes)
    carry = torch.eye(N_GENES, dtype=torch.float64) + 0.3 * torch.triu(random(N_GENES, N_GENES, seed=7), 1)
    world = world_of(features, on_doses(known), known, carry)
    generator = world.generator()
    assert generator.of_sparse > 0.3  # dense responses predict a linear map as well
    predicted = on_doses(generator(factor * world.new_features)) @ carry
    totals = torch.cat([world.responses.effects, generator.fitted]) @ carry
    low, high = totals.amin(0), totals.amax(0)
    beyond = generator.of_sparse * _LEEWAY * (high - low) + 1e-6
    assert (predicted > high).any()
    assert ((predicted >= low - beyond) & (predicted <= high + beyond)).all()


@pytest.mark.parametrize("make", [sparse_world, dense_world])
def test_shuffled_features_change_nothing(make):
    """Predictions are then the mean of the measured drugs at each dose, and no worse on new drugs."""
    world, ratios, exact = make(), [], 0
    mean = world.measured.mean(0)
    for seed in range(20):
        order = torch.randperm(N_DRUGS, generator=torch.Generator().manual_seed(seed))
        predicted = world.generator(world.features[order])(world.new_features)
        off = (on_doses(predicted) - mean).square().mean().sqrt()
        exact += bool(off < 0.05 * world.measured.square().mean().sqrt())
        error, of_mean = world.error(predicted)
        ratios.append(error / of_mean)
    assert exact >= 17  # now and then shuffled features go with what drugs do by chance
    assert np.mean(ratios) < 1.02
    assert np.median(ratios) < 1.01


def test_dense_responses_are_trusted_where_targets_tell_nothing():
    world = dense_world()
    generator = world.generator()
    assert generator.of_sparse == 0.0
    assert generator.of_dense > 0.5
    error, of_mean = world.error(generator(world.new_features))
    assert error < 0.3 * of_mean


def test_uncertainty_of_the_background_is_the_error_of_drugs_left_out():
    world = dense_world()
    told, untold = world.generator(), world.generator(random(N_DRUGS, N_FEATURES, seed=11))
    assert told.error < 0.4
    assert 0.6 < untold.error < 1.2
    sd = untold(world.new_features).background_sd
    assert (sd == sd[0]).all()
    root_mean_square = world.measured.square().mean((0, 1)).sqrt()
    np.testing.assert_allclose(sd[0], root_mean_square * float(untold.error) ** 0.5, rtol=0.1)
    assert (told(world.new_features).background_sd < 0.75 * sd).all()


def test_predictions_hold_beyond_the_measured_doses_and_shrink_below():
    world = dense_world()
    predicted = world.generator()(world.new_features)
    q = len(world.new_features)
    at = lambda log_dosage: predicted.mean(torch.full((q,), float(log_dosage)).double())
    torch.testing.assert_close(at(LOG_DOSES[-1] + 5), at(LOG_DOSES[-1]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(at(LOG_DOSES[0] - np.log(10)), at(LOG_DOSES[0]) / 10, rtol=1e-6, atol=1e-6)


def test_drawing_back_keeps_changes_of_all_genes_in_range():
    carry = torch.eye(N_GENES, dtype=torch.float64) + 0.5 * torch.triu(random(N_GENES, N_GENES, seed=7), 1)
    responses = responses_of(random(N_DRUGS, 4, N_GENES), carry)
    fitted = responses.effects
    totals = fitted @ carry
    low, high = totals.amin(0), totals.amax(0)
    wild = 5 * random(30, N_GENES, seed=9)
    for leeway in (0.0, 0.5):
        kept = (wild + responses.drawn_back(wild, fitted, leeway)) @ carry
        beyond = leeway * (high - low)
        assert ((kept >= low - beyond - 1e-9) & (kept <= high + beyond + 1e-9)).all()
        inside = ((wild @ carry) > low - beyond) & ((wild @ carry) < high + beyond)
        torch.testing.assert_close(kept[inside], (wild @ carry)[inside])
    assert not responses.drawn_back(fitted[:9], fitted).any()
    assert not responses.drawn_back(torch.zeros(2, N_GENES).double(), fitted).any()


def test_nothing_is_added_to_measured_drugs_where_curves_explain_all():
    world = sparse_world()
    responses, known = world.responses, world.interventions
    programme = torch.zeros_like(responses.estimates)
    direct = known.rows(responses.group).direct(responses.log_dosage)
    found = measured_background(responses, known, programme, direct, world.features)
    assert not found.any()


def test_programmes_of_measured_drugs_lie_at_their_doses_and_between():
    effects = sparse_world().measured[:, 1:]  # three doses: too few to judge anything else
    known = sparse_world().interventions
    shared = (0.1 * LOG_DOSES[1:].exp()).repeat(N_DRUGS)[:, None].expand(-1, N_GENES)
    responses = responses_of(effects + shared.reshape(N_DRUGS, 3, N_GENES))
    unknown = torch.full_like(shared, torch.nan)  # what the direct effects of other doses say is not asked
    found = replace(known, background=measured_background(responses, known, shared, unknown, None), grid=responses.grid)
    q = torch.ones(N_DRUGS, dtype=torch.float64)
    for dose, expected in ((1.0, 0.1), (2.0, 0.2), (4.0, 0.4), (2 * 2**0.5, 0.3), (9.0, 0.4), (0.5, 0.05), (0.0, 0.0)):
        at = (dose * q).log()
        off_target = found.background_at(at)[known.target_probs == 0]
        np.testing.assert_allclose(off_target, expected, atol=1e-3)
        torch.testing.assert_close(found.mean(at) - found.background_at(at), known.direct(at))


def test_measured_drugs_show_dense_responses_that_curves_miss():
    """Each drug does something of its own to all genes, in steps of dose that no programme and no target explain."""
    own = random(N_DRUGS, 1, N_GENES) * torch.tensor([0.1, 0.6, 1.0, 1.1]).double()[:, None]
    responses = responses_of(own)
    nothing = torch.zeros_like(responses.estimates)
    known = hill(nothing[:N_DRUGS], nothing[:N_DRUGS])
    found = measured_background(responses, known, nothing, nothing, None)
    assert (found - own).square().mean() < 0.05 * own.square().mean()
    three = responses_of(own[:, 1:])  # too few doses to judge
    few = measured_background(three, known, nothing[: 3 * N_DRUGS], nothing[: 3 * N_DRUGS], None)
    assert not few.any()


def test_the_mean_square_of_effects_holds_what_was_shrunk_away():
    """Effects of a standard deviation of 0.5, seen with errors of 1: shrunk estimates are as large as a fifth of that, in squares."""
    rng = np.random.default_rng(0)
    truth = 0.5 * rng.normal(size=(400, 30))
    estimates = torch.as_tensor(truth + rng.normal(size=truth.shape))
    nothing = torch.zeros(400, dtype=torch.float64)
    found = Responses(
        estimates, torch.ones_like(estimates), torch.arange(400), nothing, nothing[:1], torch.eye(30).double()
    )
    assert found.effects.square().mean() < 0.1
    assert found.mean_square.mean() == pytest.approx(0.25, rel=0.1)
