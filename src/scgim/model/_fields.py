"""Registration of a screen's design: which drugs at which dose each cell saw, the features of the drugs, and which genes may regulate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import rich.pretty  # noqa: F401  (scvi-tools 1.4 uses it in `view_anndata_setup` without importing it)
from rich.table import Table
from scvi.data.fields import BaseAnnDataField

from scgim._constants import REGISTRY
from scgim._validation import (
    check_column,
    check_dosage,
    check_levels,
    check_perturbations,
    check_regulators,
    in_combinations,
    match_doses,
    quote_some,
    resolve_embedding,
    separate_combinations,
    warn_of_inseparable,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from scgim._validation import Members

_OBS_COLUMN = "_scvi_gim_context"


class ScreenField(BaseAnnDataField):
    """Contexts (one drug at one dose, in cells of one level of the effect modifier) of the cells, and one row of features a drug.

    A combination of drugs at their dosages is a perturbation as well. Perturbations are all drugs, those that were given in combinations
    only included, and then the combinations.

    Parameters
    ----------
    perturbation_key, control, dosage_key, drug_embedding_key, regulator_key, effect_modifier_key, combination_separator
        See :meth:`scgim.model.GIM.setup_anndata`.
    """

    def __init__(
        self,
        perturbation_key: str,
        control: str,
        dosage_key: str | None,
        drug_embedding_key: str | None,
        regulator_key: str | None = None,
        effect_modifier_key: str | None = None,
        combination_separator: str | None = None,
    ):
        self.perturbation_key, self.control = perturbation_key, control
        self.dosage_key, self.drug_embedding_key = dosage_key, drug_embedding_key
        self.effect_modifier_key = effect_modifier_key
        self.regulator_key, self.combination_separator = regulator_key, combination_separator

    @property
    def registry_key(self) -> str:
        return REGISTRY.CONTEXT

    @property
    def attr_name(self) -> str:
        return "obs"

    @property
    def attr_key(self) -> str:
        return _OBS_COLUMN

    @property
    def is_empty(self) -> bool:
        return False

    def validate_field(self, adata: AnnData) -> None:
        """Checks are made where the values are read."""

    def design(self, adata: AnnData, *, need_controls: bool = True) -> pd.DataFrame:
        """Perturbation and dosage of each cell, and its level if effects have a modifier."""
        return self._read(adata, need_controls=need_controls)[0]

    def _read(self, adata: AnnData, *, need_controls: bool) -> tuple[pd.DataFrame, dict[str, Members]]:
        """The design, and the members of each combination in it."""
        keys = self.perturbation_key, self.control, self.dosage_key
        obs, combinations = separate_combinations(adata.obs, *keys, self.combination_separator)
        if need_controls:
            perturbation = check_perturbations(obs, self.perturbation_key, self.control, in_combinations(combinations))
        else:
            perturbation = check_column(obs, self.perturbation_key, "perturbation_key").astype(str)
        dosage = check_dosage(obs, self.dosage_key, self.perturbation_key, self.control)
        columns = {"perturbation": np.asarray(perturbation, dtype=str), "dosage": dosage}
        if self.effect_modifier_key is not None:
            level = check_column(adata.obs, self.effect_modifier_key, "effect_modifier_key")
            columns["level"] = level.astype(str).to_numpy()
        design = pd.DataFrame(columns, index=obs.index).rename_axis(None)  # an index may be called like a column
        return design, combinations

    def register_field(self, adata: AnnData) -> dict:
        """Find the contexts and the features of the drugs."""
        design, combinations = self._read(adata, need_controls=True)
        treated = design[design["perturbation"] != self.control]
        contexts = treated.drop_duplicates().sort_values([*design.columns])
        if self.combination_separator is not None:
            self._check_combinations(combinations, treated["perturbation"])
            contexts = _with_members(contexts, combinations)
        perturbations = contexts["perturbation"].unique().tolist()
        embedding = None
        if self.drug_embedding_key is not None:
            drugs = [name for name in perturbations if name not in combinations]
            labels = design["perturbation"].mask(design["perturbation"].isin(combinations), self.control)
            labels = pd.Categorical(labels, categories=sorted({*drugs, self.control}))
            embedding = resolve_embedding(adata, self.drug_embedding_key, labels, control=self.control).loc[drugs]
        levels = (
            [] if self.effect_modifier_key is None else check_levels(design, self.effect_modifier_key, self.control)
        )
        n_controls = max(1, len(levels))  # a context of controls for each level
        state = {
            "perturbations": perturbations,
            "context_perturbation": [self.control] * n_controls + contexts["perturbation"].tolist(),
            "context_dosage": [0.0] * n_controls + contexts["dosage"].astype(float).tolist(),
            "embedding": embedding,
        }
        if combinations:
            state["combination_members"] = [list(combinations[name]) for name in perturbations if name in combinations]
            dosages = [list(combinations[name].values()) for name in perturbations if name in combinations]
            state["combination_dosages"] = dosages
        if levels:
            state["levels"], state["context_level"] = levels, levels + contexts["level"].tolist()
        if self.regulator_key is not None:  # kept with the model: other data need not have the column
            state["regulators"] = check_regulators(adata.var, self.regulator_key)
        adata.obs[_OBS_COLUMN] = context_codes(design, state)
        return state

    def _check_combinations(self, combinations: dict[str, Members], treated: pd.Series) -> None:
        """Raise where there are no combinations, or nothing tells their members apart."""
        if not combinations:
            raise ValueError(
                f"No label in `adata.obs[{self.perturbation_key!r}]` names two drugs separated by {self.combination_separator!r}; it holds "
                f"{quote_some(sorted(treated.unique()))}. Leave out `combination_separator`, or name the sign that separates drugs."
            )
        if self.effect_modifier_key is not None:
            raise ValueError(
                "`combination_separator` and `effect_modifier_key` cannot be used together: effects of combinations are not told apart by "
                "level. Leave out one of them; levels can be covariates."
            )
        warn_of_inseparable(combinations, set(treated) - set(combinations))

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        """Code the contexts of other cells; -1 marks those that were not measured in training."""
        design = self.design(adata_target, need_controls=False)
        adata_target.obs[_OBS_COLUMN] = context_codes(design, state_registry)
        return state_registry

    def get_summary_stats(self, state_registry: dict) -> dict:
        embedding = state_registry["embedding"]
        return {
            "n_perturbations": len(state_registry["perturbations"]),
            "n_contexts": len(state_registry["context_dosage"]),
            "n_drug_features": 0 if embedding is None else embedding.shape[1],
        }

    def view_state_registry(self, state_registry: dict) -> Table:
        table = Table(title=f"{self.registry_key} State Registry")
        table.add_column("Perturbation")
        table.add_column("Dosages")
        contexts = pd.DataFrame({k: state_registry[f"context_{k}"] for k in ("perturbation", "dosage")})
        for name, dosages in contexts.groupby("perturbation", sort=False)["dosage"]:
            table.add_row(name, ", ".join(f"{d:g}" for d in dosages.unique()))
        return table


def _with_members(contexts: pd.DataFrame, combinations: dict[str, Members]) -> pd.DataFrame:
    """Contexts of all drugs, also at dosages that were given in combinations only, and then those of combinations."""
    together = contexts["perturbation"].isin(combinations)
    members = [one for of_each in combinations.values() for one in of_each.items()]
    given = pd.DataFrame(members, columns=["perturbation", "dosage"])
    own = contexts[~together]
    given["dosage"] = match_doses(given["dosage"].to_numpy(dtype=float), own["dosage"].to_numpy())
    alone = pd.concat([own, given]).drop_duplicates().sort_values([*contexts.columns])
    return pd.concat([alone, contexts[together]], ignore_index=True)


def context_codes(design: pd.DataFrame, state: dict) -> np.ndarray:
    """Index of each cell's context, -1 if it is not among those of `state`; dosages may be rounded otherwise."""
    columns = [name for name in ("perturbation", "dosage", "level") if f"context_{name}" in state]
    known = pd.MultiIndex.from_arrays([state[f"context_{name}"] for name in columns])
    dosage = match_doses(design["dosage"].to_numpy(), np.asarray(state["context_dosage"]))
    return known.get_indexer(pd.MultiIndex.from_frame(design.assign(dosage=dosage)[columns])).astype(np.int64)
