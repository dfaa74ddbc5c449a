"""How far a search for a graph is, and what stops it early: its time is over, or Ctrl-C."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIRST_GRAPH, LARGER_MOVES, PROBABILITIES = "first graph", "larger moves", "probabilities"
STAGES = (FIRST_GRAPH, LARGER_MOVES, PROBABILITIES)


class TimeIsOverError(Exception):
    """The time that a search may take is over."""


class SearchWatch:
    """Tells how far a search is, and ends it early in such a way that the best graph so far is kept.

    Parameters
    ----------
    seconds
        Time that the search may take; None for no limit.
    on_move
        Called with the score after each move.
    on_progress
        Called with the stage (one of `STAGES`) and with how many parts of it are done, of how many.
    on_interrupt
        Called once where Ctrl-C ends the search; the next one is raised.
    """

    def __init__(
        self,
        seconds: float | None = None,
        on_move: Callable[[float], None] | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
        on_interrupt: Callable[[], None] | None = None,
    ):
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self._on_move, self._on_progress, self._on_interrupt = on_move, on_progress, on_interrupt
        self.is_stopped = False

    def moved(self, score: float) -> None:
        """Take note of a move."""
        if self._on_move:
            self._on_move(score)
        self.check()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Take note of parts of a stage that are done."""
        if self._on_progress:
            self._on_progress(stage, min(done, total), total)
        self.check()

    def check(self) -> None:
        """Raise if the time is over and the search does not know it yet."""
        if self.deadline is not None and not self.is_stopped and time.monotonic() > self.deadline:
            raise TimeIsOverError

    @contextmanager
    def may_end_early(self) -> Iterator[None]:
        """For a part of the search that can do without its end."""
        try:
            yield
        except TimeIsOverError:
            self.is_stopped = True
        except KeyboardInterrupt:
            if self.is_stopped:  # the second time, it is meant
                raise
            self.is_stopped = True
            if self._on_interrupt:
                self._on_interrupt()
