"""Arms of a prediction: the drugs, one or several, that a group of cells is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scgim._validation import check_key, check_query_dosage, check_query_embedding
from scgim.nn._draws import draw_effects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgim.nn._doubt import Doubt
    from scgim.nn._intervention import Interventions

Combination = Mapping[str, float]


@dataclass(frozen=True)
class Arms:
    """Drugs given together: targets are united, and effects on the same gene add up.

    Parameters
    ----------
    names
        Name of each arm; its drugs joined by "+".
    dosages
        Dosage of each arm; text, joined by "+", where arms hold several drugs.
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
    dosages: list
    interventions: Interventions
    log_top: Tensor
    is_new: Tensor
    drug: Tensor
    log_dosage: Tensor
    arm: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def take(self, arms: range) -> Arms:
        """Arms in a row."""
        given = (self.arm >= arms.start) & (self.arm < arms.stop)
        part = slice(arms.start, arms.stop)
        return replace(
            self,
            names=self.names[part],
            dosages=self.dosages[part],
            drug=self.drug[given],
            log_dosage=self.log_dosage[given],
            arm=self.arm[given] - arms.start,
        )

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Effects and targets drawn anew for each of n cells of each arm, both (arms, n, d)."""
        effects, targets = self.interventions.rows(self.drug).sample(self.log_dosage, n, generator)
        return self._together(effects, targets)

    def draw(
        self, generator: torch.Generator, doubt: Doubt | None = None, baseline_error: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Effects and targets of each arm in one draw of what is known of the drugs, both (arms, d)."""
        known = (self.interventions, self.log_top, self.drug, self.log_dosage)
        return self._together(*draw_effects(*known, generator, self.is_new, doubt, baseline_error))

    def expected(self) -> tuple[Tensor, Tensor]:
        """Expected effects, and probability that a gene is a target of any of the drugs; both (arms, d)."""
        chosen = self.interventions.rows(self.drug)
        missed = torch.log1p(-chosen.target_probs.clamp_max(1 - 1e-12))
        effects, missed = self._sum(chosen.mean(self.log_dosage)), self._sum(missed)
        return effects, -torch.expm1(missed)

    def _together(self, effects: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self._sum(effects), self._sum(targets.to(effects)) > 0

    def _sum(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(self), *values.shape[1:]).index_add_(0, self.arm, values)


class ArmsMixin:
    """Reads what is asked of :class:`scgim.model.GIM`: rows of features, names of drugs, or combinations of drugs."""

    def _arms(self, drugs: Any, dosage: Any, drug_embedding: pd.DataFrame | None = None) -> Arms:
        """What is asked for: combinations, or rows of features with a dosage each."""
        if _is_combinations(drugs):
            if dosage is not None:
                raise ValueError("`dosage` was given beside combinations, which name the dosage of each drug.")
            return self._combined(drugs, drug_embedding)
        features, interventions, log_dosage = self._query(drugs, dosage)
        names = features.index.astype(str)
        # rows of one drug at several dosages share what is drawn for it
        key = pd.util.hash_pandas_object(features.set_axis(names), index=True)
        _, first, drug = np.unique(key, return_index=True, return_inverse=True)
        return Arms(
            names=names.tolist(),
            dosages=self._dosages(dosage, len(names)).tolist(),
            interventions=interventions.rows(torch.as_tensor(first)),
            log_top=self._log_top(names[first]),
            is_new=self._is_new(names[first]),
            drug=torch.as_tensor(drug),
            log_dosage=log_dosage,
            arm=torch.arange(len(names)),
        )

    def _combined(self, combinations: Any, drug_embedding: pd.DataFrame | None) -> Arms:
        """Arms of several drugs."""
        combinations = [combinations] if isinstance(combinations, Mapping) else list(combinations)
        if not combinations or not all(isinstance(c, Mapping) for c in combinations):
            raise ValueError(
                "`combinations` must be a mapping {'drug': dosage}, or a list of at least one such mapping."
            )
        given = [(str(drug), dosage, k) for k, c in enumerate(combinations) for drug, dosage in c.items()]
        dosages = check_query_dosage([dosage for _, dosage, _ in given], len(given)) if given else np.zeros(0)
        given = [g for g, dosage in zip(given, dosages, strict=True) if dosage > 0]
        drugs = list(dict.fromkeys(drug for drug, _, _ in given))
        return Arms(
            names=["+".join(map(str, c)) or self._setup_args["control"] for c in combinations],
            dosages=["+".join(f"{float(v):g}" for v in c.values()) or "0" for c in combinations],
            interventions=self._interventions_of(drugs, drug_embedding),
            log_top=self._log_top(drugs),
            is_new=self._is_new(drugs),
            drug=torch.as_tensor(pd.Index(drugs).get_indexer([d for d, _, _ in given])),
            log_dosage=torch.as_tensor(np.log(dosages[dosages > 0])),
            arm=torch.tensor([k for _, _, k in given], dtype=torch.long),
        )

    def _interventions_of(self, drugs: list[str], drug_embedding: pd.DataFrame | None) -> Interventions:
        """What is known of drugs by name; `drug_embedding` has the features of those that were not measured."""
        if not drugs:
            return self.module.interventions().rows(torch.zeros(0, dtype=torch.long))
        new, known = [drug for drug in drugs if drug not in set(self.perturbations)], self.drug_embedding
        if not new or drug_embedding is None or known is None:
            return self._query(drugs, 1.0)[1]
        table = drug_embedding.rename(index=str)
        for drug in new:
            check_key(drug, table.index, where="drug_embedding.index", argument="combinations")
        features = check_query_embedding(table.loc[new], known.columns.tolist(), self.perturbations)
        return self._query(pd.concat([known, features]).loc[drugs], 1.0)[1]

    def _is_new(self, drugs: Sequence[str]) -> Tensor:
        """Which drugs are known by their features only."""
        code = pd.Index(self.perturbations).get_indexer(drugs)
        return torch.as_tensor((code < 0) | ~self._is_measured[code])

    def _log_top(self, drugs: Sequence[str]) -> Tensor:
        """Largest log dosage at which each drug was measured, of any drug for those that were not."""
        with np.errstate(divide="ignore"):
            own = np.log(self.contexts.to_frame(index=False).groupby("perturbation")["dosage"].max())
        return torch.tensor(own.reindex(drugs).fillna(own.max()).to_numpy(dtype=np.float64))


def _is_combinations(drugs: Any) -> bool:
    return isinstance(drugs, Mapping) or (
        isinstance(drugs, (list, tuple)) and any(isinstance(d, Mapping) for d in drugs)
    )
