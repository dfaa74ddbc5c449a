"""Predictions of new and of measured drugs stay finite and within what was measured, whatever the screen and the features.

A few screens are tried by default, always the same; `SCGIM_EXAMPLES=1000` tries that many, drawn anew.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scgim._priors import ShiftPrior
from scgim.interventions._curve_posterior import effects_left_out
from scgim.interventions._curves import NO_DOSE, CurveGrid, dose_grid
from scgim.interventions._interventions import Interventions
from scgim.interventions._stacking import _LEEWAY, DrugGenerator, Responses, measured_background

N_EXAMPLES = int(os.environ.get("SCGIM_EXAMPLES", "0"))
FEATURES = ("usual", "constant", "duplicated", "huge", "tiny", "one far", "one column far")


def profile(n_default: int):
    """The same few examples in the test suite, many new ones where they are asked for."""
    return settings(
        max_examples=N_EXAMPLES or n_default,
        derandomize=not N_EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@dataclass
class Screen:
    """What was measured, features of the drugs (U, p) and of others that were not (Q, p)."""

    features: torch.Tensor
    new_features: torch.Tensor
    interventions: Interventions
    responses: Responses
    shapes: CurveGrid
    log_dosages: tuple[float, float]

    def generator(self) -> DrugGenerator:
        return DrugGenerator(self.features, self.interventions, self.shapes, self.log_dosages, self.responses)

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Least and largest change of each gene that was measured or fitted, zero included."""
        fitted = self.interventions.rows(self.responses.group).mean(self.responses.log_dosage)
        totals = torch.cat([self.responses.effects, fitted]) @ self.responses.carry
        return totals.amin(0).clamp_max(0.0), totals.amax(0).clamp_min(0.0)

    def totals(self, interventions: Interventions, log_dosage: float) -> torch.Tensor:
        """Expected changes of all genes at a dose."""
        at = torch.full((len(interventions.emax),), log_dosage, dtype=torch.float64)
        return interventions.mean(at) @ self.responses.carry


def features_of(kind: str, n: int, p: int, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(n, p, generator=generator, dtype=torch.float64)
    if kind == "constant":
        x[:] = 3.0
    elif kind == "duplicated":
        x = x[torch.arange(n) // 2]
    elif kind == "one far":
        x[0] *= 1e6
    elif kind == "one column far":
        x[:, 0] += 1e7
    return x * {"huge": 1e9, "tiny": 1e-9}.get(kind, 1.0)


@st.composite
def screens(draw) -> Screen:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    n_drugs, d, p = draw(st.sampled_from([1, 2, 3, 5, 12])), draw(st.integers(1, 7)), draw(st.integers(1, 4))
    n_doses = draw(st.integers(0, 5))  # 0 for a screen without doses
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    low = draw(st.floats(-8.0, 8.0))
    doses = torch.linspace(low, low + draw(st.floats(0.1, 13.8)), max(1, n_doses)).double()  # up to six decades
    group = torch.arange(n_drugs).repeat_interleave(len(doses))
    log_dosage = doses.repeat(n_drugs)
    if draw(st.booleans()) and len(group) > n_drugs:  # not all drugs at all doses
        kept = torch.rand(len(group), generator=generator) < 0.7
        kept[:: len(doses)] = True
        group, log_dosage = group[kept], log_dosage[kept]
    span = (float(log_dosage.min()), float(log_dosage.max()))
    shapes = CurveGrid.over(*span) if n_doses else CurveGrid.flat()
    which = torch.randint(len(shapes.hill), (n_drugs, d), generator=generator)
    scale = 10.0 ** draw(st.floats(-3.0, 1.0))
    known = Interventions(
        target_probs=(torch.rand(n_drugs, d, generator=generator) ** draw(st.sampled_from([0.1, 3.0, 20.0]))).double(),
        emax=scale * random(n_drugs, d),
        emax_sd=0.1 * scale * random(n_drugs, d).abs(),
        log_ec50=shapes.log_ec50[which],
        log_ec50_sd=torch.zeros(n_drugs, d, dtype=torch.float64),
        hill=shapes.hill[which],
    )
    at = log_dosage if n_doses else torch.full_like(log_dosage, NO_DOSE)
    dense = draw(st.sampled_from([0.0, 0.0, 1.0])) * scale * random(len(group), d)
    precision = (draw(st.sampled_from([0.1, 1.0, 30.0])) / scale) ** 2 * torch.ones(len(group), d, dtype=torch.float64)
    estimates = known.rows(group).mean(log_dosage) + dense + random(len(group), d) / precision.sqrt()
    precision[torch.rand(len(group), d, generator=generator) < 0.05] = 1e-6
    carry = torch.eye(d, dtype=torch.float64) + draw(st.sampled_from([0.0, 0.5])) * torch.triu(random(d, d), 1)
    responses = Responses(estimates, precision, group, at, dose_grid(at), carry)
    features = features_of(draw(st.sampled_from(FEATURES)), n_drugs, p, generator)
    other = features_of(draw(st.sampled_from(FEATURES)), 4, p, generator)
    new = torch.cat([features[:2], features[:1] + 1e5 * features[:1].abs(), other])
    return Screen(features, new, known, responses, shapes, span)


def doses_to_ask(screen: Screen) -> list[float]:
    """Log doses far below, between and far above those measured."""
    low, high = screen.log_dosages
    return [-torch.inf, low - 20.0, low - 0.5, low, (2 * low + high) / 3, high, high + 0.5, high + 20.0]


def check(screen: Screen, found: Interventions, leeway: float) -> None:
    """All finite; no gene changes by more than any did, and a leeway, at the doses of the grid, or any where there are none."""
    for name in set(found.__dataclass_fields__) - {"levels"}:
        assert torch.isfinite(getattr(found, name)).all(), name
    assert ((found.target_probs >= 0) & (found.target_probs <= 1)).all()
    assert (found.background_sd >= 0).all()
    low, high = screen.range()
    beyond, rounding = leeway * (high - low), 1e-6 * (high - low) + 1e-9
    without_doses = float(screen.responses.grid[0]) == NO_DOSE
    for log_dosage in [0.0, -20.0, 20.0] if without_doses else screen.responses.grid.tolist():
        totals = screen.totals(found, log_dosage)
        assert (totals >= low - beyond - rounding).all()
        assert (totals <= high + beyond + rounding).all()
    for log_dosage in doses_to_ask(screen):
        totals = screen.totals(found, log_dosage)
        assert torch.isfinite(totals).all()
    assert not screen.totals(found, -torch.inf).any()


@profile(60)
@given(screens())
def test_new_drugs(screen):
    generator = screen.generator()
    assert 0 <= generator.of_sparse <= 1
    assert 0 <= generator.of_dense <= 1
    assert generator.of_sparse + generator.of_dense <= 1 + 1e-9
    if len(screen.features) < 4:
        assert generator.of_sparse == generator.of_dense == 0.0
    found = generator(screen.new_features)
    assert len(found.emax) == len(screen.new_features)
    check(screen, found, generator.of_sparse * _LEEWAY)


@profile(60)
@given(screens(), st.booleans())
def test_measured_drugs(screen, with_features):
    responses, known = screen.responses, screen.interventions
    programme = torch.zeros_like(responses.estimates)
    programme += 0.3 * known.emax.abs().max() * torch.linspace(0, 1, len(programme), dtype=torch.float64)[:, None]
    shift = responses.estimates - programme
    left_out = effects_left_out(
        shift, responses.precision, responses.group, responses.log_dosage, screen.shapes, ShiftPrior(0.1, 1.0, 1e-3)
    )
    features = screen.features if with_features else None
    background = measured_background(responses, known, programme, left_out, features)
    found = replace(known, background=background, grid=responses.grid)
    fitted = known.rows(responses.group).direct(responses.log_dosage) + programme
    totals = torch.cat([responses.effects, fitted]) @ responses.carry
    low, high = totals.amin(0).clamp_max(0.0), totals.amax(0).clamp_min(0.0)
    assert torch.isfinite(background).all()
    for log_dosage in responses.grid.tolist():
        at = screen.totals(found, log_dosage)
        rounding = 1e-6 * (high - low) + 1e-9
        assert ((at >= low - rounding) & (at <= high + rounding)).all()
