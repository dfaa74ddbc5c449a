"""What is known of the drugs that a user asks about: of measured ones by name, of others by their features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scgim._validation import check_key, check_query_dosage, check_query_embedding, close_names, quote_some
from scgim.interventions._doubt import Doubt, estimate_doubt
from scgim.interventions._interventions import Interventions
from scgim.predict._arms import Arms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from scgim.interventions._stacking import DrugGenerator
    from scgim.module import GIMModule

Combination = Mapping[str, float]
_SAME_DOSE = 1e-4  # relative; doses that went through files are rounded
_ROWS_AT_ONCE = 128  # for memory, results do not depend on it


@dataclass(frozen=True)
class Query:
    """What is asked for, one row a drug and dosage; what is known of a drug is kept once, in how many rows it may be.

    Parameters
    ----------
    features
        Features of each row, (Q, p).
    dosage, log_dosage
        Dosage of each row and its logarithm, (Q,).
    known
        What is known of each drug, in all levels of the effect modifier.
    drug
        Row of `known` of each row, (Q,).
    level
        Level of the effect modifier of each row, (Q,); None for what levels have in common.
    """

    features: pd.DataFrame
    dosage: NDArray[np.float64]
    log_dosage: Tensor
    known: Interventions
    drug: Tensor
    level: Tensor | None = None

    def __len__(self) -> int:
        return len(self.drug)

    def rows(self, index: NDArray[np.int64]) -> Query:
        """Some rows."""
        own = torch.as_tensor(index)
        level = None if self.level is None else self.level[own]
        features, dosage = self.features.iloc[index], self.dosage[index]
        return Query(features, dosage, self.log_dosage[own], self.known, self.drug[own], level)

    def at_levels(self, levels: list[str], names: Sequence[str]) -> Query:
        """The same in one level of the effect modifier a row; `levels` are all there are."""
        return replace(self, level=torch.as_tensor(pd.Index(levels).get_indexer(names)))

    @property
    def interventions(self) -> Interventions:
        """What is known of each row, in its level or in common, copied for each."""
        return self.known.rows_at(self.drug, self.level)

    def each(self, value: Callable[[Interventions, Tensor], Tensor]) -> Tensor:
        """A value (Q, d) of what is known of each row and its log dosage (Q,), of some rows at a time."""
        starts = range(0, max(1, len(self)), _ROWS_AT_ONCE)
        blocks = (self.rows(np.arange(start, min(start + _ROWS_AT_ONCE, len(self)))) for start in starts)
        return torch.cat([value(block.interventions, block.log_dosage) for block in blocks])


@dataclass
class Drugs:
    """The drugs of a fitted screen, and what follows for others.

    Parameters
    ----------
    module
        The module.
    contexts
        Measured contexts (perturbation, dosage), control left out.
    embedding
        Features of the measured perturbations; None if there are none.
    n_cells
        Training cells of each perturbation, in the order of the module.
    control
        Name of the control.
    combinations
        Dosage of each drug of each measured combination, by the name of the combination, which is one of the perturbations.
    separator
        What separates the drugs of a combination in the screen; None where it has none.
    has_doses
        Whether the screen has doses; else all drugs have the dosage 1.
    """

    module: GIMModule
    contexts: pd.MultiIndex
    embedding: pd.DataFrame | None
    n_cells: pd.Series
    control: str
    combinations: Mapping[str, Combination] = field(default_factory=dict)
    separator: str | None = None
    has_doses: bool = True

    @property
    def names(self) -> list[str]:
        """Measured perturbations."""
        return self.n_cells.index.tolist()

    @property
    def is_measured(self) -> np.ndarray:
        """Which perturbations of the registered screen had cells to train on; drugs that were given, alone or together with others."""
        own = self.n_cells > 0
        given = {drug for name, drugs in self.combinations.items() if own[name] for drug in drugs}
        return (own | own.index.isin(given)).to_numpy()

    @property
    def is_drug(self) -> np.ndarray:
        """Which perturbations are single drugs, and no combinations."""
        return ~self.n_cells.index.isin(self.combinations)

    @property
    def features(self) -> Tensor:
        """Features of the perturbations of the screen, shape (U, p); ValueError if it was set up without."""
        if self.embedding is None:
            raise ValueError("The model was set up without drug features. Give them as `drug_embedding_key`.")
        return torch.tensor(self.embedding.to_numpy(dtype=np.float64))

    @cached_property
    def generator(self) -> DrugGenerator:
        """The generator, fitted to what the module holds when it is first needed."""
        return self.module.drug_generator(self.features, self._measured_codes)

    @property
    def features_tell(self) -> bool:
        """Whether features tell more of a drug than what the measured ones have in common."""
        return self.generator.of_sparse + self.generator.of_dense > 0

    @cached_property
    def doubt(self) -> Doubt:
        """How far predictions from features go astray."""
        return estimate_doubt(*self.module.measured(self.features, self._measured_codes))

    @property
    def _measured_codes(self) -> Tensor:
        return torch.as_tensor(np.flatnonzero(self.is_measured & self.is_drug))

    def query(self, drugs: Any, dosage: Any) -> Query:
        """What is known of the rows asked for; the median measured dosage where none is given."""
        if _is_combinations(drugs):
            raise ValueError("Drugs with a dosage each are a combination. Give it to `model.predict_combination`.")
        known = self.embedding
        columns = None if known is None else known.columns.tolist()
        features = check_query_embedding(drugs, columns, self.names, self.separator)
        if known is not None and not features.shape[1]:  # measured perturbations, given by name
            features = known.reindex(features.index)  # combinations have none
        if dosage is None:  # a measured one: between two that are, a curve is less certain
            dosage = float(np.quantile(self.contexts.get_level_values("dosage"), 0.5, method="inverted_cdf"))
        if len(features) == 1 and np.size(dosage) > 1:  # one drug at several doses
            features = features.iloc[np.zeros(np.size(dosage), dtype=int)]
        dosages = self._known_doses(check_query_dosage(dosage, len(features)))
        with np.errstate(divide="ignore"):
            log_dosage = torch.as_tensor(np.log(dosages))
        code, drugs = pd.factorize(_identity(features))
        first = np.unique(code, return_index=True)[1]
        known = self.interventions(features.iloc[first] if len(drugs) < len(features) else features)
        return Query(features, dosages, log_dosage, known, torch.as_tensor(code))

    def _known_doses(self, dosages: np.ndarray) -> np.ndarray:
        """The same, if the screen can tell them apart."""
        odd = dosages[(dosages != 0) & (dosages != 1)]
        if len(odd) and not self.has_doses:
            raise ValueError(
                f"Found a dosage of {odd[0]:g}, and the screen was set up without doses (`dosage_key=None`): every drug has one, which is "
                "called 1. Leave `dosage` out, or set the screen up with the column of doses."
            )
        return dosages

    def interventions(self, features: pd.DataFrame) -> Interventions:
        """What is known of each row: of measured perturbations by name, of others by their features, of other combinations by their members."""
        unmeasured = features.index.isin(set(self.n_cells.index[~self.is_measured & ~self.is_drug]))
        if unmeasured.any():
            found = [self.combined([self.combinations[name]], None).united() for name in features.index[unmeasured]]
            if (~unmeasured).any():
                found.append(self.interventions(features[~unmeasured]))
            order = np.argsort(np.concatenate([np.flatnonzero(unmeasured), np.flatnonzero(~unmeasured)]))
            return Interventions.stack(found).rows(torch.as_tensor(order))
        code = pd.Index(self.names).get_indexer(features.index)
        measured = self.module.knowledge.interventions()
        untrained = (code >= 0) & ~self.is_measured[code]
        if self.embedding is not None:
            code = np.where(untrained, -1, code)
        elif untrained.any():
            raise ValueError(
                f"{sorted(set(features.index[untrained]))} had no cells to train on, and the model has no drug features. "
                "Train on some of their cells, or set up the screen with `drug_embedding_key`."
            )
        if (code >= 0).all():
            return measured.rows(torch.as_tensor(code))
        asked = torch.as_tensor(features.to_numpy(dtype=np.float64)[code < 0])
        generator = self.generator
        new = self.module.in_levels(generator(asked), generator.activity_in_levels(asked), generator.of_levels(asked))
        position = np.where(code >= 0, code, len(self.names) + np.cumsum(code < 0) - 1)
        return Interventions.stack([measured, new]).rows(torch.as_tensor(position))

    def arms(self, drugs: Any, dosage: Any, drug_embedding: pd.DataFrame | None = None) -> Arms:
        """What is asked for: combinations, or rows of features (or names) with a dosage each."""
        if _is_combinations(drugs):
            if dosage is not None:
                raise ValueError("`dosage` was given beside combinations, which name the dosage of each drug.")
            return self.combined(drugs, drug_embedding)
        return self.arms_of(self.query(drugs, dosage))

    def arms_of(self, query: Query) -> Arms:
        """One arm a row; rows of one drug at several dosages share what is drawn for it."""
        names = query.features.index.astype(str)
        _, first, drug = np.unique(_identity(query.features), return_index=True, return_inverse=True)
        return Arms(
            names=names.tolist(),
            dosages=query.dosage.tolist(),
            labels=[f"{dosage:g}" for dosage in query.dosage],
            interventions=query.known.rows(query.drug[torch.as_tensor(first)]),
            log_top=self._log_top(names[first]),
            is_new=self._is_new(names[first]),
            drug=torch.as_tensor(drug),
            log_dosage=query.log_dosage,
            arm=torch.arange(len(names)),
        )

    def combined(self, combinations: Any, drug_embedding: pd.DataFrame | None) -> Arms:
        """Arms of several drugs."""
        combinations = [combinations] if isinstance(combinations, Mapping) else list(combinations)
        if not combinations or not all(isinstance(c, Mapping) for c in combinations):
            raise ValueError(
                "`combinations` must be a mapping {'drug': dosage}, or a list of at least one such mapping."
            )
        named = [(str(drug), dosage, k) for k, c in enumerate(combinations) for drug, dosage in c.items()]
        several = [drug for drug, dosage, _ in named if np.ndim(dosage)]
        if several:
            raise ValueError(
                f"{several[0]!r} has several dosages in one combination. Give a combination for each, in a list."
            )
        dosages = check_query_dosage([dosage for _, dosage, _ in named], len(named)) if named else np.zeros(0)
        dosages = self._known_doses(dosages)
        parts: list[dict[str, float]] = [{} for _ in combinations]
        for (drug, _, k), dosage in zip(named, dosages.tolist(), strict=True):
            if dosage > 0:
                parts[k][drug] = dosage
        # a combination that was measured is known by its own cells
        parts = [self._as_measured(own) for own in parts]
        given = [(drug, dosage, k) for k, own in enumerate(parts) for drug, dosage in own.items()]
        drugs = list(dict.fromkeys(drug for drug, _, _ in given))
        return Arms(
            names=["+".join(map(str, c)) or self.control for c in combinations],
            dosages=[_single([float(v) for v in c.values()]) for c in combinations],
            labels=["+".join(f"{float(v):g}" for v in c.values()) or "0" for c in combinations],
            interventions=self._of_each(drugs, drug_embedding),
            log_top=self._log_top(drugs),
            is_new=self._is_new(drugs),
            drug=torch.as_tensor(pd.Index(drugs).get_indexer([d for d, _, _ in given])),
            log_dosage=torch.as_tensor(np.log([dosage for _, dosage, _ in given])),
            arm=torch.tensor([k for _, _, k in given], dtype=torch.long),
        )

    def _as_measured(self, drugs: dict[str, float]) -> dict[str, float]:
        """Drugs and their dosages, or the combination of these that was measured and its dosage."""
        if len(drugs) < 2 or not self.combinations:
            return drugs
        own = pd.Series(drugs).sort_index()
        for name, n_cells in self.n_cells[~self.is_drug].items():
            measured = pd.Series(self.combinations[name]).sort_index()
            if n_cells and measured.index.equals(own.index) and np.allclose(measured, own, rtol=_SAME_DOSE, atol=0):
                return {name: float(measured.max())}
        return drugs

    def _of_each(self, drugs: list[str], drug_embedding: pd.DataFrame | None) -> Interventions:
        """What is known of drugs by name; `drug_embedding` has the features of those that were not measured."""
        if not drugs:
            return self.module.knowledge.interventions().rows(torch.zeros(0, dtype=torch.long))
        new, known = [drug for drug in drugs if drug not in set(self.names)], self.embedding
        if self.control in new:
            raise ValueError(
                f"`combinations` holds the control, {self.control!r}, which is no drug. Leave it out: `{{}}` are control cells."
            )
        if new and known is not None and drug_embedding is None:
            close = close_names(new[0], self.names)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"{quote_some(new)} not among the measured perturbations.{hint} Features of new drugs in combinations are an argument of their "
                "own: `model.predict_combination(combinations, drug_embedding)`, one row a new drug."
            )
        if not new or drug_embedding is None or known is None:
            return self.query(drugs, 1.0).known
        if not isinstance(drug_embedding, pd.DataFrame):
            raise TypeError(
                f"`drug_embedding` is a {type(drug_embedding).__name__}. Give a data frame with the features of each new drug, its name in the "
                "index."
            )
        table = drug_embedding.rename(index=str)
        for drug in new:
            check_key(drug, table.index, where="drug_embedding.index", argument="combinations")
        features = check_query_embedding(table.loc[new], known.columns.tolist(), self.names)
        return self.query(pd.concat([known, features]).loc[drugs], 1.0).known

    def _is_new(self, drugs: Sequence[str]) -> Tensor:
        """Which drugs are known by their features only."""
        code = pd.Index(self.names).get_indexer(drugs)
        return torch.as_tensor((code < 0) | ~self.is_measured[code])

    def _log_top(self, drugs: Sequence[str]) -> Tensor:
        """Largest log dosage at which each drug was measured, of any drug for those that were not."""
        with np.errstate(divide="ignore"):
            own = np.log(self.contexts.to_frame(index=False).groupby("perturbation")["dosage"].max())
        return torch.tensor(own.reindex(drugs).fillna(own.max()).to_numpy(dtype=np.float64))


def _identity(features: pd.DataFrame) -> NDArray[np.uint64]:
    """A number for each row, the same of the same drug: one name, and the same features."""
    return pd.util.hash_pandas_object(features.set_axis(features.index.astype(str)), index=True).to_numpy()


def _single(dosages: list[float]) -> float:
    """Dosage of an arm as a number: that of its only drug, 0 without any, NaN of several."""
    return (dosages or [0.0])[0] if len(dosages) < 2 else np.nan


def _is_combinations(drugs: Any) -> bool:
    return isinstance(drugs, Mapping) or (
        isinstance(drugs, (list, tuple)) and any(isinstance(d, Mapping) for d in drugs)
    )
