"""A screen that is always at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgim.data import simulate_screen

if TYPE_CHECKING:
    from anndata import AnnData


def load_demo(*, seed: int = 0) -> AnnData:
    """Simulated drug screen with known targets and network, made in seconds without a network connection.

    20 genes; 40 drugs at 4 doses with 50 cells each; 800 controls; 8 further drugs and 2 further doses to predict.

    Parameters
    ----------
    seed
        Seed of the simulation: another world for each.

    Returns
    -------
    Annotated counts with the default keys of :meth:`scgim.model.GIM.setup_anndata`. `obs["split"]` says which cells
    are for the fit ("train") and which are drugs or doses to predict ("unseen_drug", "unseen_dose"); the truth is where
    :func:`scgim.data.simulate_screen` puts it.

    Examples
    --------
    >>> adata = scgim.datasets.load_demo()
    >>> train = adata[adata.obs["split"] == "train"].copy()
    """
    return simulate_screen(
        n_genes=20, n_drugs=40, n_unseen_drugs=8, unseen_doses=(0.75, 1.25), library_size_sd=0.3, seed=seed
    )
