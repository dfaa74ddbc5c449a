"""From effects back to drugs: which of a library to take, and which of their features matter."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import settings

from scgim._constants import REGISTRY, Key
from scgim._validation import check_continuous, check_counts, check_gene_names, check_interval, matrix_name
from scgim.interventions._sensitivity import feature_sensitivity
from scgim.model._base import ScreenModel
from scgim.predict._means import Draws, posterior_means
from scgim.predict._ranking import METRICS, agreement, change_to, named_targets, wanted_change
from scgim.predict._sampler import some_seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    from scgim.predict._arms import Arms


class LibraryMixin(ScreenModel):
    """`rank_drugs` and `get_feature_importance` of :class:`scgim.model.GIM`."""

    def rank_drugs(
        self,
        library: Any,
        toward: pd.Series | Mapping | Sequence[str] | AnnData,
        *,
        dosage: float | ArrayLike | None = None,
        metric: str = "change",
        level: float = 0.9,
        n_draws: int = 50,
        n_samples: int = 50,
        covariates: pd.DataFrame | Mapping | None = None,
        seed: int | None = 0,
    ) -> pd.DataFrame:
        """Drugs of a library by how well what they do to the cells matches a wanted change.

        Parameters
        ----------
        library
            Drugs as in :meth:`predict`: features of drugs that were not measured, names of those that were, or
            combinations as in :meth:`predict_combination`.
        toward
            The wanted change. A series (or mapping) of natural-log fold changes by gene; genes that are left out do not
            count, genes that should stay as they are have 0. A mapping of `"up"` and `"down"` to lists of genes, or one
            list of genes that should go up. Or an AnnData of cells in the wanted state, whose mean is compared with
            that of the model's control cells. For `likelihood="normal"`, changes in standard deviations (:attr:`standard_deviations_`).
        dosage
            One dosage, or one a row of `library`; None for the median measured dosage.
        metric
            How the change is compared with what is wanted. `"change"`: how far genes go the wanted way, the mean of
            their log fold changes, weighted by the size of what is wanted, less the mean absolute change of genes that should stay; in
            nats, and 0 for a drug that does nothing. Where sizes are wanted, more than that earns no more. `"cosine"`: direction alone, whatever the size.
            `"correlation"`: direction around the mean over genes. `"distance"`: minus the Euclidean distance, so that to do more than
            is wanted is as bad as to do less.
        level
            Share of the draws within the intervals.
        n_draws, n_samples, covariates, seed
            See :meth:`predict_mean`.

        Returns
        -------
        One row a drug, best first, indexed by name: `dosage` (of combinations `dosages`, as text), `score` (median of the draws; more is better) with
        the bounds `lower` and `upper` of its interval, `top_targets`, its three likeliest direct targets, with their probabilities where these
        are below one half, and `known_by`: `"cells"` (measured), `"features"`, or `"mean"` where features tell nothing and what is predicted is what measured drugs have in common; a
        warning then says so. Intervals that overlap say that the order of two drugs is open. In `attrs`, `metric`, `level`, `effect_unit` and
        the `dosage_unit` of `adata.uns`.

        Raises
        ------
        ValueError
            A gene of `toward` is not in the model, nothing is wanted, or `metric` is unknown.

        Examples
        --------
        >>> model.rank_drugs(library, toward={"up": ["gene_01"], "down": ["gene_05", "gene_07"]}, dosage=1.0).head(10)
        >>> model.rank_drugs(library, toward=healthy_cells, metric="distance")
        """
        self._check_if_trained(warn=False)
        if metric not in METRICS:
            raise ValueError(f"`metric` must be one of {list(METRICS)}, found {metric!r}.")
        check_interval(level)
        wanted = self._wanted(toward)
        if metric != "distance" and not wanted.to_numpy().any():
            raise ValueError(f"`toward` wants no change of any gene, which has no direction for {metric!r}.")
        arms = self._drugs.arms(library, dosage)
        genes = torch.as_tensor(pd.Index(self.gene_names_).get_indexer(wanted.index))
        goal = torch.tensor(wanted.to_numpy())
        draws = posterior_means(
            self._sampler, self._drugs, arms, Draws(n_draws, n_samples, some_seed(seed), covariates)
        )
        score = torch.cat(
            [
                agreement(block.effect[..., genes], goal, metric, sized=wanted.attrs.get("sized", True))
                for block in draws
            ],
            1,
        ).numpy()
        lower, upper = np.quantile(score, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        frame = arms.table().astype({REGISTRY.PERTURBATION: str}).set_index(REGISTRY.PERTURBATION)
        top_targets = named_targets(
            arms.expected(self._covariates.level_named(covariates))[1].numpy(), self.gene_names_
        )
        frame = frame.assign(score=np.median(score, 0), lower=lower, upper=upper, top_targets=top_targets)
        frame["known_by"] = self._known_by(arms)
        unit = "s.d." if self._is_continuous else "log fold change"
        frame.attrs.update(metric=metric, level=level, effect_unit=unit)
        if self.adata is not None and Key.DOSAGE_UNIT in self.adata.uns:
            frame.attrs[Key.DOSAGE_UNIT] = str(self.adata.uns[Key.DOSAGE_UNIT])
        return frame.sort_values("score", ascending=False, kind="stable")

    def _known_by(self, arms: Arms) -> list[str]:
        """What tells of each arm: cells of all its drugs, the features of some, or nothing but the mean of the measured drugs."""
        if not arms.is_new.any():
            return ["cells"] * len(arms)
        new = torch.zeros(len(arms), dtype=torch.bool)
        new[arms.arm[arms.is_new[arms.drug]]] = True
        tells = self._drugs.features_tell
        if not tells:
            warnings.warn(
                f"The features tell nothing of what drugs do: measured drugs that were left out were predicted no better by them than by "
                f"the mean of the others. The {int(new.sum())} of {len(arms)} that were not measured have this mean, and their order "
                "means nothing.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        return [("features" if tells else "mean") if is_new else "cells" for is_new in new.tolist()]

    def _wanted(self, toward: Any) -> pd.Series:
        """Wanted change of each gene that counts; of cells, their change from the model's controls."""
        if not isinstance(toward, AnnData):
            return wanted_change(toward, self.gene_names_)
        check_gene_names(toward.var_names, self.gene_names_)
        values = self._values(toward)
        where = matrix_name(self._setup_args["layer"]).replace("adata", "toward")
        (check_continuous if self._is_continuous else check_counts)(values, where=where)
        return change_to(self._sampler, values, self._size_factors_of(toward, values))

    def get_feature_importance(self) -> pd.DataFrame:
        """Which features of the drugs drive the direct effect on which genes.

        The slope of the expected direct effect at the largest measured dosage in each feature, as the generator's
        Gaussian processes see it, averaged over the measured drugs. Features that go together share their importance.

        Returns
        -------
        Features x genes: change of the effect (log fold change; for `likelihood="normal"`, standard deviations)
        for one standard deviation of the feature, with its sign. Genes that are never targets have zeros.

        Raises
        ------
        ValueError
            The model was set up without features.
        """
        self._check_if_trained(warn=False)
        drugs = self._drugs
        if drugs.embedding is None:
            raise ValueError("The model was set up without drug features. Give them as `drug_embedding_key`.")
        values = feature_sensitivity(drugs.generator.sparse)
        return pd.DataFrame(values.numpy(), drugs.embedding.columns, self.gene_names_)
