"""Training: what the user asks for, split into cells to train on and to validate on, and one :class:`scgim.fit.Fit`."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi.model.base import PyroSviTrainMixin

from scgim._priors import CELLS_A_GENE
from scgim._validation import quote_some
from scgim.fit._course import Course
from scgim.fit._fit import Fit, Names
from scgim.model._arguments import check_device, check_rate, check_seconds, check_trainer_arguments, whole_number
from scgim.model._checkpoints import attributes_of, resume
from scgim.model._preparation import FIRST_BATCH, PreparationMixin
from scgim.train import BatchLoader, Cells, CellsDataModule, GIMTrainingPlan
from scgim.train._data import keep_contexts, split_cells
from scgim.train._guard import GIMTrainRunner, KeepGoodState, QuietStop, explained_failures
from scgim.train._plan import N_STEPS_OF_PLATES, check_plan_arguments, default_max_epochs
from scgim.train._threads import threads_for

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from lightning.pytorch import Trainer

logger = logging.getLogger(__name__)

# Convention: a validation set that is large enough to see the fit stop improving; minibatches that a processor works through at ease.
_TRAIN_SIZE, _BATCH_SIZE = 0.95, 1024
# Without progress, a third of the epochs and at least this many stop the fit: convention.
_PATIENCE, _MIN_PATIENCE = 3, 10


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's hints on hardware and its notes on its own internals off the console."""
    names = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda")
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger_ in levels:
        logger_.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                "isinstance.*LeafSpec",
                ".*treespec.*",
                ".*does not have many workers.*",
                "Found .* in eval mode",
            ):
                warnings.filterwarnings("ignore", message=message)
            warnings.filterwarnings("ignore", message="Encountered")  # NaN, by Pyro; training stops there with a reason
            yield
    finally:
        for logger_, level in levels.items():
            logger_.setLevel(level)


class TrainingMixin(PreparationMixin, PyroSviTrainMixin):
    """`train` of :class:`scgim.model.GIM`."""

    _data_splitter_cls = CellsDataModule
    _training_plan_cls = GIMTrainingPlan
    _train_runner_cls = GIMTrainRunner

    def train(
        self,
        max_epochs: int | None = None,
        *,
        accelerator: str = "auto",
        device: int | str = "auto",
        train_size: float | None = _TRAIN_SIZE,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        split_key: str | None = None,
        batch_size: int | None = _BATCH_SIZE,
        early_stopping: bool = True,
        lr: float = 0.02,
        plan_kwargs: dict | None = None,
        enable_progress_bar: bool = True,
        max_search_seconds: float | None = None,
        checkpoint_dir: str | os.PathLike | None = None,
        checkpoint_every_n_epochs: int = 1,
        resume_from: str | os.PathLike | None = None,
        **trainer_kwargs,
    ) -> None:
        """Fit network, mechanisms, targets and generator.

        First the graph is found by search on sufficient statistics, the direct effects summed out. What the features of the other
        drugs say of each drug is then the prior of its targets, if that raises the evidence, and the search goes on under it (linear
        mechanisms and shifts; of others, targets alone have this prior, found at the end). Mechanisms
        and effects are fitted on the graph by gradient descent, edges without support are cut (none of a graph of hidden expression), and the fit is refined. Targets, effects
        and generator are fitted in turn at the end, and simulated control cells are compared with the observed ones: a warning
        names genes in which they differ, and `control_check_` holds their moments. Another names loops that the cells ask for and the
        graph, which is acyclic, leaves out (:meth:`get_feedback`).

        Parameters
        ----------
        max_epochs
            Passes through the cells; None for about 400 steps, at least 10 passes, and 100 on plates of continuous values with fewer than 12
            wells a gene (of linear mechanisms).
        accelerator, device
            As in scvi-tools: `"auto"`, `"cpu"`, `"gpu"`; device number.
        train_size
            Share of the cells to train on. Contexts of which none would be left are trained on whole, so that a plate with
            one well a context is, and then nothing is validated on; `split_key` holds out contexts.
        validation_size
            Share to validate on; None for the rest. Cells beyond both are left alone.
        shuffle_set_split
            Split at random rather than in order.
        split_key
            Column of `obs` with values `"train"` and `"test"` (see :func:`scgim.pp.split_by_context`), in place of a
            random split: test cells are used for validation only.
        batch_size
            Cells in a minibatch, over all processes.
        early_stopping
            Stop when the validation loss has not fallen for a third of the epochs.
        lr
            Largest learning rate.
        plan_kwargs
            Arguments of :class:`scgim.train.GIMTrainingPlan`.
        enable_progress_bar
            Show progress.
        max_search_seconds
            Seconds that the search for the graph may take, about; the fit then goes on with the best graph so far. None for no limit.
        checkpoint_dir
            Folder for checkpoints, from which a run that was killed goes on; the last two are kept. None writes none, or
            goes on writing to `resume_from`.
        checkpoint_every_n_epochs
            Passes through the cells from one checkpoint to the next. The first is written when the graph is found.
        resume_from
            Folder with the checkpoints of a run that did not end. Set up the same data and make the model with the same
            arguments; length, learning rate, batch size, early stopping and split are those of that run. The result is
            what it would have been without the stop.
        **trainer_kwargs
            Arguments of :class:`scvi.train.Trainer`; `devices` and `strategy` share the minibatches among several GPUs or
            processes.

        Notes
        -----
        Ctrl-C in the search for the graph ends the search, and the fit goes on with the best graph so far; after it, Ctrl-C stops training and
        keeps what was learned. The model can be used in both cases. Where :meth:`setup_anndata` was told which genes may regulate, the parents of
        the other genes are chosen in parallel as :func:`joblib.parallel_config` says. Processes that `torchrun` starts share these genes if the script
        has called :func:`torch.distributed.init_process_group` before, unless there is a `max_search_seconds`; without it each does the whole search.

        Raises
        ------
        ValueError
            `train_size`, `validation_size`, `split_key` or the checkpoints cannot be used.
        FloatingPointError
            The loss diverged. The model is as it was when it was last finite, and can be used.
        MemoryError, torch.cuda.OutOfMemoryError
            Memory ran out; the message says what can be done.
        """
        check_rate(lr)
        check_seconds("max_search_seconds", max_search_seconds)
        check_device(accelerator, device)
        check_plan_arguments(plan_kwargs or {})
        check_trainer_arguments(trainer_kwargs)
        every = whole_number("checkpoint_every_n_epochs", checkpoint_every_n_epochs)
        batch_size = whole_number("batch_size", _BATCH_SIZE if batch_size is None else batch_size)
        max_epochs = None if max_epochs is None else whole_number("max_epochs", max_epochs)
        train_size = _TRAIN_SIZE if train_size is None else train_size
        with threads_for():
            cells = self._prepare_cells()
        if resume_from is None:
            indices = self._split(cells, train_size, validation_size, shuffle_set_split, split_key)
            epochs = max_epochs or self._usual_epochs(len(indices[0]), batch_size)
            # cells of held-out contexts tell how well drugs generalise, not when the fit has converged
            stop = early_stopping and split_key is None and len(indices[1]) > 0
            course = Course(indices, epochs, lr, batch_size, stop)
        else:
            course = resume(self, resume_from)
        cells, max_search_seconds = self._measured(
            cells, course, max_search_seconds, is_new=resume_from is None, progress=enable_progress_bar
        )
        course.write_to(checkpoint_dir, resume_from, every)
        self._note_measured(cells.context[course.indices[0]])
        self._plan_kwargs = plan_kwargs or {}
        self.train_settings_ = {
            "max_epochs": max_epochs if resume_from is None else course.epochs,
            "train_size": train_size if split_key is None else 1.0,
            "validation_size": validation_size if split_key is None else None,
            "batch_size": course.batch_size,
            "early_stopping": early_stopping,
            "lr": course.lr,
        }
        arguments = {
            "accelerator": accelerator,
            "device": trainer_kwargs.pop("devices", device),  # what `scvi.autotune` gives
            "batch_size": course.batch_size,
            "datasplitter_kwargs": {"cells": cells, "external_indexing": course.indices},
            "enable_progress_bar": enable_progress_bar,
            "log_every_n_steps": 1,
            "plan_kwargs": plan_kwargs or {},
            **trainer_kwargs,
        }
        fit = self._new_fit(cells, course, arguments, max_search_seconds)
        try:
            with explained_failures(), threads_for():
                fit.run()
        finally:
            self._take_over(fit)

    def _new_fit(self, cells: Cells, course: Course, arguments: dict, search_seconds: float | None) -> Fit:
        """The training run, ready to go."""
        return Fit(
            self.module,
            BatchLoader(cells.take(course.indices[0]), max(course.batch_size, FIRST_BATCH), shuffle=False),
            course,
            features=None if self.drug_embedding is None else self._drugs.features,
            measured=torch.as_tensor(self._drugs.is_measured & self._drugs.is_drug),
            names=Names(self.gene_names_, self.perturbations),
            descend=partial(self._descend, course, arguments),
            seed=self._seed,
            progress=arguments["enable_progress_bar"],
            search_seconds=search_seconds,
        )

    def _take_over(self, fit: Fit) -> None:
        """Keep what a fit, whole or stopped early, has found beside the parameters."""
        self._known_drugs = None
        if fit.course.trace is not None:
            self.search_trace_ = fit.course.trace
        if fit.usable is not None:
            self.is_trained_ = fit.usable
        if fit.controls is not None:
            self.control_check_ = fit.controls
        if fit.usable:
            evidence = None if fit.course.in_hidden else fit.course.evidence
            self.edge_evidence_ = None if evidence is None else np.asarray(evidence)
            self.graph_is_hidden_, self.measurement_reason_ = fit.course.in_hidden, fit.course.reason
            self.feedback_ = fit.course.feedback
        if fit.generator is not None:
            self._drugs.generator = fit.generator
        if self.module.measurement == "latent" and fit.usable:  # there was no descent, which would have noted these
            self.history_ = {"search_score": pd.DataFrame({"search_score": self.search_trace_})}
            self.train_indices, self.validation_indices, self.test_indices = fit.course.indices

    def _note_measured(self, context: np.ndarray) -> None:
        """Count the training cells of each perturbation; those without any are predicted like drugs never measured."""
        n = self._n_controls
        counts = np.bincount(context, minlength=len(self.contexts) + n)
        self.n_cells_ = pd.Series(counts[n:], index=self.contexts).groupby("perturbation", sort=False).sum()
        self._known_drugs = None

    def _usual_epochs(self, n_cells: int, batch_size: int) -> int:
        few_wells = n_cells < CELLS_A_GENE * len(self.gene_names_)
        if self._is_continuous and self.module.mechanism.is_linear and few_wells:
            return default_max_epochs(n_cells, batch_size, N_STEPS_OF_PLATES)
        return default_max_epochs(n_cells, batch_size)

    def _split(self, cells, train_size, validation_size, shuffle, split_key) -> list[np.ndarray]:
        if split_key is None:
            indices = split_cells(len(cells), train_size, validation_size, shuffle, self._seed)
            if not (cells.context[indices[0]] < self._n_controls).any():
                raise ValueError(
                    "No control cell is among the training cells. Raise `train_size` or shuffle the cells."
                )
            kept = keep_contexts(indices, cells.context)
            if len(kept[0]) > len(indices[0]):
                logger.info(
                    "%d held-out cells are trained on after all, since their contexts had no others or too few were left "
                    "to validate on.",
                    len(kept[0]) - len(indices[0]),
                )
            return kept
        obs = self._own_data().obs
        if split_key not in obs:
            raise ValueError(f"`split_key` {split_key!r} is not a column of `adata.obs`: {list(obs)}.")
        values = obs[split_key].astype(str).to_numpy()
        train, test = (np.flatnonzero(values == v) for v in ("train", "test"))
        if not len(train):
            raise ValueError(f"No cell has 'train' in `adata.obs[{split_key!r}]`; found {sorted(set(values))}.")
        if not (cells.context[train] < self._n_controls).any():
            raise ValueError(f"No control cell has 'train' in `adata.obs[{split_key!r}]`.")
        without = np.setdiff1d(np.arange(self._n_controls), cells.context[train])
        if len(without):
            raise ValueError(
                f"No control cell of {quote_some([self._covariates.levels[k] for k in without])} has 'train' in "
                f"`adata.obs[{split_key!r}]`. Controls of every level of {self._covariates.modifier!r} are needed."
            )
        return [train, test, np.flatnonzero((values != "train") & (values != "test"))]

    def _descend(self, course: Course, arguments: dict, epochs: int, lr: float, *, early_stopping: bool) -> Trainer:
        """Gradient descent on the graph as it stands, to the end or from a checkpoint (:class:`scgim.fit._fit.Descend`)."""
        stop = {"early_stopping_patience": max(_MIN_PATIENCE, epochs // _PATIENCE)} if early_stopping else {}
        validate = {"check_val_every_n_epoch": 1 if len(course.indices[1]) else None}
        # scvi-tools and Lightning write to some of these
        own: dict[str, Any] = {
            name: copy(value) if isinstance(value, (dict, list)) else value for name, value in arguments.items()
        }
        plan_kwargs = {"lr": lr, "max_epochs": epochs, **own.pop("plan_kwargs")}
        checkpointer = course.checkpointer(partial(attributes_of, self))
        good = KeepGoodState(checkpointer.first_epoch)
        own["callbacks"] = [checkpointer, good, QuietStop(), *(own.get("callbacks") or [])]
        was_trained = self.is_trained_
        self.module.train()
        with _quiet_lightning(), threads_for(course.batch_size * len(self.gene_names_)):
            PyroSviTrainMixin.train(
                self,
                max_epochs=epochs - checkpointer.first_epoch,
                early_stopping=early_stopping,
                plan_kwargs=plan_kwargs,
                **{**validate, **stop, **own},
            )
        stopped = self.trainer.stopped_by
        if isinstance(stopped, FloatingPointError):
            good.restore(self.module)
            raise FloatingPointError(
                f"{stopped} The model is as it was after {good.epoch} epochs of this fit."
            ) from stopped
        if stopped is not None:
            self.is_trained_ = was_trained
            raise stopped
        return self.trainer
