"""Questions that go beyond one new drug: combinations, experiments on genes, and given cells under a drug."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scgim._constants import REGISTRY
from scgim._validation import check_counts, check_gene_names, check_known_genes, matrix_name
from scgim.model._base import ScreenModel
from scgim.predict._sampler import Backdrop, random_generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike

    from scgim.predict._drugs import Combination


class WhatIfMixin(ScreenModel):
    """`predict_combination`, `predict_cells` and `intervene` of :class:`scgim.model.GIM`."""

    def predict_combination(
        self,
        combinations: Combination | Sequence[Combination],
        drug_embedding: pd.DataFrame | None = None,
        *,
        n_samples: int | None = None,
        covariates: pd.DataFrame | Mapping | None = None,
        size_factor: float | ArrayLike | None = None,
        seed: int | None = 0,
    ) -> AnnData:
        """Cells that get several drugs at once.

        Interventions are united: the targets of each drug are drawn, and on a gene that several drugs act on their
        effects add up (on the log scale, for counts). With hard interventions a target of any of them loses its
        parents. Drugs that compete for a target or change each other's uptake are beyond this, unless the combination
        was measured at these dosages (`combination_separator` of :meth:`setup_anndata`): then it has the means that were
        seen, shrunk by their errors.

        Parameters
        ----------
        combinations
            The dosage of each drug by its name, `{"drug_a": 1.0, "drug_b": 0.5}`, or a list of such mappings. An empty
            mapping stands for control cells; 1.0 is the dosage in a screen without dosages.
        drug_embedding
            Features of the drugs that were not measured, one row a drug.
        n_samples
            Cells drawn for each combination; None as in :meth:`predict`.
        covariates, size_factor, seed
            See :meth:`predict`.

        Returns
        -------
        Cells x genes as from :meth:`predict`. In `obs`, `perturbation` joins the drugs by "+" ("drug_a+drug_b") and
        `dosages` their dosages in the same order ("1+0.5", as text); `dosage` is a number: that of a single drug, 0 of none, NaN of
        several.

        Raises
        ------
        ValueError
            A drug was not measured and has no features, or a dosage or covariate cannot be used.

        Examples
        --------
        >>> both = model.predict_combination({"drug_00": 1.0, "drug_03": 2.0})
        >>> pairs = [{"drug_00": 1.0, drug: 1.0} for drug in model.perturbations[1:]]
        >>> predicted = model.predict_combination(pairs, n_samples=500)
        """
        self._check_if_trained(warn=False)
        arms, rng = self._drugs.combined(combinations, drug_embedding), random_generator(seed)
        n_samples = self._n_samples(n_samples, len(arms))
        backdrop = self._sampler.backdrop(len(arms) * n_samples, rng, covariates, size_factor)
        out = self._sampler.cells(arms, n_samples, backdrop, rng)
        self._name_as_asked(out.obs)
        return out

    def predict_cells(
        self,
        cells: AnnData,
        drug_embedding: Any,
        dosage: float | ArrayLike | None = None,
        *,
        seed: int | None = 0,
    ) -> AnnData:
        """These cells under that drug: one predicted cell for each given cell and drug.

        A predicted cell has the covariates (cell line, patient, batch) and the size factor of the given one. Its counts
        are drawn anew; they are those of another cell of the same kind.

        Parameters
        ----------
        cells
            Cells, usually controls, with the covariates and the size factor of the model in `obs`. A model set up
            without `size_factor_key` reads the size factors off the counts, which must then be there for all genes of
            the model.
        drug_embedding, dosage
            Drugs and dosages as in :meth:`predict`, or combinations as in :meth:`predict_combination`.
        seed
            Seed of the draws; None for new ones each time.

        Returns
        -------
        Cells x genes as from :meth:`predict`, all given cells under the first drug, then under the second, and so on.
        `obs` is that of the given cells, with `perturbation` and `dosage` as predicted, `size_factor`, and the name of
        the given cell in `control_cell`.

        Raises
        ------
        KeyError
            A covariate or the size factor is missing in `obs`.
        ValueError
            Covariates, drugs or dosages cannot be used.

        Examples
        --------
        >>> controls = adata[(adata.obs["perturbation"] == "control") & (adata.obs["patient"] == "P1")]
        >>> treated = model.predict_cells(controls, ["drug_00", "drug_01"], dosage=1.0)
        """
        self._check_if_trained(warn=False)
        if not cells.n_obs:
            raise ValueError("`cells` has no cells. Give the cells to predict, such as the controls of one patient.")
        arms = self._drugs.arms(drug_embedding, dosage)
        given = Backdrop(torch.as_tensor(self._design.encode(cells.obs)), self._log_size_of(cells))
        k = len(arms)
        out = self._sampler.cells(arms, cells.n_obs, given.repeat(k), random_generator(seed))
        predicted, origin = out.obs, cells.obs.loc[:, ~cells.obs.columns.str.startswith("_scvi")]
        out.obs = pd.concat([origin] * k).set_axis(out.obs_names)
        out.obs["control_cell"] = np.tile(cells.obs_names.to_numpy(), k)
        for name in (REGISTRY.PERTURBATION, REGISTRY.DOSAGE, "size_factor"):
            out.obs[name] = predicted[name]
        self._name_as_asked(out.obs)  # where the copied columns still say that the cells are controls
        return out

    def intervene(
        self,
        genes: Mapping[str, float],
        *,
        kind: str = "set",
        perturbation: Any = None,
        dosage: float | None = None,
        n_samples: int = 1000,
        covariates: pd.DataFrame | Mapping | None = None,
        size_factor: float | ArrayLike | None = None,
        seed: int | None = 0,
    ) -> AnnData:
        """What if genes were held at a value, or pushed: an experiment on the fitted network.

        Genes downstream follow, genes upstream do not. What is told is what the network says: an edge that is wrong, or
        a hidden common cause, misleads here more than in the prediction of drugs.

        Parameters
        ----------
        genes
            Value of each gene by its name.
        kind
            `"set"`: the gene is held at the value whatever its parents and the drug do. For counts, counts per unit of
            size factor: a gene set to 10 has 10 counts in a cell of size factor 1 and 20 in one of size factor 2; 0 is
            a complete loss. For `likelihood="normal"`, the units of the data. `"shift"`: the value is added to the log
            mean of the gene given its parents, a natural-log fold change (for `"normal"`, to the mean, in control
            standard deviations); parents keep their say, also in models of hard interventions.
        perturbation, dosage
            One drug (name, features) that the cells get as well, and its dosage as in :meth:`predict`; or a
            combination, as in :meth:`predict_combination`. None for control cells.
        n_samples
            Cells drawn.
        covariates, size_factor, seed
            See :meth:`predict`.

        Returns
        -------
        Cells x genes as from :meth:`predict`; `perturbation` reads like "drug_a+do(gene_1=0)" or "shift(gene_1=1)".
        Counts of a gene that is set are rounded in `X`, not in `layers["expected"]`.

        Raises
        ------
        ValueError
            A gene is not in the model, a value cannot be used, or `kind` is none of the two.

        Examples
        --------
        >>> without = model.intervene({"gene_03": 0.0})
        >>> rescued = model.intervene({"gene_07": 1.0}, kind="shift", perturbation="drug_02", dosage=1.0)
        """
        self._check_if_trained(warn=False)
        values = self._gene_values(genes, kind)
        arms = self._drugs.arms({} if perturbation is None else perturbation, dosage)
        if len(arms) != 1:
            raise ValueError(f"`perturbation` holds {len(arms)} drugs. Give one, or a combination as a mapping.")
        rng = random_generator(seed)
        backdrop = self._sampler.backdrop(self._n_samples(n_samples, 1), rng, covariates, size_factor)
        held, pushed = (values, None) if kind == "set" else (None, values)
        out = self._sampler.cells(arms, n_samples, backdrop, rng, shift=pushed, fixed=held)
        word = "do" if kind == "set" else "shift"
        name = "+".join(f"{word}({gene}={value:g})" for gene, value in genes.items())
        name = name if perturbation is None else f"{arms.names[0]}+{name}"
        out.obs[REGISTRY.PERTURBATION] = pd.Categorical([name] * out.n_obs)
        self._name_as_asked(out.obs)
        return out

    def _gene_values(self, genes: Mapping[str, float], kind: str) -> dict[int, float]:
        """Values by the position of their gene."""
        if kind not in ("set", "shift"):
            raise ValueError(f"`kind` must be 'set' or 'shift', found {kind!r}.")
        if not isinstance(genes, Mapping) or not genes:
            raise ValueError(f"`genes` must give at least one gene its value, {{'gene': value}}, found {genes!r}.")
        check_known_genes(genes, self.gene_names_)
        text = {g: v for g, v in genes.items() if isinstance(v, (bool, str)) or not np.isscalar(v)}
        if text:
            raise ValueError(f"`genes` holds {text}. Values are numbers.")
        counts = kind == "set" and not self._is_continuous
        bad = {g: v for g, v in genes.items() if not np.isfinite(v) or (counts and v < 0)}
        if bad:
            raise ValueError(f"`genes` holds {bad}. Values are finite and counts are not negative.")
        position = {gene: j for j, gene in enumerate(self.gene_names_)}
        return {position[gene]: float(value) for gene, value in genes.items()}

    def _log_size_of(self, cells: AnnData) -> torch.Tensor:
        """Log size factors of given cells; where they are read off the counts, these must be there."""
        counts = None
        if not self._is_continuous and self._mean_total is not None:
            check_gene_names(cells.var_names, self.gene_names_)
            check_counts(self._values(cells), where=matrix_name(self._setup_args["layer"]).replace("adata", "cells"))
            counts = self._values(cells)
        size = self._size_factors_of(cells, counts, covariates=self._covariates.encode(cells.obs))
        return torch.as_tensor(np.log(size).astype(np.float32))
