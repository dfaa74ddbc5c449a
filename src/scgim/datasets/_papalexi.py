"""ECCITE-seq CRISPR screen (Papalexi et al. 2021, Nat Genet 53:322), from GEO series GSE153056."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scgim.datasets._download import RemoteFile, cache_folder, fetch
from scgim.datasets._geo import read_dense, read_r_table, warn_unless_totals_agree
from scgim.datasets._local import read_local
from scgim.datasets._select import cached, match_names, subsample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_GEO = "https://ftp.ncbi.nlm.nih.gov/geo"

# No checksums are known for these: they are trusted on first use.
PAPALEXI = {
    "counts": RemoteFile(
        "GSM4633614_ECCITE_cDNA_counts.tsv.gz",
        f"{_GEO}/samples/GSM4633nnn/GSM4633614/suppl/GSM4633614_ECCITE_cDNA_counts.tsv.gz",
    ),
    "labels": RemoteFile(
        "GSE153056_ECCITE_metadata.tsv.gz",
        f"{_GEO}/series/GSE153nnn/GSE153056/suppl/GSE153056_ECCITE_metadata.tsv.gz",
    ),
}


_ORIGIN = "The data are GEO series GSE153056; without `path` they are downloaded from there."


def papalexi_2021(
    path: str | Path | None = None,
    *,
    perturbations: Sequence[str] | None = None,
    n_cells: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> AnnData:
    """CRISPR knock-out screen of 25 genes in stimulated THP-1 cells: 20,729 cells x 18,649 genes, targets known.

    Parameters
    ----------
    path
        An `h5ad` file, or a folder with one `papalexi*.h5ad`, that has raw counts of some of the genes and the columns `perturbation`
        (with "control"), `guide` and `replicate` of `obs`. None to download all genes.
    perturbations
        Knocked-out genes to keep; controls always stay. None for all.
    n_cells
        Largest number of cells, drawn at random in proportion to the knock-outs. None for all.
    seed
        Seed of that draw.
    cache_dir
        Folder for downloads (65 MB). By default that of the environment variable SCGIM_CACHE, or the user's cache
        folder.
    progress
        Show progress bars.

    Returns
    -------
    Raw counts (csr) of genes found in any of the cells. `obs`: `perturbation` (the gene knocked out; "control" for
    non-targeting guides), `dosage` (1, and 0 for controls), `guide`, `replicate`, `phase` (of the cell cycle; not from a file)
    and `n_umi` (over all genes, or those of the file). Knock-outs have no features: use `setup_anndata(..., drug_embedding_key=None)`.

    Raises
    ------
    ConnectionError
        The server cannot be reached.
    FileNotFoundError
        There is no such file.
    KeyError
        There is no such knock-out, or columns of a file are missing.
    ValueError
        A download differs from the first one, or values of a file are no counts.

    Notes
    -----
    No checksums of these files are known: the sha256 of the first download is logged, kept, and checked from then on.
    """

    def chosen(obs: pd.DataFrame) -> pd.DataFrame:
        names = match_names(perturbations, set(obs["perturbation"]) - {"control"}, argument="perturbations")
        obs = obs[obs["perturbation"].isin(["control", *names])]
        return subsample(obs, n_cells, ["perturbation", "replicate"], seed).copy()

    if path is not None:
        return _from_file(path, chosen)
    folder = cache_folder(cache_dir)

    def make() -> AnnData:
        paths = {name: fetch(file, folder, progress=progress) for name, file in PAPALEXI.items()}
        obs = chosen(_labels(paths["labels"]))
        X, genes = read_dense(paths["counts"], obs.index, progress=progress)
        warn_unless_totals_agree(np.asarray(X.sum(axis=1)).ravel(), obs["n_umi"].to_numpy(), "GSE153056")
        found = np.asarray(X.sum(axis=0)).ravel() > 0
        adata = AnnData(X[:, found], obs=obs, var=pd.DataFrame(index=pd.Index(genes)[found]))
        adata.strings_to_categoricals()
        return adata

    choice = {"perturbations": perturbations, "n_cells": n_cells, "seed": seed}
    return cached("papalexi_2021", choice, folder, make)


def _from_file(path: str | Path, chosen: Callable[[pd.DataFrame], pd.DataFrame]) -> AnnData:
    """Chosen cells of a file."""
    columns = ["perturbation", "guide", "replicate"]
    raw = read_local(path, "papalexi*.h5ad", columns, origin=_ORIGIN)
    obs = raw.obs[columns].astype(str)
    obs.insert(1, "dosage", (obs["perturbation"] != "control").astype(float))
    obs["n_umi"] = np.asarray(raw.X.sum(axis=1)).ravel()
    obs = chosen(obs)
    adata = AnnData(raw[obs.index].X, obs=obs, var=raw.var)
    adata.strings_to_categoricals()
    return adata


def _labels(path: Path) -> pd.DataFrame:
    """Labels of the cells, index = cell."""
    columns = ["gene", "guide_ID", "replicate", "Phase", "nCount_RNA"]
    raw = read_r_table(path, columns, sep="\t", row_names=True)
    control = raw["gene"] == "NT"
    obs = pd.DataFrame(
        {
            "perturbation": raw["gene"].where(~control, "control"),
            "dosage": np.where(control, 0.0, 1.0),
            "guide": raw["guide_ID"],
            "replicate": raw["replicate"],
            "phase": raw["Phase"],
            "n_umi": raw["nCount_RNA"],
        },
        index=raw.index,
    )
    return obs.rename_axis(None)
