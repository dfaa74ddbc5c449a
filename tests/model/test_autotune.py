"""`scvi.autotune` tunes the model."""

from __future__ import annotations

import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback

import scgim


class _Reports(Callback):
    """What autotune's own callback reads at the end of each validation."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_end(self, trainer, module) -> None:
        self.values.append(float(trainer.callback_metrics["elbo_validation"]))


@pytest.fixture
def small():
    adata = scgim.data.simulate_screen(n_genes=8, n_drugs=6, n_cells=20, n_controls=100)
    scgim.model.GIM.setup_anndata(adata)
    return adata


def test_trains_with_the_arguments_that_autotune_gives(small):
    reports = _Reports()
    arguments = {"accelerator": "auto", "devices": "auto", "check_val_every_n_epoch": 1, "enable_progress_bar": False}
    scgim.model.GIM(small).train(max_epochs=3, callbacks=[reports], **arguments)
    assert len(reports.values) >= 3
    assert np.isfinite(reports.values).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_autotune_finds_a_setting(small, tmp_path):
    tune = pytest.importorskip("ray.tune")
    pytest.importorskip("scib_metrics")
    from scvi.autotune import run_autotune

    experiment = run_autotune(
        scgim.model.GIM,
        small,
        metrics="elbo_validation",
        mode="min",
        search_space={
            "model_params": {"mechanism": "linear"},
            "train_params": {"max_epochs": 3, "lr": tune.grid_search([0.02, 0.002])},
        },
        num_samples=1,
        scheduler="fifo",
        searcher="random",
        resources={"cpu": 1},
        seed=0,
        logging_dir=str(tmp_path),
        ignore_reinit_error=True,
    )
    results = experiment.result_grid
    assert results.errors == []
    losses = results.get_dataframe()["elbo_validation"]
    assert len(losses) == 2
    assert results.get_best_result("elbo_validation", "min").metrics["elbo_validation"] == pytest.approx(losses.min())
