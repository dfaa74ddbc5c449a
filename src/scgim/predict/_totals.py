"""Direct and propagated effects of drugs: changes of the means of cells against control cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from scgim.predict._means import MIN_MEAN
from scgim.predict._sampler import enough_samples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from scgim.predict._drugs import Query
    from scgim.predict._sampler import Sampler

_N_SAMPLES = (200, 4000)  # but at least and at most so many cells a drug: conventions
N_SAMPLES_A_DOSE = (50, 1000)  # the same where all doses of all drugs are drawn


class Totals(NamedTuple):
    """Total effects of some arms on all genes, both (Q, d)."""

    effect: NDArray[np.float64]
    """Natural-log fold change of each mean, or difference in standard deviations."""
    error: NDArray[np.float64]
    """Standard error of it by the finite number of cells that are drawn."""


def total_effects(
    sampler: Sampler,
    query: Query,
    n_samples: int | None,
    seed: int,
    level: Sequence[str] | None = None,
    limits: tuple[int, int] = _N_SAMPLES,
) -> Totals:
    """Direct and propagated effects, all from the same `n_samples` cells but for the effects.

    None for as many cells as are drawn in reasonable time, within `limits`. `level` names the level of the effect modifier of each row, of
    which the cells are; the query is for that level.
    """
    q, d = len(query), len(sampler.genes)
    n = n_samples or enough_samples((q + 1) * d, *limits)
    levels: list[str | None] = [None] * q if level is None else list(level)
    of_level = {name: None if name is None else {sampler.design.modifier: name} for name in dict.fromkeys(levels)}
    nothing = torch.zeros(n, d)
    means = {name: sampler.coupled_means(n, seed, own) for name, own in of_level.items()}
    references = {name: of(nothing, nothing.bool()) for name, of in means.items()}
    spread = sampler.module.spread.cpu() if sampler.is_continuous else None
    found, strata = [], None
    for k, name in enumerate(levels):
        own = query.rows(np.array([k]))
        known = own.interventions
        if strata is None or not torch.equal(strata.genes, known.possible_targets):  # the same random numbers for all
            strata = known.strata(n, torch.Generator().manual_seed(seed + 1))
        shift, targets = known.drawn(own.log_dosage, strata)
        found.append(_contrast(means[name](shift[0], targets[0]), references[name], spread))
    effects, errors = zip(*found, strict=True)
    return Totals(torch.stack(effects).numpy(), torch.stack(errors).numpy())


def _contrast(cells: Tensor, reference: Tensor, spread: Tensor | None) -> tuple[Tensor, Tensor]:
    """Change of the mean over cells (n, d), and its error; those of the reference are paired with them."""
    if spread is not None:
        change = (cells - reference) / spread
        effect = change.mean(0)
    else:
        means = [values.mean(0) + MIN_MEAN for values in (cells, reference)]
        effect = means[0].log() - means[1].log()
        change = cells / means[0] - reference / means[1]
    return effect, change.std(0, correction=0) / len(cells) ** 0.5
