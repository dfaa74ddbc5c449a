"""Fragments of docstrings that several public functions share, filled in by docrep."""

from __future__ import annotations

from docrep import DocstringProcessor

__all__ = ["d"]

_adata = """adata
    Annotated data in which :meth:`scgim.model.GIM.annotate` has stored the results of a fitted model."""

_key = """key
    Prefix of the stored results: the `key_added` that was given to :meth:`scgim.model.GIM.annotate`."""

_perturbation = """perturbation
    Name of one perturbation. May be left out when only one is stored."""

_perturbations = """perturbations
    One perturbation or several, by name. By default all that are stored."""

_layer = """layer
    Layer with the counts. By default the layer that the model was fitted on, or `adata.X`."""

_figsize = """figsize
    Width and height of the figure in inches. By default they follow from what is to be shown. Ignored when `ax` is
    given."""

_title = """title
    Title of the plot."""

_cmap = """cmap
    Colour map, by name or as an object."""

_ax = """ax
    Axes to draw in. By default a new figure is made. A plot of several panels divides the area of `ax` among them."""

_show = """show
    Whether to show the figure. By default `scanpy.settings.autoshow`. A plot in a given `ax` is never shown."""

_return_fig = """return_fig
    Whether to return the figure. It is then not shown."""

_returns = """If `return_fig`, the :class:`~matplotlib.figure.Figure`. If `show=False` or `ax` is given, the
:class:`~matplotlib.axes.Axes`. Otherwise `None`."""

_returns_panels = """If `return_fig`, the :class:`~matplotlib.figure.Figure`. If `show=False` or `ax` is given, a list of
:class:`~matplotlib.axes.Axes`, one for each panel. Otherwise `None`."""

_returns_matrix = """If `return_fig`, the scanpy plot object, not yet drawn (a :class:`scanpy.pl.MatrixPlot` or
:class:`scanpy.pl.DotPlot`, for further styling). If `show=False` or `ax` is given, the dictionary of its
:class:`~matplotlib.axes.Axes`, `mainplot_ax` among them. Otherwise `None`."""

_raises_missing = """KeyError
    If the results are not stored in `adata` (run `model.annotate(adata)` first), or if a perturbation or gene is
    unknown."""

d = DocstringProcessor(
    adata=_adata,
    key=_key,
    perturbation=_perturbation,
    perturbations=_perturbations,
    layer=_layer,
    figsize=_figsize,
    title=_title,
    cmap=_cmap,
    ax=_ax,
    show=_show,
    return_fig=_return_fig,
    returns=_returns,
    returns_panels=_returns_panels,
    returns_matrix=_returns_matrix,
    raises_missing=_raises_missing,
)
