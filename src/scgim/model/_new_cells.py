"""Control cells of a kind that was not in the training data, as users give them: checks, and what predictions are made with."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import settings

from scgim._validation import check_continuous, check_counts, check_key, quote_some
from scgim.model._base import ScreenModel
from scgim.predict._new_cells import Controls, carried, changes, needed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scgim.predict._arms import Arms
    from scgim.predict._sampler import Sampler

_MAX_CELLS = 5000  # drawn at random from more: for memory
_MIN_CELLS = 2


class NewCellsMixin(ScreenModel):
    """What :meth:`scgim.model.GIM.predict` needs of cells of which only controls are given."""

    def _in_new_cells(
        self, control_adata: AnnData, arms: Arms, covariates: pd.DataFrame | Mapping | None
    ) -> tuple[Sampler, Arms, str | None]:
        """Sampler of such cells, the drugs asked for as they act there, and the name of their level if effects have a modifier."""
        if self.module.measurement == "latent":
            raise ValueError(
                "`control_adata` needs covariates, which `measurement='latent'` does not take. Fit with `measurement='direct'`."
            )
        self._check_are_controls(control_adata)
        obs, name = self._covariates_of(control_adata, covariates)
        if control_adata.n_obs > _MAX_CELLS:
            rows = np.sort(np.random.default_rng(0).choice(control_adata.n_obs, _MAX_CELLS, replace=False))
            control_adata, obs = control_adata[rows], obs.iloc[rows]
        told = np.isin(self.gene_names_, control_adata.var_names)
        x = self._new_values(control_adata, told)
        pool = {
            "covariates": self._design.encode(obs, new=True),
            "log_size": np.log(self._size_factors_of(control_adata, x[:, told])).astype(np.float32),
        }
        fitted = self._sampler
        sampler = replace(fitted, pool=pool, design=self._design.of_one_level(), of_pool=True)
        controls = Controls.of(sampler, torch.as_tensor(x), torch.as_tensor(told))
        has_levels = self._covariates.modifier is not None
        change = changes(fitted, arms) if has_levels or not told.all() else None
        if not told.all():
            self._check_told(needed(arms, change, torch.as_tensor(told)), told)  # type: ignore[arg-type]
        settled = controls.settled()
        return settled, carried(controls, settled, arms, change) if has_levels else arms, name  # type: ignore[arg-type]

    def _check_are_controls(self, control_adata: AnnData) -> None:
        """Raise for what is no AnnData of control cells with genes that have names of their own."""
        if not isinstance(control_adata, AnnData):
            raise TypeError(
                f"`control_adata` is a {type(control_adata).__name__}. Expected an AnnData of control cells."
            )
        if control_adata.n_obs < _MIN_CELLS:
            raise ValueError(
                f"`control_adata` has {control_adata.n_obs} cells. At least {_MIN_CELLS} are needed, and means of few are noisy."
            )
        if not control_adata.var_names.is_unique:
            raise ValueError(
                "`control_adata` has several genes of one name, and genes are matched by name. Make names unique."
            )
        obs, key, control = control_adata.obs, self._setup_args["perturbation_key"], self._setup_args["control"]
        if key in obs:
            others = sorted(set(obs[key].astype(str)) - {control})
            if others:
                raise ValueError(
                    f"`control_adata` holds cells that are not {control!r}: {quote_some(others)}. Give control cells only: "
                    f"`control_adata[control_adata.obs[{key!r}] == {control!r}]`."
                )

    def _covariates_of(
        self, control_adata: AnnData, covariates: pd.DataFrame | Mapping | None
    ) -> tuple[pd.DataFrame, str | None]:
        """Covariates of the cells, those that are given for all among them, and the name of their level."""
        obs, modifier = control_adata.obs.copy(), self._covariates.modifier
        given = covariates.iloc[0].to_dict() if isinstance(covariates, pd.DataFrame) else dict(covariates or {})
        if modifier is not None and modifier in given:
            raise ValueError(
                f"`covariates` names a level of {modifier!r}, and `control_adata` are cells of one. Give one of the two."
            )
        obs = obs.assign(**{name: value for name, value in given.items() if name in self._covariates.keys})
        name = None
        if modifier is not None:
            names = sorted(set(obs[modifier].astype(str))) if modifier in obs else ["new"]
            if len(names) > 1:
                raise ValueError(
                    f"`control_adata` holds several levels of {modifier!r}: {quote_some(names)}. Give one at a time."
                )
            name, obs[modifier] = names[0], names[0]
        missing = [column for column in self._covariates.keys if column not in obs]
        if missing:
            raise KeyError(
                f"`control_adata.obs` lacks {missing}, covariates of the model. Add them, or name a value for all cells: "
                f"`covariates={{{missing[0]!r}: ...}}`."
            )
        unknown = [column for column in self._covariates.keys if obs[column].isna().any()]
        if unknown:
            raise ValueError(
                f"`control_adata.obs` has no value (NaN) of {unknown} in some cells. Give one, or leave these cells out."
            )
        return obs, name

    def _new_values(self, control_adata: AnnData, told: np.ndarray) -> np.ndarray:
        """Values of all genes of the model, 0 of those that are not `told`, cells x genes."""
        if not told.any():
            raise ValueError(
                f"`control_adata` has none of the genes of the model. It has {quote_some(control_adata.var_names, 3)}; the model "
                f"{quote_some(self.gene_names_, 3)}. Are these symbols on one side and identifiers on the other?"
            )
        layer = self._setup_args["layer"]
        if layer is not None:
            check_key(layer, control_adata.layers, where="control_adata.layers", argument="layer")
        where = "control_adata.X" if layer is None else f"control_adata.layers[{layer!r}]"
        known = [gene for gene, is_told in zip(self.gene_names_, told, strict=True) if is_told]
        own = control_adata[:, known]
        own = own.to_memory() if own.isbacked else own
        values = own.X if layer is None else own.layers[layer]
        (check_continuous if self._is_continuous else check_counts)(values, where=where)
        x = np.zeros((own.n_obs, len(told)), dtype=np.float32)
        x[:, told] = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
        return x

    def _check_told(self, missing: list[int], told: np.ndarray) -> None:
        """Raise for genes that the new cells lack and that matter; say which others they lack."""
        if missing:
            raise ValueError(
                f"`control_adata` lacks genes that these drugs act on or change: {quote_some([self.gene_names_[j] for j in missing], 20)}. Without "
                "their level in these cells, what drugs do to them cannot be predicted."
            )
        absent = [gene for gene, is_told in zip(self.gene_names_, told, strict=True) if not is_told]
        warnings.warn(
            f"`control_adata` lacks {len(absent)} of {len(told)} genes, which these drugs do not change: {quote_some(absent)}. They are "
            "predicted as in the controls of the training data.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
