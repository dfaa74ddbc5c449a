"""The model that users work with."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.model.base import BaseModelClass, PyroSviTrainMixin

from scgim._constants import REGISTRY
from scgim._stored import readable
from scgim._validation import (
    check_continuous,
    check_counts,
    check_gene_names,
    check_matrix_type,
    check_nonempty,
    check_size_factors,
    matrix_name,
)
from scgim.model._covariates import CovariateDesign, check_columns
from scgim.model._fields import ScreenField
from scgim.model._library import LibraryMixin
from scgim.model._prediction import PredictionMixin
from scgim.model._priors import PriorsMixin
from scgim.model._results import ResultsMixin
from scgim.model._saving import SavingMixin
from scgim.model._size_factors import estimate_size_factors, total_counts
from scgim.model._training import TrainingMixin
from scgim.model._whatif import WhatIfMixin
from scgim.module import GIMModule
from scgim.nn._likelihood import LIKELIHOODS
from scgim.nn._mechanism import MECHANISMS
from scgim.train import Cells

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

INTERVENTIONS = ("shift", "hard")
MEASUREMENTS = ("direct", "latent")


def _check_latent(mechanism: str, likelihood: str, intervention: str, covariates: list[str]) -> None:
    """What a network of hidden expression cannot be combined with."""
    found = {"mechanism": mechanism, "likelihood": likelihood, "intervention": intervention}
    wrong = [f"{k}={v!r}" for k, v in found.items() if v not in ("linear", "nb", "poisson", "shift")]
    wrong += [f"covariate {key!r}" for key in covariates]
    if wrong:
        raise ValueError(
            f"`measurement='latent'` takes linear mechanisms, counts, shifts and no covariates; found {', '.join(wrong)}. "
            "Leave them out, or use `measurement='direct'`."
        )


class GIM(
    TrainingMixin,
    PriorsMixin,
    SavingMixin,
    PredictionMixin,
    ResultsMixin,
    WhatIfMixin,
    LibraryMixin,
    PyroSviTrainMixin,
    BaseModelClass,
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
        `"direct"`: parents act by their counts. `"latent"`: by hidden expression, of which counts are a Poisson sample, as
        in single-cell data of few counts a gene; fitted by moments. It takes linear mechanisms, shifts and no covariates.
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
        measurement: str = "direct",
        n_hidden: int = 8,
        target_prior: pd.DataFrame | None = None,
        network_prior: pd.DataFrame | None = None,
    ):
        super().__init__(adata, registry)
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
        if measurement == "latent":
            _check_latent(mechanism, likelihood, intervention, self._covariates.keys)
            likelihood = "poisson"
        self._likelihood, self._mechanism, self._intervention = likelihood, mechanism, intervention
        self._measurement = measurement
        screen = self._screen
        dosage = np.asarray(screen["context_dosage"])
        codes = pd.Index(screen["perturbations"]).get_indexer(screen["context_perturbation"])
        with np.errstate(divide="ignore"):
            log_dosage = np.log(dosage) if self._setup_args["dosage_key"] is not None else None
        self.module = self._module_cls(
            n_genes=self.summary_stats.n_vars,
            group=codes,
            log_dosage=log_dosage,
            n_covariates=self._covariates.n_columns,
            likelihood=likelihood,
            mechanism=mechanism,
            intervention=intervention,
            n_hidden=n_hidden,
            measurement=measurement,
        )
        genes = self.registry["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"][LayerField.COLUMN_NAMES_KEY]
        self._set_priors([str(gene) for gene in genes], target_prior, network_prior)
        if adata is not None:
            self.gene_names_ = adata.var_names.astype(str).tolist()
            self._check_values(adata)
        self._model_summary_string = (
            f"Generative intervention model with the following params: \ngenes: {self.summary_stats.n_vars}, "
            f"perturbations: {len(self.perturbations)}, contexts: {len(codes)}, mechanism: {mechanism}, "
            f"likelihood: {likelihood}, intervention: {intervention}"
        )
        self.init_params_ = self._get_init_params(locals())

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
            for totals over the given genes, where control cells differ in depth, else ones.

        Raises
        ------
        KeyError
            A key is missing.
        ValueError
            Values, design or features cannot be used; the message says what was found and what to do.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        check_matrix_type(adata, layer, allow_stored=True)
        values = adata.X if layer is None else adata.layers[layer]
        check_nonempty(values, adata.var_names, adata.obs_names, where=matrix_name(layer))
        if "source_registry" in kwargs:  # of the model to be loaded
            known = kwargs["source_registry"]["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]
            check_gene_names(adata.var_names, known[LayerField.COLUMN_NAMES_KEY])
        check_columns(adata.obs, batch_key, categorical_covariate_keys, continuous_covariate_keys)
        if size_factor_key is not None:
            check_size_factors(adata.obs, size_factor_key)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            ScreenField(perturbation_key, control, dosage_key, drug_embedding_key),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @property
    def _setup_args(self) -> dict:
        return self.registry["setup_args"]

    @property
    def _screen(self) -> dict:
        """Contexts, perturbations and drug features of the training data."""
        return self.registry["field_registries"][REGISTRY.CONTEXT]["state_registry"]

    @property
    def perturbations(self) -> list[str]:
        """Measured perturbations, control left out."""
        return list(self._screen["perturbations"])

    @property
    def contexts(self) -> pd.MultiIndex:
        """Measured contexts (perturbation, dosage), control left out."""
        arrays = [self._screen["context_perturbation"][1:], self._screen["context_dosage"][1:]]
        return pd.MultiIndex.from_arrays(arrays, names=["perturbation", "dosage"])

    @property
    def drug_embedding(self) -> pd.DataFrame | None:
        """Features of the measured perturbations; None if the screen was set up without."""
        return self._screen["embedding"]

    def _check_values(self, adata: AnnData) -> None:
        """Counts for count likelihoods, finite values for the normal."""
        layer = self._setup_args["layer"]
        values = adata.X if layer is None else adata.layers[layer]
        (check_continuous if self._likelihood == "normal" else check_counts)(values, where=matrix_name(layer))

    def _validate_screen(self, adata: AnnData | None) -> AnnData:
        """Data to work on: those of the model, or others with the same genes in the same order, and known covariates."""
        if adata is None:
            return self._validate_anndata(self._own_data())
        check_gene_names(adata.var_names, self.gene_names_)
        if adata is not self.adata:
            if adata.is_view:
                adata = adata.to_memory() if adata.isbacked else adata.copy()
            check_matrix_type(adata, self._setup_args["layer"], allow_stored=True)
            self._check_values(adata)
            self._covariates.encode(adata.obs)
        return self._validate_anndata(adata)

    def _own_data(self) -> AnnData:
        """Data of the model; ValueError where it was loaded without."""
        if self.adata is None:
            raise ValueError("The model was loaded without data. Give them as `adata`, or load it with `adata=...`.")
        return self.adata

    def _cells(self, adata: AnnData, *, training: bool = False) -> Cells:
        """Values, contexts, covariates and size factors of registered data, relative to the training data if not those."""
        manager = self.get_anndata_manager(adata, required=True)
        x = readable(manager.get_from_registry(REGISTRY_KEYS.X_KEY))
        context = np.asarray(manager.get_from_registry(REGISTRY.CONTEXT), dtype=np.int64).ravel()
        key = self._setup_args["size_factor_key"]
        if self._likelihood == "normal":
            size = np.ones(adata.n_obs)
        elif key is not None:
            size = check_size_factors(adata.obs, key)
        elif training:
            size = estimate_size_factors(x, context == 0)
        elif self.control_pool_["log_size"].any():
            size = total_counts(x) / self.mean_total_
        else:  # training cells did not differ in depth
            size = np.ones(adata.n_obs)
        covariates = self._covariates.encode(adata.obs)
        return Cells(x, context, covariates, np.log(size).astype(np.float32))
