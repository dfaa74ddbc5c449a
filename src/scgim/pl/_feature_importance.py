"""Which drug features drive the shifts of which genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgim._constants import Key
from scgim._docs import d
from scgim.pl._matrix import diagonal_order, matrix_plot, similarity_order
from scgim.pl._structures import can_draw, picture
from scgim.pl._utils import pick, stored, stored_entry, stored_params, symmetric_limit

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes


LEAST_IMPORTANCE = 0.05  # log fold change for one standard deviation; the scale never ends below it
FAINT = 0.2  # share of the scale below which no colour is to be seen


@d.dedent
def feature_importance(
    adata: AnnData,
    *,
    features: str | Iterable[str] | None = None,
    genes: str | Iterable[str] | None = None,
    n_features: int = 20,
    n_genes: int = 30,
    components: bool = False,
    structures: bool | None = None,
    cluster: bool = True,
    swap_axes: bool = False,
    key: str = Key.DEFAULT,
    cmap: Any = "RdBu_r",
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Any:
    """How strongly each drug feature drives the direct effect on each gene, as a matrix centred at 0.

    Rows are features, columns are genes. The importance is the change of the direct effect (a log fold change) with one
    standard deviation of the feature; the colours never span less than 0.05, and where no feature
    reaches it, the figure says so.
    The sign tells whether more of the feature raises or lowers the expression of
    the gene. Features that go together in the screen share their importance among them: read groups, not single rows.

    After a fit on components of :func:`scgim.pp.pca_features` the importance is carried back to the features that they
    are made of, and after :func:`scgim.pp.drug_fingerprints` with `adata` the substructures that bits stand for are
    drawn (by RDKit, the central atom marked): those that most drugs of the screen have a bit for.

    Parameters
    ----------
    %(adata)s
    features
        Features to show, in this order. By default the `n_features` with the largest sum of absolute importances.
    genes
        Genes to show, in this order. By default the `n_genes` with the largest sum of absolute importances.
    n_features
        Number of features to choose when `features` is not given.
    n_genes
        Number of genes to choose when `genes` is not given.
    components
        Whether to show components of :func:`scgim.pp.pca_features` as they are. Otherwise the features they are made of,
        where `adata.uns` says so.
    structures
        Whether to draw substructures beside bits of fingerprints. By default where they are known, RDKit is installed,
        features are rows and the figure is not yours; otherwise their SMILES are named.
    cluster
        Whether the features and genes that were chosen here are ordered by similarity.
    swap_axes
        Whether genes are rows and features are columns.
    %(key)s
    %(cmap)s
    %(figsize)s
    %(title)s
    %(ax)s
    %(show)s
    %(return_fig)s
    **kwargs
        Passed to :class:`scanpy.pl.MatrixPlot`.

    Returns
    -------
    %(returns_matrix)s

    Raises
    ------
    KeyError
        If `adata` holds no feature importance: it was not annotated, or the model was fitted without drug features.
        Also if a feature or gene is unknown.
    ValueError
        If `structures` is asked for where there are none to draw, `n_features` or `n_genes` is below 1, or all importances are 0, as after the fit of a single perturbation.

    Examples
    --------
    >>> scgim.pl.feature_importance(adata, n_features=10)
    """
    if min(n_features, n_genes) < 1:
        raise ValueError(f"Expected `n_features` and `n_genes` to be at least 1, found {n_features} and {n_genes}.")
    values = _importance(adata, key)
    embedding = str(stored_params(adata, key).get("drug_embedding_key", ""))
    if not components:
        values = _of_original_features(adata, values, embedding)
    sizes = values.abs()
    # genes may have been subset since the model was fitted
    known = [gene for gene in values.columns if gene in set(adata.var_names)]
    top_genes = sizes[known].sum().nlargest(n_genes).index
    top_features = sizes.sum(axis=1).nlargest(n_features).index
    values = values.loc[
        top_features if features is None else pick(features, values.index, "feature"),
        top_genes if genes is None else pick(genes, known, "gene"),
    ]
    if cluster and features is None:
        values = values.iloc[similarity_order(values.to_numpy())]
    if cluster and genes is None:
        values = values.iloc[:, diagonal_order(values.to_numpy())]

    largest = float(values.abs().to_numpy().max())
    blank = largest < FAINT * LEAST_IMPORTANCE
    room = ax is None and not return_fig and not blank
    values, pictures = _with_substructures(
        values, adata.uns.get(embedding + Key.SUBSTRUCTURES), draw=structures, room=room, rows=not swap_axes
    )

    limit = symmetric_limit(values, LEAST_IMPORTANCE)
    says = f"No feature changes an effect by more than {LEAST_IMPORTANCE}"
    if title is None and largest <= LEAST_IMPORTANCE and not blank:
        title = says
    return matrix_plot(
        values,
        pictures=pictures,
        group="feature",
        color_title="Importance\n(signed)",
        cmap=cmap,
        limits=(-limit, limit),
        vcenter=0.0,
        swap_axes=swap_axes,
        figsize=figsize,
        title=title,
        note=says if blank else None,
        ax=ax,
        show=show,
        return_fig=return_fig,
        **kwargs,
    )


def _with_substructures(
    values: pd.DataFrame, known: pd.DataFrame | None, *, draw: bool | None, room: bool, rows: bool
) -> tuple[pd.DataFrame, list[np.ndarray | None] | None]:
    """Pictures of the substructures that rows stand for, as far as they are `known`, or their SMILES in the names."""
    if known is None or not values.index.isin(known.index).any():
        if draw:
            raise ValueError(
                "`structures=True` needs bits of `scgim.pp.drug_fingerprints(..., adata=adata)`, which notes what they "
                "stand for; none is among the features."
            )
        return values, None
    shown = known.reindex(values.index)
    if rows and (draw if draw is not None else room and can_draw()):
        return values, [picture(row) if isinstance(row["smiles"], str) else None for _, row in shown.iterrows()]
    texts = shown["substructure"]
    return values.set_axis([f"{name} {text}" if isinstance(text, str) else name for name, text in texts.items()]), None


def _of_original_features(adata: AnnData, values: pd.DataFrame, embedding: str) -> pd.DataFrame:
    """Importances of the features that components are made of; as they are where this is not known."""
    loadings = adata.uns.get(embedding + Key.LOADINGS)
    if loadings is None or not values.index.isin(loadings.columns).all():
        return values
    return loadings[values.index] @ values


def _importance(adata: AnnData, key: str) -> pd.DataFrame:
    """Importance of the features, features x genes."""
    results = stored(adata, "uns", key)
    if Key.uns.FEATURE_IMPORTANCE not in results:
        raise KeyError(
            f"No `{Key.uns.FEATURE_IMPORTANCE}` in `adata.uns[{key!r}]`. Run `model.annotate(adata)` with a model that "
            "was set up with a drug embedding."
        )
    values = stored_entry(adata, key, Key.uns.FEATURE_IMPORTANCE)
    if not values.to_numpy().any():
        raise ValueError(
            "No feature drives any effect: all importances are 0. Features are learned from by comparing perturbations, so "
            "this takes several of them."
        )
    return values.set_axis(values.index.astype(str)).set_axis(values.columns.astype(str), axis=1)
