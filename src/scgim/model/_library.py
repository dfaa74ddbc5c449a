"""From effects back to drugs: which of a library to take, and which of their features matter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scgim._constants import REGISTRY
from scgim._validation import check_continuous, check_counts, check_gene_names, matrix_name
from scgim.interventions._sensitivity import feature_sensitivity
from scgim.model._base import ScreenModel
from scgim.predict._means import Draws, posterior_means
from scgim.predict._ranking import METRICS, agreement, change_to, named_targets, wanted_change

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike


class LibraryMixin(ScreenModel):
    """`rank_drugs` and `get_feature_importance` of :class:`scgim.model.GIM`."""

    def rank_drugs(
        self,
        library: Any,
        toward: pd.Series | Mapping | Sequence[str] | AnnData,
        *,
        dosage: float | ArrayLike | None = None,
        metric: str = "cosine",
        level: float = 0.9,
        n_draws: int = 50,
        n_samples: int = 50,
        seed: int = 0,
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
            that of the model's control cells. For `likelihood="normal"`, changes in control standard deviations.
        dosage
            One dosage, or one a row of `library`; None for the median measured dosage.
        metric
            How the change is compared with what is wanted: `"cosine"` (direction), `"correlation"` (direction around
            the mean over genes), or `"distance"` (direction and size: minus the Euclidean distance). With one gene only
            the last tells more than the sign.
        level
            Share of the draws within the intervals.
        n_draws, n_samples, seed
            See :meth:`predict_mean`.

        Returns
        -------
        One row a drug, best first, indexed by name: `dosage` (of combinations `dosages`, as text), `score` (mean over the draws; more is better),
        `lower` and `upper`, and `top_targets`, its three likeliest direct targets. Intervals that overlap say that the
        order of two drugs is open.

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
        wanted = self._wanted(toward)
        if metric != "distance" and not wanted.to_numpy().any():
            raise ValueError(f"`toward` wants no change of any gene, which has no direction for {metric!r}.")
        arms = self._drugs.arms(library, dosage)
        genes = torch.as_tensor(pd.Index(self.gene_names_).get_indexer(wanted.index))
        goal = torch.tensor(wanted.to_numpy())
        draws = posterior_means(self._sampler, self._drugs, arms, Draws(n_draws, n_samples, seed))
        score = torch.cat([agreement(block.effect[..., genes], goal, metric) for block in draws], 1).numpy()
        lower, upper = np.quantile(score, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        frame = arms.table().astype({REGISTRY.PERTURBATION: str}).set_index(REGISTRY.PERTURBATION)
        top_targets = named_targets(arms.expected()[1].numpy(), self.gene_names_)
        frame = frame.assign(score=score.mean(0), lower=lower, upper=upper, top_targets=top_targets)
        return frame.sort_values("score", ascending=False, kind="stable")

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
        Features x genes: change of the effect (log fold change; for `likelihood="normal"`, control standard deviations)
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
