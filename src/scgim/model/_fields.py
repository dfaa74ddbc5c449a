"""Registration of a screen's design: which drug at which dose each cell saw, the features of the drugs, and which genes may regulate."""

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
    match_doses,
    resolve_embedding,
)

if TYPE_CHECKING:
    from anndata import AnnData

_OBS_COLUMN = "_scvi_gim_context"


class ScreenField(BaseAnnDataField):
    """Contexts (one drug at one dose, in cells of one level of the effect modifier) of the cells, and one row of features a drug.

    Parameters
    ----------
    perturbation_key, control, dosage_key, drug_embedding_key, regulator_key, effect_modifier_key
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
    ):
        self.perturbation_key, self.control = perturbation_key, control
        self.dosage_key, self.drug_embedding_key = dosage_key, drug_embedding_key
        self.effect_modifier_key = effect_modifier_key
        self.regulator_key = regulator_key

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
        obs = adata.obs
        if need_controls:
            perturbation = check_perturbations(obs, self.perturbation_key, self.control)
        else:
            perturbation = check_column(obs, self.perturbation_key, "perturbation_key").astype(str)
        dosage = check_dosage(obs, self.dosage_key, self.perturbation_key, self.control)
        columns = {"perturbation": np.asarray(perturbation, dtype=str), "dosage": dosage}
        if self.effect_modifier_key is not None:
            columns["level"] = check_column(obs, self.effect_modifier_key, "effect_modifier_key").astype(str).to_numpy()
        return pd.DataFrame(columns, index=obs.index).rename_axis(None)  # an index may be called like a column

    def register_field(self, adata: AnnData) -> dict:
        """Find the contexts and the features of the drugs."""
        design = self.design(adata)
        treated = design[design["perturbation"] != self.control]
        contexts = treated.drop_duplicates().sort_values([*design.columns])
        perturbations = contexts["perturbation"].unique().tolist()
        embedding = None
        if self.drug_embedding_key is not None:
            embedding = resolve_embedding(adata, self.drug_embedding_key, design["perturbation"], control=self.control)
            embedding = embedding.loc[perturbations]
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
        if levels:
            state["levels"], state["context_level"] = levels, levels + contexts["level"].tolist()
        if self.regulator_key is not None:  # kept with the model: other data need not have the column
            state["regulators"] = check_regulators(adata.var, self.regulator_key)
        adata.obs[_OBS_COLUMN] = context_codes(design, state)
        return state

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


def context_codes(design: pd.DataFrame, state: dict) -> np.ndarray:
    """Index of each cell's context, -1 if it is not among those of `state`; dosages may be rounded otherwise."""
    columns = [name for name in ("perturbation", "dosage", "level") if f"context_{name}" in state]
    known = pd.MultiIndex.from_arrays([state[f"context_{name}"] for name in columns])
    dosage = match_doses(design["dosage"].to_numpy(), np.asarray(state["context_dosage"]))
    return known.get_indexer(pd.MultiIndex.from_frame(design.assign(dosage=dosage)[columns])).astype(np.int64)
