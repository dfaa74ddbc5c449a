"""The check that ends training: simulated control cells beside the observed ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgim._constants import Key
from scgim.fit._controls import _agree, _moments, check_controls, compare_controls
from scgim.model import GIM
from scgim.train import BatchLoader


def table(observed: np.ndarray, simulated: np.ndarray):
    parts = (
        _moments(torch.as_tensor(x, dtype=torch.float64), p) for x, p in ((observed, ""), (simulated, "simulated_"))
    )
    return next(parts).join(next(parts))


def test_moments_are_those_of_numpy():
    x = np.array([[0.0, 2.0], [0.0, 4.0], [3.0, 0.0]])
    found = _moments(torch.as_tensor(x), "")
    np.testing.assert_allclose(found["mean"], x.mean(0))
    np.testing.assert_allclose(found["variance"], x.var(0, ddof=1))
    np.testing.assert_allclose(found["zeros"], [2 / 3, 1 / 3])
    np.testing.assert_allclose(found["largest"], [3.0, 4.0])


def test_each_kind_of_difference_is_found():
    """Genes that are as they should be; twice the mean; zero-inflated; one cell of a thousand counts; much more variance."""
    rng, n = np.random.default_rng(0), 2000
    observed = rng.poisson(3.0, (n, 5)).astype(float)
    simulated = rng.poisson(3.0, (n, 5)).astype(float)
    simulated[:, 1] = rng.poisson(6.0, n)
    simulated[:, 2] = rng.poisson(6.0, n) * (rng.random(n) < 0.5)
    simulated[0, 3] = 1000.0
    simulated[:, 4] = rng.negative_binomial(0.7, 0.7 / 3.7, n)
    assert list(_agree(table(observed, simulated), n, counts=True)) == [True, False, False, False, False]


def test_sampling_noise_is_let_pass():
    rng = np.random.default_rng(1)
    for n in (20, 200, 2000):
        observed, simulated = rng.negative_binomial(2.0, 0.5, (2, n, 300)).astype(float)
        assert _agree(table(observed, simulated), n, counts=True).mean() > 0.98
        observed, simulated = rng.normal(size=(2, n, 300))
        assert _agree(table(observed, simulated), n, counts=False).mean() > 0.98


def loader(model: GIM) -> BatchLoader:
    return BatchLoader(model._prepare_cells(), 4096, shuffle=False)


def test_a_fit_that_is_off_is_named(known):
    model = known()
    with torch.no_grad():
        model.module.intercept.copy_(torch.log(torch.tensor([8.0, 8.0, 8.0, 8.0])))
        model.module.mechanism.weight.zero_()
        model.module.covariate_effect.zero_()
        model.module.log_scale.fill_(6.0)
        assert compare_controls(model.module, loader(model), model.gene_names_)["agree"].all()
        model.module.intercept[2] += 1.0
        with pytest.warns(UserWarning, match="differ from the observed ones in 1 of 4 genes: 'c'"):
            found = check_controls(model.module, loader(model), model.gene_names_)
    assert list(found["agree"]) == [True, True, False, True]
    assert found.loc["c", "simulated_mean"] == pytest.approx(8.0 * np.e, rel=0.1)


def test_result_is_kept_stored_and_saved(model, adata, tmp_path):
    check = model.control_check_
    assert list(check.index) == model.gene_names_
    model.annotate(adata, n_samples=10)
    np.testing.assert_array_equal(adata.var[Key.var.controls_agree("gim")], check["agree"])
    np.testing.assert_allclose(adata.uns["gim"][Key.uns.CONTROLS]["mean"], check["mean"])
    adata.write_h5ad(tmp_path / "annotated.h5ad")
    model.save(tmp_path / "model", save_anndata=True)
    loaded = GIM.load(tmp_path / "model")
    assert loaded.control_check_["agree"].tolist() == check["agree"].tolist()


def test_predictions_beyond_the_training_cells_warn(known):
    model = known()
    model.module.knowledge.value_range[0], model.module.knowledge.value_range[1] = 0.0, 5.0
    with pytest.warns(UserWarning, match=r"leave the range of the training cells in \d genes: .*Most of all"):
        model.predict("drug_00", 3.0, n_samples=50, seed=0)
