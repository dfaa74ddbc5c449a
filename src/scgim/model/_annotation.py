"""Results stored in an AnnData, where the plots read them."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scgim._constants import Key, stored_name
from scgim._validation import check_gene_names
from scgim.interventions._sensitivity import feature_sensitivity
from scgim.model._base import ScreenModel
from scgim.predict._totals import total_effects

if TYPE_CHECKING:
    from anndata import AnnData

_MAX_FEATURES = 4096  # beyond this their importance, features x genes, is not stored: for the size of files


class AnnotationMixin(ScreenModel):
    """`annotate` of :class:`scgim.model.GIM`."""

    def annotate(
        self, adata: AnnData | None = None, *, key_added: str = Key.DEFAULT, n_samples: int | None = None
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

        Returns
        -------
        Nothing; adds `varp["gim_edge_probs"]`, `varp["gim_edge_weights"]`, data frames of genes x perturbations in
        `varm` (`"gim_targets"`, `"gim_shifts"`, `"gim_shift_sds"`, `"gim_total_effects"` at the largest measured dosage;
        `"gim_emax"`, `"gim_ec50"`, `"gim_hill"`), and `uns["gim"]` with parameters, perturbations, training history and,
        where drugs have at most 4096 features, their importance (:meth:`get_feature_importance`). In names of columns "/" is stored as the
        division slash, since files use the former for groups; plots take both. `var["gim_controls_agree"]`
        marks genes in which simulated control cells are like the observed ones; `uns["gim"]["controls"]` says how they differ.
        Hidden states, if any were found, are in `obsm["gim_states"]` (:meth:`get_states`), where the cells have the columns that the model was set up with.
        """
        self._check_if_trained(warn=False)
        if adata is None:
            adata = self._own_data()
        if "/" in key_added:
            raise ValueError(
                f"`key_added={key_added!r}` holds a slash, which separates groups in files. Use another sign."
            )
        check_gene_names(adata.var_names, self.gene_names_)
        self._store_graph(adata, key_added)
        if self.module.states.n and self._has_cells(adata):
            adata.obsm[Key.obsm.states(key_added)] = self._states(adata)
        self._store_drugs(adata, key_added, n_samples)
        entries = {
            Key.uns.PARAMS: self._stored_params(),
            Key.uns.PERTURBATIONS: self._perturbation_table(),
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

    def _store_drugs(self, adata: AnnData, key: str, n_samples: int | None) -> None:
        """What each perturbation does at its largest dosage, genes x perturbations."""
        doses = self._doses
        names = doses.index.tolist()
        _, _, log_dosage, known = self._drugs.query(names, doses["max"].to_numpy())
        fitted = self.module.knowledge.interventions().rows(
            torch.as_tensor(pd.Index(self.perturbations).get_indexer(names))
        )
        tables = {
            Key.varm.targets: fitted.target_probs.numpy(),
            Key.varm.shifts: known.direct(log_dosage).numpy(),
            Key.varm.shift_sds: known.sd(log_dosage).numpy(),
            Key.varm.total_effects: total_effects(self._sampler, known, log_dosage, n_samples, seed=0),
            Key.varm.emax: fitted.emax.numpy(),
            Key.varm.ec50: fitted.log_ec50.exp().numpy(),
            Key.varm.hill: fitted.hill.numpy(),
        }
        for slot, values in tables.items():
            adata.varm[slot(key)] = pd.DataFrame(values.T, adata.var_names, [stored_name(n) for n in names])

    @property
    def _doses(self) -> pd.DataFrame:
        """Number of doses of each perturbation, and the largest."""
        frame = self.contexts.to_frame(index=False)
        return frame.groupby("perturbation", sort=False)["dosage"].agg(["count", "max"])

    def _perturbation_table(self) -> pd.DataFrame:
        doses = self._doses
        n_cells = self.n_cells_.loc[doses.index].to_numpy()
        table = pd.DataFrame({"n_cells": n_cells, "n_doses": doses["count"], "max_dosage": doses["max"]})
        return table.rename_axis(None)

    def _stored_params(self) -> dict:
        setup = self._setup_args
        keys = ("perturbation_key", "control", "dosage_key", "layer", "size_factor_key")
        params = {k: setup[k] for k in keys if setup[k] is not None}
        if self._mean_total is not None:
            params["mean_total"] = self._mean_total  # so that plots have the size factors of the model
        mechanism = "linear" if self.module.mechanism.is_linear else "mlp"
        options = {
            "likelihood": self.module.likelihood,
            "mechanism": mechanism,
            "intervention": self.module.intervention,
        }
        return {**params, **options, "version": version("scgim")}

    def _history_frame(self) -> pd.DataFrame:
        """Training history with one column a term; epochs without a value hold NaN."""
        if not self.history:  # of another logger than the default one, or of none
            return pd.DataFrame(index=pd.Index([], dtype=str))
        frame = pd.concat([f.astype(float) for f in self.history.values()], axis=1)
        frame.index = frame.index.astype(str)
        return frame
