"""All that an annotated AnnData says of one drug."""

from __future__ import annotations

from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scgim._constants import Key, read_name
from scgim._docs import d
from scgim._report import FEW_COUNTS, Report, about, expected_counts, has_few_counts, number

# What a reader is warned of. Conventions.
_FEW_CELLS = 20  # a dose: weak effects are not seen
_MANY_TARGETS, _MIN_MANY = 0.2, 6  # of the genes, and at least so many: a drug of few targets is what the model assumes
_USUAL, _MIN_DRUGS = 0.5, 5  # of the perturbations share a target, of at least so many
_HUB, _MIN_HUB, _CERTAIN = 0.1, 10, 0.9  # of the genes, and at least so many, that a gene is the certain parent of
_CARRIED = 0.5  # of the change, at least, should be reached from the targets
_UNDECIDED = 0.2  # probabilities between this and 1 less this
_TINY = 1e-12  # probabilities must not be 0, which has no logarithm


class _Drug(NamedTuple):
    """What is stored of one drug: a row a gene in `genes`; its least dose (0 if unknown) and the largest; and the network."""

    name: str
    genes: pd.DataFrame
    doses: tuple[float, float]
    row: pd.Series
    graph: nx.DiGraph
    has_doses: bool
    unit: str


@d.dedent
def report(
    adata: AnnData,
    perturbation: str,
    *,
    key: str = Key.DEFAULT,
    min_prob: float = 0.5,
    min_effect: float = 0.1,
    reference: pd.DataFrame | None = None,
) -> Report:
    """Targets of a drug, what follows through the network, its EC50, and what speaks against believing it.

    Parameters
    ----------
    %(adata)s
    perturbation
        Name of one measured perturbation.
    %(key)s
    min_prob
        Probability from which a gene is called a direct target.
    min_effect
        Size of the total effect, up or down, from which a gene is listed among those that follow (log fold change; for continuous
        values, standard deviations).
    reference
        What is known already, a data frame with columns `source` and `target`: targets of drugs (the drug as source), or regulons
        (genes as sources), such as CollecTRI as decoupler gives it. Both may be in one table.

    Returns
    -------
    A report, which prints as text and shows as tables in a notebook. Its tables:

    - `targets`: called direct targets, likeliest first: `probability`, `effect` and `effect_sd` (expected direct effect at the largest
      dose and its doubt), `total_effect`, `ec50`, `hill`, `ec50_measured` (whether it lies within the doses), `n_perturbations` (that
      the gene is called a target of) and `controls_agree`
    - `follows`: other genes that change, first those of which this is clear (by two standard deviations), most first: `total_effect` and
      `total_effect_sd`, how well it is known; `counts`, those that its cells would have if they were like controls; `probability` of being a
      target after all; and `by_way_of`, the likeliest way from a target through the network, empty where none leads there
    - `known_targets`: with a reference that holds the drug, its targets there: `probability`, `rank` by it, `effect` and `total_effect`, empty
      for genes that were not measured
    - `known_edges`: with a reference that holds genes as sources, the edges by which the effect spreads and whether the reference has
      them, `"as directed"` or `"reversed"`

    Raises
    ------
    %(raises_missing)s
    ValueError
        `reference` has none of the names.

    Examples
    --------
    >>> model.annotate(adata)
    >>> scgim.tl.report(adata, "drug_03")
    >>> scgim.tl.report(adata, "Trametinib", reference=decoupler.op.collectri())["known_edges"]
    """
    drug = _read(adata, str(perturbation), key)
    called = drug.genes[drug.genes["probability"] >= min_prob].sort_values(
        ["probability", "effect_size"], ascending=False
    )
    paths = _paths(drug.graph, called.index)
    tables = {"targets": _targets(drug, called), "follows": _follows(drug, called.index, paths, min_effect)}
    values = _values(drug, called, paths)
    if reference is not None:
        tables |= _compared(drug, reference, tables["follows"], paths, values)
    cautions = [*_cautions(drug, tables["targets"], values), *_cautions_of_listed(drug, tables, paths)]
    return Report(f"{drug.name}: what was found", values, tables, cautions)


def _read(adata: AnnData, name: str, key: str) -> _Drug:
    """What is stored of a drug; KeyError if nothing is."""
    if not isinstance(adata, AnnData):
        raise TypeError(
            f"Expected annotated data, found {type(adata).__name__}. Run `model.annotate(adata)` and pass `adata`; `model.report()` is the "
            "report of a fit."
        )
    slots = {
        "probability": Key.varm.targets,
        "effect": Key.varm.shifts,
        "effect_sd": Key.varm.shift_sds,
        "total_effect": Key.varm.total_effects,
        "ec50": Key.varm.ec50,
        "hill": Key.varm.hill,
    }
    missing = [slot(key) for slot in slots.values() if slot(key) not in adata.varm]
    if missing or key not in adata.uns:
        raise KeyError(
            f"No `{(missing or [key])[0]}` in `adata.{'varm' if missing else 'uns'}`. Run `model.annotate(adata)` first."
        )
    frames = {column: adata.varm[slot(key)].rename(columns=read_name) for column, slot in slots.items()}
    known = list(frames["probability"])
    if name not in known:
        raise KeyError(f"Unknown perturbation {name!r}. Stored are {known[:5]}{' and more' if len(known) > 5 else ''}.")
    genes = pd.DataFrame({column: frame[name].to_numpy() for column, frame in frames.items()}, adata.var_names)
    if (sds := Key.varm.total_effect_sds(key)) in adata.varm:
        genes["total_effect_sd"] = adata.varm[sds].rename(columns=read_name)[name].to_numpy()
    if (counts := expected_counts(adata.uns[key], name, adata.var_names)) is not None:
        genes["counts"] = counts.to_numpy()
    genes["effect_size"] = genes["effect"].abs()
    genes["n_perturbations"] = (frames["probability"] >= 0.5).sum(axis=1).to_numpy()
    agree = Key.var.controls_agree(key)
    genes["controls_agree"] = adata.var[agree].to_numpy(dtype=bool) if agree in adata.var else True
    table, params = adata.uns[key][Key.uns.PERTURBATIONS], adata.uns[key][Key.uns.PARAMS]
    row = table.rename(index=read_name).loc[name].copy()
    row["n_perturbations"] = len(known)
    unit = str(adata.uns.get(Key.DOSAGE_UNIT, ""))
    return _Drug(name, genes, _doses(adata, name, row, params), row, _graph(adata, key), "dosage_key" in params, unit)


def _doses(adata: AnnData, name: str, row: pd.Series, params: Any) -> tuple[float, float]:
    """Least and largest dose of the drug, from its cells; without these, 0 and the largest that was trained on."""
    keys = [params.get("perturbation_key"), params.get("dosage_key")]
    if all(column in adata.obs for column in keys):
        own = adata.obs.loc[adata.obs[keys[0]].astype(str) == name, keys[1]]
        if len(own):
            return float(own.min()), float(own.max())
    return 0.0, float(row["max_dosage"])


def _graph(adata: AnnData, key: str) -> nx.DiGraph:
    """Edges of the fitted graph."""
    weights = sparse.coo_matrix(adata.varp[Key.varp.edge_weights(key)])
    probs = sparse.csr_matrix(adata.varp[Key.varp.edge_probs(key)])
    names = adata.var_names.astype(str)
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(names)
    for i, j, weight in zip(weights.row, weights.col, weights.data, strict=True):
        if weight:
            graph.add_edge(names[i], names[j], weight=float(weight), probability=float(probs[i, j]))
    return graph


def _paths(graph: nx.DiGraph, targets: pd.Index) -> dict[str, list[str]]:
    """Likeliest way to each gene from any of the targets."""
    if not len(targets):
        return {}
    return nx.multi_source_dijkstra(
        graph, set(targets), weight=lambda *edge: -np.log(max(edge[2]["probability"], _TINY))
    )[1]


def _targets(drug: _Drug, called: pd.DataFrame) -> pd.DataFrame:
    columns = ["probability", "effect", "effect_sd", "total_effect"]
    if drug.has_doses:
        called = called.assign(ec50_measured=called["ec50"].between(*drug.doses))
        columns += ["ec50", "hill", "ec50_measured"]
    return about(
        called[[*columns, "n_perturbations", "controls_agree"]].rename_axis("gene"),
        "direct effects at the largest dose, with their standard deviation",
    )


def _follows(drug: _Drug, targets: pd.Index, paths: dict[str, list[str]], min_effect: float) -> pd.DataFrame:
    others = drug.genes.drop(index=targets)
    others = others[others["total_effect"].abs() >= min_effect]
    order = np.lexsort([-others["total_effect"].abs(), ~_is_clear(others)])
    others = others.iloc[order]
    columns = ["total_effect", "total_effect_sd", "counts", "probability"]
    ways = [" → ".join(paths.get(gene, [])) for gene in others.index]
    return about(
        others[[name for name in columns if name in others]].assign(by_way_of=ways).rename_axis("gene"),
        "other genes that change, those surely first, and the likeliest way there from a target",
    )


def _is_clear(genes: pd.DataFrame) -> np.ndarray:
    """Whether the total effect is two standard deviations from zero; where these are not stored, it is taken for so."""
    if "total_effect_sd" not in genes:
        return np.ones(len(genes), dtype=bool)
    return (genes["total_effect"].abs() >= 2 * genes["total_effect_sd"]).to_numpy()


def _values(drug: _Drug, called: pd.DataFrame, paths: dict[str, list[str]]) -> dict[str, Any]:
    change = drug.genes["total_effect"].abs()
    out: dict[str, Any] = {"cells_trained_on": int(drug.row["n_cells"])}
    if drug.has_doses:
        low, high = drug.doses
        span = f"{number(low) if low else 'up'} to {number(high)} {drug.unit}".rstrip()
        out["doses"] = f"{span} ({int(drug.row['n_doses'])})"
    out |= {"genes": len(change), "targets": len(called)}
    probs = drug.genes["probability"]
    out["undecided_genes"] = int(((probs > _UNDECIDED) & (probs < 1 - _UNDECIDED)).sum())
    out["change_reached_from_targets"] = float(change[list(paths)].sum() / max(change.sum(), _TINY))
    return out


def _compared(
    drug: _Drug, reference: pd.DataFrame, follows: pd.DataFrame, paths: dict[str, list[str]], values: dict[str, Any]
) -> dict[str, pd.DataFrame]:
    """Tables of what a reference says; adds to `values` how many it has."""
    if not isinstance(reference, pd.DataFrame) or not {"source", "target"} <= set(reference):
        found = list(reference) if isinstance(reference, pd.DataFrame) else type(reference).__name__
        raise KeyError(f"`reference` must be a data frame with columns 'source' and 'target', found {found}.")
    pairs = reference[["source", "target"]].astype(str).drop_duplicates()
    known = pairs.loc[pairs["source"] == drug.name, "target"].tolist()
    genes = set(drug.genes.index)
    among = pairs[pairs["source"].isin(genes) & pairs["target"].isin(genes) & (pairs["source"] != pairs["target"])]
    if not known and not len(among):
        raise ValueError(
            f"`reference` names neither {drug.name!r} as a source nor two of the genes as source and target. Its first sources are "
            f"{pairs['source'].unique()[:5].tolist()}."
        )
    tables = {}
    if known:
        tables["known_targets"] = _known_targets(drug, known)
        values["known_targets_measured"] = int(tables["known_targets"]["rank"].notna().sum())
    if len(among):
        edges = _known_edges(drug, among, follows, paths)
        n_known = int((edges["in_reference"] == "as directed").sum())
        chance = len(edges) * len(among) / max(1, len(genes) * (len(genes) - 1))
        values["edges_in_reference"] = f"{n_known} of {len(edges)} ({chance:.2g} by chance)"
        tables["known_edges"] = edges
    return tables


def _known_targets(drug: _Drug, known: list[str]) -> pd.DataFrame:
    genes = drug.genes.assign(rank=drug.genes["probability"].rank(ascending=False, method="min"))
    table = genes.reindex(known)[["probability", "rank", "effect", "total_effect"]].sort_values("rank")
    return about(table.rename_axis("gene"), "targets in the reference; empty where the gene was not measured")


def _known_edges(drug: _Drug, among: pd.DataFrame, follows: pd.DataFrame, paths: dict[str, list[str]]) -> pd.DataFrame:
    reference = set(among.itertuples(index=False, name=None))
    used = dict.fromkeys(e for gene in follows.index if gene in paths for e in nx.utils.pairwise(paths[gene]))
    rows = []
    for source, target in used:
        kind = "reversed" if (target, source) in reference else ""
        kind = "as directed" if (source, target) in reference else kind
        rows.append({"source": source, "target": target, **drug.graph.edges[source, target], "in_reference": kind})
    table = pd.DataFrame(rows, columns=["source", "target", "weight", "probability", "in_reference"])
    return about(table, "edges by which the effect spreads")


def _cautions(drug: _Drug, targets: pd.DataFrame, values: dict[str, Any]) -> list[str]:
    """What speaks against believing it."""
    out = []
    if not len(targets):
        best = drug.genes["probability"]
        out.append(f"No gene is called a target; the likeliest is {best.idxmax()} with {best.max():.2g}.")
    if len(targets) >= max(_MIN_MANY, _MANY_TARGETS * len(drug.genes)):
        out.append(
            f"{len(targets)} of {len(drug.genes)} genes are called targets. A drug that acts on many is not what the model assumes; toxic "
            "doses do, and probabilities then mean little."
        )
    if drug.row["n_cells"] < _FEW_CELLS * drug.row["n_doses"]:
        out.append(
            f"{drug.row['n_cells'] / drug.row['n_doses']:.3g} cells{' a dose' if drug.has_doses else ''}: weak effects are not seen in so few."
        )
    off = targets.index[~targets["controls_agree"]]
    if len(off):
        out.append(
            f"Simulated control cells differ from observed ones in {_named(off)}: doubt effects on and through them."
        )
    if drug.has_doses and drug.row["n_doses"] == 1:
        out.append("Measured at one dose, which says nothing of EC50.")
    elif drug.has_doses and not targets["ec50_measured"].all():
        beyond = targets.index[~targets["ec50_measured"]]
        out.append(
            f"The EC50 of {_named(beyond)} lies outside the doses measured: it and the largest effect cannot be told apart."
        )
    unsure = targets.index[targets["effect"].abs() < 2 * targets["effect_sd"]]
    if len(unsure):
        out.append(f"The effect on {_named(unsure)} is less than two standard deviations from zero.")
    if len(targets) and values["change_reached_from_targets"] < _CARRIED:
        out.append(
            f"Only {values['change_reached_from_targets']:.0%} of the change lies in targets and genes below them: the rest is background, "
            "which no measured gene explains."
        )
    return out


def _cautions_of_listed(drug: _Drug, tables: dict[str, pd.DataFrame], paths: dict[str, list[str]]) -> list[str]:
    """What speaks against genes that are listed as targets or following, and genes on the way to these."""
    out, follows = [], tables["follows"]
    listed = [*tables["targets"].index, *follows.index]
    genes = drug.genes.loc[listed]
    unclear = follows.index[~_is_clear(follows)]
    if len(unclear):
        out.append(
            f"The change of {len(unclear)} of the {len(follows)} genes that follow is less than two standard deviations from zero: "
            f"{_named(unclear)}."
        )
    if "counts" in genes and len(few := genes.index[has_few_counts(genes["counts"], genes["total_effect"])]):
        out.append(
            f"Fewer than {FEW_COUNTS} counts are to be expected of {_named(few)} in its cells: hardly anything is known of a change there, and "
            "what is told is by way of the network and of other perturbations."
        )
    n = drug.row["n_perturbations"]
    usual = genes.index[genes["n_perturbations"] >= _USUAL * n]
    if len(usual) and n >= _MIN_DRUGS:
        out.append(
            f"At least half of the perturbations are said to have {_named(usual)} as target, which is rarely direct."
        )
    passed = dict.fromkeys([*listed, *(gene for name in follows.index for gene in paths.get(name, []))])
    children = pd.Series({gene: _n_children(drug.graph, gene) for gene in passed}, dtype=int)
    hubs = children.index[children >= max(_MIN_HUB, _HUB * len(drug.genes))]
    if len(hubs):
        out.append(
            f"{_named(hubs)}: parent of {'up to ' * (len(hubs) > 1)}{children[hubs].max()} of {len(drug.genes)} genes, as good as certainly. Regulators of so many are rare; "
            "a mark of what was not measured, such as the state of a cell, looks the same: doubt what follows by way of it."
        )
    return out


def _n_children(graph: nx.DiGraph, gene: str) -> int:
    """Genes of which a gene is the parent with a probability near 1."""
    return sum(edge["probability"] >= _CERTAIN for edge in graph.succ[gene].values())


def _named(names: pd.Index) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
