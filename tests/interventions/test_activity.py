"""Activity of drugs in levels: learned from features where these tell it, and nothing where levels agree."""

from __future__ import annotations

import pytest
import torch

from scgim.interventions._activity import LevelActivity
from scgim.interventions._interventions import Interventions
from scgim.interventions._levels import LevelEffects

N_DRUGS, N_LEVELS, N_GENES = 30, 3, 10


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(n: int) -> torch.Tensor:
    """Class of each drug as 0/1, (n, 3): two in three act everywhere and have none."""
    out = torch.zeros(n, N_LEVELS, dtype=torch.float64)
    for u in range(0, n, 3):
        out[u, u // 3 % N_LEVELS] = 1.0
    return out


def effects(activity: torch.Tensor) -> tuple[Interventions, LevelEffects]:
    """Two targets a drug, of which a level has the share `activity` (U, L)."""
    n = len(activity)
    probs = torch.zeros(n, N_GENES, dtype=torch.float64)
    for u in range(n):
        probs[u, [u % N_GENES, (3 * u + 1) % N_GENES]] = 1.0
    emax = 1.0 + 0.1 * random(n, N_GENES)
    flat = torch.zeros_like(emax)
    common = activity.mean(1, keepdim=True)
    found = Interventions(probs, common * emax, flat, flat, flat, flat + 1.0)
    alike = LevelEffects.alike(found, N_LEVELS)
    own = emax[:, None] * activity[..., None]
    levels = LevelEffects(alike.target_probs, own, alike.emax_sd, alike.background, own, torch.ones_like(own))
    return found, levels


def active(of_class: torch.Tensor) -> torch.Tensor:
    """Activity of drugs of one class, which act in one level, and of those of none, (U, L)."""
    return torch.where(of_class.sum(1, keepdim=True) > 0, of_class, 1.0)


def test_features_tell_where_drugs_act():
    of_class = classes(N_DRUGS)
    features = torch.cat([random(N_DRUGS, 3, seed=1), 2 * of_class], 1)
    found, levels = effects(active(of_class))
    activity = LevelActivity(features, levels)
    assert activity.share > 0.9
    assert (activity.left_out - active(of_class)).square().mean() < 0.02
    new = torch.cat([random(9, 3, seed=2), 2 * classes(9)], 1)
    assert (activity(new) - active(classes(9))).square().mean() < 0.02
    torch.testing.assert_close(activity.measured, active(of_class).clamp_min(0.1))
    # what drugs do where they act, be it in one level or in three
    where = activity.where_active(found)
    torch.testing.assert_close(where.emax * where.target_probs, levels.emax.amax(1) * found.target_probs)


def test_features_that_tell_nothing_leave_the_mean():
    found, levels = effects(active(classes(N_DRUGS)))
    activity = LevelActivity(random(N_DRUGS, 4, seed=3), levels)
    assert activity.share < 0.2
    torch.testing.assert_close(activity.mean, active(classes(N_DRUGS)).mean(0))
    assert (activity(random(5, 4, seed=4)) - activity.mean).abs().max() < 0.1


def test_where_levels_agree_nothing_changes():
    found, levels = effects(torch.ones(N_DRUGS, N_LEVELS, dtype=torch.float64))
    activity = LevelActivity(random(N_DRUGS, 4), levels)
    everywhere = torch.ones(N_DRUGS, N_LEVELS, dtype=torch.float64)
    torch.testing.assert_close(activity.left_out, everywhere)
    torch.testing.assert_close(activity.measured, everywhere)
    torch.testing.assert_close(activity(random(5, 4)), everywhere[:5])
    torch.testing.assert_close(activity.where_active(found).emax, found.emax)


@pytest.mark.parametrize("n", [1, 3])
def test_few_drugs_say_nothing(n):
    _, levels = effects(active(classes(n)))
    activity = LevelActivity(random(n, 4), levels)
    assert activity.share == 0
    assert activity(random(2, 4)).shape == (2, N_LEVELS)


def test_drugs_that_were_not_measured_in_a_level_say_nothing_of_it():
    of_class = classes(N_DRUGS)
    features = torch.cat([random(N_DRUGS, 3, seed=1), 2 * of_class], 1)
    _, levels = effects(active(of_class))
    information = levels.information.clone()
    information[1:3, 0] = 0.0  # two drugs of no class, not measured in the first level
    missing = LevelEffects(
        *(getattr(levels, name) for name in LevelEffects.__dataclass_fields__ if name != "information"), information
    )
    activity = LevelActivity(features, missing)
    assert (activity.left_out[1:3] - 1).abs().max() < 0.2
