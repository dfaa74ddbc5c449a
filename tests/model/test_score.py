"""Scores of cells that were not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

if TYPE_CHECKING:
    from scgim.model import GIM


def held_out(screen, split: str):
    return screen[screen.obs["split"] == split].copy()


def test_scores_of_the_training_data(model, adata):
    scores = model.score()
    assert list(scores.index.names) == ["perturbation", "dosage"]
    sizes = adata.obs.groupby(["perturbation", "dosage"], observed=True).size()
    assert scores["n_cells"].to_dict() == sizes.to_dict()
    cells = model.score(by="cell")
    assert list(cells.index) == list(model.adata.obs_names)
    mean = cells.groupby([adata.obs["perturbation"].astype(str), adata.obs["dosage"]]).mean()
    np.testing.assert_allclose(scores["log_likelihood"], mean.loc[scores.index], rtol=1e-6)


def test_controls_against_the_distribution(model, adata):
    """Log-likelihood of control cells, which have no direct effects, from the formula."""
    member = (adata.obs["perturbation"] == "control").to_numpy()
    module = model.module
    x = torch.as_tensor(adata.X.toarray()[member])
    log_size = torch.as_tensor(model._cells(model.adata).log_size[member])[:, None]
    h = (torch.log1p(x / log_size.exp()) - module.centre) / module.spread
    covariates = model._design.encode(adata.obs[member])
    eta = module.intercept + torch.as_tensor(covariates) @ module.covariate_effect + h @ module.mechanism.weight
    logits = eta + log_size - module.log_scale
    log_prob = torch.distributions.NegativeBinomial(module.log_scale.exp(), logits=logits).log_prob(x).sum(1)
    np.testing.assert_allclose(model.score(by="cell")[member], log_prob.detach(), rtol=1e-4)


@pytest.mark.parametrize("split", ["unseen_dose", "unseen_drug"])
def test_held_out_contexts(model, screen, split):
    scores = model.score(held_out(screen, split))
    assert np.isfinite(scores["log_likelihood"]).all()
    assert len(scores) == {"unseen_dose": 8, "unseen_drug": 6}[split]


def test_cells_fit_their_own_drug_better(model, screen):
    cells = held_out(screen, "unseen_dose")
    true = model.score(cells)["log_likelihood"].mean()
    names = sorted(cells.obs["perturbation"].astype(str).unique())
    exchange = dict(zip(names, np.roll(names, 3), strict=True))
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str).map(exchange)
    permuted = model.score(cells)["log_likelihood"].mean()
    assert true > permuted + 0.1


def test_measured_drugs_beat_no_effect(model, screen):
    cells = held_out(screen, "unseen_dose")
    as_control = cells.copy()
    as_control.obs["perturbation"], as_control.obs["dosage"] = "control", 0.0
    assert model.score(cells, by="cell").mean() > model.score(as_control, by="cell").mean()


def test_size_factors_are_relative_to_the_training_data(adata, fit):
    """Held-out cells without controls, and fewer of them, get the scores they have among all cells."""
    rng = np.random.default_rng(0)
    depth = np.exp(rng.normal(0, 0.5, adata.n_obs))
    counts = rng.poisson(adata.X.toarray() * depth[:, None] * 3)
    adata.X = sparse.csr_matrix(counts.astype(np.float32))
    adata = adata[counts.sum(1) > 0].copy()
    model = fit(adata, {"drug_embedding_key": None}, epochs=5)
    assert model.control_pool_["log_size"].std() > 0.1
    part = adata[adata.obs["perturbation"] == "drug_3"].copy()
    kwargs = {"by": "cell", "n_samples": 200}
    np.testing.assert_allclose(model.score(part, **kwargs), model.score(**kwargs)[part.obs_names], atol=0.3)


def test_views_and_other_orders_of_cells(model, adata):
    expected = model.score(by="cell")
    order = np.random.default_rng(0).permutation(adata.n_obs)
    view = adata[order]
    np.testing.assert_allclose(model.score(view, by="cell"), expected[view.obs_names], rtol=1e-5)
    assert view.is_view


def test_scoring_twice_and_more_data_sets(model, screen, adata):
    first = model.score()
    a, b = held_out(screen, "unseen_dose"), held_out(screen, "unseen_drug")
    scores = [model.score(data) for data in (a, b, a, b)]
    pd.testing.assert_frame_equal(scores[0], scores[2])
    pd.testing.assert_frame_equal(scores[1], scores[3])
    pd.testing.assert_frame_equal(model.score(), first)


def with_other_genes(adata):
    adata.var_names = [f"{name}_x" for name in adata.var_names]
    return adata


def with_new_batch(adata):
    adata.obs["batch"] = "batch_9"
    return adata


def with_negative(adata):
    adata.X.data[3] = -1
    return adata


def as_sparse_array(adata):
    adata.X = sparse.csr_array(adata.X)
    return adata


def without_dosage(adata):
    del adata.obs["dosage"]
    return adata


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a[:, ::-1].copy(), ValueError, "genes of the model in another order"),
        (lambda a: a[:, :5].copy(), ValueError, "lacks 3 of the 8 genes"),
        (with_other_genes, ValueError, "lacks 8 of the 8 genes.*it has 8 others"),
        (with_new_batch, ValueError, "'batch' has values that were not in the training data: 'batch_9'"),
        (with_negative, ValueError, r"negative values in `adata\.X`"),
        (as_sparse_array, TypeError, r"csr_array.*csr_matrix"),
        (without_dosage, KeyError, "dosage_key='dosage'"),
    ],
    ids=["order", "fewer genes", "other genes", "batch", "negative", "sparse array", "no dosage"],
)
def test_cells_that_do_not_fit_the_model(model, adata, change, error, message):
    with pytest.raises(error, match=message):
        model.score(change(adata))


def test_new_drug_without_features(model, screen):
    cells = held_out(screen, "unseen_drug")
    cells.uns["drug_embedding"] = cells.uns["drug_embedding"].drop(index="drug_9")
    with pytest.raises(ValueError, match="have no row.*'drug_9'"):
        model.score(cells)


def test_new_drug_with_other_features(model, screen):
    cells = held_out(screen, "unseen_drug")
    cells.uns["drug_embedding"] = cells.uns["drug_embedding"].iloc[:, :2]
    with pytest.raises(ValueError, match="lacks"):
        model.score(cells)


def test_new_drug_and_a_model_without_features(adata, screen, fit):
    model = fit(adata, {"drug_embedding_key": None}, epochs=2)
    with pytest.raises(ValueError, match="'drug_8', 'drug_9'.*were not measured.*without drug features"):
        model.score(held_out(screen, "unseen_drug"))


def test_unknown_grouping(model):
    with pytest.raises(ValueError, match="`by` must be 'context' or 'cell', found 'drug'"):
        model.score(by="drug")


def test_score_of_a_hard_model(adata, fit):
    model: GIM = fit(adata, epochs=5, intervention="hard")
    assert np.isfinite(model.score()["log_likelihood"]).all()
