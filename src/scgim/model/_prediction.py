"""Prediction of cells under drugs and dosages, measured or not."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scipy.special import logsumexp
from scvi import settings

from scgim._validation import check_covariates, check_query_dosage, check_query_embedding, quote_some
from scgim.nn._intervention import Interventions
from scgim.nn._stacking import DrugGenerator
from scgim.train import BatchLoader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    from scgim.nn._effects import CurveGrid

_NEGLIGIBLY_BEYOND = 0.01  # of the range
_CHUNK_VALUES = 8_000_000  # values drawn at a time: with all that is drawn for them, some 300 MB


class PredictionMixin:
    """`predict` and `score` of :class:`scgim.model.GIM`."""

    _generator: DrugGenerator | None = None

    def predict(
        self,
        drug_embedding: pd.DataFrame | ArrayLike | str | Sequence[str],
        dosage: float | ArrayLike | None = None,
        *,
        n_samples: int = 100,
        covariates: pd.DataFrame | Mapping | None = None,
        size_factor: float | ArrayLike | None = None,
        seed: int | None = None,
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
            measured perturbations may be given in place of features.
        dosage
            One dosage, or one a row; None for the median measured dosage.
        n_samples
            Cells drawn for each row.
        covariates
            Values of the covariates for all cells; a mapping or a data frame of one row. None draws the covariates, and
            with them the size factors, of control cells.
        size_factor
            One size factor, or one a cell; None draws those of control cells.
        seed
            Seed of the draws; None for a new one each time.

        Returns
        -------
        Cells x genes: drawn values in `X` (CSR for counts), their means given the parents in `layers["expected"]`,
        `perturbation`, `dosage` and `size_factor` in `obs`, the features in `uns["drug_embedding"]`.

        Raises
        ------
        ValueError
            Features, dosages or covariates do not fit the training data, or drugs that were not measured are asked of a
            model without features.
        """
        self._check_if_trained(warn=False)
        if n_samples < 1:
            raise ValueError(f"`n_samples` must be at least 1, found {n_samples}.")
        features, interventions, dosages = self._query(drug_embedding, dosage)
        generator = torch.Generator().manual_seed(seed) if seed is not None else _fresh_generator()
        n = len(features) * n_samples
        design, log_size = self._background(n, covariates, size_factor, generator)
        step = max(1, _CHUNK_VALUES // (n_samples * len(self.gene_names_)))
        parts = []
        for start in range(0, len(features), step):
            rows = torch.arange(start, min(start + step, len(features)))
            cells = slice(start * n_samples, (start + len(rows)) * n_samples)
            parts.append(
                self._draw(
                    interventions.rows(rows), dosages[rows], n_samples, design[cells], log_size[cells], generator
                )
            )
        x, expected = (
            np.concatenate(p) if isinstance(p[0], np.ndarray) else sparse.vstack(p, format="csr")
            for p in zip(*parts, strict=True)
        )
        self._warn_beyond_range(expected, log_size.numpy(), features.index, n_samples)
        names = np.repeat(features.index.to_numpy(dtype=str), n_samples)
        obs = pd.DataFrame(
            {
                "perturbation": pd.Categorical(names, categories=list(dict.fromkeys(names))),
                "dosage": np.repeat(self._dosages(dosage, len(features)), n_samples),
                "size_factor": np.exp(log_size.numpy()),
            },
            index=pd.RangeIndex(n).astype(str),
        )
        out = AnnData(x, obs=obs, var=pd.DataFrame(index=self.gene_names_), layers={"expected": expected})
        if features.shape[1]:
            out.uns["drug_embedding"] = features[~features.index.duplicated()]
        return out

    def _warn_beyond_range(self, expected: np.ndarray, log_size: np.ndarray, names: pd.Index, n_samples: int) -> None:
        """Warn where the mean expression under a drug lies outside the values of all training cells."""
        size = 1.0 if self._likelihood == "normal" else np.exp(log_size)[:, None]
        mean = (expected / size).reshape(len(names), n_samples, -1).mean(axis=1)
        low, high = self.module.value_range.cpu().numpy()
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

    def _query(self, drug_embedding, dosage) -> tuple[pd.DataFrame, Interventions, torch.Tensor]:
        """Features, interventions and log dosages of the rows asked for."""
        known = self.drug_embedding
        columns = None if known is None else known.columns.tolist()
        features = check_query_embedding(drug_embedding, columns, self.perturbations)
        if known is not None and not features.shape[1]:  # measured perturbations, given by name
            features = known.loc[features.index]
        with np.errstate(divide="ignore"):
            log_dosage = torch.as_tensor(np.log(self._dosages(dosage, len(features))))
        return features, self._interventions(features), log_dosage

    def _dosages(self, dosage, n: int) -> np.ndarray:
        """Dosage of each of n rows; the median measured one where none is given."""
        if dosage is None:
            dosage = float(np.median(self.contexts.get_level_values("dosage")))
        return check_query_dosage(dosage, n)

    def _interventions(self, features: pd.DataFrame) -> Interventions:
        """What is known of each row: of measured perturbations by name, of others by their features."""
        code = pd.Index(self.perturbations).get_indexer(features.index)
        measured = self.module.interventions()
        untrained = (code >= 0) & ~self._is_measured[code]
        if self.drug_embedding is not None:
            code = np.where(untrained, -1, code)
        elif untrained.any():
            raise ValueError(
                f"{sorted(set(features.index[untrained]))} had no cells to train on, and the model has no drug features. "
                "Train on some of their cells, or set up the screen with `drug_embedding_key`."
            )
        if (code >= 0).all():
            return measured.rows(torch.as_tensor(code))
        new = self._drug_generator()(torch.as_tensor(features.to_numpy(dtype=np.float64)[code < 0]))
        position = np.where(code >= 0, code, len(self.perturbations) + np.cumsum(code < 0) - 1)
        return Interventions.stack([measured, new]).rows(torch.as_tensor(position))

    def _drug_generator(self) -> DrugGenerator:
        """Generator of the fitted screen; made once, from what is saved."""
        if self._generator is None:
            known = torch.as_tensor(np.flatnonzero(self._is_measured))
            features, interventions, curves, log_dosages = self._generator_inputs()
            responses = self.module.responses().of(known)
            self._generator = DrugGenerator(features, interventions, curves, log_dosages, responses)
        return self._generator

    def _generator_inputs(self) -> tuple[torch.Tensor, Interventions, CurveGrid, tuple[float, float]]:
        """Features and interventions of the measured perturbations, curves to choose from and range of dosages."""
        module, known = self.module, torch.as_tensor(np.flatnonzero(self._is_measured))
        features = torch.tensor(self.drug_embedding.to_numpy(dtype=np.float64))
        return features[known], module.interventions().rows(known), module.curve_grid(), module.dosage_range()

    def _features(self) -> torch.Tensor | None:
        """Features of the perturbations of the screen, shape (U, p); None if it was set up without."""
        known = self.drug_embedding
        return None if known is None else torch.tensor(known.to_numpy(dtype=np.float64))

    @property
    def _is_measured(self) -> np.ndarray:
        """Which perturbations of the registered screen had cells to train on."""
        return self.n_cells_.reindex(self.perturbations).to_numpy() > 0

    def _background(
        self, n: int, covariates, size_factor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Covariates (n, Q) and log size factors (n,) of cells to be drawn."""
        pool = self.control_pool_
        pick = torch.randint(len(pool["log_size"]), (n,), generator=generator).numpy()
        design, log_size = pool["covariates"][pick], pool["log_size"][pick]
        if covariates is not None:
            frame = pd.DataFrame(covariates, index=None if isinstance(covariates, pd.DataFrame) else [0])
            if len(frame) != 1:
                raise ValueError(f"`covariates` has {len(frame)} rows. Expected one, which holds for all cells.")
            if set(frame) != set(self._covariates.keys):
                raise ValueError(
                    f"`covariates` holds {list(frame)}. The model knows {self._covariates.keys}: give all of them."
                )
            check_covariates(frame[list(self._covariates.categories)], self._covariates.categories)
            design = np.repeat(self._scaled(self._covariates.encode(frame)), n, axis=0)
        if size_factor is not None:
            values = np.asarray(size_factor, dtype=np.float64).ravel()
            if len(values) not in (1, n) or not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(f"`size_factor` must be one or {n} positive numbers, found {len(values)} values.")
            log_size = np.broadcast_to(np.log(values), n).astype(np.float32)
        return torch.as_tensor(design), torch.as_tensor(np.ascontiguousarray(log_size))

    def _draw(self, interventions: Interventions, log_dosage, n_samples: int, design, log_size, generator):
        """Draw cells of a few rows; values and means, CSR for counts."""
        shift, targets = (t.flatten(0, 1) for t in interventions.sample(log_dosage, n_samples, generator))
        x, expected = self._sample(shift, targets, design, log_size, generator)
        return (x if self._likelihood == "normal" else sparse.csr_matrix(x)), expected

    def _sample(
        self, shift, targets, design, log_size, generator: torch.Generator, fixed: Mapping[int, float] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values and means of cells under given direct effects, genes held at `fixed` (counts: per unit of size factor)."""
        device = self.module.device
        draws = generator
        if device.type != "cpu":
            draws = torch.Generator(device).manual_seed(int(torch.randint(2**31, (), generator=generator)))
        log_size = log_size[:, None].to(device)
        unit = torch.ones_like(log_size) if self._likelihood == "normal" else log_size.exp()
        held = {gene: value * unit[:, 0] for gene, value in (fixed or {}).items()}
        x, expected = (
            values.cpu().numpy()
            for values in self.module.sample_cells(
                shift.float().to(device), targets.to(device), design.to(device), log_size, draws, held
            )
        )
        if held and self._likelihood != "normal":
            x[:, list(held)] = np.rint(x[:, list(held)])
        return x, expected

    @torch.inference_mode()
    def score(self, adata: AnnData | None = None, *, by: str = "context", n_samples: int = 20, seed: int = 0):
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
            Seed of the draws.

        Returns
        -------
        Data frame indexed by (perturbation, dosage) with columns `n_cells` and `log_likelihood`, or a series of the cells.
        """
        self._check_if_trained(warn=False)
        if self._measurement == "latent":
            raise ValueError(
                "`score` needs the likelihood of counts, which has no closed form for `measurement='latent'`. Compare "
                "predictions with `scgim.metrics`, or fit with `measurement='direct'`."
            )
        if by not in ("context", "cell"):
            raise ValueError(f"`by` must be 'context' or 'cell', found {by!r}.")
        adata = self._validate_screen(adata)
        design = self._screen_field().design(adata, need_controls=False)
        contexts, code = _contexts_of(design)
        shift, targets = self._context_effects(adata, contexts, n_samples, seed)
        values = self._cell_scores(adata, code, shift, targets)
        if by == "cell":
            return pd.Series(values, index=adata.obs_names, name="log_likelihood")
        grouped = pd.Series(values).groupby(code)
        out = pd.DataFrame({"n_cells": grouped.size(), "log_likelihood": grouped.mean()})
        return out.set_axis(contexts)

    def _context_effects(self, adata: AnnData, contexts: pd.MultiIndex, n_samples: int, seed: int):
        """Draws of direct effects and targets in each context, both (n_samples, K, d)."""
        control = self._setup_args["control"]
        names = contexts.get_level_values(0)
        treated = np.flatnonzero(names != control)
        shift = torch.zeros(n_samples, len(contexts), len(self.gene_names_))
        targets = torch.zeros(shift.shape, dtype=torch.bool)
        if len(treated):
            rows: pd.DataFrame | list[str] = names[treated].tolist()
            new = sorted(set(rows) - set(self.perturbations))
            if new:
                table = self._embedding_of(adata, new)
                known = self.drug_embedding
                rows = pd.concat([known, table[known.columns]]).loc[rows]
            _, interventions, dosage = self._query(rows, contexts.get_level_values(1).to_numpy()[treated])
            generator = torch.Generator().manual_seed(seed)
            drawn, on = interventions.sample(dosage, n_samples, generator)
            shift[:, treated], targets[:, treated] = drawn.transpose(0, 1).float(), on.transpose(0, 1)
        return shift.to(self.module.device), targets.to(self.module.device)

    def _cell_scores(self, adata: AnnData, code: np.ndarray, shift: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
        cells = self._cells(adata)
        cells = type(cells)(cells.x, code, self._scaled(cells.covariates), cells.log_size)
        out = []
        for raw in BatchLoader(cells, 2048, shuffle=False):
            b = {name: value.to(self.module.device) for name, value in raw.items()}
            draws = [
                self.module.log_likelihood(
                    b["x"], b["covariates"], b["log_size"], s[b["context"]], t[b["context"]]
                ).sum(1)
                for s, t in zip(shift, targets, strict=True)
            ]
            out.append(logsumexp(torch.stack(draws).double().cpu().numpy(), axis=0) - np.log(len(draws)))
        return np.concatenate(out)


def _fresh_generator() -> torch.Generator:
    """A generator seeded by torch's global one, so that `scvi.settings.seed` makes it reproducible."""
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))


def _contexts_of(design: pd.DataFrame) -> tuple[pd.MultiIndex, np.ndarray]:
    """Contexts of cells, sorted, and the code of each cell's context."""
    frame = pd.MultiIndex.from_frame(design[["perturbation", "dosage"]])
    contexts = frame.unique().sort_values()
    return contexts, contexts.get_indexer(frame)
