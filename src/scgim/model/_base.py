"""What all parts of the model work with: the registered screen, the fitted module, and the objects made of them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS, settings
from scvi.data.fields import LayerField
from scvi.model.base import BaseModelClass

from scgim._backed import readable
from scgim._constants import REGISTRY
from scgim._size_factors import estimate_size_factors, known_size_factors
from scgim._validation import (
    check_annotated,
    check_continuous,
    check_counts,
    check_gene_names,
    check_matrix_type,
    largest_count,
    matrix_name,
)
from scgim.fit._depth import read_depth
from scgim.model._arguments import check_default_type, whole_number
from scgim.model._fields import ScreenField, context_codes
from scgim.predict._covariates import CovariateDesign, ScaledDesign
from scgim.predict._drugs import Drugs
from scgim.predict._sampler import Sampler, enough_samples
from scgim.predict._states import cell_states
from scgim.train import Cells

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgim.module import GIMModule

_N_SAMPLES = (100, 1000)  # cells drawn of a row where nothing is asked for, at least and at most: conventions
SET_UP_AGAIN = "Set up the data and make a new model: `GIM.setup_anndata(adata); model = GIM(adata)`."
_SETUP_KEYS = (
    "perturbation_key",
    "control",
    "dosage_key",
    "drug_embedding_key",
    "effect_modifier_key",
    "combination_separator",
)


class ScreenModel(BaseModelClass):
    """A registered screen and its module. Attributes whose name ends in an underscore are saved."""

    module: GIMModule
    registry: dict
    is_trained_: bool
    gene_names_: list[str]
    """Genes, in the order of the module."""
    control_pool_: dict[str, NDArray]
    """Covariates and log size factors of control cells, which predicted cells have."""
    mean_total_: float
    """Mean total count of the training cells."""
    covariate_scaling_: tuple[NDArray, NDArray]
    """What is taken from each column of the covariate design, and what it is divided by."""
    n_cells_: pd.Series
    """Training cells of each perturbation."""
    search_trace_: list[float]
    """Score of the graph after each round of the search by the prior that it settled on."""
    measurement_reason_: str | None = None
    """Why the graph was searched in counts or in hidden expression, where that was chosen in training."""
    graph_is_hidden_: bool = False
    """Whether the graph is that of hidden expression, on which parents act by their counts."""
    control_check_: pd.DataFrame | None = None
    """Observed and simulated control cells, gene by gene."""
    edge_evidence_: NDArray[np.float64] | None = None
    """Log evidence of each edge that the search found, at the fit; those with none were cut. -inf elsewhere."""
    feedback_: pd.DataFrame | None = None
    """Loops that the graph leaves out; None if they were not looked for."""
    train_settings_: dict[str, Any] | None = None
    """Arguments of the last :meth:`train` that decide on its result."""

    _plan_kwargs: dict[str, Any] = {}
    _covariates: CovariateDesign
    _against_hidden: list[str]
    _known_drugs: Drugs | None = None

    def __getstate__(self) -> dict:
        """What is pickled, for joblib and multiprocessing: trainer and plan belong to a run and hold functions, which cannot be."""
        return {name: value for name, value in vars(self).items() if name not in ("trainer", "training_plan")}

    def _check_if_trained(self, *args: Any, **kwargs: Any) -> None:
        """As in scvi-tools; what is computed from a fitted model is of 32 bits, as the fit is."""
        super()._check_if_trained(*args, **kwargs)
        check_default_type()

    @property
    def _setup_args(self) -> dict:
        return self.registry["setup_args"]

    @property
    def _screen(self) -> dict:
        """Contexts, perturbations and drug features of the training data."""
        return self.registry["field_registries"][REGISTRY.CONTEXT]["state_registry"]

    @property
    def perturbations(self) -> list[str]:
        """Measured perturbations, control left out: drugs, and then combinations of drugs."""
        return list(self._screen["perturbations"])

    @property
    def combinations(self) -> dict[str, dict[str, float]]:
        """Dosage of each drug of each measured combination, by the name of the combination among :attr:`perturbations`."""
        drugs, dosages = (self._screen.get(f"combination_{name}", []) for name in ("members", "dosages"))
        names = self.perturbations[len(self.perturbations) - len(drugs) :]
        return {
            name: dict(zip(of_each, given, strict=True))
            for name, of_each, given in zip(names, drugs, dosages, strict=True)
        }

    @property
    def contexts(self) -> pd.MultiIndex:
        """Measured contexts (perturbation, dosage, and the level where effects have a modifier), control left out."""
        screen, names = self._screen, ["perturbation", "dosage"]
        arrays = [screen["context_perturbation"][self._n_controls :], screen["context_dosage"][self._n_controls :]]
        if self._covariates.modifier is not None:
            arrays.append(screen["context_level"][self._n_controls :])
            names.append(self._covariates.modifier)
        return pd.MultiIndex.from_arrays(arrays, names=names)

    @property
    def _n_controls(self) -> int:
        """Contexts of controls, which come first: one for each level of the effect modifier."""
        return max(1, len(self._covariates.levels))

    @property
    def _sizes(self) -> dict[str, int]:
        """How many genes, drugs, contexts of them and combinations there are, as they are shown; once trained, those that had cells to train on."""
        drugs = [name for name in self.perturbations if name not in self.combinations]
        if self.is_trained_:
            measured = set(np.asarray(self.perturbations)[self._drugs.is_measured])
            drugs = [name for name in drugs if name in measured]
        n_contexts = int(self.contexts.get_level_values(0).isin(drugs).sum())
        sizes = {"genes": self.summary_stats.n_vars, "perturbations": len(drugs), "contexts": n_contexts}
        return sizes | ({"combinations": len(self.combinations)} if self.combinations else {})

    @property
    def drug_embedding(self) -> pd.DataFrame | None:
        """Features of the measured drugs; None if the screen was set up without."""
        return self._screen["embedding"]

    @property
    def adjacency_(self) -> NDArray[np.bool_]:
        """The fitted graph, boolean, genes x genes, True where the row's gene acts on the column's."""
        return self.module.adjacency.cpu().numpy().astype(bool)

    @property
    def _is_continuous(self) -> bool:
        return self.module.likelihood == "normal"

    @property
    def standard_deviations_(self) -> pd.Series | None:
        """Unit of effects on each gene if `likelihood="normal"`, in the unit of the data; None for counts, whose effects are log fold changes.

        The standard deviation among control cells. On a plate of fewer than 12 wells a gene it is, the fewer they are the more, that among
        all wells, in most of which the gene is no target: some tens of control wells say less of what is usual for it.
        """
        if not self._is_continuous:
            return None
        return pd.Series(self.module.spread.cpu().double().numpy(), self.gene_names_)

    @property
    def _drugs(self) -> Drugs:
        """The drugs of the fitted screen; made anew after each fit."""
        if self._known_drugs is None:
            n_cells = self.n_cells_.reindex(self.perturbations)
            self._known_drugs = Drugs(
                self.module,
                self.contexts,
                self.drug_embedding,
                n_cells,
                self._setup_args["control"],
                self.combinations,
                self._setup_args.get("combination_separator"),
                self._setup_args["dosage_key"] is not None,
            )
        return self._known_drugs

    @property
    def _design(self) -> ScaledDesign:
        return ScaledDesign(self._covariates, *self.covariate_scaling_)

    @property
    def _sampler(self) -> Sampler:
        return Sampler(self.module, self.gene_names_, self.control_pool_, self._design)

    def _n_samples(self, n_samples: int | None, n_rows: int) -> int:
        """Cells to draw of each row, checked; as many as means need where none are asked for."""
        if n_samples is None:
            return enough_samples(n_rows * len(self.gene_names_), *_N_SAMPLES)
        return whole_number("n_samples", n_samples)

    def _name_as_asked(self, obs: pd.DataFrame) -> None:
        """Give perturbation, dosage and size factor of predictions the names that they have in the user's data as well."""
        keys = {
            REGISTRY.PERTURBATION: "perturbation_key",
            REGISTRY.DOSAGE: "dosage_key",
            "size_factor": "size_factor_key",
        }
        asked = {self._setup_args[key]: obs[name] for name, key in keys.items() if name in obs}
        for own, values in asked.items():
            if own is not None:
                obs[own] = values

    def _screen_field(self) -> ScreenField:
        setup = self._setup_args
        keys: dict[str, Any] = {name: setup.get(name) for name in _SETUP_KEYS}
        return ScreenField(**keys)

    def _values(self, adata: AnnData) -> Any:
        """The values that the model reads, in memory or in a file."""
        layer = self._setup_args["layer"]
        return readable(adata.X if layer is None else adata.layers[layer])

    def _begin(self, adata: AnnData | None, registry: dict | None) -> None:
        """What scvi-tools does to begin with; raises where there are no data, or they were not set up, and says how that is done."""
        if adata is None and registry is None:
            raise ValueError(
                "A new model needs data, and `adata` is None, as `model.adata` is of a model that was loaded without: "
                "`GIM.setup_anndata(adata); model = GIM(adata)`."
            )
        if adata is not None:
            check_annotated(adata)
        try:
            BaseModelClass.__init__(self, adata, registry)
        except ValueError as error:
            raise ValueError(
                "`adata` was not set up for a new model, or is a copy or part of data that were. Set it up, with the names of its columns: "
                "`GIM.setup_anndata(adata, ...); model = GIM(adata)`. A model that was saved takes it as it is: `GIM.load(path, adata)`."
            ) from error

    def _check_values(self, adata: AnnData) -> None:
        """Counts for count likelihoods, finite values for the normal."""
        layer = self._setup_args["layer"]
        values = adata.X if layer is None else adata.layers[layer]
        (check_continuous if self._is_continuous else check_counts)(values, where=matrix_name(layer))

    def _warn_of_counts(self, adata: AnnData) -> None:
        """Warn of counts, or size factors, where values are taken for continuous ones."""
        if not self._is_continuous:
            return
        layer, key = self._setup_args["layer"], self._setup_args["size_factor_key"]
        largest = largest_count(adata.X if layer is None else adata.layers[layer])
        given = [] if key is None else [f"`size_factor_key={key!r}` has no effect with `likelihood='normal'`."]
        drop = "" if key is None else ", and leave out `size_factor_key`"
        if largest is not None:
            given.insert(0, f"`{matrix_name(layer)}` holds whole numbers up to {largest:g}, as raw counts are.")
            given.append(f"Use `likelihood='nb'` for counts; or normalise them, take logarithms{drop}.")
        elif key is not None:
            given.append("Continuous values are taken as they are: leave it out of `setup_anndata`.")
        if given:
            warnings.warn(" ".join(given), UserWarning, stacklevel=settings.warnings_stacklevel)

    def _validate_screen(self, adata: AnnData | None) -> AnnData:
        """Data to work on: those of the model, or others with the same genes in the same order, and known covariates."""
        if adata is None:
            return self._validate_anndata(self._own_data())
        check_annotated(adata)
        if not adata.n_obs:
            raise ValueError("`adata` has no cells. Look at what selected them.")
        check_gene_names(adata.var_names, self.gene_names_)
        if adata is not self.adata:
            if adata.is_view:
                adata = adata.to_memory() if adata.isbacked else adata.copy()
            check_matrix_type(adata, self._setup_args["layer"], allow_stored=True)
            self._check_values(adata)
            self._covariates.encode(adata.obs)
        return self._validate_anndata(adata)

    def _check_unchanged(self, adata: AnnData) -> None:
        """Raise where genes, labels or values of the model's data were changed in place after they were set up."""
        known = self.registry["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"][LayerField.COLUMN_NAMES_KEY]
        if list(adata.var_names.astype(str)) != [str(name) for name in known]:
            raise ValueError(
                f"Genes of `adata` were changed since `setup_anndata` ({len(known)} then, {adata.n_vars} now, or in another order). "
                f"{SET_UP_AGAIN}"
            )
        adata = self._validate_anndata(adata)  # set up as it was for this model, if another one has been set up since
        design = self._screen_field().design(adata, need_controls=False)
        code = np.asarray(self.get_anndata_manager(adata, required=True).get_from_registry(REGISTRY.CONTEXT)).ravel()
        changed = int((context_codes(design, self._screen) != code).sum())
        if changed:
            raise ValueError(
                f"Perturbations or dosages of {changed} cells were changed since `setup_anndata`. {SET_UP_AGAIN}"
            )
        self._check_values(adata)

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
        covariates = self._covariates.encode(adata.obs)
        if training and self._setup_args["size_factor_key"] is None and not self._is_continuous:
            size = estimate_size_factors(x, (context >= 0) & (context < self._n_controls))
        else:
            size = self._size_factors_of(adata, x, context, covariates)
        return Cells(x, context, covariates, np.log(size).astype(np.float32))

    def _states(self, adata: AnnData | None) -> pd.DataFrame:
        """Hidden states of cells, cells x states."""
        adata = self._validate_screen(adata)
        cells = self._cells(adata)
        cells = Cells(cells.x, cells.context, self._design.scaled(cells.covariates), cells.log_size)
        names = [f"state_{i + 1}" for i in range(self.module.states.n)]
        return pd.DataFrame(cell_states(self.module, cells), adata.obs_names, names)

    @property
    def _mean_total(self) -> float | None:
        """Mean total of the training cells; None where their depth did not differ, or is given."""
        if self._setup_args["size_factor_key"] is not None or not self.control_pool_["log_size"].any():
            return None
        return self.mean_total_

    def _size_factors_of(
        self,
        adata: AnnData,
        values: Any,
        context: NDArray[np.int64] | None = None,
        covariates: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float64]:
        """Size factors of cells with given values, on the scale of the training cells.

        Where they are estimated, contexts and covariates of the cells tell of them; without, cells are taken for controls like the others.
        """
        if self._is_continuous:
            return np.ones(adata.n_obs)
        if self.module.depth.is_known:
            n, n_covariates = adata.n_obs, self.module.covariate_effect.shape[0]
            context = np.full(n, -1) if context is None else context
            design = np.zeros((n, n_covariates)) if covariates is None else self._design.scaled(covariates)
            log_size, _ = read_depth(
                self.module, Cells(values, context, design.astype(np.float32), np.zeros(n, np.float32))
            )
            return np.exp(log_size)
        return known_size_factors(adata.obs, self._setup_args["size_factor_key"], values, self._mean_total)
