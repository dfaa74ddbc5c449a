"""Prediction of cells and means under drugs and dosages, measured or not."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import settings

from scgim._validation import check_interval, check_no_combination, check_query_embedding, quote_some, resolve_embedding
from scgim.model._arguments import whole_number
from scgim.model._new_cells import NewCellsMixin
from scgim.predict._likelihood import cell_log_likelihoods, context_effects
from scgim.predict._means import Draws, posterior_means
from scgim.predict._sampler import random_generator, some_seed
from scgim.train import Cells

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

_NEGLIGIBLY_BEYOND = 0.01  # of the range of a covariate or value, without a warning: convention


class PredictionMixin(NewCellsMixin):
    """`predict`, `predict_mean` and `score` of :class:`scgim.model.GIM`."""

    def predict(
        self,
        drug_embedding: pd.DataFrame | ArrayLike | str | Sequence[str],
        dosage: float | ArrayLike | None = None,
        *,
        n_samples: int | None = None,
        covariates: pd.DataFrame | Mapping | None = None,
        size_factor: float | ArrayLike | None = None,
        control_adata: AnnData | None = None,
        seed: int | None = 0,
    ) -> AnnData:
        """Cells under drugs that may never have been measured.

        For each cell, direct targets and effects are drawn from what is known of its drug, then its genes in
        topological order, so that effects are carried down the network.

        Parameters
        ----------
        drug_embedding
            Features, one row a drug: a data frame (index = names, columns as in training) or an array. A row named like
            a measured perturbation uses all that was learned about it, any other row its features, as far as these tell more than
            what the measured drugs have in common. Names of
            measured perturbations may be given in place of features; a combination is predicted at its own dosages.
        dosage
            One dosage, or one a row; several for one drug; None for the median of those measured.
        n_samples
            Cells drawn for each row; None for 1,000, or fewer where rows and genes are many, but at least 100. A mean over 100 cells is noisy
            where effects are small.
        covariates
            Values of covariates for all cells; a mapping or a data frame of one row. Those that are not given, and the size
            factors, are drawn from control cells; of the level of the effect modifier that is named, such as `{"cell_line": "K562"}`.
            Each cell has the effects of its level.
        size_factor
            One size factor, or one a cell; None draws those of control cells.
        control_adata
            Control cells of a kind that was not in the training data, such as another cell line: predicted are cells of that kind. Values,
            size factors and covariates as those of the training data, under the same names; genes are matched by name. Categories
            of covariates may be new. Effects are those of the screen, carried as they are to a level of the effect modifier in which
            nothing was measured, and less certain; without a modifier they are the same in all cells. Genes that are lacking are refused
            where the drugs change them, else said.
        seed
            Seed of the draws; None for new ones each time.

        Returns
        -------
        Cells x genes: drawn values in `X` (CSR for counts), their means given the parents in `layers["expected"]`,
        `perturbation`, `dosage` and `size_factor` in `obs`, also under the names that they have in the training data, the level of the
        effect modifier (that of `control_adata`, "new" where it has no such column), and the covariates that were given; the features in
        `uns["drug_embedding"]`.

        Raises
        ------
        ValueError
            Features, dosages or covariates do not fit the training data, drugs that were not measured are asked of a
            model without features, or `control_adata` cannot be used, as where it lacks genes that the drugs change.
        """
        self._check_if_trained(warn=False)
        query, rng = self._drugs.query(drug_embedding, dosage), random_generator(seed)
        sampler, arms, features, level = self._sampler, self._drugs.arms_of(query), query.features, None
        if control_adata is not None:
            sampler, arms, level = self._in_new_cells(control_adata, arms, covariates)
        n_samples = self._n_samples(n_samples, len(arms))
        backdrop = sampler.backdrop(len(arms) * n_samples, rng, covariates, size_factor)
        out = sampler.cells(arms, n_samples, backdrop, rng)
        if level is not None:
            out.obs[self._covariates.modifier] = level
        self._name_as_asked(out.obs)
        _note_covariates(out.obs, covariates)
        self._warn_beyond_range(out, features.index, n_samples)
        if features.shape[1]:
            out.uns["drug_embedding"] = features[~features.index.duplicated()].dropna(how="all")  # not of combinations
        return out

    def _warn_beyond_range(self, cells: AnnData, names: pd.Index, n_samples: int) -> None:
        """Warn where the mean expression under a drug lies outside the values of all training cells."""
        size = 1.0 if self._is_continuous else cells.obs["size_factor"].to_numpy()[:, None]
        mean = (cells.layers["expected"] / size).reshape(len(names), n_samples, -1).mean(axis=1)
        low, high = self.module.knowledge.value_range.cpu().numpy()
        with np.errstate(invalid="ignore"):  # an unlimited range
            beyond = np.maximum(mean - high, low - mean) / np.where(
                np.isfinite(high - low) & (high > low), high - low, 1.0
            )
        rows, genes = np.nonzero(beyond > _NEGLIGIBLY_BEYOND)
        if not len(rows):
            return
        worst = beyond[rows, genes].argmax()
        off = dict.fromkeys(self.gene_names_[j] for j in genes)
        warnings.warn(
            f"Predicted means leave the range of the training cells in {len(off)} genes: {quote_some(off)}. Most of all "
            f"{self.gene_names_[genes[worst]]!r} under {str(names[rows[worst]])!r}, by {beyond[rows[worst], genes[worst]]:.0%} of the "
            "range. Doubt these: nothing like them was measured.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )

    def predict_mean(
        self,
        drug_embedding: Any,
        dosage: float | ArrayLike | None = None,
        *,
        level: float = 0.9,
        n_draws: int = 100,
        n_samples: int = 100,
        covariates: pd.DataFrame | Mapping | None = None,
        control_adata: AnnData | None = None,
        seed: int | None = 0,
    ) -> AnnData:
        """Mean expression and log fold changes under drugs, measured or not, with intervals.

        Each draw is one world that the data allow: targets, effects and dose-response curves of the drugs, weights of
        the network and baselines of the genes. Intervals hold the given share of the draws. They say how well the mean
        is known, not how cells spread around it, and are wider for drugs whose features are far from those measured.
        The graph is the fitted one in all draws: what a wrong edge would do is not in the intervals. What measured drugs do beside their targets
        has an error in the draws, no less than that of changes of such a size in so few cells; of continuous values it has none.

        Parameters
        ----------
        drug_embedding, dosage
            Drugs and dosages as in :meth:`predict`, or combinations as in :meth:`predict_combination`.
        level
            Share of the draws within the intervals.
        n_draws
            Draws.
        n_samples
            Cells that a mean is taken over in each draw. The noise that few cells bring is removed from the intervals.
        covariates
            Values of the covariates for all cells, as in :meth:`predict`; None for those of control cells.
        control_adata
            Control cells of a kind that was not in the training data, as in :meth:`predict`.
        seed
            Seed of the draws; None for new ones each time.

        Returns
        -------
        Contexts x genes: the mean in `X`, counts per unit of size factor (for `likelihood="normal"`, in the units of the
        data), `perturbation` and `dosage` in `obs`. Layers `"log_fold_change"` (direct and propagated, against control
        cells, natural logarithm) and `"direct_effect"` (given the parents); for `"normal"` both in standard
        deviations (:attr:`standard_deviations_`). Bounds of the intervals in the layers `"lower"` and `"upper"`, `"log_fold_change_lower"`, and so on.

        Raises
        ------
        ValueError
            Drugs, dosages, covariates or `control_adata` cannot be used, or `level` does not lie between 0 and 1.

        Examples
        --------
        >>> means = model.predict_mean(new_drug_features, dosage=1.0)
        >>> means.to_df("log_fold_change_lower")
        """
        self._check_if_trained(warn=False)
        check_interval(level)
        sampler, arms, of_cells = self._sampler, self._drugs.arms(drug_embedding, dosage), None
        if control_adata is not None:
            sampler, arms, of_cells = self._in_new_cells(control_adata, arms, covariates)
        bounds = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64)
        blocks = []
        asked = Draws(n_draws, n_samples, some_seed(seed), covariates)
        for draws in posterior_means(sampler, self._drugs, arms, asked):
            quantiles = [torch.quantile(values, bounds, dim=0) for values in draws]
            blocks.append([(values.mean(0), *q) for values, q in zip(draws, quantiles, strict=True)])
        layers: dict[str, np.ndarray] = {}
        for i, name in enumerate(("", "log_fold_change", "direct_effect")):
            keys = (name, *(f"{name}_{side}".lstrip("_") for side in ("lower", "upper")))
            values = (torch.cat(parts).numpy() for parts in zip(*(block[i] for block in blocks), strict=True))
            layers.update(zip(keys, values, strict=True))
        obs = arms.table()
        self._name_as_asked(obs)
        _note_covariates(obs, covariates)
        if of_cells is not None:
            obs[self._covariates.modifier] = of_cells
        return AnnData(layers.pop(""), obs=obs, var=pd.DataFrame(index=self.gene_names_), layers=layers)

    def score(self, adata: AnnData | None = None, *, by: str = "context", n_samples: int = 20, seed: int | None = 0):
        """Log-likelihood of cells under their drug and dosage, measured or not, per cell.

        Direct effects are averaged over `n_samples` draws from what is known of the drug.

        Parameters
        ----------
        adata
            Cells of the same genes; None for the training data.
        by
            `"context"` for the mean over the cells of each context, `"cell"` for one value a cell.
        n_samples
            Draws of the direct effects.
        seed
            Seed of the draws; None for new ones each time.

        Returns
        -------
        Data frame indexed by (perturbation, dosage) with columns `n_cells` and `log_likelihood`, or a series of the cells.
        """
        self._check_if_trained(warn=False)
        if self.module.measurement == "latent":
            raise ValueError(
                "`score` needs the likelihood of counts, which has no closed form for `measurement='latent'`. Compare "
                "predictions with `scgim.metrics`, or fit with `measurement='direct'`."
            )
        if by not in ("context", "cell"):
            raise ValueError(f"`by` must be 'context' or 'cell', found {by!r}.")
        n_samples = whole_number("n_samples", n_samples)
        adata = self._validate_screen(adata)
        design = self._screen_field().design(adata, need_controls=False)
        contexts, code = _contexts_of(design.rename(columns={"level": self._covariates.modifier}))
        shift, targets = self._context_effects(adata, contexts, n_samples, some_seed(seed))
        cells = self._cells(adata)
        cells = Cells(cells.x, code, self._design.scaled(cells.covariates), cells.log_size)
        values = cell_log_likelihoods(self.module, cells, shift, targets)
        if by == "cell":
            return pd.Series(values, index=adata.obs_names, name="log_likelihood")
        grouped = pd.Series(values).groupby(code)
        out = pd.DataFrame({"n_cells": grouped.size(), "log_likelihood": grouped.mean()})
        return out.set_axis(contexts)

    def _context_effects(
        self, adata: AnnData, contexts: pd.MultiIndex, n_samples: int, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws of direct effects and targets in each context, both (n_samples, K, d)."""
        names = contexts.get_level_values(0)
        treated = np.flatnonzero(names != self._setup_args["control"])
        interventions = log_dosage = None
        if len(treated):
            rows: pd.DataFrame | list[str] = names[treated].tolist()
            new, known = sorted(set(rows) - set(self.perturbations)), self.drug_embedding
            if new:
                table = self._embedding_of(adata, new)
                rows = pd.concat([known, table[known.columns]]).loc[rows]  # type: ignore[union-attr]
            query = self._drugs.query(rows, contexts.get_level_values(1).to_numpy()[treated])
            if contexts.nlevels > 2:
                query = query.at_levels(self._covariates.levels, contexts.get_level_values(2)[treated])
            interventions, log_dosage = query.interventions, query.log_dosage
        shape = (n_samples, len(contexts), len(self.gene_names_))
        return context_effects(interventions, log_dosage, treated, shape, seed)

    def _embedding_of(self, adata: AnnData, names: list[str]) -> pd.DataFrame:
        """Features of drugs of other data."""
        key, setup = self._setup_args["drug_embedding_key"], self._setup_args
        if (separator := setup.get("combination_separator")) is not None:
            check_no_combination([name for name in names if separator in name], self.perturbations, separator)
        if key is None:
            raise ValueError(f"{names} were not measured, and the model was set up without drug features.")
        labels = adata.obs[setup["perturbation_key"]].astype(str)
        table = resolve_embedding(adata, key, labels, control=setup["control"]).loc[names]
        return check_query_embedding(table, self._drugs.embedding.columns.tolist(), self.perturbations)  # type: ignore[union-attr]


def _note_covariates(obs: pd.DataFrame, covariates: pd.DataFrame | Mapping | None) -> None:
    """Give predictions the values that were asked for, under the names that they have in the user's data."""
    if covariates is not None:
        given = covariates.iloc[0] if isinstance(covariates, pd.DataFrame) else covariates
        for key, value in dict(given).items():
            if key not in obs:  # as the level of the effect modifier is
                obs[key] = value


def _contexts_of(design: pd.DataFrame) -> tuple[pd.MultiIndex, np.ndarray]:
    """Contexts of cells, sorted, and the code of each cell's context."""
    frame = pd.MultiIndex.from_frame(design)
    contexts = frame.unique().sort_values()
    return contexts, contexts.get_indexer(frame)
