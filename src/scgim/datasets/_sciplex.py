"""sciPlex2 and sciPlex3 (Srivatsan et al. 2020, Science 367:45), from GEO series GSE139944."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique

from scgim.datasets._download import RemoteFile, cache_folder, fetch
from scgim.datasets._geo import read_coordinates, read_genes, read_r_table, warn_unless_totals_agree
from scgim.datasets._select import cached, match_names, subsample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_GEO = "https://ftp.ncbi.nlm.nih.gov/geo/samples/GSM4150nnn"


def _remote(sample: str, name: str, sha256: str | None = None) -> RemoteFile:
    return RemoteFile(f"{sample}_{name}", f"{_GEO}/{sample}/suppl/{sample}_{name}", sha256)


# No checksums are known for these: they are trusted on first use.
SCIPLEX2 = {
    "counts": _remote("GSM4150377", "sciPlex2_A549_Transcription_Modulators_UMI.count.matrix.gz"),
    "cells": _remote("GSM4150377", "sciPlex2_A549_Transcription_Modulators_cell.annotations.txt.gz"),
    "genes": _remote("GSM4150377", "sciPlex2_A549_Transcription_Modulators_gene.annotations.txt.gz"),
    "labels": _remote("GSM4150377", "sciPlex2_pData.txt.gz"),
}

# GEO publishes no checksums. These sha256 are those that others recorded of their downloads: for the counts, genes,
# labels and design in two public repositories independent of each other, for the cells in one.
SCIPLEX3 = {
    "counts": _remote(
        "GSM4150378",
        "sciPlex3_A549_MCF7_K562_screen_UMI.count.matrix.gz",
        "7d632716aa6ed0fc1780996003d0abc440ff78340609bceaaa4c8ade9345d00a",
    ),
    "cells": _remote(
        "GSM4150378",
        "sciPlex3_A549_MCF7_K562_screen_cell.annotations.txt.gz",
        "5db11591747a49f07ceb90a070971d60816591911f1022171adba7d8d032f379",
    ),
    "genes": _remote(
        "GSM4150378",
        "sciPlex3_A549_MCF7_K562_screen_gene.annotations.txt.gz",
        "fbe43028cfb75dc5ebf383cbbbb100da6b51e7be8e2e74f6354f7c59b9fda7c2",
    ),
    "labels": _remote(
        "GSM4150378",
        "sciPlex3_pData.txt.gz",
        "860ba5c21846e2cfe97c39c805895982ef9db4b108cdf8b841a4a91be65024c2",
    ),
    "design": _remote(
        "GSM4150378",
        "sciPlex3_A549_MCF7_K562_hashTable_metadata.txt.gz",
        "98a65191d343d149c5742cf6e7b734d403e853d165da800fa2daea41b978a2ff",
    ),
}

_HASHES3 = ["hash_umis_W", "hash_umis_P", "top_to_second_best_ratio_W", "top_to_second_best_ratio_P", "rt_well"]
_LABELS3 = ["cell_type", "dose", "time_point", "replicate", "vehicle", "product_name", "catalog_number"]
_LABELS3 += ["culture_plate", "well_oligo", "pathway_level_1", "target", "cell", "n.umi"]
_DRUGS2 = {"BMS": "BMS-345541", "Dex": "Dexamethasone", "Nutlin": "Nutlin-3a", "SAHA": "Vorinostat"}


def sciplex3(
    *,
    drugs: Sequence[str] | None = None,
    cell_lines: Sequence[str] | None = None,
    time: float | None = 24,
    n_cells: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> AnnData:
    """sciPlex3: 188 drugs at 4 doses on A549, K562 and MCF7 cells, about 650,000 nuclei.

    The first call downloads 3.2 GB and reads through a billion counts, which takes several minutes; what was chosen is
    kept, so that the same call is quick from then on. All cells with all genes need tens of gigabytes of memory: choose drugs,
    a cell line, or a number of cells.

    Parameters
    ----------
    drugs
        Drugs to keep, by name or by its beginning ("trametinib"); controls always stay. None for all.
    cell_lines
        Of "A549", "K562" and "MCF7". None for all.
    time
        Hours of treatment, 24 or 72 (A549 only). None for both.
    n_cells
        Largest number of cells, drawn at random in proportion to the contexts. None for all.
    seed
        Seed of that draw.
    cache_dir
        Folder for downloads. By default that of the environment variable SCGIM_CACHE, or the user's cache folder.
    progress
        Show progress bars.

    Returns
    -------
    Raw counts (csr) of human genes found in any of the cells. `obs`: `perturbation` (with "control" for the vehicle),
    `dosage` (micromolar; 0 for controls), `cell_line`, `replicate`, `plate`, `well`, `time` (hours), `pathway`,
    `target` and `n_umi`. `var`: `gene_id` (Ensembl); names are symbols, made unique. `uns["drugs"]`: `smiles`,
    `pathway`, `target` and `catalog_number` of each drug as deposited. Kept are the cells that the authors keep: both
    hashes with 5 counts and 5 times the next best, and a well of the design.

    Raises
    ------
    ConnectionError
        The server cannot be reached.
    KeyError
        There is no such drug or cell line.
    ValueError
        A download is damaged, nothing fits the choice, or the beginning of a name fits several.

    Examples
    --------
    >>> adata = scgim.datasets.sciplex3(cell_lines=["K562"], n_cells=20_000)
    >>> scgim.pp.drug_fingerprints(adata.uns["drugs"]["smiles"], adata=adata)

    Notes
    -----
    The structure of catalogue number S4246 is malformed in the deposit: correct or leave it out before
    :func:`scgim.pp.drug_fingerprints`.
    """
    folder = cache_folder(cache_dir)
    choice = {"drugs": drugs, "cell_lines": cell_lines, "time": time, "n_cells": n_cells, "seed": seed}

    def choose(obs: pd.DataFrame) -> pd.DataFrame:
        lines = match_names(cell_lines, obs["cell_line"].unique(), argument="cell_lines")
        obs = obs[obs["cell_line"].isin(lines)]
        if time is not None:
            obs = obs[obs["time"] == time]
        obs = _keep_drugs(obs, drugs)
        return subsample(obs, n_cells, ["perturbation", "dosage", "cell_line", "time"], seed)

    def make() -> AnnData:
        paths = {name: fetch(file, folder, progress=progress) for name, file in SCIPLEX3.items()}
        obs = _labels3(paths["labels"])
        adata = _assemble(paths, obs, choose, progress=progress)
        adata.uns["drugs"] = _drugs3(adata.obs, paths["design"])
        adata.obs = adata.obs.drop(columns="catalog_number")
        return adata

    return cached("sciplex3", choice, folder, make)


def sciplex2(
    *,
    drugs: Sequence[str] | None = None,
    n_cells: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> AnnData:
    """sciPlex2: BMS-345541, dexamethasone, nutlin-3a and vorinostat at 7 doses on A549 cells, 24 hours, some 20,000 nuclei.

    Parameters
    ----------
    drugs
        Drugs to keep, by name or by its beginning; controls always stay. None for all.
    n_cells
        Largest number of cells, drawn at random in proportion to the contexts. None for all.
    seed
        Seed of that draw.
    cache_dir
        Folder for downloads. By default that of the environment variable SCGIM_CACHE, or the user's cache folder.
    progress
        Show progress bars.

    Returns
    -------
    Raw counts (csr) of human genes found in any of the cells. `obs`: `perturbation` (with "control" for the vehicle),
    `dosage` (micromolar; 0 for controls), `solvent` (ethanol for dexamethasone and its controls, otherwise DMSO),
    `well` and `n_umi`. `var`: `gene_id` (Ensembl); names are symbols, made unique. Kept are the cells that the authors
    keep: more than 30 hash counts, more than 10 times the next best, and a q-value below 0.01.

    Raises
    ------
    ConnectionError
        The server cannot be reached.
    KeyError
        There is no such drug.
    ValueError
        A download differs from the first one.

    Notes
    -----
    No checksums of these files are known: the sha256 of the first download is logged, kept, and checked from then on.
    """
    folder = cache_folder(cache_dir)

    def choose(obs: pd.DataFrame) -> pd.DataFrame:
        return subsample(_keep_drugs(obs, drugs), n_cells, ["perturbation", "dosage"], seed)

    def make() -> AnnData:
        paths = {name: fetch(file, folder, progress=progress) for name, file in SCIPLEX2.items()}
        return _assemble(paths, _labels2(paths["labels"]), choose, progress=progress)

    return cached("sciplex2", {"drugs": drugs, "n_cells": n_cells, "seed": seed}, folder, make)


def _labels3(path: Path) -> pd.DataFrame:
    """Labels of the cells of sciPlex3 that the authors keep, index = cell."""
    raw = read_r_table(path, [*_HASHES3, *_LABELS3]).set_index("cell")
    valid = (raw[_HASHES3[:4]] >= 5).all(axis=1) & (raw["rt_well"] != 1) & raw["product_name"].notna()
    raw = raw[valid]
    vehicle = raw["vehicle"].astype(str).str.upper() == "TRUE"
    obs = pd.DataFrame(
        {
            "perturbation": np.where(vehicle, "control", raw["product_name"].str.strip()),
            "dosage": np.where(vehicle, 0.0, raw["dose"] / 1000),  # deposited in nanomolar
            "cell_line": raw["cell_type"],
            "replicate": raw["replicate"],
            "plate": raw["culture_plate"],
            "well": raw["well_oligo"],
            "time": raw["time_point"].astype(float),
            "pathway": raw["pathway_level_1"],
            "target": raw["target"],
            "catalog_number": raw["catalog_number"],
            "n_umi": raw["n.umi"],
        },
        index=raw.index,
    )
    return obs.rename_axis(None)


def _drugs3(obs: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Structure, pathway and target of each drug, index = perturbation."""
    design = pd.read_csv(path, sep="\t", usecols=["catalog_number", "SMILES"]).drop_duplicates("catalog_number")
    columns = ["perturbation", "catalog_number", "pathway", "target"]
    drugs = obs.loc[obs["perturbation"] != "control", columns].astype(str).drop_duplicates("perturbation")
    drugs["smiles"] = drugs["catalog_number"].map(design.set_index("catalog_number")["SMILES"]).fillna("")
    drugs = drugs.set_index("perturbation").sort_index().rename_axis(None)
    return drugs[["smiles", "pathway", "target", "catalog_number"]]


def _labels2(path: Path) -> pd.DataFrame:
    """Labels of the cells of sciPlex2 that the authors keep, index = cell."""
    columns = ["Cell", "n.umi", "hash_umis", "qval", "top_to_second_best_ratio", "top_oligo"]
    raw = read_r_table(path, columns).set_index("Cell")
    keep = (raw["hash_umis"] > 30) & (raw["top_to_second_best_ratio"] > 10) & (raw["qval"] < 0.01)
    raw = raw[keep & raw["top_oligo"].notna()]
    drug, dosage, well = (raw["top_oligo"].str.split("_", n=2).str[i] for i in range(3))
    drug, dosage = drug.replace(_DRUGS2), dosage.astype(float)  # micromolar
    obs = pd.DataFrame(
        {
            "perturbation": drug.where(dosage > 0, "control"),
            "dosage": dosage,
            "solvent": np.where(drug == "Dexamethasone", "ethanol", "DMSO"),
            "well": well,
            "n_umi": raw["n.umi"],
        },
        index=raw.index,
    )
    return obs.rename_axis(None)


def _keep_drugs(obs: pd.DataFrame, drugs: Sequence[str] | None) -> pd.DataFrame:
    names = match_names(drugs, set(obs["perturbation"]) - {"control"}, argument="drugs")
    return obs[obs["perturbation"].isin(["control", *names])]


def _assemble(
    paths: dict[str, Path], obs: pd.DataFrame, choose: Callable[[pd.DataFrame], pd.DataFrame], *, progress: bool
) -> AnnData:
    """Counts of the chosen cells and of the human genes found in them."""
    order = pd.read_csv(paths["cells"], sep="\t", header=None, usecols=[0], dtype=str)[0]
    obs = obs.loc[order[order.isin(obs.index)]]
    if len(obs) == 0:
        raise ValueError(f"No cell of `{paths['labels']}` is in `{paths['cells']}`: they do not belong together.")
    obs = choose(obs).copy()
    if len(obs) == 0:
        raise ValueError("No cells fit this choice.")
    genes = read_genes(paths["genes"])
    human = genes["gene_id"].str.startswith("ENSG").to_numpy()
    columns = np.where(human, np.cumsum(human) - 1, -1)
    cells = pd.Index(order).get_indexer(obs.index)
    X, totals = read_coordinates(paths["counts"], cells, columns, progress=progress)
    warn_unless_totals_agree(totals, obs["n_umi"].to_numpy(), "GSE139944")
    genes = genes[human]
    var = pd.DataFrame({"gene_id": genes["gene_id"].to_numpy()}, index=genes["symbol"].to_numpy())
    found = np.asarray(X.sum(axis=0)).ravel() > 0
    var.index = make_index_unique(pd.Index(var.index))
    adata = AnnData(X[:, found], obs=obs, var=var[found])
    adata.strings_to_categoricals()
    return adata
