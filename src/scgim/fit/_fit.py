"""One training run, from top to bottom: statistics, search, start, descent, inference, baselines, check."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from scvi import settings

from scgim._constants import MANY_GENES
from scgim._priors import CELLS_A_GENE
from scgim.fit._baselines import match_baselines
from scgim.fit._contexts import drifts, match_contexts
from scgim.fit._continuous import match_continuous, sums_to_means
from scgim.fit._controls import check_controls
from scgim.fit._feedback import feedback_table, warn_of_feedback
from scgim.fit._hidden import fit_hidden, search_hidden_graph
from scgim.fit._inference import HiddenEffects, gather_information, infer_edges, infer_targets
from scgim.fit._levels import carry_to_levels
from scgim.fit._prior_check import warn_of_prior, warn_of_usual_targets
from scgim.fit._ranges import note_ranges
from scgim.fit._search import search_graph
from scgim.fit._search_bar import SearchBar, usual_time
from scgim.fit._settle import settle_covariates
from scgim.fit._start import start_from
from scgim.fit._statistics import gather_statistics, set_scales
from scgim.structure._watch import SearchWatch
from scgim.train._checkpoint import to_tensors
from scgim.train._threads import threads_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from lightning.pytorch import Trainer
    from torch import Tensor

    from scgim.fit._course import Course
    from scgim.interventions._stacking import DrugGenerator
    from scgim.module import GIMModule
    from scgim.structure._search import StructureResult
    from scgim.structure._states import HiddenStates
    from scgim.structure._statistics import ContextStatistics
    from scgim.train import BatchLoader

logger = logging.getLogger(__name__)

_FEWER_EPOCHS, _SMALLER_RATE = 3, 4  # times, to refine: little is left to be done; conventions, for time
_MAX_EVIDENCE = 50.0  # nats; what is more certain does not show in a probability


class Names(NamedTuple):
    """Names for messages."""

    genes: list[str]
    perturbations: list[str]


class Descend(Protocol):
    """Gradient descent on the graph as it stands, to the end or from a checkpoint."""

    def __call__(self, epochs: int, lr: float, *, early_stopping: bool) -> Trainer:
        """Fit the parameters of the module; raises what stopped it early."""


@dataclass
class Fit:
    """A training run. It writes to the module; what else it finds is kept here.

    Parameters
    ----------
    module
        The module.
    loader
        The training cells, in order.
    course
        What is to be done, and how far it is.
    features
        Features of the perturbations, shape (U, p); None if there are none.
    measured
        Perturbations that have training cells, boolean (U,).
    names
        Names of genes and perturbations.
    descend
        Gradient descent.
    seed
        Seed of the search.
    progress
        Whether to show how far the search is.
    search_seconds
        Time that the search may take, about; None for no limit.
    """

    module: GIMModule
    loader: BatchLoader
    course: Course
    features: Tensor | None
    measured: Tensor
    names: Names
    descend: Descend
    seed: int
    progress: bool
    search_seconds: float | None = None

    usable: bool | None = None
    """Whether the model can be used; None for as before."""
    controls: pd.DataFrame | None = None
    """How simulated control cells compare with the observed ones, at the end of the run."""
    generator: DrugGenerator | None = None
    """The generator, at the end of the run; None for a screen without features."""

    def run(self) -> None:
        """Do what is left of the course; where it is stopped early, put the module in order."""
        if self.module.measurement == "latent":
            with unchanged_if_stopped(self.module):
                self._fit_hidden()
            return
        if self.course.phase == "search":
            with unchanged_if_stopped(self.module):
                self._search()
            self.course.phase = "fit"
        try:
            self._fit_on_graph()
        except KeyboardInterrupt:
            self._conclude()
            warnings.warn(
                "Training was interrupted. The model keeps what it has learned so far and can be used.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        except FloatingPointError:
            self.usable = False
            with suppress(RuntimeError, ValueError):  # how it diverged says more
                self._conclude()
            raise

    def _search(self) -> None:
        """Search for the graph, and start from what is found."""
        self._warn_of_many_genes()
        set_scales(self.module, self.loader)
        statistics = gather_statistics(self.module, self.loader)
        with self._watched_search() as watch:
            result, states = self._graph(statistics, watch)
            start_from(self.module, statistics, result, states)
            settle_covariates(self.module, self.loader)
        self.course.edge_probs, self.course.trace = result.edge_probs, result.trace
        self._note_feedback(result)

    def _graph(self, statistics: ContextStatistics, watch: SearchWatch) -> tuple[StructureResult, HiddenStates | None]:
        if self.course.in_hidden:
            result, effects = search_hidden_graph(
                self.module, statistics, self.loader, seed=self.seed, watch=watch, features=self.features
            )
            self.course.of_moments = asdict(effects)
            return result, None
        return search_graph(self.module, statistics, self.loader, seed=self.seed, watch=watch, features=self.features)

    def _note_feedback(self, result: StructureResult) -> None:
        found = result.loops
        self.course.feedback = None if found is None else feedback_table(found, self.names.genes)

    def _warn_of_many_genes(self) -> None:
        """Say that the search takes long, and what to do, where any of many genes may regulate."""
        known = self.module.knowledge
        if len(self.names.genes) >= MANY_GENES and known.told_regulators() is None:
            warnings.warn(
                f"The search takes each of {len(self.names.genes)} genes for a regulator of all others: {usual_time(len(self.names.genes))} or more "
                "on one core. Tell which genes may regulate (`scgim.pp.mark_regulators`, `setup_anndata(regulator_key=...)`), take fewer genes "
                "(`scgim.pp.select_genes`), or less time (`train(max_search_seconds=...)`; Ctrl-C goes on with the best graph so far).",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )

    @contextmanager
    def _watched_search(self) -> Iterator[SearchWatch]:
        """What watches the search: its time, its progress bar, and Ctrl-C, which goes on with the best graph so far."""
        with SearchBar(disable=not self.progress) as bar, threads_for(0):  # many small regressions
            yield SearchWatch(self.search_seconds, bar.moved, bar.progress, _tell_of_interrupt)

    def _fit_on_graph(self) -> None:
        """Fit on the graph that was found, cut edges without support, and refine."""
        course, is_inferred = self.course, False
        if course.phase == "fit":
            trainer = self.descend(course.epochs, course.lr, early_stopping=course.early_stopping)
            # of several processes, all cut the edges of the first
            course.evidence = trainer.strategy.broadcast(self._infer())
            is_inferred = not self._cut(course.evidence)
            if not is_inferred:
                course.phase = "refine"
        if course.phase == "refine":
            epochs = max(1, course.epochs // _FEWER_EPOCHS)
            self.descend(epochs, course.lr / _SMALLER_RATE, early_stopping=False)
        self._conclude(is_inferred=is_inferred)

    def _cut(self, evidence: np.ndarray) -> bool:
        """Cut edges without support; whether there were any. Whether hidden units support one, the evidence does not say."""
        if self.course.in_hidden:
            return False
        adjacency = self.module.adjacency.cpu().numpy().astype(bool)
        weak = adjacency & (evidence <= 0)
        if not (weak.any() and self.module.mechanism.is_linear):
            return False
        logger.info("Cut %d edges without support.", int(weak.sum()))
        self.module.mechanism.set_graph(adjacency & ~weak)
        return True

    def _infer(self) -> np.ndarray:
        """Targets, dose-response curves and standard errors at the fit; returns the log evidence of each edge."""
        information = gather_information(self.module, self.loader)
        enough = self.loader.n >= CELLS_A_GENE * len(self.module.centre)  # to tell in what mechanisms fail
        told = self.course.of_moments
        of_moments = None if told is None else HiddenEffects(**to_tensors(told))
        loose = infer_targets(self.module, information, self.features, departures=enough, of_moments=of_moments)
        return infer_edges(self.module, information, self.loader.n, loose)

    def _conclude(self, *, is_inferred: bool = False) -> None:
        """Find what is known of targets and edges at the parameters as they are, unless it was, and what depends on it."""
        before = self.course.evidence
        now = before if is_inferred and before is not None else self._infer()
        self._note_edge_probs(now if before is None else before)
        note_ranges(self.module, self.loader)
        self._match()
        self._check()

    def _match(self) -> None:
        """Have drawn cells of controls and of measured contexts the means that are known of them."""
        match_baselines(self.module, self.loader)
        drift = match_contexts(self.module, self.loader) if drifts(self.module) else None
        if drift is not None:
            self.module.knowledge.note_drift(drift.added, drift.error_var, drift.means.error.square())
        elif sums_to_means(self.module):
            self.module.knowledge.note_drift(match_continuous(self.module, self.loader))
        carry_to_levels(self.module, self.loader, drift)

    def _fit_hidden(self) -> None:
        """Fit a network of hidden expression by moments; there is no descent, so epochs and rates do not enter."""
        self._warn_of_many_genes()
        with self._watched_search() as watch:
            result = fit_hidden(self.module, self.loader, self.seed, watch, self.features)
        self.course.trace = result.trace
        self._note_feedback(result)
        note_ranges(self.module, self.loader, of_parents=False)
        self._match()
        self._check()

    def _note_edge_probs(self, evidence: np.ndarray) -> None:
        """Probability of each edge: that of the search, limited by the support found at the fit."""
        probs = self.course.edge_probs
        if self.module.mechanism.is_linear and not self.course.in_hidden:
            limited = np.clip(evidence, -_MAX_EVIDENCE, _MAX_EVIDENCE)
            probs = np.minimum(probs, np.where(np.isfinite(evidence), 1 / (1 + np.exp(-limited)), 1.0))
        self.module.knowledge.edge_probs.copy_(torch.as_tensor(probs))

    def _check(self) -> None:
        """Compare with priors and control cells, and fit the generator to what was found."""
        warn_of_prior(self.module.knowledge, self.measured, self.names)
        warn_of_usual_targets(self.module.knowledge, self.measured, self.names)
        warn_of_feedback(self.course.feedback)
        self.usable = True
        self.module.eval()
        self.controls = check_controls(self.module, self.loader, self.names.genes)
        if self.features is not None:
            self.generator = self.module.drug_generator(self.features, torch.nonzero(self.measured)[:, 0])


@contextmanager
def unchanged_if_stopped(module: GIMModule) -> Iterator[None]:
    """Leave a module that was trained before as it was if the search is stopped."""
    before = {name: _copy(value) for name, value in module.state_dict().items()}
    try:
        yield
    except BaseException:
        module.load_state_dict(before)
        raise


def _copy(value: Tensor) -> Tensor:
    """A copy; of a table of one value, as most are before the first search, of that alone."""
    first = value.flatten()[:1]
    if value.numel() > 1 and (value == first).all():
        return first.clone().expand(value.numel()).view(value.shape)
    return value.clone()


def _tell_of_interrupt() -> None:
    warnings.warn(
        "The search for the graph was interrupted. The fit goes on with the best graph so far; interrupt it again to stop it.",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )
