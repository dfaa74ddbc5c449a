"""What a comparison of predictions needs of an AnnData: contexts, the sides of the split, expression and predicted cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scgim._backed import is_stored
from scgim._constants import REGISTRY
from scgim._validation import (
    check_column,
    check_continuous,
    check_dosage,
    check_gene_names,
    check_key,
    check_perturbations,
    check_size_factors,
    quote_some,
    resolve_embedding,
)
from scgim.metrics._baselines import Contexts

if TYPE_CHECKING:
    from anndata import AnnData

    from scgim.metrics._scale import ControlScale

CONTEXT = ["perturbation", "dosage"]
_SAME_DOSE = 1e-4  # relative; doses that went through files are rounded


class Keys(NamedTuple):
    """Where things are in an AnnData."""

    split: str
    perturbation: str
    control: str
    dosage: str | None
    drug_embedding: str | None
    layer: str | None
    size_factor: str | None
    level: str | None = None

    @property
    def context(self) -> list[str]:
        """Columns of the table of contexts that tell them apart."""
        return CONTEXT if self.level is None else [*CONTEXT, "level"]


class Screen(NamedTuple):
    """What the comparison needs of an AnnData."""

    X: Any
    """Expression, cells x genes."""
    contexts: pd.DataFrame
    """One row a treated context: perturbation, dosage, split, and the positions of its cells."""
    control: np.ndarray
    """Positions of control cells."""
    features: pd.DataFrame
    """Features of every drug."""
    levels: dict[str, np.ndarray]
    """Positions of the control cells of each level of the effect modifier; empty without one."""

    def offsets(self, table: pd.DataFrame, scale: ControlScale) -> np.ndarray:
        """Standardised mean of the controls that each context of a table is compared with, contexts x genes; zero without levels."""
        if not self.levels:
            return np.zeros((len(table), self.X.shape[1]))
        means = {name: scale.mean(self.X[rows]) for name, rows in self.levels.items()}
        return np.stack([means[name] for name in table["level"]])


def read_expression(adata: AnnData, keys: Keys, log1p: bool, name: str) -> Any:
    """Counts with fast access to rows, divided by size factors if there are any."""
    if keys.layer is not None:
        check_key(keys.layer, adata.layers.keys(), where="adata.layers", argument="layer")
    X = adata.X if keys.layer is None else adata.layers[keys.layer]
    if is_stored(X):
        raise ValueError(f"X of {name!r} lies in a file. Load it first: `adata = adata.to_memory()`.")
    X = X.tocsr() if sparse.issparse(X) else np.asarray(X)
    check_continuous(X, where=f"X of {name!r}")
    if log1p and X.min() < 0:
        raise ValueError(f"Found negative values in {name!r}. Give raw counts, or `log1p=False` for continuous data.")
    if keys.size_factor is None:
        return X
    inverse = 1 / check_size_factors(adata.obs, keys.size_factor)
    return sparse.diags(inverse).tocsr() @ X if sparse.issparse(X) else X * inverse[:, None]


def _context_table(cells: pd.DataFrame, where: str, context: list[str]) -> pd.DataFrame:
    groups = cells.groupby(context, observed=True, sort=True)
    mixed = groups["split"].nunique()
    mixed = mixed[mixed > 1]
    if len(mixed):
        names = quote_some([_named(index) for index in mixed.index])
        raise ValueError(
            f"{len(mixed)} contexts have cells on several sides of `{where}`: {names}. Split whole contexts: "
            "`scgim.pp.split_by_context(adata)`."
        )
    table = groups["split"].first().reset_index()
    table["cells"] = list(groups.indices.values())
    return table


def _named(context: tuple) -> str:
    """A context as text."""
    drug, dose, *level = context
    return f"{drug} at {dose:g}" + "".join(f" in {name}" for name in level)


def _features(adata: AnnData, perturbations: pd.Categorical, control: str, key: str | None) -> pd.DataFrame:
    """Features of every drug; one-hot if there are none."""
    if key is not None:
        return resolve_embedding(adata, key, perturbations, control=control)
    drugs = [name for name in perturbations.categories if name != control]
    return pd.DataFrame(np.eye(len(drugs)), index=drugs)


def read_screen(adata: AnnData, keys: Keys, log1p: bool) -> Screen:
    perturbations = check_perturbations(adata.obs, keys.perturbation, keys.control)
    dosage = check_dosage(adata.obs, keys.dosage, keys.perturbation, keys.control)
    check_key(keys.split, adata.obs.columns, where="adata.obs", argument="split_key")
    where = f"adata.obs[{keys.split!r}]"
    split = adata.obs[keys.split].astype(object).to_numpy()
    cells = pd.DataFrame({"perturbation": perturbations.astype(object), "dosage": dosage, "split": split})
    is_control = cells["perturbation"] == keys.control
    training_controls = np.flatnonzero(is_control & (cells["split"] == "train"))
    if len(training_controls) < 2:
        raise ValueError(
            f"`{where}` has {len(training_controls)} {keys.control!r} cells marked 'train'. Mark controls so."
        )
    if keys.level is not None:
        cells["level"] = check_column(adata.obs, keys.level, "effect_modifier_key").astype(str).to_numpy()
        without = sorted(set(cells["level"]) - set(cells["level"].iloc[training_controls]))
        if without:
            raise ValueError(
                f"Levels of `adata.obs[{keys.level!r}]` have no {keys.control!r} cells marked 'train' in `{where}`: {quote_some(without)}. "
                "Contexts are compared with the controls of their own level."
            )
    # Groups leave out cells without a label, and the rest keep their positions.
    cells.loc[is_control | cells["split"].isna(), "perturbation"] = None
    levels = {} if keys.level is None else cells.iloc[training_controls].groupby("level").indices
    contexts = _context_table(cells, where, keys.context)
    if contexts["split"].nunique() < 2 or "train" not in set(contexts["split"]):
        raise ValueError(
            f"`{where}` marks perturbed cells as {quote_some(contexts['split'].unique())}. Expected 'train' and at least one "
            "other label: `scgim.pp.split_by_context(adata)`."
        )
    features = _features(adata, perturbations, keys.control, keys.drug_embedding)
    X = read_expression(adata, keys, log1p, "adata")
    of_levels = {name: training_controls[rows] for name, rows in levels.items()}
    return Screen(X, contexts, training_controls, features, of_levels)


def context_arrays(screen: Screen, table: pd.DataFrame, scale: ControlScale) -> Contexts:
    """Contexts of a table with their features and mean shifts."""
    drug = table["perturbation"].to_numpy()
    shift = np.stack([scale.mean(screen.X[cells]) for cells in table["cells"]]) - screen.offsets(table, scale)
    return Contexts(drug, table["dosage"].to_numpy(), screen.features.loc[drug].to_numpy(dtype=float), shift)


def predicted_cells(predicted: AnnData, table: pd.DataFrame, keys: Keys, name: str) -> list[np.ndarray]:
    """Positions of the predicted cells of every context."""
    obs, where = predicted.obs, f"predictions {name!r}, obs"
    perturbation = keys.perturbation if keys.perturbation in obs else REGISTRY.PERTURBATION
    check_key(perturbation, obs.columns, where=where, argument="perturbation_key")
    own = pd.DataFrame({"perturbation": obs[perturbation].astype(str).to_numpy()})
    asked = table["perturbation"].tolist()
    if keys.level is not None:
        check_key(keys.level, obs.columns, where=where, argument="effect_modifier_key")
        own["level"] = obs[keys.level].astype(str).to_numpy()
        asked = list(zip(asked, table["level"], strict=True))
    doses = None
    if keys.dosage is not None:
        dosage = keys.dosage if keys.dosage in obs else REGISTRY.DOSAGE
        check_key(dosage, obs.columns, where=where, argument="dosage_key")
        doses = obs[dosage].to_numpy(dtype=float)
    # of each drug by itself: all contexts times all cells would not fit into memory
    groups = own.groupby("perturbation" if keys.level is None else ["perturbation", "level"]).indices
    rows = [groups.get(drug, np.zeros(0, dtype=np.intp)) for drug in asked]
    if doses is not None:
        rows = [
            cells[np.isclose(doses[cells], dose, rtol=_SAME_DOSE, atol=0.0)]  # may be in mol/L, and tiny
            for cells, dose in zip(rows, table["dosage"], strict=True)
        ]
    few = np.array([len(cells) < 2 for cells in rows])
    if few.any():
        missing = [_named(context) for context in table.loc[few, keys.context].itertuples(index=False)]
        raise ValueError(
            f"The predictions {name!r} have fewer than two cells of {len(missing)} held-out contexts: {quote_some(missing)}. "
            "Predict every held-out drug at its doses."
        )
    return rows


def read_models(predicted: AnnData | Mapping[str, AnnData] | None, adata: AnnData) -> dict[str, AnnData]:
    """Predictions by name, with genes in the order of the data."""
    if predicted is None:
        return {}
    models = dict(predicted) if isinstance(predicted, Mapping) else {"model": predicted}
    for name, model in models.items():
        if set(model.var_names) != set(adata.var_names):
            check_gene_names(model.var_names, adata.var_names, where=f"predictions {name!r}")
        models[name] = model[:, adata.var_names]
    return models
