"""Readers of the text formats in which screens are deposited at GEO."""

from __future__ import annotations

import csv
import gzip
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_LINES = 4_000_000  # entries of a coordinate list parsed in one go


def read_r_table(path: Path, columns: Iterable[str], *, sep: str = " ", row_names: bool = False) -> pd.DataFrame:
    """Some columns of a gzipped table as R writes it, whose header may have no entry for the row names.

    Parameters
    ----------
    path
        Gzipped table.
    columns
        Columns to read.
    sep
        Separator.
    row_names
        Make the first column, whatever it is called, the index.
    """
    with gzip.open(path, "rt", newline="") as file:
        rows = csv.reader(file, delimiter=sep)
        header, first = next(rows), next(rows)
    names = header if len(first) == len(header) else ["row_names", *header]
    if row_names:
        names, columns = ["row_names", *names[1:]], ["row_names", *columns]
    missing = set(columns) - set(names)
    if missing:
        raise ValueError(f"`{path}` lacks the columns {sorted(missing)}: it is not the file that was expected.")
    table = pd.read_csv(path, sep=sep, header=None, names=names, skiprows=1, usecols=list(columns), low_memory=False)
    return table.set_index("row_names") if row_names else table


def read_genes(path: Path) -> pd.DataFrame:
    """Gene annotations: `gene_id` (Ensembl) and `symbol`; with or without a header, by spaces or tabs."""
    genes = pd.read_csv(path, sep=r"\s+", header=None, names=["gene_id", "symbol"], usecols=[0, 1], dtype=str)
    # The header of sciPlex3 is a line of its own; read as a gene, it would shift all names by one.
    return genes[genes["gene_id"].str.startswith("ENS")].reset_index(drop=True)


def read_coordinates(
    path: Path, cells: np.ndarray, genes: np.ndarray, *, progress: bool
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Part of a gzipped list of (gene, cell, count), counted from 1, without reading the whole of it at once.

    Parameters
    ----------
    path
        Gzipped file of three tab-separated columns.
    cells
        Numbers of the cells to read, counted from 0.
    genes
        For each gene of the file, its column in the result, or -1 to leave it out.
    progress
        Show a progress bar.

    Returns
    -------
    Counts, cells x genes, float32; and the total count of each cell over *all* genes of the file.
    """
    row_of = np.full(cells.max() + 2, -1, dtype=np.int64)
    row_of[cells] = np.arange(len(cells))
    totals = np.zeros(len(cells))
    rows, columns, counts = [], [], []
    with path.open("rb") as raw:
        bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc="reading counts", disable=not progress)
        with bar, gzip.open(raw) as file:
            for part in pd.read_csv(file, sep="\t", header=None, dtype=np.int32, chunksize=_LINES):
                gene, cell, count = (part[i].to_numpy() for i in range(3))
                row = row_of[np.minimum(cell - 1, len(row_of) - 1)]
                if gene.max() > len(genes):
                    raise ValueError(f"`{path}` has more genes ({gene.max()}) than their table ({len(genes)}).")
                gene, row, count = gene[row >= 0], row[row >= 0], count[row >= 0]
                totals += np.bincount(row, weights=count, minlength=len(cells))
                column = genes[gene - 1]
                rows.append(row[column >= 0])
                columns.append(column[column >= 0])
                counts.append(count[column >= 0])
                bar.update(raw.tell() - bar.n)
    entries = (np.concatenate(counts).astype(np.float32), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_matrix(entries, shape=(len(cells), int(genes.max()) + 1)), totals


def read_dense(path: Path, cells: Iterable[str], *, progress: bool) -> tuple[sparse.csr_matrix, list[str]]:
    """Counts (cells x genes, float32) and gene names from a gzipped table, genes x cells, for the cells named."""
    lines, genes = [], []
    with path.open("rb") as raw:
        bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc="reading counts", disable=not progress)
        with bar, gzip.open(raw, "rt", newline="") as file:
            header = next(csv.reader([file.readline()], delimiter="\t"))
            for line in file:
                gene, values = line.rstrip("\r\n").split("\t", 1)
                genes.append(gene.strip('"'))
                lines.append(sparse.csr_matrix(np.fromstring(values, sep="\t", dtype=np.float32)))
                bar.update(raw.tell() - bar.n)
    matrix = sparse.vstack(lines, format="csc")
    names = pd.Index(header[-matrix.shape[1] :])  # without the name, often empty, of the column of genes
    return sparse.csr_matrix(matrix[:, names.get_indexer(list(cells))].T), genes


def warn_unless_totals_agree(totals: np.ndarray, deposited: np.ndarray, name: str) -> None:
    """Warn when total counts differ from those deposited with the cells: counts and labels may be out of step."""
    differ = np.abs(totals - deposited) > 0.5
    if differ.any():
        warnings.warn(
            f"The total counts of {differ.mean():.1%} of the cells differ from those deposited with their labels in "
            f"{name}. Counts and labels may belong to different cells: do not use this without checking.",
            UserWarning,
            stacklevel=4,
        )
