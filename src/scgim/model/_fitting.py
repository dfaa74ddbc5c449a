"""Gradient descent on the graph that was found, and what keeps the model usable when it is stopped."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager, suppress
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import settings
from scvi.model.base import PyroSviTrainMixin

from scgim.model import _structure as structure
from scgim.model._calibration import calibrate
from scgim.model._controls import check_controls
from scgim.train._guard import GIMTrainRunner, KeepGoodState
from scgim.train._threads import threads_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scgim.model._course import Course
    from scgim.nn._stacking import DrugGenerator
    from scgim.train import BatchLoader

logger = logging.getLogger(__name__)


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


class FittingMixin:
    """From a graph to a fitted model; part of :class:`scgim.model.GIM`."""

    _train_runner_cls = GIMTrainRunner
    _generator: DrugGenerator | None

    def _run(self, course: Course, loader: BatchLoader, fit: dict) -> None:
        """Go through what is left of a course; where it is stopped early, put the model in order."""
        if self._measurement == "latent":
            with self._unchanged_if_stopped():
                self._fit_latent(loader, course.indices, fit["enable_progress_bar"])
            return
        if course.phase == "search":
            with self._unchanged_if_stopped():
                course.edge_probs = self._find_graph(loader, fit["enable_progress_bar"]).edge_probs
            course.phase = "fit"
        try:
            self._descend(course, loader, fit)
        except KeyboardInterrupt:
            self._settle(course, loader)
            warnings.warn(
                "Training was interrupted. The model keeps what it has learned so far and can be used.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        except FloatingPointError:
            self.is_trained_ = False
            with suppress(RuntimeError, ValueError):  # how it diverged says more
                self._settle(course, loader)
            raise

    def _descend(self, course: Course, loader: BatchLoader, fit: dict) -> None:
        """Fit on the graph that was found, cut edges without support, and refine."""
        if course.phase == "fit":
            self._fit(course, course.epochs, course.lr, course.early_stopping, fit)
            # of several processes, all cut the edges of the first
            course.evidence = self.trainer.strategy.broadcast(self._infer(loader))
            weak = self.adjacency_ & (course.evidence <= 0)
            if weak.any() and self._mechanism == "linear":
                logger.info("Cut %d edges without support.", int(weak.sum()))
                self.adjacency_ = self.adjacency_ & ~weak
                self.module.mechanism.set_graph(self.adjacency_)
                course.phase = "refine"
        if course.phase == "refine":
            self._fit(course, max(1, course.epochs // 3), course.lr / 4, False, fit)
        self._settle(course, loader)

    def _settle(self, course: Course, loader: BatchLoader) -> None:
        """Find what is known of targets and edges at the parameters as they are."""
        evidence = self._infer(loader)
        self._set_edge_probs(course.edge_probs, evidence if course.evidence is None else course.evidence)
        structure.note_ranges(self.module, loader)
        calibrate(self.module, loader)
        self._compare_with_priors()
        self._finish(loader)

    def _finish(self, loader: BatchLoader) -> None:
        """Check the fit on control cells, and fit the generator to what was found."""
        self.is_trained_ = True
        self.module.eval()
        self.control_check_ = check_controls(self, loader)
        if self.drug_embedding is not None:
            self._drug_generator()

    @contextmanager
    def _unchanged_if_stopped(self) -> Iterator[None]:
        """Leave a model that was trained before as it was if the search is stopped."""
        before = {name: value.clone() for name, value in self.module.state_dict().items()} if self.is_trained_ else None
        try:
            yield
        except BaseException:
            if before is not None:
                self.module.on_load(self)
                self.module.load_state_dict(before)
            raise

    def _fit(self, course: Course, epochs: int, lr: float, early_stopping: bool, fit: dict) -> None:
        """Gradient descent on the graph as it stands, to the end or from a checkpoint."""
        stop = {"early_stopping_patience": max(10, epochs // 3)} if early_stopping else {}
        validate = {"check_val_every_n_epoch": 1 if len(course.indices[1]) else None}
        # scvi-tools and Lightning write to some of these
        own: dict[str, Any] = {
            name: copy(value) if isinstance(value, (dict, list)) else value for name, value in fit.items()
        }
        plan_kwargs = {"lr": lr, "max_epochs": epochs, **own.pop("plan_kwargs")}
        checkpointer = course.checkpointer(self)
        good = KeepGoodState(checkpointer.first_epoch)
        own["callbacks"] = [checkpointer, good, *own.get("callbacks", [])]
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

    def _infer(self, loader: BatchLoader) -> np.ndarray:
        """Targets, dose-response curves and standard errors at the fit; returns the log evidence of each edge."""
        information = structure.gather_information(self.module, loader)
        structure.infer_targets(self.module, information, self._features())
        self._generator = None
        return structure.infer_edges(self.module, information, loader.n)

    def _set_edge_probs(self, from_search: np.ndarray, evidence: np.ndarray) -> None:
        """Probability of each edge: that of the search, limited by the support found at the fit."""
        probs = from_search
        if self._mechanism == "linear":
            tested = np.isfinite(evidence)
            support = np.where(tested, 1 / (1 + np.exp(-np.clip(evidence, -50, 50))), 1.0)
            probs = np.minimum(from_search, support)
        self.module.edge_probs.copy_(torch.as_tensor(probs))
