"""Drawn cells have the means of the training cells, also where mechanisms are misfitted."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch

import scgim
from scgim.fit._baselines import match_baselines
from scgim.model import GIM
from scgim.train import BatchLoader


@pytest.fixture(scope="module")
def fitted():
    adata = scgim.data.simulate_screen(n_genes=8, n_drugs=6, n_cells=40, n_controls=400, n_unseen_drugs=0, seed=3)
    GIM.setup_anndata(adata, size_factor_key="size_factor")
    scvi.settings.seed = 0
    model = GIM(adata)
    model.train(20, accelerator="cpu", enable_progress_bar=False)
    return model


def mean_log1p(model: GIM) -> tuple[np.ndarray, np.ndarray]:
    """Means of log1p(x / s) of control cells, measured and drawn."""
    adata = model.adata
    control = (adata.obs["perturbation"] == "control").to_numpy()
    size = adata.obs["size_factor"].to_numpy()[control]
    x = adata.X[control].toarray()
    module, d, n = model.module, adata.n_vars, 20_000
    sizes = torch.as_tensor(np.resize(size, n), dtype=torch.float32).log()[:, None]
    nothing = torch.zeros(n, d)
    drawn, _ = module.sample_cells(nothing, nothing.bool(), torch.zeros(n, 0), sizes, torch.Generator().manual_seed(1))
    return np.log1p(x / size[:, None]).mean(0), torch.log1p(drawn / sizes.exp()).mean(0).numpy()


def test_good_fit_is_left_alone(fitted):
    assert fitted.module.baseline_offset.abs().max() < 0.05
    np.testing.assert_allclose(*mean_log1p(fitted), atol=0.1)


def test_misfit_does_not_add_up_along_the_network(fitted):
    module = fitted.module
    before = module.intercept.detach().clone()
    loader = BatchLoader(fitted._prepare_cells(), 4096, shuffle=False)
    with torch.no_grad():
        module.intercept += torch.linspace(-0.6, 0.6, 8)
        observed, drawn = mean_log1p(fitted)
        assert np.abs(observed - drawn).max() > 0.3
        match_baselines(module, loader)
        np.testing.assert_allclose(*mean_log1p(fitted), atol=0.1)
        module.intercept.copy_(before)
        match_baselines(module, loader)


def test_continuous_data_need_none(fitted):
    module = fitted.module
    module.likelihood = "normal"
    match_baselines(module, None)
    assert not module.baseline_offset.any()
    module.likelihood = "nb"


def test_ranges_are_those_of_the_training_cells(fitted):
    """Values of each gene, and what its parents did: all but a few cells, and the means of all contexts."""
    module = fitted.module
    (batch,) = BatchLoader(fitted._prepare_cells(), 10_000, shuffle=False)
    with torch.no_grad():
        action = module.mechanism(module.parent_features(batch["x"], batch["log_size"]))
    rate = batch["x"] / batch["log_size"].exp()
    np.testing.assert_allclose(module.knowledge.value_range, torch.stack([rate.amin(0), rate.amax(0)]), rtol=1e-5)
    low, high = module.knowledge.reach
    inside = (action >= low - 1e-5) & (action <= high + 1e-5)
    assert inside.float().mean(0).min() > 0.98
    assert ((low >= action.amin(0) - 1e-5) & (high <= action.amax(0) + 1e-5)).all()
    for context in torch.unique(batch["context"]):
        mean = action[batch["context"] == context].mean(0)
        assert ((mean >= low - 1e-4) & (mean <= high + 1e-4)).all()
    roots = ~torch.as_tensor(fitted.adjacency_).any(0)
    assert not module.knowledge.reach[:, roots].any()
    assert (high - low)[~roots].min() > 0


def test_reach_bounds_drawn_cells_however_large_the_effects(fitted):
    module, n = fitted.module, 200
    base = module.intercept + module.baseline_offset
    children = torch.as_tensor(fitted.adjacency_).any(0)
    shift = torch.where(children, 0.0, 8.0).expand(n, -1)  # all roots far beyond anything measured
    args = shift, shift.bool(), torch.zeros(n, 0), torch.zeros(n, 1), torch.Generator().manual_seed(0)
    _, mean = module.sample_cells(*args)
    action = (mean.log() - base)[:, children]
    low, high = module.knowledge.reach[:, children]
    assert ((action >= low - 1e-3) & (action <= high + 1e-3)).all()
