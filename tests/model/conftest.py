from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import scvi

import scgim
from scgim.model import GIM
from scgim.nn._search import search_structure

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData


@pytest.fixture(scope="session", autouse=True)
def _short_search():
    """Little of the search beyond climbing: tests that need more ask for `full_search`."""
    with pytest.MonkeyPatch.context() as patch:
        hasty = partial(search_structure, n_perturbations=1, max_evaluations=100)
        patch.setattr("scgim.model._structure.search_structure", hasty)
        yield


@pytest.fixture
def full_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search as users run it."""
    monkeypatch.setattr("scgim.model._structure.search_structure", search_structure)


@pytest.fixture(scope="session")
def screen() -> AnnData:
    """A screen of 8 genes and 8 drugs, with doses and drugs left out of training."""
    return scgim.data.simulate_screen(
        n_genes=8,
        n_drugs=8,
        doses=(0.5, 1.0, 2.0),
        n_cells=18,
        n_controls=150,
        n_features=4,
        n_unseen_drugs=2,
        unseen_doses=(1.5,),
        n_batches=2,
        seed=1,
    )


@pytest.fixture(scope="session")
def _train_split(screen: AnnData) -> AnnData:
    return screen[screen.obs["split"] == "train"].copy()


@pytest.fixture
def adata(_train_split: AnnData) -> AnnData:
    """Training cells of the screen, a fresh copy."""
    return _train_split.copy()


@pytest.fixture(scope="session")
def fit() -> Callable[..., GIM]:
    """Set up, make and train a model in a few epochs; options of each step go to it."""

    def fit(
        adata: AnnData, setup: dict[str, Any] | None = None, epochs: int = 10, train: dict | None = None, **options
    ) -> GIM:
        GIM.setup_anndata(adata, **(setup or {}))
        scvi.settings.seed = 0
        model = GIM(adata, **options)
        model.train(epochs, enable_progress_bar=False, accelerator="cpu", **(train or {}))
        return model

    return fit


@pytest.fixture(scope="session")
def model(_train_split: AnnData, fit: Callable[..., GIM]) -> GIM:
    """A fitted model of the screen; tests must not change it."""
    return fit(_train_split.copy(), {"batch_key": "batch"}, epochs=60)
