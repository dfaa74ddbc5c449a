"""Sachs et al. 2005: eleven phospho-proteins, 7,466 cells, known targets and a consensus graph of 20 edges.

Continuous data, so likelihood `normal` on log intensities. Control are the cells stimulated with anti-CD3/CD28 alone; the other
conditions are eight perturbations, seven with a known target (ICAM-2 has none among the eleven). PMA and b2cAMP were given *without*
anti-CD3/CD28, so against this control they differ by the missing stimulus as well: their calls beyond the target are not all wrong.

Targets are compared with a t-test of each condition against control. Edges are compared with the consensus graph, which is drawn from
the literature and neither complete nor beyond doubt; published methods typically recover about half of it. The baseline scores an edge
by the partial correlation within conditions, the same in both directions, and calls those that are significant at 5 % after
Bonferroni. Inhibitors such as AKT-inhibitor act on the activity of a protein, which the level of its phosphorylated form shows
only in part. Methods for graphs run too where their environments are: `python benchmarks/structure/run.py peers --install`.

Expected: most known targets among the two most probable; edges better than partial correlation, directions better than chance.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from benchmarks.structure import peers
from scipy import stats

import scgim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

FILE = "sachs2005/sachs.2005.with.jittered.experimental.continuous.txt"
GRAPH = "sachs2005/sachs.2005.ground.truth.graph.txt"
CONTROL = "cd3_cd28"
TARGETS = {
    "aktinhib": "akt",
    "g0076": "pkc",
    "psitect": "pip2",
    "u0126": "mek",
    "ly": "pip3",
    "pma": "pkc",
    "b2camp": "pka",
}
PEERS = ("utigsp-1e-3", "utigsp-1e-5", "ges-centred", "ges-controls", "dagma-centred", "dagma-controls", "gies-told")
N_PROTEINS = 11
ALPHA = 0.05
_TIMEOUT = 300.0
RANKING = ["auroc", "auprc", "skeleton_auprc", "orientation_accuracy"]
CALLS = ["precision", "recall", "f1", "shd", "n_edges"]


def load(data: Path, *, quick: bool) -> AnnData:
    """Log intensities; a cell's perturbation is the treatment it had beside anti-CD3/CD28. `quick` takes 100 cells of each."""
    table = pd.read_csv(data / FILE, sep="\t")
    treated = table.iloc[:, N_PROTEINS:] > 0.5
    others = treated.drop(columns=CONTROL)
    names = np.where(others.any(axis=1), others.idxmax(axis=1), CONTROL)
    x = np.log(table.iloc[:, :N_PROTEINS]).astype(np.float32)
    adata = ad.AnnData(
        x.set_axis(x.index.astype(str)), pd.DataFrame({"perturbation": names}, index=x.index.astype(str))
    )
    if not quick:
        return adata
    rng = np.random.default_rng(0)
    rows = [rng.choice(cells, 100, replace=False) for cells in adata.obs.groupby("perturbation").indices.values()]
    return adata[np.sort(np.concatenate(rows))].copy()


def consensus(data: Path, proteins: Sequence[str]) -> pd.DataFrame:
    """Adjacency of the consensus graph."""
    adjacency = pd.DataFrame(0, index=list(proteins), columns=list(proteins))
    for line in (data / GRAPH).read_text().splitlines():
        if "-->" in line:
            source, target = line.split(". ")[1].split(" --> ")
            adjacency.loc[source, target.strip()] = 1
    return adjacency


def fit(adata: AnnData, intervention: str, seed: int, max_epochs: int | None) -> tuple[scgim.model.GIM, float]:
    """Model of the data, and the CPU seconds of its training."""
    scvi.settings.seed = seed
    scgim.model.GIM.setup_anndata(adata, control=CONTROL, dosage_key=None, drug_embedding_key=None)
    model = scgim.model.GIM(adata, likelihood="normal", intervention=intervention)
    start = time.process_time()
    model.train(max_epochs, accelerator="cpu", enable_progress_bar=False)
    return model, time.process_time() - start


def t_test(adata: AnnData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Absolute t statistics of each condition against control, and whether significant at 5 % false discovery."""
    groups = {name: adata.X[cells] for name, cells in adata.obs.groupby("perturbation").indices.items()}
    control = groups.pop(CONTROL)
    tests = {name: stats.ttest_ind(x, control, equal_var=False) for name, x in groups.items()}
    statistic = pd.DataFrame({name: np.abs(test.statistic) for name, test in tests.items()}, adata.var_names).T
    adjusted = {name: stats.false_discovery_control(test.pvalue) for name, test in tests.items()}
    return statistic, pd.DataFrame(adjusted, adata.var_names).T < ALPHA


def partial_correlation(adata: AnnData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Absolute partial correlations within conditions, and whether they are significant at 5 % after Bonferroni."""
    means = pd.DataFrame(adata.X, adata.obs_names, adata.var_names).groupby(adata.obs["perturbation"]).transform("mean")
    precision = np.linalg.inv(np.cov(adata.X - means.to_numpy(), rowvar=False))
    scale = np.sqrt(np.diag(precision))
    d = adata.n_vars
    values = np.abs(precision / np.outer(scale, scale))
    score = pd.DataFrame((values + values.T) / 2, adata.var_names, adata.var_names)  # to the bit the same both ways
    z = stats.norm.isf(ALPHA / (d * (d - 1)))
    return score, score > np.tanh(z / np.sqrt(adata.n_obs - d - 1))


def mean_shifts(adata: AnnData) -> pd.DataFrame:
    """Mean shift of each protein in each condition, in control standard deviations."""
    means = pd.DataFrame(adata.X, columns=adata.var_names).groupby(adata.obs["perturbation"].to_numpy()).mean()
    spread = adata.X[(adata.obs["perturbation"] == CONTROL).to_numpy()].std(axis=0)
    return (means - means.loc[CONTROL]) / spread


def target_table(shifts: pd.DataFrame, scores: dict[str, tuple[pd.DataFrame, pd.DataFrame]]) -> pd.DataFrame:
    """Mean shift of the known target, its rank among the proteins, and other proteins called; a row a perturbation."""
    rows = []
    for drug, target in TARGETS.items():
        row = {"perturbation": drug, "target": target, "its mean shift": shifts.loc[drug, target]}
        for method, (score, called) in scores.items():
            row[f"rank: {method}"] = int((score.loc[drug] > score.loc[drug, target]).sum() + 1)
            row[f"called: {method}"] = bool(called.loc[drug, target])
            row[f"others called: {method}"] = int(called.loc[drug].drop(target).sum())
        rows.append(row)
    return pd.DataFrame(rows)


def edge_table(truth: pd.DataFrame, scores: dict[str, tuple[pd.DataFrame, pd.DataFrame, float]]) -> pd.DataFrame:
    """Edges against the consensus graph, ranked by their scores, and those called; a row a method."""
    rows = []
    for method, (score, called, seconds) in scores.items():
        metrics = scgim.metrics.edge_metrics(truth, score)
        decided = scgim.metrics.edge_metrics(truth, called)
        pairs = np.triu(called | called.T, 1)
        row = {"method": method, **{name: metrics[name] for name in RANKING}, **{name: decided[name] for name in CALLS}}
        row |= {
            "pairs called": int(pairs.sum()),
            "in the consensus": int((pairs & (truth | truth.T).to_numpy(bool)).sum()),
        }
        rows.append({**row, "CPU seconds": seconds})
    return pd.DataFrame(rows).rename(columns=lambda name: name.replace("_", " "))


def peer_edges(adata: AnnData) -> dict[str, tuple[pd.DataFrame, pd.DataFrame, float]]:
    """Scores of edges, whether they are called, and CPU seconds, of the other methods that are installed."""
    pythons = peers.find(peers.FOLDER, {peers.METHODS[name][1] for name in PEERS})
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "sachs.npz"
        contexts = [CONTROL, *sorted(set(adata.obs["perturbation"]) - {CONTROL})]
        targets = [adata.var_names == TARGETS.get(name) for name in contexts]
        control = adata.X[(adata.obs["perturbation"] == CONTROL).to_numpy()]
        x = (adata.X - control.mean(0)) / control.std(0)
        np.savez(data, X_float=x, ctx=pd.Index(contexts).get_indexer(adata.obs["perturbation"]), ctx_targets=targets)
        for name in PEERS:
            heading, module, _ = peers.METHODS[name]
            if module in pythons:
                result, meta = peers.call(pythons[module], name, data, "float", _TIMEOUT)
                names = adata.var_names
                score, graph = (pd.DataFrame(result[key], names, names) for key in ("edge", "adj"))
                found[heading] = (score, graph > 0, meta["cpu"])
    return found


def run(data: Path, *, seeds: Sequence[int] = (0,), quick: bool = False) -> dict[str, pd.DataFrame]:
    """Tables by name: targets for the first seed, edges for each."""
    adata = load(data, quick=quick)
    targets, edges = {}, {}
    for intervention in ("shift", "hard"):
        for seed in seeds:
            model, cpu = fit(adata, intervention, seed, 2 if quick else None)
            name = f"scGIM, {intervention}"
            probs = model.get_adjacency()
            edges[name + (f", seed {seed}" if len(seeds) > 1 else "")] = (probs, probs > 0.5, cpu)
            if seed == seeds[0]:
                probs = model.get_targets().droplevel("dosage")
                effects, sds = (f.droplevel("dosage").abs() for f in model.get_effects(return_sd=True))
                targets[name] = (probs + 1e-9 * (effects / sds.clip(lower=1e-12)).rank(axis=1), probs > 0.5)
    targets["t-test"] = t_test(adata)
    edges["partial correlation"] = (*partial_correlation(adata), np.nan)
    edges |= {} if quick else peer_edges(adata)
    return {
        "sachs-targets": target_table(mean_shifts(adata), targets),
        "sachs-edges": edge_table(consensus(data, adata.var_names), edges),
    }
