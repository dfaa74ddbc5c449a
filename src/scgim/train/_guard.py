"""What keeps a model usable when training stops early, and says what to do about the failure."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from scvi.train import LoudEarlyStopping, Trainer, TrainRunner
from torch import Tensor

from scgim.train._data import CellsDataModule

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

_NO_MEMORY = (
    "{what} ran out of memory. Lower `batch_size`, take fewer genes (`scgim.pp.select_genes`), or {other}. With "
    "`checkpoint_dir`, `train(resume_from=...)` goes on from the last checkpoint."
)
_GPU_LOST = (
    "The GPU failed or was lost. Restart Python, then train again, on another GPU or with `accelerator='cpu'`. With "
    "`checkpoint_dir`, `train(resume_from=...)` goes on from the last checkpoint."
)


class GIMTrainer(Trainer):
    """Trainer whose `fit` returns when training is stopped early, so that the model is put in order; see `stopped_by`."""

    stopped_by: BaseException | None = None

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Fit; what stopped it early is kept in `stopped_by`, for the caller to raise."""
        # Lightning leaves SIGINT ignored after Ctrl-C
        in_main_thread = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGINT)
        self.stopped_by = None
        try:
            super().fit(*args, **kwargs)
            if self.interrupted:
                self.stopped_by = KeyboardInterrupt()
        except SystemExit as error:  # what recent versions of Lightning make of Ctrl-C
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            self.stopped_by = error.__context__
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (raised again by the caller)
            self.stopped_by = error
        finally:
            for argument in (*args, *kwargs.values()):
                if isinstance(argument, CellsDataModule):
                    argument.release()
            if in_main_thread and handler is not None:
                signal.signal(signal.SIGINT, handler)


class GIMTrainRunner(TrainRunner):
    """Runner with :class:`GIMTrainer`."""

    _trainer_cls = GIMTrainer


class QuietStop(pl.Callback):
    """Logs why training ended early, which scvi-tools would print: that the loss has settled is the usual end."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take the reason before it is printed."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LoudEarlyStopping) and callback.early_stopping_reason is not None:
                logger.info(callback.early_stopping_reason)
                callback.early_stopping_reason = None


class KeepGoodState(pl.Callback):
    """Keeps the parameters of the last epoch that ended with finite ones and a loss that does not diverge.

    Parameters
    ----------
    first_epoch
        Epochs that were run before this fit began.
    """

    def __init__(self, first_epoch: int = 0):
        self.epoch, self._state = first_epoch, dict[str, Tensor]()
        self._first = first_epoch

    def _keep(self, module: torch.nn.Module, epoch: int) -> bool:
        """Keep the state if it is finite; whether it is."""
        parameters = [p for p in module.parameters() if p.numel()]
        if not bool(torch.stack([torch.isfinite(p).all() for p in parameters]).all()):
            return False
        self.epoch = epoch
        # what is known of edges and drugs is large, and no step changes it
        self._state = {name: value.detach().clone() for name, value in module.named_parameters()}
        return True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Keep what the epoch begins with."""
        if not pl_module.loss_is_high:
            self._keep(pl_module.module, self._first + trainer.current_epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check the last step, which no loss has seen."""
        if not self._keep(pl_module.module, self._first + trainer.current_epoch):
            raise FloatingPointError("The last step made parameters infinite or NaN. Lower `lr`.")

    def restore(self, module: torch.nn.Module) -> None:
        """Put the kept parameters back."""
        with torch.no_grad():
            for name, value in self._state.items():
                module.get_parameter(name).copy_(value)


@contextmanager
def explained_failures() -> Iterator[None]:
    """Raise errors of memory and GPU with what can be done about them."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        explained = _explain(error)
        if explained is None:
            raise
        raise explained from error


def _explain(error: Exception) -> Exception | None:
    first = str(error).strip().split("\n")[0]
    if isinstance(error, torch.cuda.OutOfMemoryError):
        other = "pass `accelerator='cpu'`"
        return torch.cuda.OutOfMemoryError(f"{_NO_MEMORY.format(what='The GPU', other=other)} ({first})")
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return MemoryError(f"{_NO_MEMORY.format(what='The machine', other='use a larger machine')} ({first})")
    if any(sign in str(error) for sign in ("CUDA error", "CUDNN_STATUS", "cuDNN error", "CUBLAS_STATUS")):
        return RuntimeError(f"{_GPU_LOST} ({first})")
    return None
