"""Direct and propagated effects of drugs: changes of the means of cells against control cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from scgim.predict._means import MIN_MEAN

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from scgim.interventions._interventions import Interventions
    from scgim.predict._sampler import Sampler

_N_VALUES = 3e7  # drawn where nothing is asked for: half a minute
_N_SAMPLES = (200, 4000)  # but at least and at most so many cells a drug: conventions
N_SAMPLES_A_DOSE = (50, 1000)  # the same where all doses of all drugs are drawn


class Totals(NamedTuple):
    """Total effects of some arms on all genes, both (Q, d)."""

    effect: NDArray[np.float64]
    """Natural-log fold change of each mean, or difference in control standard deviations."""
    error: NDArray[np.float64]
    """Standard error of it by the finite number of cells that are drawn."""


def total_effects(
    sampler: Sampler,
    interventions: Interventions,
    log_dosage: Tensor,
    n_samples: int | None,
    seed: int,
    limits: tuple[int, int] = _N_SAMPLES,
) -> Totals:
    """Direct and propagated effects, all from the same `n_samples` cells but for the effects.

    None for as many cells as are drawn in reasonable time, within `limits`.
    """
    q, d = len(log_dosage), len(sampler.genes)
    n = n_samples or int(np.clip(_N_VALUES / ((q + 1) * d), *limits))
    reference = sampler.coupled_means(torch.zeros(n, d), torch.zeros(n, d, dtype=torch.bool), seed)
    spread = sampler.module.spread.cpu() if sampler.is_continuous else None
    found = []
    for k in range(q):
        rng = torch.Generator().manual_seed(seed + 1)
        shift, targets = interventions.rows(torch.tensor([k])).sample(log_dosage[k : k + 1], n, rng)
        found.append(_contrast(sampler.coupled_means(shift[0], targets[0], seed), reference, spread))
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
