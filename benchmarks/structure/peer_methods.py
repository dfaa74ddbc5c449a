"""Other methods on one data set of the common generator; runs in an environment of theirs, without scgim.

`python peer_methods.py METHOD DATA.npz VIEW RESULT.npz` writes what `score.py` reads: `edge`, `adj`, and `target`, `target_bin` where
the method has them; `edge_told` where it can use a list of the genes that regulate. Counts are given as log1p. Settings are the authors'
defaults where there are any.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Callable

Result = dict[str, np.ndarray]
_N_TREES, _LEAST_CELLS = 50, 5
_DSPIN_STRENGTH = 0.05  # weaker ones are not drawn in its plots of networks


class Data:
    """Cells by context: controls first, then every drug at every dose."""

    def __init__(self, path: str, view: str):
        z = np.load(path)
        values = z["X_float"] if view == "float" else np.log1p(z["X_count"])
        context = z["ctx"]
        self.contexts = [values[context == k].astype(float) for k in range(context.max() + 1)]
        self.targets = [np.flatnonzero(row).tolist() for row in z["ctx_targets"]]
        self.regulators = np.flatnonzero(z["A"].any(1))

    @property
    def control(self) -> np.ndarray:
        """Control cells, cells x genes."""
        return self.contexts[0]

    @property
    def centred(self) -> np.ndarray:
        """All cells, each context with mean zero."""
        return np.concatenate([cells - cells.mean(0) for cells in self.contexts])

    @property
    def standardised(self) -> list[np.ndarray]:
        """Contexts on the scale of controls."""
        mean, sd = self.control.mean(0), self.control.std(0) + 1e-8
        return [(cells - mean) / sd for cells in self.contexts]


def utigsp(data: Data, alpha: float) -> Result:
    """UT-IGSP: graph from controls, targets from invariance to the contexts."""
    import causaldag as cd

    tests = cd.MemoizedCI_Tester(
        cd.partial_correlation_test, cd.partial_correlation_suffstat(data.control), alpha=alpha
    )
    statistics = cd.gauss_invariance_suffstat(data.control, data.contexts[1:])
    invariance = cd.MemoizedInvarianceTester(cd.gauss_invariance_test, statistics, alpha=alpha)
    settings = [{"known_interventions": []} for _ in data.contexts[1:]]
    d = data.control.shape[1]
    dag, found = cd.unknown_target_igsp(settings, set(range(d)), tests, invariance)
    graph, nodes = dag.to_amat()
    order = np.argsort(nodes)
    called = np.zeros((len(found), d), dtype=int)
    for row, genes in zip(called, found, strict=True):
        row[list(genes)] = 1
    graph = graph[np.ix_(order, order)].astype(int)
    return {"edge": graph.astype(float), "adj": graph, "target": called.astype(float), "target_bin": called}


def _equivalence_class(pdag: np.ndarray) -> Result:
    """An undirected edge counts one half either way; the graph is one member of the class."""
    from gies.utils import pdag_to_dag

    found = (pdag != 0).astype(float)
    return {"edge": np.where(found * found.T > 0, 0.5, found), "adj": (pdag_to_dag(pdag) != 0).astype(int)}


def ges(data: Data, *, centred: bool) -> Result:
    """GES with the BIC, on controls or on all cells with context means removed."""
    import gies

    return _equivalence_class(gies.fit_bic([data.centred if centred else data.control], [[]])[0])


def gies_told(data: Data) -> Result:
    """GIES, told the true targets of every context."""
    import gies

    return _equivalence_class(gies.fit_bic(data.contexts, [[], *data.targets[1:]])[0])


def dagma(data: Data, *, centred: bool) -> Result:
    """Linear DAGMA, on controls or on all cells with context means removed; weights below 0.3 are no edges."""
    from dagma.linear import DagmaLinear

    weights = np.abs(DagmaLinear("l2").fit(data.centred if centred else data.control, w_threshold=0.0))
    return {"edge": weights, "adj": (weights > 0.3).astype(int)}


def sdcd(data: Data, *, told: bool) -> Result:
    """SDCD on all cells, told the true targets or nothing."""
    import torch
    from sdcd.models import SDCD

    cells = data.standardised
    untouched = np.ones((len(cells), cells[0].shape[1]), dtype=int)
    if told:
        for row, genes in zip(untouched, data.targets, strict=True):
            row[genes] = 0
    masks = np.repeat(untouched, [len(part) for part in cells], axis=0)
    values = torch.as_tensor(np.concatenate(cells), dtype=torch.float32)
    regimes = torch.as_tensor((masks == 0).sum(1))
    model = SDCD()
    model.train(torch.utils.data.TensorDataset(values, torch.as_tensor(masks), regimes))
    return {"edge": model.get_adjacency_matrix(threshold=False), "adj": model.get_adjacency_matrix()}


def marginal(data: Data) -> Result:
    """Welch's test of each context against controls; called at a false discovery rate of 5 %."""
    tests = [stats.ttest_ind(cells, data.control, equal_var=False) for cells in data.contexts[1:]]
    strength = np.abs([test.statistic for test in tests])
    chance = np.clip([test.pvalue for test in tests], 0.0, 1.0)
    called = stats.false_discovery_control(chance.ravel()).reshape(chance.shape) < 0.05
    return {"target": strength, "target_bin": called.astype(int)}


def correlation(data: Data) -> Result:
    """Absolute correlation of genes in controls, which has no direction."""
    return {"edge": np.nan_to_num(np.abs(np.corrcoef(data.control.T)))}


def forest(data: Data) -> Result:
    """Importance of each gene in a random forest for each other gene, on all cells as they are: GENIE3's idea, with fewer trees."""
    cells = np.concatenate(data.contexts)
    genes = np.arange(cells.shape[1])
    found = {"edge": _importance(cells, genes)}
    return found if len(data.regulators) == len(genes) else found | {"edge_told": _importance(cells, data.regulators)}


def _importance(cells: np.ndarray, regulators: np.ndarray) -> np.ndarray:
    from sklearn.ensemble import RandomForestRegressor

    scaled = cells / (cells.std(0) + 1e-8)
    found = np.zeros((cells.shape[1],) * 2)
    for gene in range(len(found)):
        others = regulators[regulators != gene]
        trees = RandomForestRegressor(_N_TREES, max_features="sqrt", min_samples_leaf=_LEAST_CELLS, random_state=0)
        found[others, gene] = trees.fit(scaled[:, others], scaled[:, gene]).feature_importances_
    return found


def dspin(data: Data, *, directed: bool) -> Result:
    """D-SPIN with a spin for each gene and a sample for each context: its network, and its responses relative to controls."""
    import anndata as ad
    from dspin import DSPIN

    np.random.seed(0)  # noqa: NPY002 -- what its k-means draws from
    context = np.repeat(np.arange(len(data.contexts)), [len(cells) for cells in data.contexts])
    cells = ad.AnnData(np.concatenate(data.contexts))
    cells.obs["sample_id"] = np.char.mod("%05d", context)  # in this order it returns them
    cells.obs["if_control"], cells.obs["batch"] = context == 0, "all"
    d = cells.n_vars
    with tempfile.TemporaryDirectory() as folder:
        model = DSPIN(cells, folder, num_spin=d)
        model.network_inference(directed=directed, params={"max_workers": 1})
        model.response_relative_to_control()
    kept = model.adata.var_names.astype(int).to_numpy()  # it leaves out genes that few cells express
    edge, response = np.zeros((d, d)), np.zeros((len(data.contexts), d))
    edge[np.ix_(kept, kept)] = np.abs(model.network).T  # rows of its network are what is acted on
    response[:, kept] = np.abs(model.relative_responses).T
    called = edge >= _DSPIN_STRENGTH
    np.fill_diagonal(called, val=False)
    return {"edge": edge, "adj": called.astype(int), "target": response[1:]}


METHODS: dict[str, Callable[[Data], Result]] = {
    "utigsp-1e-3": partial(utigsp, alpha=1e-3),
    "utigsp-1e-5": partial(utigsp, alpha=1e-5),
    "ges-centred": partial(ges, centred=True),
    "ges-controls": partial(ges, centred=False),
    "gies-told": gies_told,
    "dagma-centred": partial(dagma, centred=True),
    "dagma-controls": partial(dagma, centred=False),
    "sdcd": partial(sdcd, told=False),
    "sdcd-told": partial(sdcd, told=True),
    "dspin": partial(dspin, directed=False),
    "dspin-directed": partial(dspin, directed=True),
    "forest": forest,
    "correlation": correlation,
    "marginal": marginal,
}


def main(method: str, data: str, view: str, result: str) -> None:
    cells = Data(data, view)
    cpu, wall = time.process_time(), time.perf_counter()
    found = METHODS[method](cells)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    meta = {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "rss_mb": memory,
        "pred_space": "log1p",
    }
    np.savez_compressed(result, meta=json.dumps(meta), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
