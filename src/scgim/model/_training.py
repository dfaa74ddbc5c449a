"""Training: graph, then mechanisms and effects on that graph, then what is known of targets and edges."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import numpy as np
import pandas as pd
import torch
from scvi import settings
from scvi.model.base import PyroSviTrainMixin
from tqdm.auto import tqdm

from scgim.model import _structure as structure
from scgim.model._covariates import centre_and_scale
from scgim.train import BatchLoader, Cells, CellsDataModule, GIMTrainingPlan
from scgim.train._data import split_cells
from scgim.train._plan import default_max_epochs
from scgim.train._threads import threads_for

logger = logging.getLogger(__name__)

_MAX_CONTROL_POOL = 5000


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's hints on hardware and its notes on its own internals off the console."""
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in ("isinstance.*LeafSpec", ".*treespec.*", ".*does not have many workers.*"):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        lightning.setLevel(level)


def _check_options(max_epochs: int | None, batch_size: int, accelerator: str) -> None:
    """Raise for numbers that mean no training, and for a GPU that is not there."""
    for name, value in (("max_epochs", max_epochs), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, found {value}.")
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if not {"gpu": has_cuda or has_mps, "cuda": has_cuda, "mps": has_mps}.get(accelerator, True):
        raise ValueError(
            f"`accelerator={accelerator!r}` was asked for, but torch finds no GPU of that kind. Use `accelerator='cpu'` or "
            "`'auto'`, or install a build of torch that fits the driver of your GPU."
        )


class TrainingMixin:
    """`train` of :class:`scgim.model.GIM`."""

    _data_splitter_cls = CellsDataModule
    _training_plan_cls = GIMTrainingPlan

    def train(
        self,
        max_epochs: int | None = None,
        *,
        accelerator: str = "auto",
        device: int | str = "auto",
        train_size: float = 0.95,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        split_key: str | None = None,
        batch_size: int = 1024,
        early_stopping: bool = True,
        lr: float = 0.02,
        plan_kwargs: dict | None = None,
        enable_progress_bar: bool = True,
        **trainer_kwargs,
    ) -> None:
        """Fit network, mechanisms, targets and generator.

        First the graph is found by search on sufficient statistics, the direct effects summed out. Then mechanisms and
        effects are fitted on it by gradient descent, edges without support are cut, and the fit is refined.

        Parameters
        ----------
        max_epochs
            Passes through the cells; None for about 400 steps, at least 10 passes.
        accelerator, device
            As in scvi-tools: `"auto"`, `"cpu"`, `"gpu"`; device number.
        train_size
            Share of the cells to train on.
        validation_size
            Share to validate on; None for the rest. Cells beyond both are left alone.
        shuffle_set_split
            Split at random rather than in order.
        split_key
            Column of `obs` with values `"train"` and `"test"` (see :func:`scgim.data.split_by_context`), in place of a
            random split: test cells are used for validation only.
        batch_size
            Cells in a minibatch.
        early_stopping
            Stop when the validation loss has not fallen for a third of the epochs.
        lr
            Largest learning rate.
        plan_kwargs
            Arguments of :class:`scgim.train.GIMTrainingPlan`.
        enable_progress_bar
            Show progress.
        **trainer_kwargs
            Arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        ValueError
            `train_size`, `validation_size` or `split_key` cannot be used.
        FloatingPointError
            The loss diverged.
        """
        _check_options(max_epochs, batch_size, accelerator)
        cells = self._prepare_cells()
        indices = self._split(cells, train_size, validation_size, shuffle_set_split, split_key)
        self._note_measured(cells.context[indices[0]])
        fit = {
            "accelerator": accelerator,
            "device": device,
            "batch_size": batch_size,
            "datasplitter_kwargs": {"cells": cells, "external_indexing": indices},
            "enable_progress_bar": enable_progress_bar,
            "log_every_n_steps": 1,
            **trainer_kwargs,
        }
        loader = BatchLoader(cells.take(indices[0]), max(batch_size, 4096), shuffle=False)
        result = self._find_graph(loader, enable_progress_bar)
        epochs = max_epochs or default_max_epochs(len(indices[0]), batch_size)
        # cells of held-out contexts tell how well drugs generalise, not when the fit has converged
        stop = early_stopping and split_key is None and len(indices[1]) > 0
        self._fit(epochs, lr, stop, plan_kwargs, fit)
        evidence = self._infer(loader)
        weak = self.adjacency_ & (evidence <= 0)
        if weak.any() and self._mechanism == "linear":
            logger.info("Cut %d edges without support.", int(weak.sum()))
            self.adjacency_ = self.adjacency_ & ~weak
            self.module.mechanism.set_graph(self.adjacency_)
            self._fit(max(1, epochs // 3), lr / 4, False, plan_kwargs, fit)
            self._infer(loader)
        self._set_edge_probs(result.edge_probs, evidence)
        self.module.eval()

    def _prepare_cells(self) -> Cells:
        """Cells of the training data, covariates centred; keeps what predictions need of the controls."""
        cells = self._cells(self._validate_anndata(self._own_data()), training=True)
        if (cells.context < 0).any():
            raise ValueError(
                f"{int((cells.context < 0).sum())} cells have a perturbation or dosage that the model was not set up with. "
                "Set up the data and make a new model: `GIM.setup_anndata(adata); model = GIM(adata)`."
            )
        control = cells.context == 0
        n_continuous = len(self._covariates.continuous)
        centre, scale = centre_and_scale(cells.covariates, n_continuous, control)
        self.covariate_scaling_ = (centre, scale)
        cells = Cells(cells.x, cells.context, self._scaled(cells.covariates), cells.log_size)
        pool = np.flatnonzero(control)
        if len(pool) > _MAX_CONTROL_POOL:
            pool = np.random.default_rng(0).choice(pool, _MAX_CONTROL_POOL, replace=False)
        self.control_pool_ = {"covariates": cells.covariates[pool], "log_size": cells.log_size[pool]}
        self.mean_total_ = float(cells.x.sum() / len(cells))
        return cells

    def _note_measured(self, context: np.ndarray) -> None:
        """Count the training cells of each perturbation; those without any are predicted like drugs never measured."""
        counts = np.bincount(context, minlength=len(self.contexts) + 1)
        self.n_cells_ = pd.Series(counts[1:], index=self.contexts).groupby("perturbation", sort=False).sum()

    def _scaled(self, covariates: np.ndarray) -> np.ndarray:
        centre, scale = self.covariate_scaling_
        return ((covariates - centre) / scale).astype(np.float32)

    def _split(self, cells, train_size, validation_size, shuffle, split_key) -> list[np.ndarray]:
        if split_key is None:
            seed = 0 if settings.seed is None else settings.seed
            indices = split_cells(len(cells), train_size, validation_size, shuffle, seed)
            if not (cells.context[indices[0]] == 0).any():
                raise ValueError("No control cell is among the training cells. Raise `train_size` or shuffle the cells.")
            return indices
        if split_key not in self.adata.obs:
            raise ValueError(f"`split_key` {split_key!r} is not a column of `adata.obs`: {list(self.adata.obs)}.")
        values = self.adata.obs[split_key].astype(str).to_numpy()
        train, test = (np.flatnonzero(values == v) for v in ("train", "test"))
        if not len(train):
            raise ValueError(f"No cell has 'train' in `adata.obs[{split_key!r}]`; found {sorted(set(values))}.")
        if not (cells.context[train] == 0).any():
            raise ValueError(f"No control cell has 'train' in `adata.obs[{split_key!r}]`.")
        return [train, test, np.flatnonzero((values != "train") & (values != "test"))]

    def _find_graph(self, loader: BatchLoader, progress: bool):
        """Search for the graph and start the module from it."""
        structure.set_scales(self.module, loader)
        statistics = structure.gather_statistics(self.module, loader, 2 if self._mechanism == "mlp" else 1)
        seed = 0 if settings.seed is None else settings.seed
        with tqdm(desc="Searching for the graph", unit=" moves", disable=not progress) as bar:

            def show(score: float) -> None:
                bar.update()
                bar.set_postfix(score=f"{score:.1f}", refresh=False)

            with threads_for(0):  # many small regressions
                result = structure.learn_structure(self.module, statistics, edge_log_odds=-2.0, seed=seed, on_move=show)
        self.adjacency_ = result.adjacency
        self.search_trace_ = result.trace
        return result

    def _fit(self, max_epochs: int, lr: float, early_stopping: bool, plan_kwargs: dict | None, fit: dict) -> None:
        """Gradient descent on the graph as it stands."""
        stop = {"early_stopping_patience": max(10, max_epochs // 3)} if early_stopping else {}
        validate = {"check_val_every_n_epoch": 1 if len(fit["datasplitter_kwargs"]["external_indexing"][1]) else None}
        # scvi-tools and Lightning write to some of these
        own = {name: copy(value) if isinstance(value, (dict, list)) else value for name, value in fit.items()}
        self.module.train()
        with _quiet_lightning(), threads_for(fit["batch_size"] * len(self.gene_names_)):
            PyroSviTrainMixin.train(
                self,
                max_epochs=max_epochs,
                early_stopping=early_stopping,
                plan_kwargs={"lr": lr, "max_epochs": max_epochs, **(plan_kwargs or {})},
                **{**validate, **stop, **own},
            )

    def _infer(self, loader: BatchLoader) -> np.ndarray:
        """Targets, dose-response curves and standard errors at the fit; returns the log evidence of each edge."""
        information = structure.gather_information(self.module, loader)
        structure.infer_targets(self.module, information)
        self._generator = None
        return structure.infer_edges(self.module, information, structure.edge_cost(loader.n))

    def _set_edge_probs(self, from_search: np.ndarray, evidence: np.ndarray) -> None:
        """Probability of each edge: that of the search, limited by the support found at the fit."""
        probs = from_search
        if self._mechanism == "linear":
            tested = np.isfinite(evidence)
            support = np.where(tested, 1 / (1 + np.exp(-np.clip(evidence, -50, 50))), 1.0)
            probs = np.minimum(from_search, support)
        self.module.edge_probs.copy_(torch.as_tensor(probs))
