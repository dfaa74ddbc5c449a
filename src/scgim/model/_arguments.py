"""Arguments of `train`, checked before anything that takes time."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from scvi.train import Trainer

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_MPS = "GPUs of Apple have no numbers of 64 bits, which parts of the model need. Pass `accelerator='cpu'`, or 'auto', which takes the CPU there."
_PRECISIONS = (None, 32, "32", "32-true")
_TRAINER = {name for cls in (Trainer, pl.Trainer) for name in inspect.signature(cls.__init__).parameters}
_TRAINER -= {"self", "kwargs", "max_epochs", "early_stopping"}


def whole_number(name: str, value: Any) -> int:
    """A positive whole number, also where it is a float, as `np.min([400.0, 20])` is; ValueError otherwise."""
    try:
        number = None if isinstance(value, bool) or float(value) != int(value) else int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None:
        raise ValueError(f"`{name}` must be a whole number, found {value!r}.")
    if number < 1:
        raise ValueError(f"`{name}` must be at least 1, found {value}.")
    return number


def check_rate(lr: Any) -> None:
    """Raise for a learning rate that is no positive number."""
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < float("inf"):
        raise ValueError(f"`lr` must be a positive number, found {lr!r}.")


def check_seconds(name: str, value: Any) -> None:
    """Raise for a time that is neither None nor a positive number."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
        raise ValueError(f"`{name}` must be a positive number of seconds or None, found {value!r}.")


def check_default_type() -> None:
    """Raise a ValueError where torch makes numbers of other than 32 bits by default."""
    if torch.get_default_dtype() != torch.float32:
        raise ValueError(
            f"The default type of torch is {torch.get_default_dtype()}; models are of 32 bits. Set it back: "
            "`torch.set_default_dtype(torch.float32)`."
        )


def check_device(accelerator: Any, device: Any) -> None:
    """Raise for a GPU that is not there, and for a device that is none."""
    has_cuda = torch.cuda.is_available()
    if accelerator == "mps" or (accelerator == "gpu" and not has_cuda and torch.backends.mps.is_available()):
        raise ValueError(NO_MPS)
    if accelerator in ("gpu", "cuda") and not has_cuda:
        raise ValueError(
            f"`accelerator={accelerator!r}` was asked for, but torch finds no GPU of that kind. Use `accelerator='cpu'` or "
            "`'auto'`, or install a build of torch that fits the driver of your GPU."
        )
    if isinstance(device, str) and device in ("cpu", "gpu", "cuda", "mps"):
        raise ValueError(
            f"`device={device!r}` names a kind, not a device. Pass `accelerator={device!r}`, and as `device` 'auto' or a number."
        )
    check_default_type()


def check_trainer_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise for arguments that the trainer does not have, or that would lose the fit."""
    unknown = [name for name in arguments if name not in _TRAINER]
    if unknown:
        raise TypeError(
            f"`train` has no arguments {unknown}. It takes those on its page and those of `lightning.pytorch.Trainer`; "
            "for a GPU pass `accelerator='gpu'`."
        )
    checkpoints = [c for c in arguments.get("callbacks") or [] if isinstance(c, ModelCheckpoint)]
    if checkpoints or arguments.get("enable_checkpointing"):
        found = type(checkpoints[0]).__name__ if checkpoints else "enable_checkpointing=True"
        raise ValueError(
            f"Checkpoints of Lightning and scvi-tools (found {found}) know nothing of the graph, which is searched for before. "
            "Pass `checkpoint_dir='folder'`, and go on from it with `train(resume_from='folder')`."
        )
    if arguments.get("precision") not in _PRECISIONS:
        raise ValueError(f"`precision={arguments['precision']!r}` is not supported. Leave it at 32 bits.")
