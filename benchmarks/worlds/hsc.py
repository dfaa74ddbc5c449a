"""The network by which blood cells choose what they become, simulated by BoolODE: 11 genes, Hill functions of a Boolean model, feedback.

The demo of D-SPIN: 2,000 control cells and 500 of each of 22 perturbations. Its file of the network lists the gene that is acted on first and the one
that acts second, as the Boolean model has it (Krumsiek et al. 2011: Fog1 is on where Gata1 is; Gfi1 where Cebpa is and EgrNab is not).

The perturbations come without labels, and `inferred_target` is what was inferred later. It is taken for the truth because two signs agree of which it
needs neither: perturbation k has gene k by the alphabet, once lowered (0 to 10) and once raised (11 to 21); and a gene that is raised has cells above
all cells in which it is not. Genes act on themselves too; those edges are left out, as everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from benchmarks.worlds import gnw
from scipy import sparse

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from benchmarks._worlds import Job, Place

CELLS, NETWORK = "dspin_hsc_boolode.h5ad", "dspin_hsc_boolode_refNetwork.csv"
_TARGET, _REGULATOR = "Gene2", "Gene1"


def read(data: Path) -> AnnData:
    """All cells, to train on, with the truth where the other worlds have it."""
    adata = ad.read_h5ad(data / CELLS)
    adata.obs["split"], adata.obs["size_factor"] = "train", 1.0
    adata.obs["perturbation"] = adata.obs["perturbation"].astype("category")
    adata.varp["true_adjacency"] = sparse.csr_matrix(network(data / NETWORK, adata.var_names))
    treated = adata.obs[adata.obs["perturbation"] != "control"].drop_duplicates("perturbation")
    targets = treated.set_index(treated["perturbation"].astype(str))["inferred_target"].astype(str)
    hit = {name: adata.var_names == gene for name, gene in targets.items()}
    adata.varm["true_targets"] = pd.DataFrame(hit, adata.var_names)
    return adata


def network(path: Path, genes: pd.Index) -> np.ndarray:
    """True edges between different genes, regulators in rows."""
    edges, found = pd.read_csv(path), np.zeros((len(genes), len(genes)), dtype=bool)
    found[genes.get_indexer(edges[_REGULATOR]), genes.get_indexer(edges[_TARGET])] = True
    np.fill_diagonal(found, val=False)
    return found


def measure(job: Job, place: Place, data: Path) -> list[dict[str, float]]:
    """Scores of graph and targets, those of simple statistics beside."""
    return gnw.evaluate(read(data), job, place)
