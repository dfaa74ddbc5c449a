"""A report: single values, tables and cautions that print as text and show as tables in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgim._constants import Key, read_name

if TYPE_CHECKING:
    from collections.abc import Mapping

FEW_COUNTS = (
    20  # expected of a gene in all cells of a perturbation: of fewer, a change is known to a quarter of itself at best
)
_N_SHOWN = 12  # rows of a table; all of them are in the frame


def number(value: float, digits: int = 4) -> str:
    """A number to so many digits, without an exponent where it can be read so: 320, not 3.2e+02."""
    text = f"{value:.{digits}g}"
    return np.format_float_positional(float(text), trim="-") if 1e-4 <= abs(value) < 1e7 else text


def expected_counts(entries: Mapping[str, Any], perturbation: str, genes: pd.Index) -> pd.Series | None:
    """Counts of each gene that the cells of a perturbation would have if they were like controls.

    `entries` are the stored results `adata.uns[key]`; None for continuous values, for results of one level of an effect modifier, or where
    means of controls are not stored.
    """
    controls, params = entries.get(Key.uns.CONTROLS), entries.get(Key.uns.PARAMS, {})
    # means of controls, and numbers of cells, are of all levels together
    if controls is None or params.get("likelihood", "normal") == "normal" or "level" in params:
        return None
    n_cells = entries[Key.uns.PERTURBATIONS].rename(index=read_name).loc[perturbation, "n_cells"]
    return controls["mean"].reindex(genes) * float(n_cells)


def has_few_counts(counts: pd.Series, total_effect: pd.Series) -> pd.Series:
    """Genes of which so few counts are to be expected, raised as they are, that hardly anything is known of their change."""
    return counts * np.exp(total_effect.clip(lower=0)) < FEW_COUNTS


@dataclass(frozen=True, repr=False)
class Report:
    """What is known of a fit or of a drug.

    It prints as text, shows as tables in a notebook, and holds the numbers: `report["targets"]` is a data frame, and
    `report.values["edges"]` a number.

    Parameters
    ----------
    title
        What it is about.
    values
        Single values by name.
    tables
        Data frames by name. What a table tells is in its `attrs["about"]`.
    cautions
        What speaks against believing it, a sentence each.
    """

    title: str
    values: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    cautions: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> pd.DataFrame:
        """A table by its name."""
        if name not in self.tables:
            raise KeyError(f"This report has no table {name!r}. It has {list(self.tables)}.")
        return self.tables[name]

    def __repr__(self) -> str:
        width = max([len(_words(name)) for name in self.values], default=0)
        lines = [self.title, "=" * len(self.title)]
        lines += [f"{_words(name):<{width}}  {_text(value)}" for name, value in self.values.items()]
        for name, table in self.tables.items():
            lines += ["", f"{_words(name).capitalize()}: {table.attrs.get('about', '')}".rstrip(": ")]
            lines += [_shown(table).to_string(), *_left_out(table)] if len(table) else ["none"]
        lines += ["", "Cautions", *[f"- {caution}" for caution in self.cautions]] if self.cautions else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [f"<h3>{html.escape(self.title)}</h3>"]
        values = pd.Series({_words(name): _text(value) for name, value in self.values.items()}, dtype=object)
        parts.append(values.to_frame().to_html(header=False))
        if self.cautions:
            parts += ["<ul>", *[f"<li>{html.escape(caution)}</li>" for caution in self.cautions], "</ul>"]
        for name, table in self.tables.items():
            about = html.escape(table.attrs.get("about", ""))
            parts.append(f"<h4>{html.escape(_words(name).capitalize())}</h4><p>{about}</p>")
            parts += [_shown(table).to_html(), *_left_out(table)] if len(table) else ["<p>none</p>"]
        return "\n".join(parts)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(value: Any) -> str:
    return number(value, 3) if isinstance(value, float) else str(value)


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The first rows, numbers with three digits; names of index and columns in one line."""
    first = table.head(_N_SHOWN)
    return first.apply(lambda column: column.map(_text)).rename_axis(columns=first.index.name).rename_axis(index=None)


def _left_out(table: pd.DataFrame) -> list[str]:
    """How many rows are not shown."""
    n = len(table) - _N_SHOWN
    return [f"... and {n} more"] if n > 0 else []


def about(table: pd.DataFrame, text: str) -> pd.DataFrame:
    """The table with a sentence that says what it tells."""
    table.attrs["about"] = text
    return table
