"""A stand-in for sciPlex3: three cell lines, some 188 drugs at four doses, few counts a gene, one drug in three without effect.

No network is in it. Genes vary together by programmes; cells are in hidden states of the cell cycle, which drugs shift; each cell line has its
own expression and answers in its own strength; plates add a batch effect; each context has between 10 and 100 cells of a line. What a drug
does is, in equal parts, what all do that have an effect, what its pathway does, what its structure tells (linear in its features) and its
own; so that there is something to learn of new drugs, and not all of it. Names, pathways and structures are those of the screen where the file is at hand.

It is made apart from the package's simulator and from the common generator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scgim.pp import drug_fingerprints, pca_features

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

FILE = "sciplex3_drug_smiles.csv"
DOSES = (10.0, 100.0, 1000.0, 10000.0)
LINES = ("A549", "K562", "MCF7")
_STATES = (0.5, 0.25, 0.25)  # shares of G1, S and G2/M where nothing is done
_PROGRAMME_NOISE, _GENE_NOISE = 0.6, 0.2  # standard deviations between cells, log scale
_N_PATHWAYS = 16  # of drugs that are made up


@dataclass(frozen=True)
class Settings:
    """What a screen is like.

    Parameters
    ----------
    n_genes, n_programmes
        Genes, and programmes by which they vary together.
    n_drugs
        Drugs, the first of the file; all of them if it has fewer.
    n_components
        Features of a drug: principal components of fingerprints.
    cells
        Smallest and largest number of cells of a drug, dose and line.
    most_cells
        Keep at most so many of them, to make fits cheaper; None for all.
    n_controls
        Control cells of each line.
    n_batches
        Plates.
    mean_count
        Mean count of a gene in control cells, averaged over genes.
    without_effect
        Share of drugs that do nothing.
    new_drugs, missing_doses
        Share of drugs that are held out, and of the others that miss one dose.
    seed
        Seed of all that is drawn.
    """

    n_genes: int = 100
    n_programmes: int = 8
    n_drugs: int = 188
    n_components: int = 40
    cells: tuple[int, int] = (10, 100)
    most_cells: int | None = None
    n_controls: int = 1000
    n_batches: int = 3
    mean_count: float = 0.3
    without_effect: float = 1 / 3
    new_drugs: float = 0.2
    missing_doses: float = 0.5
    seed: int = 0


class Response(NamedTuple):
    """What drugs do.

    Parameters
    ----------
    log_fold
        Largest change of log expression, drugs x genes; zero for drugs without effect.
    arrest
        Largest change of the log odds of the first state, one a drug.
    log_ec50, power
        Logarithm of the dose of half the effect, and steepness, one a drug.
    gain
        Strength in each line, drugs x lines.
    """

    log_fold: np.ndarray
    arrest: np.ndarray
    log_ec50: np.ndarray
    power: np.ndarray
    gain: np.ndarray

    def strength(self, drug: np.ndarray, dose: np.ndarray, line: np.ndarray) -> np.ndarray:
        """Share of the largest effect that contexts have, times the gain of their line."""
        with np.errstate(divide="ignore"):  # controls have dose 0
            odds = np.exp(self.power[drug] * (self.log_ec50[drug] - np.log(dose)))
        return self.gain[drug, line] / (1 + odds)


def library(settings: Settings, data: Path | None) -> tuple[pd.DataFrame, np.ndarray]:
    """Features of drugs (a row each), and the pathway of each, as numbers; made up if there is no file."""
    rng = np.random.default_rng([settings.seed, 0])
    n = settings.n_drugs
    if data is not None and (data / FILE).exists():
        table = pd.read_csv(data / FILE, header=None, names=["name", "smiles", "pathway"], keep_default_na=False)
        table = table[table["name"] != "control"].iloc[:n]
        features = pca_features(
            drug_fingerprints(table.set_index("name")["smiles"]), min(settings.n_components, len(table) - 1)
        )
        return features, pd.factorize(table["pathway"])[0]
    pathway = rng.integers(_N_PATHWAYS, size=n)
    values = rng.normal(size=(_N_PATHWAYS, settings.n_components))[pathway]
    values = values + rng.normal(size=values.shape)
    names = [f"feature_{i}" for i in range(settings.n_components)]
    return pd.DataFrame(values, [f"d{i}" for i in range(n)], names), pathway


def respond(
    settings: Settings, features: np.ndarray, pathway: np.ndarray, loadings: np.ndarray, rng: np.random.Generator
) -> Response:
    """Draw what drugs do: equal parts common to all, by pathway, by structure and of each drug's own, mostly along programmes."""
    n, d = len(features), settings.n_genes

    def directions(k: int) -> np.ndarray:
        along = rng.normal(size=(k, len(loadings))) @ loadings / np.sqrt(len(loadings))
        return along + rng.normal(0, 1, (k, d)) * (rng.random((k, d)) < 0.1)

    structure = features / features.std() / np.sqrt(features.shape[1])
    parts = [directions(1).repeat(n, axis=0), directions(pathway.max() + 1)[pathway]]
    parts += [structure @ directions(features.shape[1]), directions(n)]
    direction = sum(part / part.std() for part in parts) / np.sqrt(len(parts))
    amplitude = np.exp(rng.normal(-1.0, 0.5, n)) * (rng.permutation(n) >= round(settings.without_effect * n))
    pathway_gain = np.exp(rng.normal(0, 0.4, (pathway.max() + 1, len(LINES))))
    return Response(
        log_fold=amplitude[:, None] * direction,
        arrest=amplitude * rng.uniform(0, 4, n),
        log_ec50=np.log(10) * rng.uniform(1.5, 4, n),
        power=rng.uniform(1, 2, n),
        gain=pathway_gain[pathway],
    )


def design(settings: Settings, rng: np.random.Generator) -> pd.DataFrame:
    """One row a cell: drug (its number, -1 for control), dosage, line, batch and split."""
    n = settings.n_drugs
    new = rng.permutation(n) < round(settings.new_drugs * n)
    misses = np.where(rng.random(n) < settings.missing_doses, np.arange(n) % len(DOSES), -1)
    plate = rng.integers(settings.n_batches, size=n)
    rows = [(-1, 0.0, line, -1, "train", settings.n_controls) for line in range(len(LINES))]
    most = settings.most_cells or settings.cells[1]
    for drug in range(n):
        for i, dose in enumerate(DOSES):
            split = "unseen_drug" if new[drug] else "unseen_dose" if misses[drug] == i else "train"
            for line in range(len(LINES)):
                cells = min(rng.integers(settings.cells[0], settings.cells[1] + 1), most)
                rows.append((drug, dose, line, plate[drug], split, cells))
    table = pd.DataFrame(rows, columns=["drug", "dosage", "line", "batch", "split", "n"])
    cells = table.loc[table.index.repeat(table.pop("n"))].reset_index(drop=True)
    controls = cells["batch"] < 0  # on every plate
    cells.loc[controls, "batch"] = rng.integers(settings.n_batches, size=controls.sum())
    return cells


def make(data: Path | None = None, **options: object) -> AnnData:
    """Cells of a screen; `options` are those of :class:`Settings`, `data` the folder in which the file of structures may lie.

    Returns
    -------
    Counts in `X`; obs `perturbation`, `dosage`, `cell_line`, `batch`, `size_factor`, `split` ("train", "unseen_dose", "unseen_drug"; controls
    are "train") and `hidden_state`; `uns["drug_embedding"]`; `varm["true_log_fold"]`, genes x drugs.
    """
    settings = Settings(**options)
    features, pathway = library(settings, data)
    settings = replace(settings, n_drugs=len(features))  # the file may hold fewer
    rng = np.random.default_rng([settings.seed, 1])
    loadings = rng.normal(0, 0.5, (settings.n_programmes, settings.n_genes))
    loadings *= rng.random(loadings.shape) < 0.3
    response = respond(settings, features.to_numpy(), pathway, loadings, rng)
    cells = design(settings, np.random.default_rng([settings.seed, 2]))
    counts, depth, state = _count(settings, cells, response, loadings, np.random.default_rng([settings.seed, 3]))
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(np.where(cells["drug"] < 0, "control", features.index[cells["drug"]])),
            "dosage": cells["dosage"].to_numpy(),
            "cell_line": pd.Categorical(np.array(LINES)[cells["line"]]),
            "batch": pd.Categorical("plate " + cells["batch"].astype(str)),
            "size_factor": depth,
            "split": pd.Categorical(cells["split"]),
            "hidden_state": pd.Categorical("state " + pd.Series(state).astype(str)),
        },
        index=pd.RangeIndex(len(cells)).astype(str),
    )
    genes = pd.Index([f"g{j}" for j in range(settings.n_genes)])
    adata = ad.AnnData(counts, obs, pd.DataFrame(index=genes))
    adata.uns["drug_embedding"] = features
    adata.varm["true_log_fold"] = pd.DataFrame(response.log_fold.T, genes, features.index)
    return adata


def _count(
    settings: Settings, cells: pd.DataFrame, response: Response, loadings: np.ndarray, rng: np.random.Generator
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Counts, depths and hidden states of cells, drawn in blocks."""
    d = settings.n_genes
    base = rng.normal(0, 0.8, d) + rng.normal(0, 0.5, (len(LINES), d)) * (rng.random((len(LINES), d)) < 0.5)
    plates = rng.normal(0, 0.1, (settings.n_batches, d))
    of_state = rng.normal(0, 0.6, (len(_STATES), d)) * (rng.random((len(_STATES), d)) < 0.2)
    base -= np.log(np.exp(base).mean(axis=1, keepdims=True)) - np.log(settings.mean_count)
    # What varies between cells has no part in the mean.
    base -= (
        np.log(np.array(_STATES) @ np.exp(of_state))
        + (_PROGRAMME_NOISE**2 * (loadings**2).sum(axis=0) + _GENE_NOISE**2) / 2
    )
    depth = np.exp(rng.normal(0, 0.35, len(cells)))
    depth /= depth.mean()
    parts, states = [], []
    for start in range(0, len(cells), 20_000):
        part = cells.iloc[start : start + 20_000]
        drug, dose, line = (part[name].to_numpy() for name in ("drug", "dosage", "line"))
        strength = response.strength(drug, dose, line) * (drug >= 0)
        odds = np.log(_STATES) + np.outer(strength * response.arrest[drug], [1.0, 0.0, 0.0])
        state = (odds + rng.gumbel(size=odds.shape)).argmax(axis=1)
        log_mean = base[line] + plates[part["batch"]] + of_state[state] + strength[:, None] * response.log_fold[drug]
        log_mean += rng.normal(0, _PROGRAMME_NOISE, (len(part), settings.n_programmes)) @ loadings
        log_mean += rng.normal(0, _GENE_NOISE, log_mean.shape)
        counts = rng.poisson(depth[start : start + len(part), None] * np.exp(log_mean))
        parts.append(sparse.csr_matrix(counts.astype(np.float32)))
        states.append(state)
    return sparse.vstack(parts, format="csr"), depth, np.concatenate(states)
