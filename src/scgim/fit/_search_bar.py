"""Progress of the search for the graph: its stage, how much of it is done, and the time that is left."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

from scgim._constants import MANY_GENES
from scgim.structure._watch import STAGES

# Minutes of one core for 1,000 genes that all may regulate: docs/benchmarks.md, "Genes". Pairs of genes grow with the square.
_MINUTES, _EXPONENT = 2, 2
_MINUTES_AN_HOUR = 60


class SearchBar:
    """Progress bar of the search; without a number of parts it counts moves.

    Parameters
    ----------
    **kwargs
        Of :class:`tqdm.tqdm`.
    """

    def __init__(self, **kwargs: Any):
        self.bar = tqdm(desc="Searching for the graph", unit=" moves", **kwargs)
        self.stage: str | None = None
        self.n_moves = 0

    def __enter__(self) -> SearchBar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def moved(self, score: float) -> None:
        """Count a move, and show the score."""
        self.n_moves += 1
        if self.stage is None:
            self.bar.update()
        self.bar.set_postfix(moves=self.n_moves, score=f"{score:.1f}", refresh=False)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show how many parts of a stage are done; the bar estimates the time that is left to it."""
        if (stage, total) != (self.stage, self.bar.total) or done < self.bar.n:
            self.stage = stage
            self.bar.set_description(f"Graph {STAGES.index(stage) + 1}/{len(STAGES)}: {stage}", refresh=False)
            self.bar.unit = ""
            self.bar.reset(total)
        self.bar.update(done - self.bar.n)


def usual_time(n_genes: int) -> str:
    """About how long the search takes on one core where any gene may regulate."""
    minutes = _MINUTES * (n_genes / MANY_GENES) ** _EXPONENT
    return f"{minutes:.0f} minutes" if minutes < _MINUTES_AN_HOUR else f"{minutes / _MINUTES_AN_HOUR:.0f} hours"
