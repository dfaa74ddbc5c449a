"""Arms of a prediction: the drugs, one or several, that a group of cells is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scgim._constants import REGISTRY
from scgim.interventions._combinations import together
from scgim.interventions._draws import draw_effects

if TYPE_CHECKING:
    from scgim.interventions._doubt import Doubt
    from scgim.interventions._interventions import Interventions

_TINY = 1e-12  # probabilities must not be 1, whose complement has no logarithm


@dataclass(frozen=True)
class Arms:
    """Drugs given together: targets are united, and effects on the same gene add up.

    Parameters
    ----------
    names
        Name of each arm; its drugs joined by "+".
    dosages
        Dosage of each arm; of several drugs NaN, of none 0.
    labels
        Dosages as text, joined by "+" where arms hold several drugs.
    interventions
        What is known of each drug, Q rows.
    log_top
        Largest log dosage at which each drug was measured, shape (Q,).
    is_new
        Drugs that are known by their features only, boolean (Q,).
    drug, log_dosage, arm
        For each of P drugs given: its row in `interventions`, its log dosage and the arm it belongs to; all (P,).
    """

    names: list[str]
    dosages: list[float]
    labels: list[str]
    interventions: Interventions
    log_top: Tensor
    is_new: Tensor
    drug: Tensor
    log_dosage: Tensor
    arm: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def table(self, repeats: int = 1) -> pd.DataFrame:
        """Name and dosage of each arm, so many times one after the other; `dosages` as text where arms hold several drugs."""
        names = np.repeat(self.names, repeats)
        out = pd.DataFrame(
            {
                REGISTRY.PERTURBATION: pd.Categorical(names, categories=list(dict.fromkeys(names))),
                REGISTRY.DOSAGE: np.repeat(np.asarray(self.dosages, dtype=float), repeats),
            },
            index=pd.RangeIndex(len(names)).astype(str),
        )
        if np.isnan(self.dosages).any():
            out["dosages"] = np.repeat(self.labels, repeats)
        return out

    def take(self, arms: range) -> Arms:
        """Arms in a row."""
        given = (self.arm >= arms.start) & (self.arm < arms.stop)
        part = slice(arms.start, arms.stop)
        return replace(
            self,
            names=self.names[part],
            dosages=self.dosages[part],
            labels=self.labels[part],
            drug=self.drug[given],
            log_dosage=self.log_dosage[given],
            arm=self.arm[given] - arms.start,
        )

    def sample(self, n: int, rng: torch.Generator, level: Tensor) -> tuple[Tensor, Tensor]:
        """Effects and targets drawn anew for each of n cells of each arm, both (arms, n, d).

        `level` (arms, n) is the level of the effect modifier of each cell, 0 without one; levels share random numbers.
        """
        state, out = rng.get_state(), None
        for k in torch.unique(level).tolist():
            rng.set_state(state)
            chosen = self.interventions.rows_at(self.drug, torch.tensor(k))
            own = self._together(*chosen.sample(self.log_dosage, n, rng))
            here = (level == k)[..., None]
            out = own if out is None else tuple(torch.where(here, *pair) for pair in zip(own, out, strict=True))
        return out  # type: ignore[return-value]

    def draw(
        self, rng: torch.Generator, doubt: Doubt | None = None, baseline_error: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Effects and targets of each arm, in each level, in one draw of what is known of the drugs, both (arms, levels, d)."""
        state, drawn = rng.get_state(), []
        for k in range(self.n_levels):
            rng.set_state(state)  # levels share random numbers
            known = (self.interventions.at_level(k), self.log_top, self.drug, self.log_dosage)
            drawn.append(self._together(*draw_effects(*known, rng, self.is_new, doubt, baseline_error)))
        effects, targets = zip(*drawn, strict=True)
        return torch.stack(effects, 1), torch.stack(targets, 1)

    @property
    def n_levels(self) -> int:
        """Levels of the effect modifier, 1 without one."""
        levels = self.interventions.levels
        return 1 if levels is None else levels.emax.shape[1]

    def expected(self, level: int | None = None) -> tuple[Tensor, Tensor]:
        """Expected effects, and probability that a gene is a target of any of the drugs, in one level or in common; both (arms, d)."""
        known = replace(self.interventions, levels=None) if level is None else self.interventions.at_level(level)
        chosen = known.rows(self.drug)
        missed = torch.log1p(-chosen.target_probs.clamp_max(1 - _TINY))
        effects, missed = self._sum(chosen.mean(self.log_dosage)), self._sum(missed)
        return effects, -torch.expm1(missed)

    def united(self) -> Interventions:
        """What is known of each arm, as if it were one drug that does the same at any dosage."""
        return together(self.interventions.rows(self.drug), self.log_dosage, self.arm, len(self))

    def _together(self, effects: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self._sum(effects), self._sum(targets.to(effects)) > 0

    def _sum(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(self), *values.shape[1:]).index_add_(0, self.arm, values)
