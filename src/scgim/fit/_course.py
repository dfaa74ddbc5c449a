"""The course of one training run: what it is to do, how far it is, and how it goes on from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from scgim.train._checkpoint import Checkpointer, CheckpointFolder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import pandas as pd
    from lightning.pytorch import Trainer
    from numpy.typing import NDArray

_UNSAVED = ("folder", "every", "resumed")


@dataclass
class Course:
    """What a training run does and how far it is.

    Parameters
    ----------
    indices
        Training, validation and test cells.
    epochs, lr, batch_size, early_stopping
        Of the fit; the refinement follows from them.
    in_hidden
        Whether the graph is that of hidden expression.
    reason
        Why it is or is not, where that was left to the data.
    phase
        Next part of the run: "search", "fit" or "refine".
    edge_probs
        Probability of each edge, from the search.
    evidence
        Log evidence of each edge, from the fit.
    trace
        Score after each round of the search by the prior that it settled on.
    feedback
        Loops that the graph leaves out, from the search; None if they were not looked for.
    of_moments
        What moments of hidden expression say of direct effects, if the graph is theirs: fields of :class:`HiddenEffects` by name.
    folder
        Where checkpoints go; None for nowhere.
    every
        Epochs from one checkpoint to the next.
    resumed
        Checkpoint that the next phase starts from.
    """

    indices: list[NDArray]
    epochs: int
    lr: float
    batch_size: int
    early_stopping: bool
    in_hidden: bool = False
    reason: str | None = None
    phase: str = "search"
    edge_probs: Any = None
    evidence: NDArray | None = None
    trace: list[float] | None = None
    feedback: pd.DataFrame | None = None
    of_moments: dict[str, Any] | None = None
    folder: CheckpointFolder | None = None
    every: int = 1
    resumed: dict | None = None

    def write_to(
        self, folder: str | os.PathLike | None, resumed_from: str | os.PathLike | None, every_n_epochs: int
    ) -> None:
        """Write checkpoints to a folder, by default the one that the run goes on from."""
        self.every = every_n_epochs
        target = resumed_from if folder is None else folder
        if target is not None:
            self.folder = CheckpointFolder(target)
            same = resumed_from is not None and self.folder.path == CheckpointFolder(resumed_from).path
            self.folder.prepare(resuming=same)

    def checkpointer(self, attributes: Callable[[Trainer], dict]) -> Checkpointer:
        """Callback for the next phase; a checkpoint to start from is used once.

        `attributes` gives what a checkpoint needs beside the course and the module.
        """
        resumed, self.resumed = self.resumed, None
        return Checkpointer(
            self.folder,
            self.every,
            self.phase,
            lambda trainer: {"course": self.content(), **attributes(trainer)},
            resumed,
        )

    def content(self) -> dict:
        """What a checkpoint holds of it."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _UNSAVED}
