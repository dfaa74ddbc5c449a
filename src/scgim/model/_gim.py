"""The model that users work with."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import special
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)

from scgim._priors import usual_edge_log_odds
from scgim._validation import (
    check_annotated,
    check_gene_names,
    check_matrix_type,
    check_nonempty,
    check_size_factors,
    match_doses,
    matrix_name,
    prior_log_odds,
    quote_some,
)
from scgim.model._annotation import AnnotationMixin
from scgim.model._fields import ScreenField
from scgim.model._prediction import PredictionMixin
from scgim.model._proposals import ProposalMixin
from scgim.model._report import ReportMixin
from scgim.model._results import ResultsMixin
from scgim.model._saving import SavingMixin
from scgim.model._training import TrainingMixin
from scgim.model._whatif import WhatIfMixin
from scgim.module import GIMModule
from scgim.nn._likelihood import LIKELIHOODS
from scgim.nn._mechanism import MECHANISMS, N_HIDDEN
from scgim.predict._covariates import CovariateDesign, as_list, check_columns, check_modifier

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

INTERVENTIONS = ("shift", "hard")
MEASUREMENTS = ("auto", "direct", "latent")
# Probability of a target of one member, which is then one of the combination whatever is known of the others
_LIKELY = 0.5


def _against_hidden(mechanism: str, likelihood: str, intervention: str, modifier: str | None) -> list[str]:
    """What a graph of hidden expression cannot be combined with."""
    found = {"mechanism": mechanism, "likelihood": likelihood, "intervention": intervention}
    wrong = [f"{k}={v!r}" for k, v in found.items() if v not in ("linear", "nb", "poisson", "shift")]
    return wrong + ([] if modifier is None else [f"effect_modifier_key={modifier!r}"])


def _check_latent(wrong: list[str]) -> None:
    if wrong:
        raise ValueError(
            f"`measurement='latent'` takes linear mechanisms, counts, shifts and no covariates; found {', '.join(wrong)}. "
            "Leave them out, or use `measurement='direct'`."
        )


def _of_combinations(log_odds: np.ndarray, drugs: list[str], combinations: dict[str, dict[str, float]]) -> np.ndarray:
    """Log odds that genes are targets of any member of each combination, NaN where that of a member is not known and none is likely."""
    out = np.full((len(combinations), log_odds.shape[1]), np.nan)
    for row, members in zip(out, combinations.values(), strict=True):
        own = log_odds[[drugs.index(name) for name in members]]
        any_of_them = 1 - np.prod(special.expit(-np.nan_to_num(own, nan=-np.inf)), axis=0)
        known = ~np.isnan(own).any(axis=0) | (any_of_them > _LIKELY)
        row[known] = special.logit(any_of_them[known])
    return out


def _check_sources(genes: list[str], regulators: np.ndarray, log_odds: np.ndarray) -> None:
    """Raise where edges that the prior asks for come from genes that may not regulate."""
    wrong = np.argwhere((np.nan_to_num(log_odds, nan=-np.inf) >= 0) & ~regulators[:, None])
    if len(wrong):
        edges = [f"{genes[i]} -> {genes[j]}" for i, j in wrong]
        raise ValueError(
            f"`network_prior` gives 0.5 or more to edges from genes that `regulator_key` does not mark: {quote_some(edges)}. "
            "Mark these genes in `adata.var`, or leave the edges out."
        )


class GIM(
    TrainingMixin, SavingMixin, PredictionMixin, ResultsMixin, AnnotationMixin, WhatIfMixin, ProposalMixin, ReportMixin
):
    """Generative intervention model of a single-cell drug screen :cite:p:`schneider2025`.

    One fit learns the network of genes with its mechanisms, the direct targets and effects of the measured drugs, and a
    generator that maps the features and dosage of a drug to a distribution over direct targets and effects.

    Parameters
    ----------
    adata
        Screen set up with :meth:`setup_anndata`.
    registry
        Registry of a saved model, used by :meth:`load` where no data are given.
    mechanism
        How parents set the log mean of a gene: `"linear"`, or `"mlp"` for a network of one hidden layer a gene.
    likelihood
        `"nb"` (negative binomial) or `"poisson"` for counts, `"normal"` for continuous values.
    intervention
        `"shift"`: a drug adds to the log mean of its targets, given their parents. `"hard"`: it replaces their
        mechanism and cuts their parents.
    measurement
        `"direct"`: the graph is searched in counts, by which parents act. `"latent"`: parents act by hidden expression, of which
        counts are a Poisson sample, as in single-cell data of few counts a gene; all is fitted by moments. It takes linear mechanisms, shifts and
        no covariates. `"auto"`: the graph is searched in hidden expression where that explains the covariance of cells within contexts better than
        counts do, and parents act by their counts on it; :meth:`report` says which it was, and why.
    n_hidden
        Hidden units a gene of `"mlp"` mechanisms.
    target_prior
        Probabilities that perturbations act on genes directly, a data frame with perturbations as index and genes as
        columns, as for knock-outs (:func:`scgim.pp.guide_targets`) or drugs of known target. Perturbations and genes
        that are not in it, and NaN, are left to the data.
    network_prior
        Probabilities of edges, a data frame with sources as index and targets as columns. Pairs that are not in it, and
        NaN, are left to the data.

    Examples
    --------
    >>> import scgim
    >>> adata = scgim.data.simulate_screen(n_unseen_drugs=5)
    >>> train = adata[adata.obs["split"] == "train"].copy()
    >>> scgim.model.GIM.setup_anndata(train, size_factor_key="size_factor")
    >>> model = scgim.model.GIM(train)
    >>> model.train()
    >>> new = adata.uns["drug_embedding"].drop(index=model.perturbations)
    >>> predicted = model.predict(new, dosage=1.0)

    Notes
    -----
    The model is written out in the user guide. Attributes whose name ends in an underscore are saved with the model.
    """

    _module_cls = GIMModule

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        mechanism: str = "linear",
        likelihood: str = "nb",
        intervention: str = "shift",
        measurement: str = "auto",
        n_hidden: int = N_HIDDEN,
        target_prior: pd.DataFrame | None = None,
        network_prior: pd.DataFrame | None = None,
    ):
        self._begin(adata, registry)
        options = {
            "mechanism": MECHANISMS,
            "likelihood": LIKELIHOODS,
            "intervention": INTERVENTIONS,
            "measurement": MEASUREMENTS,
        }
        for name, allowed in options.items():
            if locals()[name] not in allowed:
                raise ValueError(f"`{name}` must be one of {list(allowed)}, found {locals()[name]!r}.")
        self._covariates = CovariateDesign(self.registry)
        self._against_hidden = _against_hidden(mechanism, likelihood, intervention, self._covariates.modifier)
        if measurement == "latent":
            _check_latent([*self._against_hidden, *(f"covariate {key!r}" for key in self._covariates.keys)])
            likelihood = "poisson"
        screen = self._screen
        dosage = np.asarray(screen["context_dosage"])
        codes = pd.Index(screen["perturbations"]).get_indexer(screen["context_perturbation"])
        told, members = screen.get("regulators"), self._members()
        if len(members) and intervention == "hard":
            raise ValueError(
                "Combinations of drugs need `intervention='shift'`: effects of hard interventions do not add up. Use it, or set up the "
                "screen without `combination_separator`, so that each combination is a perturbation of its own."
            )
        with np.errstate(divide="ignore"):
            log_dosage = np.log(dosage) if self._setup_args["dosage_key"] is not None else None
        self.module = self._module_cls(
            n_genes=self.summary_stats.n_vars,
            group=codes,
            log_dosage=log_dosage,
            level=pd.Index(self._covariates.levels).get_indexer(screen.get("context_level", [])),
            n_covariates=self._covariates.n_columns,
            likelihood=likelihood,
            mechanism=mechanism,
            intervention=intervention,
            n_hidden=n_hidden,
            measurement="latent" if measurement == "latent" else "direct",
            regulators=None if told is None else np.asarray(told, dtype=bool),
            members=members,
        )
        genes = self.registry["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"][LayerField.COLUMN_NAMES_KEY]
        self._set_priors([str(gene) for gene in genes], target_prior, network_prior)
        if adata is not None:
            self.gene_names_ = adata.var_names.astype(str).tolist()
            self._check_unchanged(adata)
            self._warn_of_counts(adata)
        self.init_params_ = self._get_init_params(locals())

    @property
    def summary_string(self) -> str:
        """What is shown of the model; how counts come about may be known after training only."""
        asked = self.init_params_["non_kwargs"].get("measurement", "direct")
        if self.module.measurement == "latent":
            counts = "measurement: latent (counts are a Poisson sample of hidden expression, which is log-normal)"
        else:
            graph = "hidden expression" if self.graph_is_hidden_ else "counts"
            graph = f"graph of {graph}" if self.is_trained_ else "graph of what is chosen in training"
            counts = (
                f"measurement: {asked}{f' ({graph})' if asked == 'auto' else ''}, likelihood: {self.module.likelihood}"
            )
        status = "Trained" if self.is_trained_ else "Not Trained"
        sizes = ", ".join(f"{name}: {n}" for name, n in self._sizes.items())
        return (
            f"Generative intervention model with the following params: \n{sizes}, mechanism: {self.init_params_['non_kwargs']['mechanism']}, "
            f"intervention: {self.module.intervention}, {counts}\nTraining status: {status}"
        )

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        perturbation_key: str = "perturbation",
        control: str = "control",
        dosage_key: str | None = "dosage",
        drug_embedding_key: str | None = "drug_embedding",
        layer: str | None = None,
        batch_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        size_factor_key: str | None = None,
        regulator_key: str | None = None,
        effect_modifier_key: str | None = None,
        combination_separator: str | None = None,
        **kwargs,
    ) -> None:
        """Register a screen. Only adds fields whose names start with `_scvi`; counts are never changed.

        Parameters
        ----------
        adata
            Cells x genes. Raw counts (for `likelihood="normal"`, continuous values), dense or CSR/CSC, or in a file of
            which it reads the cells as needed (`anndata.read_h5ad(path, backed="r")`, or zarr; dense or CSR).
        perturbation_key
            Column of `obs` with the drug of each cell.
        control
            Name of the vehicle control in that column.
        dosage_key
            Column of `obs` with the dosage of each cell, 0 for controls, any one unit; None if drugs have one dosage.
        drug_embedding_key
            Features of the drugs: a data frame in `uns` with one row a drug, or an entry of `obsm` with one row a cell.
            None if there are none; drugs that were not measured can then not be predicted.
        layer
            Layer with the values; None for `X`.
        batch_key
            Column of `obs` with the batch.
        categorical_covariate_keys
            Further categorical columns of `obs` that shift expression, such as cell line or patient.
        continuous_covariate_keys
            Continuous columns of `obs` that shift expression.
        size_factor_key
            Column of `obs` with the size factor of each cell, from all genes of the cell, not only those modelled. None
            to estimate it together with a network, where control cells differ in depth, else ones
            (:meth:`get_size_factors`). Where a network is no help (fewer than 8 or more than 60 genes, fewer than twelve cells a
            gene, an effect modifier, `measurement="latent"`), totals over the given genes are taken instead.
        regulator_key
            Boolean column of `var`: genes that may regulate others (:func:`scgim.pp.mark_regulators`); edges from other genes have
            probability 0. Drugs may act on any gene all the same. None if any gene may regulate.
        effect_modifier_key
            Categorical column of `obs`, such as cell line, cell type or patient, in whose levels drugs may do different things. Effects
            are a common part and a deviation of each level, shrunk to none where levels agree; the network is that of all. The
            column shifts expression as well, as a covariate, and need not be given as one. Each level needs control cells; where a
            drug was not measured in a level, effects are carried over from the others. None if effects are the same in all cells.
        combination_separator
            Sign that separates the drugs of a combination in the column of perturbations, such as `"+"` for "drug_a+drug_b", and their
            dosages, in the same order, as text in that of dosages ("1+10"). The effects of a combination are those of its members and an
            interaction (:meth:`get_interactions`), so that single drugs and combinations tell of each other. The control is no member:
            "drug_a+control" is drug_a. None if no cell has several drugs, or if each combination is to be a perturbation of its own.

        Raises
        ------
        KeyError
            A key is missing.
        ValueError
            Values, design or features cannot be used; the message says what was found and what to do.
        """
        categorical_covariate_keys = as_list(categorical_covariate_keys)
        continuous_covariate_keys = as_list(continuous_covariate_keys)
        setup_method_args = cls._get_setup_method_args(**locals())
        check_annotated(adata)
        check_matrix_type(adata, layer, allow_stored=True)
        values = adata.X if layer is None else adata.layers[layer]
        empty = size_factor_key is not None
        check_nonempty(values, adata.var_names, adata.obs_names, where=matrix_name(layer), empty_cells=empty)
        if "source_registry" in kwargs:  # of the model to be loaded
            known = kwargs["source_registry"]["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]
            check_gene_names(adata.var_names, known[LayerField.COLUMN_NAMES_KEY])
        check_columns(adata.obs, batch_key, categorical_covariate_keys, continuous_covariate_keys)
        for key in (batch_key, *(categorical_covariate_keys or []), *(continuous_covariate_keys or [])):
            if key is not None and key in (perturbation_key, dosage_key):
                raise ValueError(
                    f"{key!r} is the column of perturbations or dosages, and a covariate as well: nothing would be left for the drugs. Leave it "
                    "out of the covariates."
                )
        if effect_modifier_key is not None:
            check_modifier(adata.obs, effect_modifier_key, continuous_covariate_keys)
        if size_factor_key is not None:
            check_size_factors(adata.obs, size_factor_key)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            ScreenField(
                perturbation_key,
                control,
                dosage_key,
                drug_embedding_key,
                regulator_key,
                effect_modifier_key,
                combination_separator,
            ),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _members(self) -> np.ndarray:
        """Contexts of combinations, each with the context of one of its members, (P, 2)."""
        screen, combinations = self._screen, self.combinations
        names, doses = screen["context_perturbation"], np.asarray(screen["context_dosage"])
        position = {one: context for context, one in enumerate(zip(names, doses.tolist(), strict=True))}
        found = []
        for context, name in enumerate(names):
            for drug, dosage in combinations.get(name, {}).items():
                known = match_doses(np.array([dosage]), doses)[0]
                found.append((context, position[drug, float(known)]))
        return np.asarray(found, dtype=np.int64).reshape(-1, 2)

    def _set_priors(self, genes: list[str], targets: pd.DataFrame | None, network: pd.DataFrame | None) -> None:
        """Put what is known beforehand into the module."""
        knowledge = self.module.knowledge
        regulators = np.asarray(self._screen.get("regulators", np.ones(len(genes))), dtype=bool)
        knowledge.regulators.copy_(torch.tensor(regulators))
        if targets is not None:
            drugs = self.perturbations[: knowledge.n_drugs]
            known = prior_log_odds(targets, drugs, genes, "target_prior", "perturbations")
            known = np.concatenate([known, _of_combinations(known, drugs, self.combinations)])
            knowledge.target_log_odds.copy_(torch.as_tensor(np.nan_to_num(known)))
            knowledge.target_is_known.copy_(torch.as_tensor(~np.isnan(known)))
        if network is not None:
            known = prior_log_odds(network, genes, genes, "network_prior", "genes")
            _check_sources(genes, regulators, known)
            usual = usual_edge_log_odds(len(genes))
            knowledge.edge_log_odds.copy_(torch.as_tensor(np.where(np.isnan(known), usual, known)))
