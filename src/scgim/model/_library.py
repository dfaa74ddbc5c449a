"""From effects back to drugs: which of a library to take, and which of their features matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scgim._constants import REGISTRY
from scgim._stored import StoredMatrix, readable
from scgim._validation import check_gene_names, quote_some
from scgim.model._uncertainty import _MIN_MEAN, _N_CONTROLS, UncertaintyMixin
from scgim.nn._sensitivity import feature_sensitivity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike
    from torch import Tensor

_METRICS = ("cosine", "correlation", "distance")
_MIN_TARGET_PROB = 0.1  # genes less likely are not named as targets


class LibraryMixin(UncertaintyMixin):
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
        One row a drug, best first, indexed by name: `dosage`, `score` (mean over the draws; more is better),
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
        if metric not in _METRICS:
            raise ValueError(f"`metric` must be one of {list(_METRICS)}, found {metric!r}.")
        wanted = self._wanted(toward)
        if metric != "distance" and not wanted.to_numpy().any():
            raise ValueError(f"`toward` wants no change of any gene, which has no direction for {metric!r}.")
        arms = self._arms(library, dosage)
        genes = torch.as_tensor(pd.Index(self.gene_names_).get_indexer(wanted.index))
        goal = torch.tensor(wanted.to_numpy())
        draws = self._posterior_means(arms, n_draws, n_samples, None, seed)
        scores = [_score(block.effect[..., genes], goal, metric) for block in draws]
        score = torch.cat(scores, 1).numpy()
        lower, upper = np.quantile(score, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        frame = pd.DataFrame(
            {
                REGISTRY.DOSAGE: arms.dosages,
                "score": score.mean(0),
                "lower": lower,
                "upper": upper,
                "top_targets": self._named_targets(arms.expected()[1].numpy()),
            },
            index=pd.Index(arms.names, name=REGISTRY.PERTURBATION),
        )
        return frame.sort_values("score", ascending=False, kind="stable")

    def _named_targets(self, probs: np.ndarray, n: int = 3) -> list[str]:
        """Names of the likeliest targets of each row of probabilities."""
        names = np.asarray(self.gene_names_)
        order = np.argsort(-probs, axis=1, kind="stable")[:, :n]
        return [
            ", ".join(names[j] for j in best if row[j] >= _MIN_TARGET_PROB)
            for row, best in zip(probs, order, strict=True)
        ]

    def _wanted(self, toward: Any) -> pd.Series:
        """Wanted change of each gene that counts."""
        if isinstance(toward, AnnData):
            return self._change_to(toward)
        if isinstance(toward, Mapping) and set(toward) <= {"up", "down"}:
            both = [toward.get(side, []) for side in ("up", "down")]
            both = [[genes] if isinstance(genes, str) else list(genes) for genes in both]
            wanted = pd.Series([1.0] * len(both[0]) + [-1.0] * len(both[1]), [*both[0], *both[1]], dtype=float)
        elif isinstance(toward, (Mapping, pd.Series)):
            wanted = pd.Series(toward, dtype=float)
        else:
            genes = [toward] if isinstance(toward, str) else list(toward)
            wanted = pd.Series(1.0, genes)
        unknown = [gene for gene in wanted.index if gene not in self.gene_names_]
        if unknown or not len(wanted):
            found = f"genes {quote_some(unknown)}, which are not in the model" if unknown else "no genes"
            raise ValueError(f"`toward` holds {found}. `model.gene_names_` lists those that are.")
        if not wanted.index.is_unique or not np.isfinite(wanted).all():
            raise ValueError("`toward` must give each gene once, a finite value.")
        return wanted

    def _change_to(self, cells: AnnData) -> pd.Series:
        """Change from the model's control cells to the mean of given cells."""
        check_gene_names(cells.var_names, self.gene_names_)
        layer = self._setup_args["layer"]
        size = self._size_factors_of(cells)
        mean = _mean_per_size(readable(cells.X if layer is None else cells.layers[layer]), size)
        nothing = torch.zeros(1, len(self.gene_names_), dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        control, _ = self._means_of(self.module, nothing, nothing.bool(), _N_CONTROLS, None, generator)
        control = control[0].numpy()
        if self._likelihood == "normal":
            change = (mean - control) / self.module.spread.double().cpu().numpy()
        else:
            # half a count, so that a gene that is not seen in few cells does not count for infinity
            least = max(0.5 / len(size), _MIN_MEAN)
            change = np.log(mean + least) - np.log(control + least)
        return pd.Series(change, self.gene_names_)

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
        if self.drug_embedding is None:
            raise ValueError("The model was set up without drug features. Give them as `drug_embedding_key`.")
        values = feature_sensitivity(self._drug_generator().sparse)
        return pd.DataFrame(values.numpy(), self.drug_embedding.columns, self.gene_names_)


def _score(effects: Tensor, goal: Tensor, metric: str) -> Tensor:
    """Agreement of effects (..., genes) with what is wanted (genes,); more is better."""
    if metric == "distance":
        return -(effects - goal).square().sum(-1).sqrt()
    if metric == "correlation":
        effects, goal = effects - effects.mean(-1, keepdim=True), goal - goal.mean()
    size = effects.square().sum(-1).sqrt() * goal.square().sum().sqrt()
    # a drug that does nothing has no direction
    return torch.where(size > 1e-12, (effects @ goal) / size.clamp_min(1e-12), 0.0)


def _mean_per_size(x: Any, size: np.ndarray) -> np.ndarray:
    """Mean over cells of values over size factors, shape (d,)."""
    total, start = np.zeros(x.shape[1]), 0
    for block in x.blocks() if isinstance(x, StoredMatrix) else [x]:
        inverse = 1 / size[start : start + block.shape[0]]
        total += inverse @ block  # type: ignore[operator]
        start += block.shape[0]
    return total / len(size)
