"""Lightning plan: maximum a posteriori fit on the graph that was found, with validation and a learning-rate schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pyro
import torch
from scvi.train import LowLevelPyroTrainingPlan
from torch import Tensor

from scgim.train._divergence import (
    MAX_GRADIENT,
    MAX_INTERCEPT,
    MAX_LOG_SCALE,
    MIN_LOG_SCALE,
    LossWatch,
    likely_cause,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scgim.module import GIMModule

# The learning rate holds for this share of the epochs and falls to this share of itself: conventions of such schedules.
_FLAT, _LAST_RATE = 0.3, 0.01
# Descent starts from the fit of the search, so that little is left to be done: steps of this rate, this many, in epochs
# within these limits. Conventions, for time; early stopping and the history tell where more are due.
_RATE, _N_STEPS, _MIN_EPOCHS, _MAX_EPOCHS = 0.02, 400, 10, 400
# The same for continuous values of few wells and linear mechanisms: all cells are in each step, and the fit of the search is of the same form
N_STEPS_OF_PLATES = 100


PLAN_ARGUMENTS = ("lr", "max_epochs", "optim", "optim_kwargs")


def check_plan_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise for arguments that the plan would have to ignore, such as those of scvi-tools' that warm up a divergence."""
    unknown = [name for name in arguments if name not in PLAN_ARGUMENTS]
    if unknown:
        raise ValueError(
            f"`plan_kwargs` holds {unknown}, which the fit of scGIM has no use for: it maximises a joint density, without a "
            f"divergence to be weighted. It takes {list(PLAN_ARGUMENTS)}; arguments of the optimiser, such as `weight_decay`, go into "
            "`optim_kwargs`."
        )


class GIMTrainingPlan(LowLevelPyroTrainingPlan):
    """Minimises the negative log joint density per cell.

    Parameters
    ----------
    pyro_module
        The module.
    lr
        Largest learning rate; it falls linearly to a hundredth of it over the last 70 % of the epochs.
    max_epochs
        Epochs of the schedule.
    optim
        Class of the optimiser; None for :class:`torch.optim.Adam`.
    optim_kwargs
        Further arguments of the optimiser.

    Raises
    ------
    ValueError
        Another argument of scvi-tools' plans is given. The fit is a point estimate by its log joint density: there is no divergence
        whose weight could be warmed up, and no other loss.
    """

    def __init__(
        self,
        pyro_module: GIMModule,
        *,
        lr: float = _RATE,
        max_epochs: int = 100,
        optim: type[torch.optim.Optimizer] | None = None,
        optim_kwargs: dict | None = None,
        **others: Any,
    ):
        check_plan_arguments(others)
        super().__init__(pyro_module, optim=optim, optim_kwargs={"lr": lr, **(optim_kwargs or {})})
        self.max_epochs = max_epochs
        self._terms: dict[str, Tensor] = {}
        self._validation: list[tuple[float, int]] = []
        self._watch: LossWatch | None = None

    @property
    def n_obs_training(self) -> int | None:
        return self._n_obs_training

    @n_obs_training.setter
    def n_obs_training(self, n_obs: int | None) -> None:
        self._n_obs_training = n_obs
        self.module.n_obs = n_obs

    def _log_joint(self, batch) -> dict[str, Tensor]:
        """Log density of each site; the guide is a point, so their sum is the evidence lower bound."""
        args, kwargs = self.module._get_fn_args_from_batch(batch)
        with pyro.validation_enabled(False):  # slow, and a loss that is not finite is explained by `_check_loss`
            guide = pyro.poutine.trace(self.module.guide).get_trace(*args, **kwargs)
            model = pyro.poutine.trace(pyro.poutine.replay(self.module.model, guide)).get_trace(*args, **kwargs)
            model.compute_log_prob(lambda name, site: name != "cells")
        return {name: site["log_prob_sum"] for name, site in model.nodes.items() if "log_prob_sum" in site}

    def training_step(self, batch, batch_idx):
        terms = self._log_joint(batch)
        loss = -sum(terms.values()) / self.n_obs_training
        # of all processes: where one stops, the others would wait for it
        self._check_loss(float(self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")), batch)
        for name, term in terms.items():
            key = "log_likelihood" if name == "x" else f"log_prior_{name.removeprefix('mechanism.')}"
            self._terms[key] = self._terms.get(key, 0.0) + term.detach()
        return {"loss": loss}

    def _check_loss(self, loss: float, batch: dict[str, Tensor]) -> None:
        if self._watch is None:
            self._watch = LossWatch(int(self.trainer.num_training_batches))
        if self._watch.diverges(loss):
            cause = likely_cause(self.module, batch, self.optim_kwargs["lr"])
            at = f"it is {loss:g} at step {self.global_step} where it was {self._watch.start or math.nan:g} at first"
            raise FloatingPointError(f"The loss diverged: {at}. {cause}")

    @property
    def loss_is_high(self) -> bool:
        """Whether the loss of the last step was far above that of the first."""
        return self._watch is not None and self._watch.is_high

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Cut off the gradients of extreme cells, so that one batch does not set the pace of all that follow."""
        if gradient_clip_val is None:
            torch.nn.utils.clip_grad_value_(self.module.parameters(), MAX_GRADIENT)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @torch.no_grad()
    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        """Keep parameters where the likelihood can be computed."""
        self.module.log_scale.clamp_(MIN_LOG_SCALE, MAX_LOG_SCALE)
        if self.module.likelihood != "normal":
            self.module.intercept.clamp_(-MAX_INTERCEPT, MAX_INTERCEPT)

    def on_train_epoch_end(self) -> None:
        n_batches = self.trainer.num_training_batches
        terms = {name: term / n_batches / self.n_obs_training for name, term in self._terms.items()}
        self.log("elbo_train", -sum(terms.values()), prog_bar=True, sync_dist=True)
        self.log_dict(terms, sync_dist=True)
        self.log("edges", float(self.module.adjacency.sum()), sync_dist=True)  # tells where edges were cut
        self.log("learning_rate", self.optimizers().param_groups[0]["lr"], sync_dist=True)
        self._terms = {}

    @torch.inference_mode()
    def validation_step(self, batch, batch_idx) -> None:
        n_obs, self.module.n_obs = self.module.n_obs, None
        terms = self._log_joint(batch)
        log_likelihood = float(terms["x"])
        if not math.isfinite(log_likelihood):
            self._check_loss(-log_likelihood, batch)
        self._validation.append((log_likelihood, len(batch["context"])))
        self.module.n_obs = n_obs

    def on_validation_epoch_end(self) -> None:
        if self._validation:
            total, n = (sum(v) for v in zip(*self._validation, strict=True))
            self.log("elbo_validation", -total / n, prog_bar=True, sync_dist=True)
        self._validation = []

    def configure_optimizers(self):
        parameters = [p for p in self.module.parameters() if p.requires_grad and p.numel()]
        optimizer = self.optim(parameters, **self.optim_kwargs)
        flat = _FLAT * self.max_epochs

        def factor(epoch: int) -> float:
            return max(_LAST_RATE, min(1.0, (self.max_epochs - epoch) / max(self.max_epochs - flat, 1.0)))

        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor)}


def default_max_epochs(n_cells: int, batch_size: int, n_steps: int = _N_STEPS) -> int:
    """Epochs that make about `n_steps` steps, from 10 to 400."""
    return int(min(_MAX_EPOCHS, max(_MIN_EPOCHS, math.ceil(n_steps / math.ceil(n_cells / batch_size)))))
