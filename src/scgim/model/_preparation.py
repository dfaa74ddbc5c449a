"""From the data to cells to train on: values and covariates, how deeply cells were sequenced, and whether the graph is searched in counts."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scvi import settings

from scgim._size_factors import common_variance
from scgim._validation import quote_some
from scgim.fit._depth import can_tell_depth, estimate_depth, read_depth
from scgim.fit._fit import unchanged_if_stopped
from scgim.fit._measurement import is_expression_hidden
from scgim.fit._search_bar import SearchBar
from scgim.model._base import SET_UP_AGAIN, ScreenModel
from scgim.predict._covariates import centre_and_scale
from scgim.train import BatchLoader, Cells
from scgim.train._data import shared_values
from scgim.train._threads import threads_for

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgim.fit._course import Course
    from scgim.structure._depth import DepthModel

logger = logging.getLogger(__name__)

FIRST_BATCH = 4096  # cells in a pass without gradients, or as many as the minibatches of the fit hold
_MAX_CONTROL_POOL = 5000  # control cells whose depth and covariates are drawn from, kept in the model: for memory
_MIN_OF_LEVEL = 100  # of these, of each level of the effect modifier: convention
_TINY = 1e-3  # seconds that are left to the search at least


class PreparationMixin(ScreenModel):
    """What :meth:`scgim.model.GIM.train` begins with."""

    def _prepare_cells(self) -> Cells:
        """Cells of the training data, covariates centred."""
        adata = self._own_data()
        self._check_unchanged(adata)
        cells = self._cells(self._validate_anndata(adata), training=True)
        self._check_known(adata, cells.context < 0)
        control = cells.context < self._n_controls
        n_continuous = len(self._covariates.continuous)
        self.covariate_scaling_ = centre_and_scale(cells.covariates, n_continuous, control)
        self.mean_total_ = float(cells.x.sum() / len(cells))
        return Cells(shared_values(cells.x), cells.context, self._design.scaled(cells.covariates), cells.log_size)

    def _check_known(self, adata: AnnData, unknown: NDArray[np.bool_]) -> None:
        """Raise where cells are in contexts that the data were not set up with, as those of another screen that a model was loaded with."""
        if unknown.any():
            of = adata.obs.loc[unknown, self._setup_args["perturbation_key"]].astype(str).unique()
            raise ValueError(
                f"{int(unknown.sum())} cells of {quote_some(of)} got a perturbation or dosage that the model does not know: `adata` was set up "
                f"by `GIM.load`, as the data of the model loaded. {SET_UP_AGAIN}"
            )

    def _measured(
        self, cells: Cells, course: Course, max_seconds: float | None, *, is_new: bool, progress: bool
    ) -> tuple[Cells, float | None]:
        """Cells whose depth is known, and the seconds that are left to the search; for a new run, found first."""
        started = time.monotonic()
        choose = is_new and self.init_params_["non_kwargs"].get("measurement") == "auto"
        cells = self._with_depth(cells, course, max_seconds, is_new=is_new)
        if choose:
            self.module.take_measurement("direct")
            with unchanged_if_stopped(self.module):
                training = cells.take(course.indices[0])
                course.in_hidden, course.reason = self._is_hidden(training, max_seconds, progress)
        left = None if max_seconds is None else max(max_seconds - (time.monotonic() - started), _TINY)
        return cells, left

    def _with_depth(self, cells: Cells, course: Course, max_seconds: float | None, *, is_new: bool) -> Cells:
        """Cells with size factors that are estimated from the training cells, where they were not given and can be told.

        Cells that are predicted have those of controls, drawn from what is known of each.
        """
        training, depth = cells.take(course.indices[0]), self.module.depth
        is_given = self._setup_args["size_factor_key"] is not None or self._is_continuous
        can_be_told = not is_given and can_tell_depth(self.module, len(training))
        if is_new:
            depth.write(self._found_depth(training, max_seconds) if can_be_told else None)
        if not depth.is_known:
            cells = replace(cells, log_size=np.zeros_like(cells.log_size)) if can_be_told else cells
            self.control_pool_ = self._pool_of(cells)
            return cells
        log_size, sd = read_depth(self.module, cells)
        drawn = log_size + sd * np.random.default_rng(0).normal(size=len(cells))
        self.control_pool_ = self._pool_of(replace(cells, log_size=drawn.astype(np.float32)))
        return replace(cells, log_size=log_size.astype(np.float32))

    def _found_depth(self, training: Cells, max_seconds: float | None) -> DepthModel | None:
        controls = np.flatnonzero(training.context < self._n_controls)[:_MAX_CONTROL_POOL]
        with threads_for(0):
            variance = common_variance(training.x[controls])
            return estimate_depth(self.module, training, variance, self._seed, max_seconds)

    def _is_hidden(self, training: Cells, max_seconds: float | None, progress: bool) -> tuple[bool, str]:
        """Whether the graph is to be searched in hidden expression, as that explains the cells better than counts do, and why."""
        if self._against_hidden:
            is_hidden, reason = False, f"hidden expression does not go with {', '.join(self._against_hidden)}"
        else:
            loader = BatchLoader(training, FIRST_BATCH, shuffle=False)
            with threads_for(0), SearchBar(disable=not progress) as bar:
                is_hidden, reason = is_expression_hidden(self.module, loader, self._seed, max_seconds, bar.moved)
        logger.info(
            "measurement='auto': the graph is searched in %s: %s.",
            "hidden expression" if is_hidden else "counts",
            reason,
        )
        return is_hidden, reason

    @property
    def _seed(self) -> int:
        return 0 if settings.seed is None else settings.seed

    def _pool_of(self, cells: Cells) -> dict[str, NDArray]:
        """Covariates and size factors of control cells, which predicted cells have."""
        control = cells.context < self._n_controls
        pool = np.flatnonzero(control)
        if len(pool) > _MAX_CONTROL_POOL:
            order = np.random.default_rng(0).permutation(pool)
            # of each level of the effect modifier, whose cells are drawn from its own controls, as many as there are
            rank = pd.Series(order).groupby(cells.context[order]).cumcount().to_numpy()
            pool = np.sort(
                np.concatenate(
                    [order[:_MAX_CONTROL_POOL], order[_MAX_CONTROL_POOL:][rank[_MAX_CONTROL_POOL:] < _MIN_OF_LEVEL]]
                )
            )
        return {"covariates": cells.covariates[pool], "log_size": cells.log_size[pool]}
