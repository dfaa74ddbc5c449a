"""The gene network, and how the effect of a perturbation spreads in it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import networkx as nx
import numpy as np
import pandas as pd
from scipy import sparse

from scgim._constants import Key
from scgim._docs import d
from scgim.pl._draw_network import LONGEST_DRUG, draw_network, write_instead
from scgim.pl._utils import axes_inches, effect_unit, finish, pick, pick_one, shorten, stored, without_noise

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from anndata import AnnData
    from matplotlib.axes import Axes


GENES_AN_INCH = 5  # of the width of axes of the user's


def edge_graph(adata: AnnData, key: str, min_prob: float) -> nx.DiGraph:
    """All genes, and the edges of the fitted graph whose probability is at least `min_prob`."""
    weights = sparse.coo_matrix(stored(adata, "varp", Key.varp.edge_weights(key)))
    probs = sparse.csr_matrix(stored(adata, "varp", Key.varp.edge_probs(key)))
    names = adata.var_names.astype(str)
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(names)
    for i, j, weight in zip(weights.row, weights.col, weights.data, strict=True):
        if weight != 0 and probs[i, j] >= min_prob:
            graph.add_edge(names[i], names[j], weight=float(weight), probability=float(probs[i, j]))
    return graph


def _top_reached(graph: nx.DiGraph, targets: list[str], importance: pd.Series, n_top: int) -> set[str]:
    """At most `n_top` genes: targets and then the most important ones, each with the likeliest way by which it is reached."""
    chosen = set(importance[targets].nlargest(n_top).index)
    _, paths = nx.multi_source_dijkstra(
        graph, set(targets), weight=lambda *edge: -np.log(max(edge[2]["probability"], 1e-12))
    )
    for gene in importance.sort_values(ascending=False).index:
        if gene in paths and len(chosen | set(paths[gene])) <= n_top:
            chosen |= set(paths[gene])
    return chosen


def _top_connected(graph: nx.DiGraph, importance: pd.Series, n_top: int) -> set[str]:
    """The most important gene, then again and again the most important one with an edge to those chosen before.

    Where nothing more is connected, the next part of the network begins: so that no gene is shown without its edges.
    """
    rank = {gene: i for i, gene in enumerate(importance.sort_values(ascending=False, kind="stable").index)}
    chosen: set[str] = set()
    within_reach: set[str] = set()
    while len(chosen) < n_top:
        gene = min(within_reach or rank.keys() - chosen, key=rank.__getitem__)
        chosen.add(gene)
        within_reach = (within_reach | {*graph.succ[gene], *graph.pred[gene]}) & rank.keys() - chosen
    return chosen


def _nearest(graph: nx.DiGraph, centres: list[str], n_top: int | None) -> set[str]:
    """`centres` and what lies above or below them: the nearest genes first, of those as near the likeliest."""
    # a step counts far more than what is lost in probability, so that paths are ordered by steps and then by the latter
    cost = lambda *edge: 1e3 - np.log(max(edge[2]["probability"], 1e-12))
    distance: dict[str, float] = {}
    for way in (graph, graph.reverse(copy=False)):
        for gene, far in nx.multi_source_dijkstra_path_length(way, set(centres), weight=cost).items():
            distance[gene] = min(far, distance.get(gene, far))
    return set(sorted(distance, key=lambda gene: distance[gene])[:n_top])


def _of_drug(adata: AnnData, key: str, perturbation: str, min_target_prob: float) -> pd.DataFrame:
    """What a perturbation does to each gene: `prob` and `is_target`, `sign` of the direct effect, total `effect`."""
    probs = stored(adata, "varm", Key.varm.targets(key))[perturbation]
    columns = {
        "prob": probs,
        "is_target": probs >= min_target_prob,
        "sign": np.sign(stored(adata, "varm", Key.varm.shifts(key))[perturbation]),
        "effect": without_noise(adata, key)[perturbation],
    }
    return pd.DataFrame(columns).set_axis(adata.var_names.astype(str))


def _no_target(drug: pd.DataFrame, perturbation: str, min_prob: float) -> str:
    """That no gene is called a target, and which is likeliest."""
    name, best = shorten([perturbation], LONGEST_DRUG)[0], drug["prob"].idxmax()
    return f"No gene is called a target of {name} (probability from {min_prob:g} on); likeliest is {best} with {drug['prob'].max():.2g}"


def _choose_genes(
    graph: nx.DiGraph,
    targets: list[str],
    centres: list[str],
    importance: pd.Series,
    scope: str,
    genes: list[str] | None,
    n_top: int | None,
) -> set[str]:
    """The genes to draw."""
    if centres:
        return _nearest(graph, centres, n_top) if genes is None else set(genes) | set(centres)
    if targets and scope == "reached":
        shown = set(targets).union(*(nx.descendants(graph, target) for target in targets))
    else:
        shown = {gene for gene in graph if graph.degree(gene)} | set(targets)
    if genes is not None:
        # genes that were asked for stay, even without an edge
        shown = shown & set(genes) if targets and scope == "reached" else set(genes)
    if n_top is None or len(shown) <= n_top:
        return shown
    importance = importance[[gene for gene in importance.index if gene in shown]]
    if targets and genes is None:
        return _top_reached(graph.subgraph(shown), targets, importance, n_top)
    return _top_connected(graph.subgraph(shown), importance, n_top)


@d.dedent
def network(
    adata: AnnData,
    perturbation: str | None = None,
    *,
    gene: str | Iterable[str] | None = None,
    scope: Literal["reached", "all"] = "reached",
    genes: str | Iterable[str] | None = None,
    n_top: int | None = 30,
    min_prob: float = 0.5,
    min_target_prob: float = 0.5,
    node_color: Literal["effect", "target"] = "effect",
    n_labels: int = 60,
    key: str = Key.DEFAULT,
    cmap: Any = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Any:
    """The gene network in layers from causes to effects, as a whole or as far as a perturbation reaches.

    Without `perturbation`, the whole network. With it, edges lead from the perturbation to its direct targets (squares)
    and from there along the network to all genes that the effect can reach, from left to right. With `gene`, its
    neighbourhood: the nearest genes above and below it. The wider an edge, the more probable it is; edges that raise the
    expression of a gene end in an arrow, edges that lower it in a bar, those of the perturbation too. Of many genes the
    `n_top` most telling are drawn, and a line above the network says of how many.

    Parameters
    ----------
    %(adata)s
    perturbation
        Name of a perturbation whose way through the network is to be shown. The name of a gene, unless a perturbation is
        called the same, is taken as `gene`.
    gene
        Genes whose neighbourhood is to be shown, one or several; they have a thick outline.
    scope
        `"reached"`: only the direct targets of `perturbation` and what lies downstream of them. `"all"`: every gene that
        has an edge.
    genes
        Show only these genes. Ways through other genes are then not to be seen.
    n_top
        Show at most so many genes: with `perturbation`, its targets and the genes of largest total effect, each with the
        most probable way that leads there; with `gene`, the nearest; without, those with the largest sum of edge
        probabilities that have edges to one another. Fewer where `ax` has no room for so many; `None` for all.
    min_prob
        Leave out edges of a lower probability.
    min_target_prob
        Probability from which on a gene counts as a direct target of `perturbation`. Where none does, the figure says so, and
        names the likeliest; `scope="all"` shows its effects on the network all the same.
    node_color
        With `perturbation`, what the colour of a gene shows: `"effect"`, the total log fold change (direct and
        propagated, at the largest measured dose; white where it is within the error of its simulation), or `"target"`, the
        probability of being a direct target.
    n_labels
        Label at most so many genes, those that `n_top` would choose first. Labels without room are left out.
    %(key)s
    %(cmap)s By default `"RdBu_r"` for effects and `"Reds"` for probabilities.
    %(figsize)s
    %(title)s
    %(ax)s
    %(show)s
    %(return_fig)s

    Returns
    -------
    %(returns)s

    Raises
    ------
    %(raises_missing)s
    ValueError
        If nothing is left to draw, as no edge is as probable as `min_prob`; or if both `perturbation` and `gene` are given.

    Examples
    --------
    >>> model.annotate(adata)
    >>> scgim.pl.network(adata)
    >>> scgim.pl.network(adata, "Trametinib", n_top=40)
    >>> scgim.pl.network(adata, "STAT1")
    """
    _check_options(scope, node_color, n_top)
    graph = edge_graph(adata, key, min_prob)
    wanted = None if genes is None else pick(genes, adata.var_names, "gene")
    perturbation, centres = _what_is_asked(adata, key, perturbation, gene)
    if ax is not None and n_top is not None:
        n_top = min(n_top, max(1, int(GENES_AN_INCH * axes_inches(ax)[0])))

    drug = None if perturbation is None else _of_drug(adata, key, perturbation, min_target_prob)
    if drug is None:
        importance = pd.Series(dict(graph.degree(weight="probability")), dtype=float)
        if importance.sum() == 0 and wanted is None and not centres:
            raise ValueError(f"No edge has a probability of at least {min_prob}. Lower `min_prob`.")
    else:
        importance = drug["effect"].abs()

    targets = [] if drug is None else drug.index[drug["is_target"]].tolist()
    untold = "" if drug is None or targets else _no_target(drug, str(perturbation), min_target_prob)
    if untold and scope == "reached":
        ax, given = write_instead(untold, figsize=figsize, title=title, ax=ax)
        return finish(ax, given=given, show=show, return_fig=return_fig)
    choose = partial(_choose_genes, graph, targets, centres, importance, scope, wanted)
    candidates, shown = choose(None), choose(n_top)
    if not shown:
        raise ValueError(
            f'None of `genes` is reached by {perturbation!r}. Use `scope="all"` to show them nevertheless.'
        )
    targets = [gene for gene in targets if gene in shown]
    kind = "reached " if drug is not None and scope == "reached" else "nearby " if centres else ""
    n_alone = 0 if kind or wanted is not None else len(graph) - len(candidates)
    ax, given = draw_network(
        _part_of(graph, shown),
        perturbation=perturbation,
        drug_edges=None if drug is None else drug.loc[targets, ["prob", "sign"]],
        colors=None if drug is None else drug["effect" if node_color == "effect" else "prob"],
        by_effect=node_color == "effect",
        color_label=f"Total effect ({effect_unit(adata, key)})" if node_color == "effect" else "Target probability",
        importance=importance + importance.max() * importance.index.isin([*targets, *centres]),
        centres=centres,
        note="; ".join(filter(None, [untold, _note(len(shown), len(candidates), kind, n_alone)])),
        n_labels=n_labels,
        cmap=cmap,
        figsize=figsize,
        title=title,
        ax=ax,
    )
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _what_is_asked(
    adata: AnnData, key: str, perturbation: str | None, gene: str | Iterable[str] | None
) -> tuple[str | None, list[str]]:
    """The perturbation or the genes that the network is to be seen from; neither for the whole of it."""
    if gene is not None:
        if perturbation is not None:
            raise ValueError(f"Expected `perturbation` or `gene`, found both: {perturbation!r} and {gene!r}.")
        return None, pick(gene, adata.var_names, "gene")
    if perturbation is None:
        return None, []
    known = stored(adata, "varm", Key.varm.targets(key)).columns
    if perturbation not in known and perturbation in adata.var_names:
        return None, [perturbation]
    return pick_one(perturbation, known), []


def _note(n_shown: int, n_all: int, kind: str, n_alone: int) -> str:
    """What of the network is not to be seen."""
    if n_shown == n_all + n_alone:
        return ""
    alone = f"; {n_alone:,} ha{'s' if n_alone == 1 else 've'} no edge" if n_alone else ""
    return f"{n_shown} of {n_all + n_alone:,} {kind}genes shown{alone}"


def _check_options(scope: str, node_color: str, n_top: int | None) -> None:
    if scope not in ("reached", "all"):
        raise ValueError(f'Expected `scope` to be "reached" or "all", found {scope!r}.')
    if node_color not in ("effect", "target"):
        raise ValueError(f'Expected `node_color` to be "effect" or "target", found {node_color!r}.')
    if n_top is not None and n_top < 1:
        raise ValueError(f"Expected `n_top` to be at least 1, found {n_top}.")


def _part_of(graph: nx.DiGraph, shown: Container[str]) -> nx.DiGraph:
    """Some of the genes and the edges between them; not a view: the order of its nodes, and so the drawing, would differ between sessions."""
    part: nx.DiGraph = nx.DiGraph()
    part.add_nodes_from(gene for gene in graph if gene in shown)
    part.add_edges_from(edge for edge in graph.edges(data=True) if edge[0] in shown and edge[1] in shown)
    return part
