"""Checkpoints of a training run, from which it goes on as if it had not stopped."""

from __future__ import annotations

import os
import random
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping

from scgim._storage import has_manifest, read_folder, write_folder

if TYPE_CHECKING:
    from collections.abc import Callable

_KIND = "checkpoint"
_N_KEPT = 2


class CheckpointFolder:
    """Folder with the checkpoints of one run, each in a folder of its own; the last two are kept.

    Parameters
    ----------
    folder
        Where they are; made at the first checkpoint.
    """

    def __init__(self, folder: str | os.PathLike):
        self.path = Path(folder).expanduser().absolute()

    def names(self) -> list[str]:
        """Names of the checkpoints, oldest first."""
        if not self.path.is_dir():
            return []
        return sorted(path.name for path in self.path.iterdir() if has_manifest(path))

    def prepare(self, *, resuming: bool) -> None:
        """Make the folder before any work is done; ValueError if it holds the checkpoints of another run."""
        self.path.mkdir(parents=True, exist_ok=True)
        for unfinished in self.path.glob(".*.saving-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if not os.access(self.path, os.W_OK):
            raise PermissionError(f"Cannot write checkpoints to `{self.path}`. Give a folder that you may write to.")
        if self.names() and not resuming:
            raise ValueError(
                f"`checkpoint_dir` `{self.path}` holds checkpoints of an earlier run. Go on with it by "
                "`train(resume_from=...)`, or give an empty folder."
            )

    def write(self, phase: str, epoch: int, content: dict) -> None:
        """Write a checkpoint and clear away all but the last two."""
        write_folder(self.path / f"{phase}-{epoch:05d}", to_arrays(content), kind=_KIND)
        for name in self.names()[:-_N_KEPT]:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def read(self) -> dict:
        """Latest checkpoint that is intact.

        Raises
        ------
        ValueError
            There is none.
        """
        errors = []
        for name in reversed(self.names()):
            try:
                content = read_folder(self.path / name, kind=_KIND).content
            except ValueError as error:
                errors.append(str(error))
                continue
            if errors:
                warnings.warn(
                    f"{errors[0]} Going on from the checkpoint before it, {name!r}.", UserWarning, stacklevel=2
                )
            return content
        found = f"none is intact: {' '.join(errors)}" if errors else "there is none"
        raise ValueError(f"Cannot resume from a checkpoint in `{self.path}`: {found}. Train without `resume_from`.")


class Checkpointer(pl.Callback):
    """Writes checkpoints at the start of epochs, and starts from one.

    Parameters
    ----------
    folder
        Where to write; None to write none.
    every
        Epochs from one checkpoint to the next.
    phase
        Name of the part of training that this fit is.
    describe
        Called with the trainer for what else belongs in a checkpoint.
    resumed
        Content of the checkpoint to start from; None to start anew.
    """

    def __init__(
        self,
        folder: CheckpointFolder | None,
        every: int,
        phase: str,
        describe: Callable[[pl.Trainer], dict],
        resumed: dict | None,
    ):
        self.folder, self.every, self.phase, self.describe = folder, every, phase, describe
        self.resumed = resumed
        self.first_epoch = 0 if resumed is None else resumed["epoch"]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Nothing of the epoch has happened; all of the one before has."""
        if self.resumed is not None:
            _restore(trainer, self.resumed["progress"])
            self.resumed = None
        epoch = self.first_epoch + trainer.current_epoch
        if self.folder is None or epoch % self.every or not trainer.is_global_zero:
            return
        content = self.describe(trainer) | {
            "phase": self.phase,
            "epoch": epoch,
            "module": pl_module.module.state_dict(),
            "progress": _progress(trainer),
        }
        try:
            self.folder.write(self.phase, epoch, content)
        except OSError as error:
            warnings.warn(f"{error} Training goes on.", UserWarning, stacklevel=2)


def _early_stopping(trainer: Any) -> list[EarlyStopping]:
    return [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]


def _progress(trainer: pl.Trainer) -> dict:
    """State of optimisers, schedules, early stopping and random numbers."""
    return {
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "early_stopping": [callback.state_dict() for callback in _early_stopping(trainer)],
        "random": {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": np.random.get_state(),  # noqa: NPY002  (the state of others' draws)
            "python": random.getstate(),
        },
    }


def _restore(trainer: pl.Trainer, progress: dict) -> None:
    for optimizer, state in zip(trainer.optimizers, progress["optimizers"], strict=True):
        optimizer.load_state_dict(to_tensors(state))
    for config, state in zip(trainer.lr_scheduler_configs, progress["schedulers"], strict=True):
        config.scheduler.load_state_dict(state)
    for callback, state in zip(_early_stopping(trainer), progress["early_stopping"], strict=True):
        callback.load_state_dict(to_tensors(state))
    states = progress["random"]
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(to_tensors(states["cuda"]))
    np.random.set_state(states["numpy"])  # noqa: NPY002
    random.setstate(states["python"])


def to_arrays(tree: Any) -> Any:
    """Tensors, however nested, as arrays."""
    return _mapped(tree, torch.Tensor, lambda tensor: tensor.detach().cpu().numpy())


def to_tensors(tree: Any) -> Any:
    """Arrays, however nested, as tensors."""
    return _mapped(tree, np.ndarray, lambda array: torch.from_numpy(array.copy()))


def _mapped(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _mapped(value, kind, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_mapped(value, kind, change) for value in tree]
    if type(tree) is tuple:
        return tuple(_mapped(value, kind, change) for value in tree)
    return tree
