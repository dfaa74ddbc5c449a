"""Results stored in an AnnData, where the plots read them."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scgim._constants import Key, stored_name
from scgim._validation import check_annotated, check_gene_names
from scgim.interventions._interventions import Interventions
from scgim.interventions._sensitivity import feature_sensitivity
from scgim.model._base import ScreenModel
from scgim.predict._means import effect_sds
from scgim.predict._totals import N_SAMPLES_A_DOSE, total_effects

if TYPE_CHECKING:
    from anndata import AnnData

_MAX_FEATURES = 4096  # beyond this their importance, features x genes, is not stored: for the size of files


class AnnotationMixin(ScreenModel):
    """`annotate` of :class:`scgim.model.GIM`."""

    def annotate(
        self,
        adata: AnnData | None = None,
        *,
        key_added: str = Key.DEFAULT,
        n_samples: int | None = None,
        level: str | None = None,
    ) -> None:
        """Store network, targets and effects in an AnnData, where :mod:`scgim.pl` reads them.

        Parameters
        ----------
        adata
            Data with the genes of the model; None for the training data.
        key_added
            Start of the names under which results are stored.
        n_samples
            Cells drawn in each context for the total effects, as in :meth:`get_total_effects`.
        level
            Level of the effect modifier, such as one cell line, whose effects are stored; None for what levels have in common.
            With another `key_added` for each level, plots show the one whose key they are given.

        Returns
        -------
        Nothing; adds `varp["gim_edge_probs"]`, `varp["gim_edge_weights"]`, data frames of genes x perturbations in
        `varm` (`"gim_targets"`, `"gim_shifts"`, `"gim_shift_sds"`, `"gim_total_effects"` at the largest measured dosage and,
        as `"gim_total_effect_errors"`, their error by the finite number of cells drawn, and as `"gim_total_effect_sds"` the standard
        deviation of what is known of them, as in :meth:`predict_mean`; `"gim_emax"`, `"gim_ec50"`,
        `"gim_hill"`), the array `varm["gim_context_effects"]` of total effects at each measured dosage, genes x the rows of
        `uns["gim"]["contexts"]`, and `uns["gim"]` with parameters, perturbations, training history and,
        where drugs have at most 4096 features, their importance (:meth:`get_feature_importance`). In names of columns "/" is stored as the
        division slash, since files use the former for groups; plots take both. `var["gim_controls_agree"]`
        marks genes in which simulated control cells are like the observed ones; `uns["gim"]["controls"]` says how they differ.
        After a fit of `likelihood="normal"`, `var["gim_sd"]` holds the unit of effects (:attr:`standard_deviations_`).
        Size factors, if they were estimated, are in `obs["gim_size_factor"]` (:meth:`get_size_factors`).
        Hidden states, if any were found, are in `obsm["gim_states"]` (:meth:`get_states`), where the cells have the columns that the model was set up with.
        """
        self._check_if_trained(warn=False)
        if adata is None:
            adata = self._own_data()
        check_annotated(adata)
        if not isinstance(key_added, str) or not key_added:
            raise ValueError(
                f"`key_added` must be text that names of results begin with, such as 'gim', found {key_added!r}."
            )
        if "/" in key_added:
            raise ValueError(
                f"`key_added={key_added!r}` holds a slash, which separates groups in files. Use another sign."
            )
        check_gene_names(adata.var_names, self.gene_names_)
        if level is not None:
            (level,) = self._covariates.names_of_levels([level])
        self._store_graph(adata, key_added)
        if self.module.states.n and self._has_cells(adata):
            adata.obsm[Key.obsm.states(key_added)] = self._states(adata)
        params = self._stored_params()
        if self.module.depth.is_known and self._has_cells(adata):
            # so that plots have the size factors of the model
            params["size_factor_key"] = Key.obs.size_factor(key_added)
            adata.obs[params["size_factor_key"]] = self.get_size_factors(adata)
        self._store_drugs(adata, key_added, n_samples, level)
        if self.standard_deviations_ is not None:
            adata.var[Key.var.standard_deviation(key_added)] = self.standard_deviations_.to_numpy()
        if level is not None:
            params |= {"effect_modifier_key": self._covariates.modifier, "level": level}
        entries = {
            Key.uns.PARAMS: params,
            Key.uns.PERTURBATIONS: self._perturbation_table(),
            Key.uns.CONTEXTS: self._doses_measured,
            Key.uns.HISTORY: self._history_frame(),
        }
        if self.control_check_ is not None:
            entries[Key.uns.CONTROLS] = self.control_check_.rename_axis(None)
            adata.var[Key.var.controls_agree(key_added)] = self.control_check_["agree"].to_numpy()
        features = self.drug_embedding
        if features is not None and features.shape[1] <= _MAX_FEATURES:
            importance = feature_sensitivity(self._drugs.generator.sparse)
            genes = [stored_name(gene) for gene in self.gene_names_]
            entries[Key.uns.FEATURE_IMPORTANCE] = pd.DataFrame(importance.numpy(), features.columns, genes)
        adata.uns[key_added] = entries

    def _has_cells(self, adata: AnnData) -> bool:
        """Whether the AnnData has all that the model reads of cells."""
        setup, layer = self._setup_args, self._setup_args["layer"]
        keys = [
            setup[name] for name in ("perturbation_key", "dosage_key", "size_factor_key") if setup[name] is not None
        ]
        has_values = adata.X is not None if layer is None else layer in adata.layers
        return has_values and all(key in adata.obs for key in [*keys, *self._covariates.keys])

    def _store_graph(self, adata: AnnData, key: str) -> None:
        weights = np.where(self.adjacency_, self.module.mean_slopes().numpy(), 0.0)
        adata.varp[Key.varp.edge_probs(key)] = sparse.csr_matrix(self.module.knowledge.edge_probs.cpu().numpy())
        adata.varp[Key.varp.edge_weights(key)] = sparse.csr_matrix(weights)

    def _store_drugs(self, adata: AnnData, key: str, n_samples: int | None, level: str | None) -> None:
        """What each perturbation does at its largest dosage, genes x perturbations."""
        doses = self._doses
        names = doses.index.tolist()
        query = self._drugs.query(names, doses["max"].to_numpy())
        fitted = self.module.knowledge.interventions().rows(
            torch.as_tensor(pd.Index(self.perturbations).get_indexer(names))
        )
        arms, of_level, levels = self._drugs.arms_of(query), None, None
        if level is not None:
            of_level = {self._covariates.modifier: level}
            levels = [level] * len(names)
            query = query.at_levels(self._covariates.levels, levels)
            fitted = fitted.at_level(self._covariates.levels.index(level))
        total = total_effects(self._sampler, query, n_samples, 0, levels)
        own_sd = query.each(Interventions.sd)
        with_background = torch.hypot(own_sd, fitted.background_sd)
        tables = {
            Key.varm.targets: fitted.target_probs.numpy(),
            Key.varm.shifts: query.each(Interventions.direct).numpy(),
            Key.varm.shift_sds: own_sd.numpy(),
            Key.varm.total_effects: total.effect,
            Key.varm.total_effect_errors: total.error,
            Key.varm.total_effect_sds: effect_sds(self._sampler, self._drugs, arms, with_background, of_level).numpy(),
            Key.varm.emax: fitted.emax.numpy(),
            Key.varm.ec50: fitted.log_ec50.exp().numpy(),
            Key.varm.hill: fitted.hill.numpy(),
        }
        for slot, values in tables.items():
            adata.varm[slot(key)] = pd.DataFrame(values.T, adata.var_names, [stored_name(n) for n in names])
        contexts = self._doses_measured
        query = self._drugs.query(contexts["perturbation"].tolist(), contexts["dosage"].to_numpy())
        if level is not None:
            levels = [level] * len(contexts)
            query = query.at_levels(self._covariates.levels, levels)
        every_dose = total_effects(self._sampler, query, n_samples, 0, levels, N_SAMPLES_A_DOSE)
        adata.varm[Key.varm.context_effects(key)] = every_dose.effect.T

    @property
    def _doses_measured(self) -> pd.DataFrame:
        """Doses of each perturbation, one a row, whatever the levels in which they were measured."""
        frame = self.contexts.to_frame(index=False)[["perturbation", "dosage"]]
        return frame.drop_duplicates(ignore_index=True)

    @property
    def _doses(self) -> pd.DataFrame:
        """Number of doses of each perturbation, and the largest."""
        frame = self.contexts.to_frame(index=False)
        return frame.groupby("perturbation", sort=False)["dosage"].agg(["nunique", "max"])

    def _perturbation_table(self) -> pd.DataFrame:
        doses = self._doses
        n_cells = self.n_cells_.loc[doses.index].to_numpy()
        table = pd.DataFrame({"n_cells": n_cells, "n_doses": doses["nunique"], "max_dosage": doses["max"]})
        return table.rename_axis(None)

    def _stored_params(self) -> dict:
        setup = self._setup_args
        keys = ("perturbation_key", "control", "dosage_key", "drug_embedding_key", "layer", "size_factor_key")
        params = {k: setup[k] for k in keys if setup[k] is not None}
        if self._mean_total is not None and not self.module.depth.is_known:
            params["mean_total"] = self._mean_total  # so that plots have the size factors of the model
        mechanism = "linear" if self.module.mechanism.is_linear else "mlp"
        options = {
            "likelihood": self.module.likelihood,
            "measurement": self.module.measurement,
            "mechanism": mechanism,
            "intervention": self.module.intervention,
        }
        return {**params, **options, "version": version("scgim")}

    def _history_frame(self) -> pd.DataFrame:
        """Training history with one column a term, and scores of the search; epochs without a value hold NaN."""
        terms = {name: frame.iloc[:, 0].astype(float) for name, frame in (self.history or {}).items()}
        terms["search_score"] = pd.Series(getattr(self, "search_trace_", None) or [], dtype=float)
        frame = pd.concat(terms, axis=1)
        frame.index = frame.index.astype(str)
        return frame
