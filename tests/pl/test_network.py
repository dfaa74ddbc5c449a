from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch
from scipy import sparse

import scgim.pl as pl
from scgim.pl._network import edge_graph
from scgim.pl._tones import NEGATIVE, POSITIVE


def _arrows(ax) -> list[FancyArrowPatch]:
    return [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]


def _labels(ax) -> set[str]:
    return {text.get_text() for text in ax.texts if text.get_text() and " " not in text.get_text()}


def _note(ax) -> str:
    """What is said of genes that are not shown."""
    return "".join(text.get_text() for text in ax.texts if " " in text.get_text())


@pytest.fixture
def chain(adata):
    """GENE1 -> GENE2 -| GENE3 -> GENE4 and GENE9 -> GENE4; Drug1 acts on GENE2 alone."""
    weights, probs = np.zeros((20, 20)), np.zeros((20, 20))
    for i, j, weight, prob in ((0, 1, 0.5, 0.9), (1, 2, -0.5, 0.8), (2, 3, 0.4, 0.6), (8, 3, 0.3, 0.55)):
        weights[i, j], probs[i, j] = weight, prob
    probs[5, 6] = 0.99  # likely, but not an edge of the fitted graph
    adata.varp["gim_edge_weights"] = sparse.csr_matrix(weights)
    adata.varp["gim_edge_probs"] = sparse.csr_matrix(probs)
    targets = adata.varm["gim_targets"].copy()
    targets["Drug1"] = 0.1
    targets.loc["GENE2", "Drug1"] = 0.97
    adata.varm["gim_targets"] = targets
    return adata


def test_graph_has_the_edges_of_the_fitted_dag_above_the_threshold(chain):
    graph = edge_graph(chain, "gim", 0.58)
    assert set(graph.edges) == {("GENE1", "GENE2"), ("GENE2", "GENE3"), ("GENE3", "GENE4")}
    assert graph.edges["GENE2", "GENE3"] == {"weight": -0.5, "probability": 0.8}
    assert len(graph) == 20


def test_whole_network_leaves_out_genes_without_edges(chain):
    ax = pl.network(chain, show=False)
    assert _labels(ax) == {"GENE1", "GENE2", "GENE3", "GENE4", "GENE9"}
    assert len(_arrows(ax)) == 4
    assert _note(ax) == "5 of 20 genes shown; 15 have no edge"
    assert pl.network(chain, min_prob=0.7, show=False).collections[0].get_offsets().shape == (3, 2)


def test_sign_is_told_by_colour_and_tip_and_probability_by_width(chain):
    arrows = _arrows(pl.network(chain, show=False))
    colors = [to_hex(arrow.get_edgecolor()).upper() for arrow in arrows]
    assert sorted(colors) == sorted([POSITIVE, POSITIVE, POSITIVE, NEGATIVE])
    tips = {type(arrow.get_arrowstyle()).__name__ for arrow in arrows}
    assert len(tips) == 2
    probs = [data["probability"] for _, _, data in edge_graph(chain, "gim", 0.5).edges(data=True)]
    np.testing.assert_array_equal(np.argsort([a.get_linewidth() for a in arrows]), np.argsort(probs))


def test_edges_of_the_drug_have_the_sign_of_its_direct_effect(chain):
    for sign, color in ((1.0, POSITIVE), (-1.0, NEGATIVE)):
        shifts = chain.varm["gim_shifts"].copy()
        shifts.loc["GENE2", "Drug1"] = sign
        chain.varm["gim_shifts"] = shifts
        arrows = _arrows(pl.network(chain, "Drug1", show=False))
        edge = min(arrows, key=lambda arrow: arrow.get_connectionstyle().points[0, 0])
        assert to_hex(edge.get_edgecolor()).upper() == color
        assert type(edge.get_arrowstyle()).__name__ == ("CurveFilledB" if sign > 0 else "BracketB")


def test_neighbourhood_of_a_gene(chain):
    ax = pl.network(chain, "GENE3", show=False)
    assert _labels(ax) == {"GENE1", "GENE2", "GENE3", "GENE4"}  # GENE9 is above GENE4 alone
    assert _note(ax) == ""
    ax = pl.network(chain, gene="GENE3", n_top=3, show=False)
    assert _labels(ax) == {"GENE2", "GENE3", "GENE4"}
    assert _note(ax) == "3 of 4 nearby genes shown"
    widths = ax.collections[0].get_linewidths()
    assert sorted(widths) == [0.6, 0.6, 1.6]
    assert _labels(pl.network(chain, gene=["GENE1", "GENE9"], n_top=4, show=False)) == {
        "GENE1",
        "GENE2",
        "GENE4",
        "GENE9",
    }
    assert _labels(pl.network(chain, "GENE15", show=False)) == {"GENE15"}


def test_a_perturbation_called_like_a_gene_is_the_perturbation(chain):
    for name in ("gim_targets", "gim_shifts", "gim_total_effects", "gim_total_effect_errors"):
        chain.varm[name] = chain.varm[name].rename(columns={"Drug1": "GENE2"})
    assert pl.network(chain, "GENE2", show=False).collections[1].get_offsets().shape == (1, 2)
    assert not [text for text in pl.network(chain, gene="GENE2", show=False).texts if text.get_bbox_patch()]


def test_effects_within_the_error_of_their_simulation_are_white(chain):
    effects = chain.varm["gim_total_effects"].copy()
    effects["Drug1"] = 0.04
    chain.varm["gim_total_effects"] = effects
    chain.varm["gim_total_effect_errors"] = effects * 0 + 0.03
    ax = pl.network(chain, "Drug1", show=False)
    for nodes in ax.collections[:2]:
        np.testing.assert_allclose(nodes.get_facecolors()[:, :3], 0.97, atol=0.01)  # the middle of the colour map
    bar = next(other for other in ax.figure.axes if other is not ax)
    assert bar.get_ylim() == (-0.25, 0.25)


def test_reached_part_holds_targets_and_what_is_downstream(chain):
    ax = pl.network(chain, "Drug1", show=False)
    assert _labels(ax) == {"Drug1", "GENE2", "GENE3", "GENE4"}
    assert len(_arrows(ax)) == 3  # one of them from the drug
    circles, squares = ax.collections
    assert len(circles.get_offsets()) == 2
    assert len(squares.get_offsets()) == 1


def test_effects_spread_from_left_to_right(chain):
    ax = pl.network(chain, "Drug1", show=False)
    x = {text.get_text(): text.xy[0] for text in ax.texts if hasattr(text, "xy")}
    assert x["GENE2"] < x["GENE3"] < x["GENE4"]


def test_colours_are_those_of_the_total_effect(chain):
    ax = pl.network(chain, "Drug1", show=False)
    bar = next(other for other in ax.figure.axes if other is not ax)
    largest = chain.varm["gim_total_effects"].loc[["GENE2", "GENE3", "GENE4"], "Drug1"].abs().max()
    assert bar.get_ylim() == pytest.approx((-largest, largest))
    ax = pl.network(chain, "Drug1", node_color="target", show=False)
    bar = next(other for other in ax.figure.axes if other is not ax)
    assert bar.get_ylim() == (0.0, 1.0)


def test_scope_all_shows_what_is_not_reached_too(chain):
    labels = _labels(pl.network(chain, "Drug1", scope="all", show=False))
    assert labels == {"Drug1", "GENE1", "GENE2", "GENE3", "GENE4", "GENE9"}


def test_chosen_genes_stay_even_without_an_edge(chain):
    labels = _labels(pl.network(chain, genes=["GENE1", "GENE2", "GENE15"], show=False))
    assert labels == {"GENE1", "GENE2", "GENE15"}


def test_n_top_keeps_the_way_from_the_targets(chain):
    effects = chain.varm["gim_total_effects"].copy()
    effects["Drug1"] = 0.0
    effects.loc["GENE4", "Drug1"] = 3.0
    chain.varm["gim_total_effects"] = effects
    assert _labels(pl.network(chain, "Drug1", n_top=3, show=False)) == {"Drug1", "GENE2", "GENE3", "GENE4"}
    ax = pl.network(chain, "Drug1", n_top=2, show=False)
    assert _labels(ax) == {"Drug1", "GENE2", "GENE3"}
    assert _note(ax) == "2 of 3 reached genes shown"


def test_many_genes_are_cut_to_the_most_connected(many_genes):
    ax = pl.network(many_genes, show=False)
    assert sum(len(c.get_offsets()) for c in ax.collections) == 30
    graph = edge_graph(many_genes, "gim", 0.5)
    n_linked = sum(graph.degree(gene) > 0 for gene in graph)
    assert _note(ax) == f"30 of 300 genes shown; {300 - n_linked} have no edge"
    shown = graph.subgraph(_labels(ax))
    assert min(dict(shown.degree()).values()) > 0  # none without an edge to the others
    strongest = max(graph, key=lambda gene: graph.degree(gene, weight="probability"))
    assert strongest in shown


def test_labels_of_a_large_network_do_not_overlap(awkward):
    ax = pl.network(awkward, n_top=200, n_labels=200, show=False)
    renderer = ax.figure.canvas.get_renderer()
    ax.figure.draw(renderer)
    boxes = [text.get_window_extent(renderer).padded(-0.5) for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert max(ax.figure.get_size_inches()) <= 12


def test_a_drug_without_targets_is_said_to_have_none(chain):
    ax = pl.network(chain, "Drug1", min_target_prob=0.99, show=False)
    (text,) = ax.texts
    said = "No gene is called a target of Drug1 (probability from 0.99 on); likeliest is GENE2 with 0.97"
    assert text.get_text().replace("\n", " ") == said
    assert not ax.collections
    ax = pl.network(chain, "Drug1", min_target_prob=0.99, scope="all", show=False)
    assert {"GENE1", "GENE2", "GENE9"} <= _labels(ax)
    assert any(text.get_text().replace("\n", " ").startswith(said) for text in ax.texts)


def test_errors(chain):
    with pytest.raises(ValueError, match="No edge has a probability of at least 0.95"):
        pl.network(chain, min_prob=0.95)
    with pytest.raises(KeyError, match="Unknown perturbation"):
        pl.network(chain, "Drug111")
    with pytest.raises(KeyError, match="Unknown gene"):
        pl.network(chain, genes=["GENE1", "XYZ"])
    with pytest.raises(ValueError, match="Expected `perturbation` or `gene`, found both"):
        pl.network(chain, "Drug1", gene="GENE1")
    with pytest.raises(ValueError, match="`scope`"):
        pl.network(chain, scope="some")
    with pytest.raises(ValueError, match="`node_color`"):
        pl.network(chain, "Drug1", node_color="sign")
    with pytest.raises(ValueError, match="`n_top`"):
        pl.network(chain, n_top=0)
    with pytest.raises(ValueError, match='None of `genes` is reached by .Drug1.. Use `scope="all"`'):
        pl.network(chain, "Drug1", genes=["GENE1"])
