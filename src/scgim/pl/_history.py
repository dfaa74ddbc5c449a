"""How the fit went: the search for the graph, and the likelihood of cells in training and validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scgim._constants import Key
from scgim._docs import d
from scgim.pl._area import Area
from scgim.pl._tones import OKABE_ITO, tones
from scgim.pl._utils import despine, finish, new_panels, pick, stored_entry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes

TRAIN, VALIDATION = "training", "validation"
STYLES = {TRAIN: {"color": OKABE_ITO[0]}, VALIDATION: {"color": OKABE_ITO[1], "linestyle": "--"}}
SEARCH, EDGES = "search_score", "edges"
STAGES = FIRST, FIT = "Search", "Fit"
PAD = 17.0  # points between a panel of a stage and its title: room for a legend
ROOM_FOR_NAMES = 0.15  # of the height, above the curves
LEAST_WIDTH = 1.7  # inches of a panel in axes of the user's


def _series(source: Any, key: str) -> dict[str, pd.Series]:
    """Logged terms by name, each a number an epoch, from a model or from stored results."""
    history = stored_entry(source, key, Key.uns.HISTORY) if isinstance(source, AnnData) else source.history
    if history is None:
        raise ValueError("The model has no history yet. Run `model.train()` first.")
    if isinstance(history, pd.DataFrame):
        history = {name: history[name] for name in history.columns}
    elif trace := getattr(source, "search_trace_", None):
        history = {**history, SEARCH: pd.Series(trace)}
    series = {}
    for name, values in history.items():
        # scvi-tools keeps one-column frames of dtype object
        column = values.iloc[:, 0] if isinstance(values, pd.DataFrame) else values
        numbers = pd.to_numeric(column, errors="coerce").astype(float)
        # files hold epochs as text
        numbers.index = pd.to_numeric(numbers.index)
        numbers = numbers[np.isfinite(numbers)]
        if len(numbers) and not str(name).endswith("_step"):
            series[str(name)] = numbers
    return series


def _split_name(name: str) -> tuple[str, str]:
    """What a term is called, and whether it was logged in training or in validation."""
    words = name.removesuffix("_epoch").split("_")
    for word, kind in (("train", TRAIN), ("validation", VALIDATION)):
        if word in words and len(words) > 1:
            words.remove(word)
            return " ".join(words), kind
    return " ".join(words), TRAIN


@d.dedent
def history(
    model: Any,
    *,
    terms: str | Iterable[str] | None = None,
    n_cols: int = 3,
    key: str = Key.DEFAULT,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Any:
    """How the fit went, stage by stage: the search for the graph, the fit on it, the cut of edges, the refinement.

    The first panel shows the score of the graph after each round of the search, if there was more than one to be found, by the
    prior that the search ended with: where the prior is estimated anew, scores before and after are not comparable. The second shows the negative
    log-likelihood a cell over the epochs, of training and of validation cells alike, without the priors that are part
    of the loss. A vertical line marks where edges without support were cut; what follows is the refinement.

    With `terms`, what training has logged is shown as it is, a panel each, training and validation together. A term that
    stays positive and spans more than two powers of ten has a logarithmic axis.

    Parameters
    ----------
    model
        A trained model (anything with an attribute `history`, as scvi-tools has it), or annotated data with the stored
        history.
    terms
        Logged terms to show in place of the stages, named as in the history (`"elbo_train"`) or without the stage
        (`"elbo"`); `list(model.history)` are all.
    n_cols
        Number of panels in a row.
    %(key)s Used for annotated data only.
    %(figsize)s
    %(title)s
    %(ax)s
    %(show)s
    %(return_fig)s

    Returns
    -------
    %(returns_panels)s

    Raises
    ------
    KeyError
        If no history is stored in annotated data, or a term is unknown.
    TypeError
        If `model` is neither annotated data nor has a history.
    ValueError
        If the model was not trained.

    Examples
    --------
    >>> model.train()
    >>> scgim.pl.history(model)
    """
    if not isinstance(model, AnnData) and not hasattr(model, "history"):
        raise TypeError(f"Expected a trained model or annotated data, found {type(model).__name__}.")
    series = _series(model, key)
    panels: dict[str, dict[str, pd.Series]] = {}
    for name, values in series.items():
        term, kind = _split_name(name)
        panels.setdefault(term, {})[kind] = values
    if not panels:
        raise ValueError("The history holds no term with a number an epoch. Train for at least one epoch.")
    stages = _stages(panels) if terms is None else {}
    if terms is not None:
        wanted = [terms] if isinstance(terms, str) else list(terms)
        wanted = pick([_split_name(str(term))[0] for term in wanted], panels, "term")
        panels = {term: panels[term] for term in wanted}
    elif stages:
        panels = stages

    area = None if ax is None else Area(ax)
    if area is not None and stages and not area.holds(len(panels), LEAST_WIDTH):
        panels = dict([list(panels.items())[-1]])
    n_cols = max(1, min(n_cols, len(panels)))
    n_rows = -(-len(panels) // n_cols)
    size = (2.9 * n_cols + 0.2, 2.2 * n_rows + 0.3) if stages else (2.4 * n_cols + 0.2, 1.8 * n_rows + 0.3)
    axes, given = new_panels(ax, figsize or size, (n_rows, n_cols), len(panels), title=title)
    for panel, (term, curves) in zip(axes, panels.items(), strict=True):
        _draw(panel, term, curves)
        if term == FIT:
            panel.set_ylabel("Negative log-likelihood\na cell", fontsize="small")
            _mark_cuts(panel, series.get(EDGES))
        elif term == FIRST:
            panel.set_ylabel("Score of the graph", fontsize="small")
            panel.set_xlabel("Round", fontsize="small")
    if area is not None:
        area.keep_within()
    return finish(axes, given=given, show=show, return_fig=return_fig)


def _stages(terms: dict[str, dict[str, pd.Series]]) -> dict[str, dict[str, pd.Series]]:
    """What the stages are drawn from, as far as it was logged: the score of the search, and the likelihood of cells."""
    stages = {}
    if "search score" in terms and _comparable(terms["search score"][TRAIN]).nunique() > 1:
        stages[FIRST] = {TRAIN: _comparable(terms["search score"][TRAIN])}
    fit = {**terms.get("elbo", {})}
    if "log likelihood" in terms:  # that of training cells is part of the loss, that of validation cells is the loss
        fit[TRAIN] = -terms["log likelihood"][TRAIN]
    if fit:
        stages[FIT] = fit
    return stages


def _comparable(scores: pd.Series) -> pd.Series:
    """Scores of the search by one prior, under which none falls; earlier versions have stored those by other priors before them."""
    falls = np.flatnonzero(np.diff(scores.to_numpy()) < 0)
    return scores.iloc[falls[-1] + 1 if len(falls) else 0 :].reset_index(drop=True)


def _mark_cuts(ax: Axes, n_edges: pd.Series | None) -> None:
    """Lines where the number of edges changes, and the names of the stages on either side."""
    if n_edges is None:
        return
    change = n_edges.diff().fillna(0.0)
    cuts = change.index[change < 0]
    if not len(cuts):
        return
    style = {"color": tones(ax).grey, "fontsize": "x-small", "va": "top"}
    across, (low, high), middle = ax.get_xaxis_transform(), ax.get_ylim(), float(np.mean(ax.get_xlim()))
    if ax.get_yscale() == "linear":
        ax.set_ylim(low, high + ROOM_FOR_NAMES * (high - low))
    for epoch in cuts:
        ax.axvline(epoch - 0.5, color=tones(ax).grey, lw=0.8, ls=(0, (4, 2)), zorder=0)
        n, is_late = int(-change[epoch]), epoch > middle
        cut = f"cut {n} edge{'s' * (n != 1)}"
        ax.text(epoch - 0.5, 1.0, f"fit, {cut} " if is_late else "fit ", ha="right", transform=across, **style)
        ax.text(epoch - 0.5, 1.0, " refine" if is_late else f" {cut}, refine", ha="left", transform=across, **style)


def _draw(ax: Axes, term: str, curves: dict[str, pd.Series]) -> None:
    for kind in [kind for kind in STYLES if kind in curves]:
        values = curves[kind]
        # few points make no line
        ax.plot(
            values.index, values, label=kind, marker="o" if len(values) <= 3 else None, ms=3, lw=1.3, **STYLES[kind]
        )
    lowest, highest = (f(f(values) for values in curves.values()) for f in (min, max))
    if lowest > 0 and highest / lowest > 100:
        ax.set_yscale("log")
    else:
        ax.ticklabel_format(axis="y", scilimits=(-3, 8), useOffset=False)
    ax.set_title(term, fontsize="small", pad=PAD if term in STAGES else None)
    ax.set_xlabel("Epoch", fontsize="small")
    ax.tick_params(labelsize="x-small")
    ax.yaxis.get_offset_text().set_fontsize("x-small")
    ax.xaxis.get_major_locator().set_params(integer=True)
    despine(ax)
    if len(curves) > 1 and term == FIT:  # between the title and the names of stages: curves may be anywhere
        style = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "borderaxespad": 0.2}
        ax.legend(frameon=False, fontsize="x-small", ncols=2, **style)
    elif len(curves) > 1:
        ax.legend(frameon=False, fontsize="x-small")
