"""What the checks of a screen share: the screen with its keys, and rows of the report."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

OK, WARN, FAIL = "ok", "warn", "fail"
Row = tuple[str, Any, str, str]  # name of the check, what was found, verdict, advice
_WIDTH = 100  # characters of a line of advice


class Checks(pd.DataFrame):
    """Checks, one a row, that print with all of their advice: pandas cuts long text, and advice is what is read."""

    def __repr__(self) -> str:
        if list(self.columns) != ["value", "verdict", "advice"]:
            return super().__repr__()
        width = max((len(str(name)) for name in self.index), default=0)
        lines = []
        for name, value, verdict, advice in self.itertuples():
            lines.append(f"{verdict:<4}  {name:<{width}}  {value}".rstrip())
            lines += textwrap.wrap(advice, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
        return "\n".join(lines)

    def _repr_html_(self) -> str | None:
        with pd.option_context("display.max_colwidth", None):
            return super()._repr_html_()


@dataclass
class Screen:
    """The screen and its keys, with labels, doses and features once they have passed their checks."""

    adata: AnnData
    perturbation_key: str
    control: str
    dosage_key: str | None
    drug_embedding_key: str | None
    batch_key: str | None
    layer: str | None
    labels: pd.Categorical
    covariate_keys: list[str] = field(default_factory=list)
    effect_modifier_key: str | None = None
    combinations: dict[str, dict[str, float]] = field(default_factory=dict)
    continuous_keys: list[str] = field(default_factory=list)
    size_factor_key: str | None = None
    regulator_key: str | None = None
    dosage: np.ndarray | None = None
    is_plate: bool = False

    @property
    def is_control(self) -> np.ndarray:
        return np.asarray(self.labels == self.control)

    @property
    def values(self) -> Any:
        return self.adata.X if self.layer is None else self.adata.layers[self.layer]

    @property
    def unit(self) -> str:
        """What an observation is called."""
        return "well" if self.is_plate else "cell"

    @property
    def contexts(self) -> np.ndarray:
        """Name of the context of each observation: its drug, at its dose if there are doses."""
        names = np.asarray(self.labels, dtype=object)
        if self.dosage is None or self.dosage_key is None:
            return names
        both = [f"{name} at {dose:g}" for name, dose in zip(names, self.dosage, strict=True)]
        return np.where(self.is_control, names, np.array(both, dtype=object))


def attempt(name: str, check: Callable[[], Any], value: Any = "") -> tuple[Row, Any]:
    """Row of a check that raises when it fails, and what the check returned."""
    try:
        result = check()
    except (ValueError, TypeError, KeyError) as error:
        return (name, "", FAIL, str(error.args[0])), None
    return (name, value, OK, ""), result


def passes(check: Callable[[], Any]) -> bool:
    """Whether a check that raises finds nothing."""
    return attempt("", check)[0][2] == OK


def row(name: str, value: Any, advice: str = "", *, verdict: str = WARN) -> Row:
    """Row of a check that is passed when there is nothing to advise."""
    return (name, value, verdict if advice else OK, advice)
