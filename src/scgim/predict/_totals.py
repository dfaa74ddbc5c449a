"""Direct and propagated effects of drugs: changes of the means of cells against control cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scgim.predict._means import MIN_MEAN
from scgim.predict._sampler import enough_samples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from scgim.interventions._interventions import Interventions
    from scgim.predict._sampler import Sampler

_N_SAMPLES = (200, 4000)  # but at least and at most so many cells a drug: conventions


def total_effects(
    sampler: Sampler,
    interventions: Interventions,
    log_dosage: Tensor,
    n_samples: int | None,
    seed: int,
    level: Sequence[str] | None = None,
) -> NDArray[np.float64]:
    """Natural-log fold change of each mean, or difference in control standard deviations, (Q, d).

    All are means over the same `n_samples` cells but for the effects; None for as many as are drawn in reasonable time. `level` names the
    level of the effect modifier of each row, of which the cells are; interventions are those of that level.
    """
    q, d = len(log_dosage), len(sampler.genes)
    n = n_samples or enough_samples((q + 1) * d, *_N_SAMPLES)
    levels: list[str | None] = [None] * q if level is None else list(level)
    cells = {name: None if name is None else {sampler.design.modifier: name} for name in dict.fromkeys(levels)}
    nothing = torch.zeros(n, d)
    references = {name: sampler.coupled_mean(nothing, nothing.bool(), seed, own) for name, own in cells.items()}
    means = []
    for k, name in enumerate(levels):
        rng = torch.Generator().manual_seed(seed + 1)
        shift, targets = interventions.rows(torch.tensor([k])).sample(log_dosage[k : k + 1], n, rng)
        means.append(sampler.coupled_mean(shift[0], targets[0], seed, cells[name]))
    found = torch.stack(means).numpy()
    reference = torch.stack([references[name] for name in levels]).numpy()
    if sampler.is_continuous:
        return (found - reference) / sampler.module.spread.cpu().numpy()
    return np.log(found + MIN_MEAN) - np.log(reference + MIN_MEAN)
