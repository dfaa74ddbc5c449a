"""Questions that go beyond one new drug: combinations, experiments on genes, and given cells under a drug."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from scgim._constants import REGISTRY
from scgim._stored import readable
from scgim._validation import check_gene_names, check_size_factors, quote_some
from scgim.model._arms import ArmsMixin
from scgim.model._prediction import _CHUNK_VALUES, _fresh_generator
from scgim.model._size_factors import total_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from scgim.model._arms import Arms, Combination


class WhatIfMixin(ArmsMixin):
    """`predict_combination`, `predict_cells` and `intervene` of :class:`scgim.model.GIM`."""

    def predict_combination(
        self,
        combinations: Combination | Sequence[Combination],
        drug_embedding: pd.DataFrame | None = None,
        *,
        n_samples: int = 100,
        covariates: pd.DataFrame | Mapping | None = None,
        size_factor: float | ArrayLike | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Cells that get several drugs at once.

        Interventions are united: the targets of each drug are drawn, and on a gene that several drugs act on their
        effects add up (on the log scale, for counts). With hard interventions a target of any of them loses its
        parents. Drugs that compete for a target or change each other's uptake are beyond this.

        Parameters
        ----------
        combinations
            The dosage of each drug by its name, `{"drug_a": 1.0, "drug_b": 0.5}`, or a list of such mappings. An empty
            mapping stands for control cells.
        drug_embedding
            Features of the drugs that were not measured, one row a drug.
        n_samples
            Cells drawn for each combination.
        covariates, size_factor, seed
            See :meth:`predict`.

        Returns
        -------
        Cells x genes as from :meth:`predict`. In `obs`, `perturbation` joins the drugs by "+" ("drug_a+drug_b") and
        `dosage` their dosages in the same order ("1+0.5", as text).

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
        arms = self._combined(combinations, drug_embedding)
        generator = _generator(seed)
        design, log_size = self._background(len(arms) * _positive(n_samples), covariates, size_factor, generator)
        return self._simulate(arms, n_samples, design, log_size, generator)

    def predict_cells(
        self,
        cells: AnnData,
        drug_embedding: Any,
        dosage: float | ArrayLike | None = None,
        *,
        seed: int | None = None,
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
            Seed of the draws; None for a new one each time.

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
        arms = self._arms(drug_embedding, dosage)
        design = torch.as_tensor(self._scaled(self._covariates.encode(cells.obs)))
        log_size = torch.as_tensor(np.log(self._size_factors_of(cells)).astype(np.float32))
        k = len(arms)
        out = self._simulate(arms, cells.n_obs, design.repeat(k, 1), log_size.repeat(k), _generator(seed))
        predicted, origin = out.obs, cells.obs.loc[:, ~cells.obs.columns.str.startswith("_scvi")]
        out.obs = pd.concat([origin] * k).set_axis(out.obs_names)
        out.obs["control_cell"] = np.tile(cells.obs_names.to_numpy(), k)
        setup = self._setup_args
        copies = {
            REGISTRY.PERTURBATION: setup["perturbation_key"],
            REGISTRY.DOSAGE: setup["dosage_key"],
            "size_factor": None,
        }
        for name, own in copies.items():
            # also under the keys of the model, where the copied columns still say that the cells are controls
            for column in {name, own or name}:
                out.obs[column] = predicted[name]
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
        seed: int | None = None,
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
        arms = self._arms({} if perturbation is None else perturbation, dosage)
        if len(arms) != 1:
            raise ValueError(f"`perturbation` holds {len(arms)} drugs. Give one, or a combination as a mapping.")
        generator = _generator(seed)
        design, log_size = self._background(_positive(n_samples), covariates, size_factor, generator)
        fixed, shift = (values, {}) if kind == "set" else ({}, values)
        out = self._simulate(arms, n_samples, design, log_size, generator, shift=shift, fixed=fixed)
        word = "do" if kind == "set" else "shift"
        name = "+".join(f"{word}({gene}={value:g})" for gene, value in genes.items())
        name = name if perturbation is None else f"{arms.names[0]}+{name}"
        out.obs[REGISTRY.PERTURBATION] = pd.Categorical([name] * out.n_obs)
        return out

    def _gene_values(self, genes: Mapping[str, float], kind: str) -> dict[int, float]:
        """Values by the position of their gene."""
        if kind not in ("set", "shift"):
            raise ValueError(f"`kind` must be 'set' or 'shift', found {kind!r}.")
        if not isinstance(genes, Mapping) or not genes:
            raise ValueError(f"`genes` must give at least one gene its value, {{'gene': value}}, found {genes!r}.")
        unknown = [gene for gene in genes if gene not in self.gene_names_]
        if unknown:
            raise ValueError(
                f"Genes {quote_some(unknown)} are not in the model. `model.gene_names_` lists those that are."
            )
        counts = kind == "set" and self._likelihood != "normal"
        bad = {g: v for g, v in genes.items() if not np.isfinite(v) or (counts and v < 0)}
        if bad:
            raise ValueError(f"`genes` holds {bad}. Values are finite and counts are not negative.")
        position = {gene: j for j, gene in enumerate(self.gene_names_)}
        return {position[gene]: float(value) for gene, value in genes.items()}

    def _size_factors_of(self, cells: AnnData) -> np.ndarray:
        """Size factors of given cells, on the scale of the training cells."""
        key = self._setup_args["size_factor_key"]
        if self._likelihood == "normal":
            return np.ones(cells.n_obs)
        if key is not None:
            return check_size_factors(cells.obs, key)
        if not self.control_pool_["log_size"].any():  # training cells did not differ in depth
            return np.ones(cells.n_obs)
        check_gene_names(cells.var_names, self.gene_names_)
        layer = self._setup_args["layer"]
        return total_counts(readable(cells.X if layer is None else cells.layers[layer])) / self.mean_total_

    def _simulate(
        self,
        arms: Arms,
        n_samples: int,
        design: torch.Tensor,
        log_size: torch.Tensor,
        generator: torch.Generator,
        *,
        shift: Mapping[int, float] | None = None,
        fixed: Mapping[int, float] | None = None,
    ) -> AnnData:
        """Draw `n_samples` cells of each arm, with `shift` added to effects and genes held at `fixed`."""
        shift, fixed = shift or {}, fixed or {}
        step = max(1, _CHUNK_VALUES // (n_samples * len(self.gene_names_)))
        parts = []
        for start in range(0, len(arms), step):
            block = arms.take(range(start, min(start + step, len(arms))))
            cells = slice(start * n_samples, (start + len(block)) * n_samples)
            effects, targets = (t.flatten(0, 1) for t in block.sample(n_samples, generator))
            for gene, value in shift.items():
                effects[:, gene] += value
            x, expected = self._sample(effects, targets, design[cells], log_size[cells], generator, fixed)
            parts.append((x if self._likelihood == "normal" else sparse.csr_matrix(x), expected))
        x, expected = (
            np.concatenate(p) if isinstance(p[0], np.ndarray) else sparse.vstack(p, format="csr")
            for p in zip(*parts, strict=True)
        )
        names, dosages = np.repeat(arms.names, n_samples), np.repeat(np.asarray(arms.dosages), n_samples)
        obs = pd.DataFrame(
            {
                REGISTRY.PERTURBATION: pd.Categorical(names, categories=list(dict.fromkeys(names))),
                REGISTRY.DOSAGE: dosages,
                "size_factor": np.exp(log_size.numpy()),
            },
            index=pd.RangeIndex(len(names)).astype(str),
        )
        return AnnData(x, obs=obs, var=pd.DataFrame(index=self.gene_names_), layers={"expected": expected})


def _generator(seed: int | None) -> torch.Generator:
    return torch.Generator().manual_seed(seed) if seed is not None else _fresh_generator()


def _positive(n_samples: int) -> int:
    if n_samples < 1:
        raise ValueError(f"`n_samples` must be at least 1, found {n_samples}.")
    return n_samples
