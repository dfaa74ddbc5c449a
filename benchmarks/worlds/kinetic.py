"""A kinetic world: molecules of 100 genes are made and degraded in each cell, a few genes regulate the others, drugs change rates.

It is made apart from the package and its simulator, and from the common generator: none of their code or form is used, so that a
method cannot do well by having the form of the world. Abundances x follow the chemical Langevin equation

    dx_j = (b_j u_j prod_i h_ij(x_i) - d_j x_j) dt + sqrt(b_j u_j prod_i h_ij(x_i) + d_j x_j) dW_j

with Hill functions h_ij(x) = (1 + a r) / (1 + r), r = (x / K)^n, activating for a > 1 and repressing for a < 1. The factor u_j of production
holds what the drug does (a Hill function of the dose with an EC50 of each drug and gene), what differs from cell to cell, from hidden
state to hidden state and from line to line. Each cell is read once, by Poisson counts at its depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from benchmarks.worlds._pharmacology import Drugs, draw_drugs
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

_STEP = 0.05
_CELLS_AT_ONCE = 500  # their abundances stay in the cache
_LOWEST_STATE = 1e-3


@dataclass(frozen=True)
class Settings:
    """What a world is like.

    Parameters
    ----------
    n_genes, n_regulators
        Genes, and those of them that may regulate others.
    n_feedback
        Repressing edges from a regulator to one before it in the order of the others; most close a cycle. 0 for no cycles.
    n_drugs, n_new_drugs
        Drugs measured at all doses but one, and drugs that are held out.
    doses
        All doses; each measured drug misses one, in rotation.
    n_classes
        Classes of drugs with common targets; None for drugs that have nothing in common.
    n_features, feature_noise, nonlinear_features
        Features of a drug, the standard deviation of their noise in that of the features, and whether they saturate.
    n_cells, n_controls
        Cells of a context, and control cells.
    mean_count
        Mean count of a gene in control cells, averaged over genes.
    molecules
        Typical number of molecules of a gene; the smaller, the larger the intrinsic noise.
    gene_noise, cell_noise, depth_noise
        Standard deviations of the logarithms of what varies from cell to cell: production of each gene, production of all, depth.
    n_states, n_lines
        Hidden states of cells, and cell lines (in obs), which differ in the production of some genes.
    duration
        Time under the drug, in mean lifetimes of a molecule.
    seed
        Seed of all that is drawn.
    """

    n_genes: int = 100
    n_regulators: int = 10
    n_feedback: int = 0
    n_drugs: int = 40
    n_new_drugs: int = 8
    doses: tuple[float, ...] = (0.1, 0.5, 2.0, 10.0)
    n_classes: int | None = 12
    n_features: int = 20
    feature_noise: float = 0.2
    nonlinear_features: bool = False
    n_cells: int = 40
    n_controls: int = 800
    mean_count: float = 2.0
    molecules: float = 100.0
    gene_noise: float = 0.3
    cell_noise: float = 0.1
    depth_noise: float = 0.3
    n_states: int = 1
    n_lines: int = 1
    duration: float = 15.0
    seed: int = 0


@dataclass(frozen=True)
class Network:
    """Who regulates whom and how; edges are sorted by the regulated gene.

    Parameters
    ----------
    parent, child
        Genes of each edge.
    threshold, power, fold
        Abundance of half the effect, its cooperativity, and the factor of production far above it.
    level, decay
        Abundance of each gene where nothing disturbs it, and its rate of degradation.
    """

    parent: np.ndarray
    child: np.ndarray
    threshold: np.ndarray
    power: np.ndarray
    fold: np.ndarray
    level: np.ndarray
    decay: np.ndarray

    @property
    def adjacency(self) -> np.ndarray:
        """Genes x genes, regulators in rows."""
        graph = np.zeros((len(self.level),) * 2, dtype=bool)
        graph[self.parent, self.child] = True
        return graph

    @property
    def basal(self) -> np.ndarray:
        """Production without regulators; such that `level` is a steady state, with cycles too."""
        return self.decay * self.level / self.regulation(self.level[None])[0]

    def regulation(self, x: np.ndarray) -> np.ndarray:
        """Factor of production of every gene by its regulators, cells x genes."""
        factor = np.ones_like(x)
        if len(self.parent):
            ratio = (x[:, self.parent] / self.threshold) ** self.power
            genes, starts = np.unique(self.child, return_index=True)
            factor[:, genes] = np.multiply.reduceat((1 + self.fold * ratio) / (1 + ratio), starts, axis=1)
        return factor.astype(x.dtype)

    def steady_state(self, log_production: np.ndarray, n_steps: int = 300) -> np.ndarray:
        """Abundances without noise, cells x genes, where production is changed by these logarithms."""
        production = self.basal * np.exp(log_production) / self.decay
        x = np.broadcast_to(self.level, production.shape).copy()
        for _ in range(n_steps):
            x = np.sqrt(x * production * self.regulation(x))  # half way on the log scale, against oscillation
        return x


def wire(settings: Settings, rng: np.random.Generator) -> Network:
    """A random network: regulators in an order, each with one or two before it; the others with up to three regulators."""
    order = rng.permutation(settings.n_genes)
    regulators = order[: settings.n_regulators]
    edges = []
    for position, gene in enumerate(order):
        before = regulators[:position]
        numbers = [0, 1, 2, 3], [0.2, 0.4, 0.25, 0.15]
        n = rng.integers(1, 3) if position < len(regulators) else rng.choice(numbers[0], p=numbers[1])
        edges += [(parent, gene, False) for parent in rng.choice(before, min(n, len(before)), replace=False)]
    backward = [(regulators[j], regulators[i], True) for j in range(len(regulators)) for i in range(j)]
    taken = rng.choice(len(backward), settings.n_feedback, replace=False)
    edges += [backward[i] for i in taken]
    edges.sort(key=lambda edge: edge[1])
    parent, child = (np.array([edge[i] for edge in edges], dtype=int) for i in (0, 1))
    feedback = np.array([edge[2] for edge in edges], dtype=bool)
    level = settings.molecules * np.exp(rng.normal(0, 0.5, settings.n_genes))
    sign = np.where((rng.random(len(edges)) < 0.4) | feedback, -1, 1)
    return Network(
        parent=parent,
        child=child,
        threshold=level[parent] * np.exp(rng.normal(0, 0.3, len(edges))),
        power=rng.uniform(1, 3, len(edges)),
        fold=np.exp(sign * rng.uniform(1, 2.5, len(edges))),
        level=level,
        decay=np.exp(rng.normal(0, 0.2, settings.n_genes)),
    )


def grow(network: Network, log_production: np.ndarray, duration: float, rng: np.random.Generator) -> np.ndarray:
    """Abundances of cells after a time by Euler and Maruyama, cells x genes; all begin at the undisturbed levels."""
    single = np.float32
    level, decay, basal = (v.astype(single) for v in (network.level, network.decay, network.basal))
    step, parts = single(_STEP), []
    for start in range(0, len(log_production), _CELLS_AT_ONCE):
        production = basal * np.exp(log_production[start : start + _CELLS_AT_ONCE]).astype(single)
        x = np.broadcast_to(level, production.shape).copy()
        for _ in range(round(duration / _STEP)):
            made, lost = production * network.regulation(x), decay * x
            noise = rng.standard_normal(x.shape, dtype=single)
            x += step * (made - lost) + np.sqrt(step * (made + lost)) * noise
            np.maximum(x, _LOWEST_STATE, out=x)
        parts.append(x)
    return np.concatenate(parts)


def contexts(settings: Settings) -> pd.DataFrame:
    """One row a context: drug (its number, -1 for control), dosage, split and number of cells."""
    rows = [(-1, 0.0, "train", settings.n_controls)]
    for drug in range(settings.n_drugs + settings.n_new_drugs):
        for i, dose in enumerate(settings.doses):
            held_out = "unseen_dose" if i == drug % len(settings.doses) else "train"
            split = held_out if drug < settings.n_drugs else "unseen_drug"
            rows.append((drug, dose, split, settings.n_cells))
    return pd.DataFrame(rows, columns=["drug", "dosage", "split", "n"])


def differences(n: int, share: float, sd: float, n_genes: int, rng: np.random.Generator) -> np.ndarray:
    """Logarithms of production of `n` kinds of cells, the first as it is, the others different in a share of the genes."""
    offsets = rng.normal(0, sd, (n, n_genes)) * (rng.random((n, n_genes)) < share)
    offsets[0] = 0.0
    return offsets


def make(**options: object) -> AnnData:
    """Cells of a world; `options` are those of :class:`Settings`.

    Returns
    -------
    Counts in `X`, the abundances they count in `layers["true_abundance"]`; obs `perturbation`, `dosage`, `size_factor`, `split` ("train",
    "unseen_dose", "unseen_drug"; controls are "train") and, where there are several, `cell_line` and `hidden_state`;
    `uns["drug_embedding"]`; the truth in `varp["true_adjacency"]` (regulators in rows), `varm["true_targets"]` and
    `varm["true_effects"]` (largest log fold of production), genes x drugs.
    """
    settings = Settings(**options)
    # A stream for each part, so that a change of one leaves the others as they are.
    streams = [np.random.default_rng([settings.seed, part]) for part in range(5)]
    network = wire(settings, streams[0])
    drugs = draw_drugs(settings, np.unique(network.parent), streams[1])
    obs = _cells(settings, streams[2])
    log_production = _log_production(settings, drugs, obs, streams[3])
    abundance = grow(network, log_production, settings.duration, streams[4])
    obs["size_factor"] = np.exp(streams[2].normal(0, settings.depth_noise, len(obs)))
    obs["size_factor"] /= obs["size_factor"].mean()
    per_molecule = settings.mean_count / network.level.mean()
    counts = streams[4].poisson(per_molecule * abundance * obs["size_factor"].to_numpy()[:, None])
    return _assemble(counts, abundance, obs, network, drugs)


def _cells(settings: Settings, rng: np.random.Generator) -> pd.DataFrame:
    table = contexts(settings)
    cells = table.loc[table.index.repeat(table["n"]), ["drug", "dosage", "split"]].reset_index(drop=True)
    cells["state"] = rng.integers(settings.n_states, size=len(cells))
    cells["line"] = rng.integers(settings.n_lines, size=len(cells))
    return cells


def _log_production(settings: Settings, drugs: Drugs, obs: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    n, d = len(obs), settings.n_genes
    values = rng.normal(0, settings.gene_noise, (n, d)) + rng.normal(0, settings.cell_noise, (n, 1))
    values += differences(settings.n_states, 0.2, 0.7, d, rng)[obs["state"]]
    values += differences(settings.n_lines, 0.3, 0.5, d, rng)[obs["line"]]
    for (drug, dose), cells in obs[obs["drug"] >= 0].groupby(["drug", "dosage"]).groups.items():
        values[cells] += drugs.log_factor(drug, dose)
    return values


def _assemble(counts: np.ndarray, abundance: np.ndarray, obs: pd.DataFrame, network: Network, drugs: Drugs) -> AnnData:
    names = np.array([f"d{i}" for i in range(len(drugs.effect))])
    genes = pd.Index([f"g{j}" for j in range(len(network.level))])
    columns = {
        "perturbation": pd.Categorical(np.where(obs["drug"] < 0, "control", names[obs["drug"]])),
        "dosage": obs["dosage"].to_numpy(),
        "size_factor": obs["size_factor"].to_numpy(),
        "split": pd.Categorical(obs["split"]),
    }
    for column, name in (("line", "cell_line"), ("state", "hidden_state")):
        if obs[column].nunique() > 1:
            columns[name] = pd.Categorical(f"{column} " + obs[column].astype(str))
    adata = ad.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        pd.DataFrame(columns, index=pd.RangeIndex(len(obs)).astype(str)),
        pd.DataFrame(index=genes),
        layers={"true_abundance": abundance},
    )
    adata.varp["true_adjacency"] = sparse.csr_matrix(network.adjacency)
    adata.varm["true_targets"] = pd.DataFrame(drugs.effect.T != 0, genes, names)
    adata.varm["true_effects"] = pd.DataFrame(drugs.effect.T, genes, names)
    features = [f"feature_{i}" for i in range(drugs.features.shape[1])]
    adata.uns["drug_embedding"] = pd.DataFrame(drugs.features, names, features)
    return adata
