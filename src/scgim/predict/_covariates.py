"""Covariates as columns of a design matrix: 0/1 for categories, standardised values for continuous ones."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS

from scgim._constants import REGISTRY
from scgim._validation import check_column, check_covariates, numeric_values, quote_some

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_MIN_SPREAD = 1e-8  # below it a covariate is constant, but for rounding, and keeps its scale


def as_list(keys: Any) -> Any:
    """Names of columns in a list, each once, whatever they came in; text and None stay as they are, for :func:`check_columns` to look at."""
    return keys if keys is None or isinstance(keys, str) else list(dict.fromkeys(keys))


def check_columns(
    obs: pd.DataFrame, batch_key: str | None, categorical: list[str] | None, continuous: list[str] | None
) -> None:
    """Raise unless all covariates are columns of `obs` without missing values, the continuous ones finite numbers."""
    groups = {
        "batch_key": [] if batch_key is None else [batch_key],
        "categorical_covariate_keys": categorical or [],
        "continuous_covariate_keys": continuous or [],
    }
    for argument, keys in groups.items():
        if isinstance(keys, str):
            raise TypeError(f"`{argument}` is the text {keys!r}. Expected a list: `{argument}=[{keys!r}]`.")
        if argument == "batch_key" and keys and not isinstance(keys[0], str):
            raise TypeError(
                f"`batch_key` is {keys[0]!r}. Expected the name of one column; further ones go to `categorical_covariate_keys`."
            )
        for key in keys:
            check_column(obs, key, argument)
            where = f"adata.obs[{key!r}]"
            numeric = argument == "continuous_covariate_keys"
            missing = ~np.isfinite(numeric_values(obs[key], where)) if numeric else obs[key].isna().to_numpy()
            if missing.any():
                raise ValueError(
                    f"{int(missing.sum())} cells have no value (NaN{' or infinite' if numeric else ''}) in `{where}`. "
                    "Impute it, remove the cells, or leave the covariate out."
                )
            if not numeric:
                _check_one_type(obs[key], where)


def _check_one_type(column: pd.Series, where: str) -> None:
    """Raise where categories are text and numbers side by side, which have no order and cannot be written to a file."""
    kinds = {isinstance(value, str) for value in column.unique()}
    if len(kinds) > 1:
        raise ValueError(
            f"`{where}` holds text beside other values: {quote_some(column.unique())}. Make them text: `{where} = {where}.astype(str)`."
        )


def check_modifier(obs: pd.DataFrame, key: Any, continuous: list[str] | None) -> None:
    """Raise unless the effect modifier is one column of `obs` without missing values, and not one of the continuous covariates."""
    if not isinstance(key, str):
        raise TypeError(
            f"`effect_modifier_key` is {key!r}. Expected the name of one column. For two, join them: "
            "`adata.obs['both'] = adata.obs['a'].astype(str) + '_' + adata.obs['b'].astype(str)`."
        )
    column = check_column(obs, key, "effect_modifier_key")
    if key in (continuous or []):
        raise ValueError(f"{key!r} is a continuous covariate. `effect_modifier_key` takes a column of categories.")
    if column.isna().any():
        raise ValueError(
            f"{int(column.isna().sum())} cells have no value (NaN) in `adata.obs[{key!r}]`. Name their level, or remove the cells."
        )
    _check_one_type(column, f"adata.obs[{key!r}]")


class CovariateDesign:
    """Columns of the design matrix, from a model's registry, so that no data are needed.

    Parameters
    ----------
    registry
        Registry of an scvi-tools model.
    """

    def __init__(self, registry: dict):
        fields, setup = registry["field_registries"], registry["setup_args"]
        self.categories: dict[str, list] = {}
        if setup["batch_key"] is not None:
            mapping = fields[REGISTRY_KEYS.BATCH_KEY]["state_registry"]["categorical_mapping"]
            self.categories[setup["batch_key"]] = list(mapping)
        if setup["categorical_covariate_keys"]:
            mappings = fields[REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]["mappings"]
            self.categories.update({key: list(values) for key, values in mappings.items()})
        self.modifier: str | None = setup.get("effect_modifier_key")
        self.levels: list[str] = []
        if self.modifier is not None:
            self.levels = list(fields[REGISTRY.CONTEXT]["state_registry"]["levels"])
            self.categories.setdefault(self.modifier, self.levels)  # what modifies effects shifts baselines as well
        self.continuous = list(setup["continuous_covariate_keys"] or [])

    @property
    def keys(self) -> list[str]:
        """Columns of `obs` that are read."""
        return [*self.categories, *self.continuous]

    @property
    def owner(self) -> pd.Index:
        """Covariate that each column of the design belongs to."""
        of_categories = [key for key, levels in self.categories.items() for _ in levels]
        return pd.Index([*of_categories, *self.continuous], dtype=object)

    @property
    def n_columns(self) -> int:
        return sum(len(v) for v in self.categories.values()) + len(self.continuous)

    def level_named(self, covariates: pd.DataFrame | Mapping | None) -> int | None:
        """Level of the effect modifier that covariates name, as a number; None if they do not."""
        key = self.modifier
        if covariates is None or key is None or key not in covariates:
            return None
        name = str(np.ravel(np.asarray(covariates[key]))[0])
        if name not in self.levels:
            raise ValueError(
                f"Covariate {key!r} has values that were not in the training data: {name!r}. Known values: {quote_some(self.levels, 20)}. "
                "`predict` and `predict_mean` take control cells of another one as `control_adata`."
            )
        return self.levels.index(name)

    def names_of_levels(self, asked: str | Sequence[str] | None) -> list[str]:
        """Levels of the effect modifier that are asked for, None for all; none of a model without one.

        Raises
        ------
        ValueError
            A level is not known, or there is no effect modifier.
        """
        if asked is None:
            return self.levels
        if self.modifier is None:
            raise ValueError(
                f"`level={asked!r}` was asked for, and effects are the same in all cells: the model was set up without "
                "`effect_modifier_key`."
            )
        names = [str(name) for name in ([asked] if isinstance(asked, str) or np.ndim(asked) == 0 else asked)]
        check_covariates(pd.DataFrame({self.modifier: names}), {self.modifier: self.levels})
        return names

    def level(self, design: NDArray) -> NDArray[np.int64]:
        """Level of the effect modifier, as a number, of rows of the design matrix (N, Q), shape (N,); 0 without a modifier."""
        if self.modifier is None:
            return np.zeros(len(design), dtype=np.int64)
        names = [str(value) for value in self.categories[self.modifier]]
        own = design[:, np.flatnonzero(self.owner == self.modifier)].argmax(1)
        return pd.Index(self.levels).get_indexer([names[k] for k in own]).astype(np.int64)

    def encode(self, obs: pd.DataFrame, *, new: bool = False) -> NDArray[np.float32]:
        """Design matrix of cells, shape (N, Q); ValueError for categories not seen in training, unless they may be `new`, which has zeros."""
        for key in self.keys:
            if key not in obs:
                raise KeyError(
                    f"The covariate {key!r} of the model is no column of `adata.obs`, which has {quote_some(obs.columns, 10)}. Add it."
                )
        if not new:
            check_covariates(obs[list(self.categories)], self.categories)
        columns = [
            (obs[key].astype(str).to_numpy() == str(level))
            for key, levels in self.categories.items()
            for level in levels
        ]
        columns += [numeric_values(obs[key], f"adata.obs[{key!r}]") for key in self.continuous]
        return np.stack(columns, 1).astype(np.float32) if columns else np.zeros((len(obs), 0), np.float32)


def _one_row(covariates: Any) -> pd.DataFrame:
    """Covariates that hold for all cells as a data frame, which should have one row; ValueError for anything else."""
    if isinstance(covariates, pd.DataFrame):
        return covariates
    values = dict(covariates) if isinstance(covariates, (Mapping, pd.Series)) else None
    if values is None or any(np.ndim(value) for value in values.values()):
        raise ValueError(
            f"`covariates` is {covariates!r}. Give each covariate one value, which holds for all cells, such as {{'batch': 'b1'}}; ask once for "
            "each value."
        )
    return pd.DataFrame(values, index=[0])


def centre_and_scale(design: NDArray, n_continuous: int, controls: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
    """Mean over controls of each column, and its spread where the column is continuous, 1 where it is 0/1."""
    centre = design[controls].mean(0)
    scale = np.ones(design.shape[1], dtype=np.float32)
    if n_continuous:
        spread = design[:, -n_continuous:].std(0)
        scale[-n_continuous:] = np.where(spread > _MIN_SPREAD, spread, 1.0)
    return centre, scale


class ScaledDesign:
    """Covariates on the scale that the model was fitted on.

    Parameters
    ----------
    design
        Columns of the design matrix.
    centre, scale
        What is taken from each column, and what it is divided by, both (Q,).
    """

    def __init__(self, design: CovariateDesign, centre: NDArray, scale: NDArray):
        self.keys, self.categories = design.keys, design.categories
        self.modifier, self.levels = design.modifier, design.levels
        self._design, self._centre, self._scale = design, centre, scale

    def encode(self, obs: pd.DataFrame, *, new: bool = False) -> NDArray[np.float32]:
        """Scaled design matrix of cells, shape (N, Q), as :meth:`CovariateDesign.encode` makes it."""
        return self.scaled(self._design.encode(obs, new=new))

    def of_one_level(self) -> ScaledDesign:
        """The same for cells that all are of one level of the effect modifier, whichever."""
        design = copy(self._design)
        design.modifier, design.levels = None, []
        return ScaledDesign(design, self._centre, self._scale)

    def scaled(self, columns: NDArray) -> NDArray[np.float32]:
        """Columns of the design, scaled."""
        return ((columns - self._centre) / self._scale).astype(np.float32)

    def level(self, scaled: NDArray) -> NDArray[np.int64]:
        """Level of the effect modifier, as a number, of rows of the scaled design matrix (N, Q), shape (N,); 0 without a modifier."""
        return self._design.level(scaled * self._scale + self._centre)

    def level_named(self, covariates: pd.DataFrame | Mapping | None) -> int | None:
        """Level of the effect modifier that covariates name (:meth:`CovariateDesign.level_named`)."""
        return self._design.level_named(covariates)

    def with_covariates(self, design: NDArray[np.float32], covariates: pd.DataFrame | Mapping) -> NDArray[np.float32]:
        """Scaled design matrix (n, Q) in which all cells have the given covariates, a mapping or a data frame of one row.

        Covariates that are not given stay as they are.
        """
        frame = _one_row(covariates)
        if len(frame) != 1:
            raise ValueError(f"`covariates` has {len(frame)} rows. Expected one, which holds for all cells.")
        unknown = [key for key in frame if key not in self.keys]
        if unknown:
            raise ValueError(f"`covariates` holds {unknown}, which the model does not have. It knows {self.keys}.")
        missing = [key for key in frame if frame[key].isna().any()]
        if missing:
            raise ValueError(f"`covariates` has no value (NaN) for {missing}. Give one, or leave it out.")
        given = {key: levels for key, levels in self.categories.items() if key in frame}
        check_covariates(frame[list(given)], given)
        out, whole = np.array(design), frame.assign(**self._anything(frame))
        columns, is_given = self.encode(whole)[0], self._design.owner.isin(list(frame))
        out[:, is_given] = columns[is_given]
        return out

    def _anything(self, frame: pd.DataFrame) -> dict:
        """Values of the covariates that are not given, to be encoded and not used."""
        values = {key: levels[0] for key, levels in self.categories.items()}
        return {key: values.get(key, 0.0) for key in self.keys if key not in frame}
