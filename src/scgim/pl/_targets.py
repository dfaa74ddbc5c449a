"""Target probabilities and direct effects of all drugs at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scgim._constants import Key
from scgim._docs import d
from scgim.pl._matrix import diagonal_order, matrix_plot, similarity_order
from scgim.pl._utils import effect_unit, pick, stored, symmetric_limit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from matplotlib.axes import Axes

_MANY = 60  # perturbations, of which rows without a target hide the others: convention
_LIKELY = 0.5


@d.dedent
def targets(
    adata: AnnData,
    perturbations: str | Iterable[str] | None = None,
    *,
    genes: str | Iterable[str] | None = None,
    n_top: int = 30,
    kind: Literal["matrix", "dot"] = "matrix",
    color: Literal["probability", "effect"] | None = None,
    cluster: bool = True,
    swap_axes: bool = False,
    key: str = Key.DEFAULT,
    cmap: Any = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Any:
    """Direct targets of perturbations: a matrix of probabilities, or dots of probability and effect.

    Rows are perturbations, columns are genes. Of more than 60 perturbations, those without a likely target among the genes that `n_top` chooses are
    left out, and the title says so; name them in `perturbations` to see them all. The effect is the direct log fold change at the largest measured dose,
    without what is propagated through the network.

    Parameters
    ----------
    %(adata)s
    %(perturbations)s
    genes
        Genes to show, in this order. By default the `n_top` genes that are most often targets: those with the largest
        sum of target probabilities over `perturbations`.
    n_top
        Number of genes to choose when `genes` is not given.
    kind
        `"matrix"`: one colour a cell. `"dot"`: the size of a dot is the probability, its colour the effect.
    color
        What the colour shows: `"probability"` (from 0 to 1; the default of `kind="matrix"`) or `"effect"` (centred at
        0; the default of `kind="dot"`).
    cluster
        Whether perturbations with similar targets become neighbours, and the genes chosen by `n_top` follow them.
        Without it they keep the stored order or that of `perturbations`.
    swap_axes
        Whether genes are rows and perturbations are columns.
    %(key)s
    %(cmap)s By default `"Reds"` for probabilities and `"RdBu_r"` for effects.
    %(figsize)s
    %(title)s
    %(ax)s
    %(show)s
    %(return_fig)s
    **kwargs
        Passed to :class:`scanpy.pl.MatrixPlot` or :class:`scanpy.pl.DotPlot`.

    Returns
    -------
    %(returns_matrix)s

    Raises
    ------
    %(raises_missing)s
    ValueError
        If `kind`, `color` or `n_top` is not one of the values above.

    Examples
    --------
    >>> model.annotate(adata)
    >>> scgim.pl.targets(adata)
    >>> scgim.pl.targets(adata, ["Trametinib", "Dabrafenib"], kind="dot", n_top=15)
    """
    if kind not in ("matrix", "dot"):
        raise ValueError(f'Expected `kind` to be "matrix" or "dot", found {kind!r}.')
    color = color or ("probability" if kind == "matrix" else "effect")
    if color not in ("probability", "effect"):
        raise ValueError(f'Expected `color` to be "probability" or "effect", found {color!r}.')
    if n_top < 1:
        raise ValueError(f"Expected `n_top` to be at least 1, found {n_top}.")
    probs = stored(adata, "varm", Key.varm.targets(key)).T
    shifts = stored(adata, "varm", Key.varm.shifts(key)).T
    probs = probs.loc[pick(perturbations, probs.index, "perturbation")]
    shown = probs.sum().nlargest(n_top).index if genes is None else pick(genes, probs.columns, "gene")
    probs = probs[shown]
    if perturbations is None and genes is None and len(probs) > _MANY:
        hit = (probs >= _LIKELY).any(axis=1)
        if 0 < hit.sum() < len(probs):
            title = (
                f"{hit.sum()} of {len(probs)} perturbations have a target among these genes" if title is None else title
            )
            probs = probs[hit]

    if cluster:
        signed = probs.to_numpy() * np.sign(shifts.loc[probs.index, shown].to_numpy())
        rows = similarity_order(signed)
        columns = diagonal_order(signed[rows]) if genes is None else slice(None)
        probs = probs.iloc[rows, columns]
    shifts = shifts.loc[probs.index, probs.columns]

    limit = symmetric_limit(shifts)
    by_effect = color == "effect"
    return matrix_plot(
        shifts if by_effect else probs,
        group="perturbation",
        sizes=probs if kind == "dot" else None,
        color_title=f"Direct effect\n({effect_unit(adata, key)})" if by_effect else "Target\nprobability",
        size_title="Target\nprobability (\N{PERCENT SIGN})",
        cmap=cmap or ("RdBu_r" if by_effect else "Reds"),
        limits=(-limit, limit) if by_effect else (0.0, 1.0),
        vcenter=0.0 if by_effect else None,
        swap_axes=swap_axes,
        figsize=figsize,
        title=title,
        ax=ax,
        show=show,
        return_fig=return_fig,
        **kwargs,
    )
