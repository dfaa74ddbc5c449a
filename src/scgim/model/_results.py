"""What a fitted model knows: network, targets, effects, dose-response curves."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.stats import norm

from scgim._constants import Key
from scgim._validation import check_gene_names, check_query_dosage, check_query_embedding, resolve_embedding
from scgim.model._fields import ScreenField

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike

_TOTAL_VALUES = 3e7  # drawn for total effects
_MAX_FEATURES = 4096  # beyond this their importance is not stored


class ResultsMixin:
    """Getters and `annotate` of :class:`scgim.model.GIM`."""

    def get_adjacency(self) -> pd.DataFrame:
        """Probability of each edge.

        Returns
        -------
        Genes x genes, row = source, column = target, values in [0, 1].
        """
        self._check_if_trained(warn=False)
        return pd.DataFrame(self.module.edge_probs.cpu().numpy(), self.gene_names_, self.gene_names_)

    def get_graph(self) -> pd.DataFrame:
        """Edges of the fitted graph, which is acyclic.

        Returns
        -------
        One row an edge, strongest first: `source`, `target`, `weight` (change of the target's log mean for one control
        standard deviation of the source's log expression), `weight_sd` and `probability`. decoupler reads it as a net.
        """
        self._check_if_trained(warn=False)
        i, j = np.nonzero(self.adjacency_)
        names = np.asarray(self.gene_names_)
        frame = pd.DataFrame(
            {
                "source": names[i],
                "target": names[j],
                "weight": self._weights()[i, j],
                "weight_sd": self.module.weight_sd.cpu().numpy()[i, j],
                "probability": self.module.edge_probs.cpu().numpy()[i, j],
            }
        )
        return frame.sort_values("weight", key=np.abs, ascending=False, ignore_index=True)

    @torch.no_grad()
    def _weights(self) -> np.ndarray:
        """Mean slope of each edge over standard normal parents, shape (d, d)."""
        generator = torch.Generator().manual_seed(0)
        h = torch.randn(512, len(self.gene_names_), generator=generator).to(self.module.device)
        return self.module.mechanism.slopes(h).cpu().double().numpy()

    def get_targets(
        self,
        drug_embedding: pd.DataFrame | ArrayLike | str | list[str] | None = None,
        dosage: float | ArrayLike | None = None,
    ) -> pd.DataFrame:
        """Probability that each gene is a direct target.

        Parameters
        ----------
        drug_embedding, dosage
            Drugs and dosages as in :meth:`predict`; None for the measured contexts. All dosages of a drug have the same
            targets.

        Returns
        -------
        Data frame indexed by (perturbation, dosage), a column a gene.
        """
        index, interventions, _ = self._contexts_asked(drug_embedding, dosage)
        return pd.DataFrame(interventions.target_probs.numpy(), index, self.gene_names_)

    def get_effects(
        self,
        drug_embedding: pd.DataFrame | ArrayLike | str | list[str] | None = None,
        dosage: float | ArrayLike | None = None,
        *,
        return_sd: bool = False,
    ) -> pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]:
        """Direct effect on each gene: expected log fold change given its parents.

        Parameters
        ----------
        drug_embedding, dosage
            Drugs and dosages as in :meth:`predict`; None for the measured contexts.
        return_sd
            Return the standard deviation as well.

        Returns
        -------
        Data frame indexed by (perturbation, dosage), a column a gene; natural logarithm (for `likelihood="normal"`, in
        control standard deviations). With `return_sd`, two such frames.
        """
        index, interventions, log_dosage = self._contexts_asked(drug_embedding, dosage)
        mean = pd.DataFrame(interventions.direct(log_dosage).numpy(), index, self.gene_names_)
        if not return_sd:
            return mean
        return mean, pd.DataFrame(interventions.sd(log_dosage).numpy(), index, self.gene_names_)

    def get_total_effects(
        self,
        drug_embedding: pd.DataFrame | ArrayLike | str | list[str] | None = None,
        dosage: float | ArrayLike | None = None,
        *,
        n_samples: int | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Direct and propagated effect on each gene: log fold change of its mean against control cells.

        Parameters
        ----------
        drug_embedding, dosage
            Drugs and dosages as in :meth:`predict`; None for the measured contexts.
        n_samples
            Cells drawn in each context, the same ones but for the effects; None for 200 to 4,000, fewer where contexts and genes
            are many.
        seed
            Seed of the draws.

        Returns
        -------
        Data frame indexed by (perturbation, dosage), a column a gene; natural logarithm (for `likelihood="normal"`, the
        difference of means in control standard deviations).
        """
        index, interventions, log_dosage = self._contexts_asked(drug_embedding, dosage)
        if n_samples is None:
            n_samples = int(np.clip(_TOTAL_VALUES / ((len(index) + 1) * len(self.gene_names_)), 200, 4000))
        # the same random numbers for controls and all drugs, so that a difference is one of effects
        reference = self._mean_under(None, None, n_samples, seed)[0]
        means = [
            self._mean_under(interventions.rows(torch.tensor([k])), log_dosage[k : k + 1], n_samples, seed)[0]
            for k in range(len(index))
        ]
        if self._likelihood == "normal":
            values = (np.stack(means) - reference) / self.module.spread.cpu().numpy()
        else:
            values = np.log(np.stack(means) + 1e-6) - np.log(reference + 1e-6)
        return pd.DataFrame(values, index, self.gene_names_)

    def _mean_under(self, interventions, log_dosage, n_samples: int, seed: int) -> np.ndarray:
        """Mean expression per unit of size factor under one intervention, None for control, shape (1, d)."""
        d, device = len(self.gene_names_), self.module.device
        design, log_size = self._background(n_samples, None, None, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed + 1)
        if interventions is None:
            shift, targets = torch.zeros(n_samples, d), torch.zeros(n_samples, d, dtype=torch.bool)
        else:
            shift, targets = (t[0] for t in interventions.sample(log_dosage, n_samples, generator))
        _, expected = self.module.sample_cells(
            shift.float().to(device),
            targets.to(device),
            design.to(device),
            log_size[:, None].to(device),
            torch.Generator(device).manual_seed(seed),
            coupled=True,
        )
        if self._likelihood != "normal":
            expected = expected * torch.exp(-log_size[:, None]).to(device)
        return expected.double().mean(0, keepdim=True).cpu().numpy()

    def get_dose_response(
        self,
        perturbation: str | pd.DataFrame,
        genes: str | list[str] | None = None,
        dosage: ArrayLike | None = None,
        *,
        level: float = 0.9,
    ) -> pd.DataFrame:
        """Dose-response curves of the direct effect, with intervals.

        Parameters
        ----------
        perturbation
            Name of a measured perturbation, or a data frame with the features of one drug.
        genes
            Genes; None for those with a target probability above one half.
        dosage
            Dosages; None for 50 from a tenth of the smallest to ten times the largest measured.
        level
            Probability that the intervals hold.

        Returns
        -------
        One row a gene and dosage: `gene`, `dosage`, `effect` (log fold change if the gene is a target), `lower`,
        `upper`, `target_prob`, `emax`, `ec50`, `hill`.
        """
        self._check_if_trained(warn=False)
        features, interventions, _ = self._query(
            perturbation if not isinstance(perturbation, str) else [perturbation], 1.0
        )
        if len(features) != 1:
            raise ValueError(f"`perturbation` holds {len(features)} drugs. Give one.")
        if genes is None:
            chosen = np.flatnonzero(interventions.target_probs[0].numpy() > 0.5)
        else:
            genes = [genes] if isinstance(genes, str) else list(genes)
            unknown = [g for g in genes if g not in self.gene_names_]
            if unknown:
                raise ValueError(f"Genes {unknown} are not in the model. `model.gene_names_` lists those that are.")
            chosen = pd.Index(self.gene_names_).get_indexer(genes)
        low, high = self.module.dosage_range()
        log_dosage = np.linspace(low - np.log(10), high + np.log(10), 50)
        if dosage is not None:
            with np.errstate(divide="ignore"):
                log_dosage = np.log(check_query_dosage(dosage, np.size(dosage)))
        curve = (
            interventions.rows(torch.zeros(len(log_dosage), dtype=torch.long))
            .curve(torch.as_tensor(log_dosage))
            .numpy()
        )
        z = norm.ppf(0.5 + level / 2)
        frames = []
        for j in chosen:
            names = ("target_probs", "emax", "emax_sd", "log_ec50", "exponent")
            probability, emax, sd, log_ec50, hill = (float(getattr(interventions, name)[0, j]) for name in names)
            frame = pd.DataFrame({"gene": self.gene_names_[j], "dosage": np.exp(log_dosage)})
            frame["effect"] = emax * curve[:, j]
            frame["lower"], frame["upper"] = (emax - z * sd) * curve[:, j], (emax + z * sd) * curve[:, j]
            constants = {"target_prob": probability, "emax": emax, "ec50": np.exp(log_ec50), "hill": hill}
            frames.append(frame.assign(**constants))
        columns = ["gene", "dosage", "effect", "lower", "upper", "target_prob", "emax", "ec50", "hill"]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)

    def _contexts_asked(self, drug_embedding, dosage):
        """Index, interventions and log dosages of the drugs asked for, or of the measured contexts."""
        self._check_if_trained(warn=False)
        if drug_embedding is None:
            if dosage is not None:
                raise ValueError("`dosage` was given without `drug_embedding`. Name the perturbations it is meant for.")
            names, dosage = self.contexts.get_level_values(0).tolist(), self.contexts.get_level_values(1).to_numpy()
            drug_embedding = names
        features, interventions, log_dosage = self._query(drug_embedding, dosage)
        arrays = [features.index.astype(str), self._dosages(dosage, len(features))]
        index = pd.MultiIndex.from_arrays(arrays, names=["perturbation", "dosage"])
        return index, interventions, log_dosage

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
        where drugs have at most 4096 features, their importance (:meth:`get_feature_importance`). `var["gim_controls_agree"]`
        marks genes in which simulated control cells are like the observed ones; `uns["gim"]["controls"]` says how they differ.
        """
        self._check_if_trained(warn=False)
        if adata is None:
            adata = self._own_data()
        check_gene_names(adata.var_names, self.gene_names_)
        weights = np.where(self.adjacency_, self._weights(), 0.0)
        adata.varp[Key.varp.edge_probs(key_added)] = sparse.csr_matrix(self.module.edge_probs.cpu().numpy())
        adata.varp[Key.varp.edge_weights(key_added)] = sparse.csr_matrix(weights)
        top = self.contexts.to_frame(index=False).groupby("perturbation", sort=False)["dosage"].max()
        names, dosages = top.index.tolist(), top.to_numpy()
        effects, sds = self.get_effects(names, dosages, return_sd=True)
        fitted = self.module.interventions().rows(torch.as_tensor(pd.Index(self.perturbations).get_indexer(names)))
        tables = {
            Key.varm.targets: fitted.target_probs.numpy(),
            Key.varm.shifts: effects.to_numpy(),
            Key.varm.shift_sds: sds.to_numpy(),
            Key.varm.total_effects: self.get_total_effects(names, dosages, n_samples=n_samples).to_numpy(),
            # as expected as the shifts are, so that curves and shifts agree
            Key.varm.emax: (fitted.target_probs * fitted.emax).numpy(),
            Key.varm.ec50: fitted.log_ec50.exp().numpy(),
            Key.varm.hill: fitted.exponent.numpy(),
        }
        for key, values in tables.items():
            adata.varm[key(key_added)] = pd.DataFrame(values.T, adata.var_names, [str(n) for n in names])
        counts = self.contexts.to_frame(index=False).groupby("perturbation", sort=False)["dosage"].agg(["count", "max"])
        perturbations = pd.DataFrame(
            {"n_cells": self.n_cells_.loc[names].to_numpy(), "n_doses": counts["count"], "max_dosage": counts["max"]}
        )
        perturbations.index.name = None
        adata.uns[key_added] = {
            Key.uns.PARAMS: self._stored_params(),
            Key.uns.PERTURBATIONS: perturbations,
            Key.uns.HISTORY: self._history_frame(),
        }
        check = getattr(self, "control_check_", None)
        if check is not None:
            adata.uns[key_added][Key.uns.CONTROLS] = check.rename_axis(None)
            adata.var[Key.var.controls_agree(key_added)] = check["agree"].to_numpy()
        if self.drug_embedding is not None and self.drug_embedding.shape[1] <= _MAX_FEATURES:
            adata.uns[key_added][Key.uns.FEATURE_IMPORTANCE] = self.get_feature_importance()

    def _stored_params(self) -> dict:
        setup = self._setup_args
        keys = ("perturbation_key", "control", "dosage_key", "layer", "size_factor_key")
        params = {k: setup[k] for k in keys if setup[k] is not None}
        options = {"likelihood": self._likelihood, "mechanism": self._mechanism, "intervention": self._intervention}
        return {**params, **options, "version": version("scgim")}

    def _history_frame(self) -> pd.DataFrame:
        """Training history with one column a term; epochs without a value hold NaN."""
        frame = pd.concat([f.astype(float) for f in self.history.values()], axis=1)
        frame.index = frame.index.astype(str)
        return frame

    def _screen_field(self) -> ScreenField:
        names = ("perturbation_key", "control", "dosage_key", "drug_embedding_key")
        return ScreenField(*(self._setup_args[name] for name in names))

    def _embedding_of(self, adata: AnnData, names: list[str]) -> pd.DataFrame:
        """Features of drugs of other data."""
        key, setup = self._setup_args["drug_embedding_key"], self._setup_args
        if key is None:
            raise ValueError(f"{names} were not measured, and the model was set up without drug features.")
        labels = adata.obs[setup["perturbation_key"]].astype(str)
        table = resolve_embedding(adata, key, labels, control=setup["control"]).loc[names]
        return check_query_embedding(table, self.drug_embedding.columns.tolist(), self.perturbations)
