"""Tables of docs/benchmarks.md: written by the scripts that measured them, never by hand."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
GOALS = "-goals"  # end of the names of tables of what was to be reached
PACKAGES = ("scgim", "scvi-tools", "torch", "scanpy", "anndata", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Provenance:
    """Where a table comes from.

    Parameters
    ----------
    command
        Command that makes it again.
    seeds
        Seeds that were run.
    notes
        Sentences set below the table; numbers in them are computed like those of the table.
    """

    command: str
    seeds: Sequence[int]
    notes: Sequence[str] = field(default_factory=tuple)

    def lines(self) -> list[str]:
        """Notes, command, seeds and versions."""
        versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        seeds = ", ".join(str(seed) for seed in self.seeds)
        machine = f"Python {platform.python_version()}, {platform.machine()}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}"
        return [*self.notes, "", f"*`{self.command}`; seeds {seeds}; {versions}; {machine}.*"]


def format_value(value: object) -> str:
    """A number with three significant digits, whole numbers as they are, nothing for what is missing."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return str(value)
    if isinstance(value, (float, np.floating)):
        if not np.isfinite(value):
            return "" if np.isnan(value) else str(value)
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def to_markdown(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table, index first unless it is a plain count of rows."""
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    numeric = [pd.api.types.is_numeric_dtype(t) and not pd.api.types.is_bool_dtype(t) for t in frame.dtypes]
    rows = [frame.columns.astype(str).tolist(), ["--:" if n else ":--" for n in numeric]]
    rows += [[format_value(v) for v in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def write_table(name: str, frame: pd.DataFrame, provenance: Provenance, docs: Path = DOCS) -> None:
    """Put a table between the markers `<!-- name:start -->` and `<!-- name:end -->` of a page.

    Raises
    ------
    ValueError
        The page has no such markers.
    """
    text = docs.read_text(encoding="utf-8")
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), flags=re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"`{docs.name}` has no place for table {name!r}. Add the lines {start!r} and {end!r} to it.")
    block = "\n".join([start, "", to_markdown(frame), "", *provenance.lines(), "", end])
    docs.write_text(pattern.sub(lambda _: block, text, count=1), encoding="utf-8")


def write_tables(tables: Mapping[str, pd.DataFrame], provenance: Provenance, docs: Path = DOCS) -> None:
    """Put several tables of one run into a page; what was to be reached is printed, and not for those who read the page."""
    for name, frame in tables.items():
        if not name.endswith(GOALS):
            write_table(name, frame, provenance, docs)
