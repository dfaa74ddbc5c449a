"""Training: what is logged, what moves, when it stops, and that it can be repeated."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pyro
import pytest
import scvi
import torch

from scgim.model import GIM
from scgim.pp import split_by_context

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*as raw counts are"
)  # also for likelihood="normal", which runs on anything

OPTIONS = [
    {},
    {"mechanism": "mlp"},
    {"intervention": "hard"},
    {"likelihood": "normal"},
    {"likelihood": "poisson"},
]
IDS = ["default", "mlp", "hard", "normal", "poisson"]
PRIORS = {"log_prior_intercept", "log_prior_log_scale", "log_prior_shift", "log_prior_weight"}


class Start(pl.Callback):
    """Remembers the parameters that gradient descent starts from."""

    def __init__(self):
        self.parameters: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer, plan) -> None:
        if not self.parameters:
            self.parameters = {name: p.detach().clone() for name, p in plan.module.named_parameters()}


def test_history_has_every_term(model):
    history = model.history
    expected = {
        "elbo_train",
        "elbo_validation",
        "log_likelihood",
        "edges",
        "learning_rate",
        "log_prior_covariate_effect",
        *PRIORS,
    }
    assert expected <= set(history)
    frame = pd.concat([history[name].astype(float) for name in expected], axis=1)
    assert np.isfinite(frame.to_numpy()).all()
    terms = ["log_likelihood", *(name for name in expected if name.startswith("log_prior"))]
    np.testing.assert_allclose(frame["elbo_train"], -frame[terms].sum(axis=1), rtol=1e-4)
    assert frame["edges"].iloc[-1] == model.adjacency_.sum()
    # both curves are per cell, on one scale
    likelihood_gap = frame["elbo_validation"] + frame["log_likelihood"]
    assert likelihood_gap.abs().iloc[-1] < 0.15 * frame["log_likelihood"].abs().iloc[-1]


def test_history_goes_on_through_the_refit(model):
    index = model.history["elbo_train"].index
    np.testing.assert_array_equal(index, np.arange(len(index)))


def test_loss_falls_and_learning_rate_decays(model):
    loss = model.history["elbo_train"]["elbo_train"].astype(float)
    assert loss.iloc[-1] < loss.iloc[0]
    rate = model.history["learning_rate"]["learning_rate"].astype(float)
    np.testing.assert_allclose(rate.iloc[0], 0.02)
    assert rate.iloc[-1] < 0.004  # it may end early


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_every_parameter_moves(adata, fit, options):
    start, callbacks = Start(), []
    callbacks.append(start)
    model = fit(adata, {"batch_key": "batch"}, epochs=4, train={"callbacks": callbacks}, **options)
    assert callbacks == [start]  # the list of the user is left as it was
    for name, parameter in model.module.named_parameters():
        unused = name == "log_scale" and options.get("likelihood") == "poisson"  # stays at its prior mean
        if parameter.requires_grad and not unused:
            assert not torch.equal(parameter, start.parameters[name]), name
    assert torch.isfinite(torch.cat([p.flatten() for p in model.module.parameters()])).all()


def test_weights_of_absent_edges_are_zero(model):
    weight = model.module.mechanism.weight.detach().numpy()
    assert model.adjacency_.sum() > 3
    np.testing.assert_array_equal(weight[~model.adjacency_], 0)
    assert (weight[model.adjacency_] != 0).all()


def test_same_seed_same_result(adata, fit):
    a, b = (fit(adata.copy(), epochs=6) for _ in range(2))
    for (name, x), y in zip(a.module.state_dict().items(), b.module.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, msg=name)
    pd.testing.assert_frame_equal(a.history["elbo_train"], b.history["elbo_train"])


def test_early_stopping(adata, fit, capsys, caplog):
    def train(**options) -> int:
        model = fit(adata.copy(), epochs=40, train={"train_size": 0.8, **options})
        return int((model.history["learning_rate"]["learning_rate"].astype(float).diff() <= 0).sum())

    stopped = {"early_stopping_patience": 3, "early_stopping_min_delta": 100.0}  # nothing is improvement enough
    caplog.set_level("INFO", logger="scgim")
    assert train(**stopped) < 20 < train(early_stopping=False)
    assert "Monitored metric" in caplog.text
    assert not capsys.readouterr().out


def test_without_validation(adata, fit):
    model = fit(adata, epochs=3, train={"train_size": 1.0})
    assert "elbo_validation" not in model.history
    assert len(model.train_indices) == adata.n_obs


def test_sizes_of_the_split(adata, fit):
    model = fit(adata, epochs=1, train={"train_size": 0.7, "validation_size": 0.2})
    parts = [model.train_indices, model.validation_indices, model.test_indices]
    np.testing.assert_allclose([len(p) / adata.n_obs for p in parts], [0.7, 0.2, 0.1], atol=0.01)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(adata.n_obs))


def test_single_wells_are_trained_on(adata, fit):
    """Of treated cells one a context: none is held out, and nothing is left to validate on."""
    single = ~adata.obs.duplicated(["perturbation", "dosage"])
    plate = adata[(adata.obs["perturbation"] == "control") | single].copy()
    assert not plate.obs[plate.obs["perturbation"] != "control"].duplicated(["perturbation", "dosage"]).any()
    model = fit(plate, epochs=2)
    assert (model.n_cells_ == 3).all()  # wells of each drug: one a dose
    np.testing.assert_array_equal(model.train_indices, np.arange(plate.n_obs))
    assert "elbo_validation" not in model.history


@pytest.mark.parametrize("intervention", ["shift", "hard"])
def test_split_by_column(adata, fit, intervention):
    """A drug, the last one, and a dose of another are left out; the drug is then known by its features only."""
    out = (adata.obs["perturbation"] == "drug_7") | (
        (adata.obs["perturbation"] == "drug_2") & (adata.obs["dosage"] == 1)
    )
    adata.obs["part"] = np.where(out, "test", "train")
    model = fit(adata, epochs=3, train={"split_key": "part"}, intervention=intervention)
    np.testing.assert_array_equal(model.train_indices, np.flatnonzero(~out))
    np.testing.assert_array_equal(model.validation_indices, np.flatnonzero(out))
    assert "elbo_validation" in model.history
    by_name = model.get_effects("drug_7", 1.0)
    renamed = adata.uns["drug_embedding"].loc[["drug_7"]].rename(index={"drug_7": "unheard of"})
    np.testing.assert_allclose(by_name, model.get_effects(renamed, 1.0))
    assert np.isfinite(model.get_effects().to_numpy()).all()
    assert np.isfinite(model.score()["log_likelihood"]).all()


def test_split_of_the_package_is_understood(adata, fit):
    split_by_context(adata, fraction=0.25, key_added="part")
    model = fit(adata, epochs=1, train={"split_key": "part"})
    assert len(model.validation_indices) == (adata.obs["part"] == "test").sum() > 0


def test_small_batches(adata, fit):
    model = fit(adata, epochs=2, train={"batch_size": 100})
    assert np.isfinite(model.history["elbo_train"].astype(float)).all().item()


def test_training_twice(adata, fit):
    model = fit(adata, epochs=5)
    before, first = len(model.history["elbo_train"]), model.get_effects()
    model.train(5, enable_progress_bar=False, accelerator="cpu")
    assert len(model.history["elbo_train"]) > before
    np.testing.assert_allclose(model.get_effects(), first, atol=0.5)
    assert np.corrcoef(model.get_effects().to_numpy().ravel(), first.to_numpy().ravel())[0, 1] > 0.9


def test_progress_can_be_shown(adata, capsys):
    GIM.setup_anndata(adata)
    GIM(adata).train(2, accelerator="cpu")
    err = capsys.readouterr()
    assert "Searching for the graph" in err.err


def test_nothing_is_printed_without_progress(adata, fit, capsys):
    fit(adata, epochs=2)
    assert capsys.readouterr().out == ""


def test_the_parameter_store_stays_empty(model):
    model.module.guide(*dummy_batch(model))
    assert len(pyro.get_param_store()) == 0


def dummy_batch(model: GIM) -> tuple[torch.Tensor, ...]:
    n_covariates = model.module.covariate_effect.shape[0]
    return torch.ones(3, 8), torch.tensor([0, 1, 2]), torch.zeros(3, n_covariates), torch.zeros(3, 1)


def test_two_models_in_one_process_are_independent(adata, fit):
    first = fit(adata.copy(), epochs=4)
    before = {name: value.clone() for name, value in first.module.state_dict().items()}
    predicted = first.predict("drug_1", seed=0, n_samples=5).X.toarray()
    other = adata[:, ::-1].copy()
    second = fit(other, epochs=4)
    second.module.model(*dummy_batch(second))
    first.module.model(*dummy_batch(first))
    for name, value in first.module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    np.testing.assert_array_equal(first.predict("drug_1", seed=0, n_samples=5).X.toarray(), predicted)
    assert first.gene_names_ == second.gene_names_[::-1]


def test_two_models_of_one_anndata_keep_their_setups(adata):
    """The second setup writes its own context codes; training the first model must not read them."""
    GIM.setup_anndata(adata)
    first = GIM(adata)
    GIM.setup_anndata(adata, dosage_key=None, drug_embedding_key=None)
    second = GIM(adata)
    scvi.settings.seed = 0
    first.train(3, enable_progress_bar=False, accelerator="cpu")
    second.train(3, enable_progress_bar=False, accelerator="cpu")
    assert len(first.get_effects()) == 24
    assert len(second.get_effects()) == 8
    alone = adata.copy()
    GIM.setup_anndata(alone)
    third = GIM(alone)
    scvi.settings.seed = 0
    third.train(3, enable_progress_bar=False, accelerator="cpu")
    pd.testing.assert_frame_equal(first.get_effects(), third.get_effects())
    pd.testing.assert_frame_equal(first.score(), third.score())


@pytest.mark.filterwarnings("ignore:Encountered")  # Pyro's own warning of the same
def test_diverging_loss_is_explained(adata):
    GIM.setup_anndata(adata)
    with pytest.raises(FloatingPointError, match=r"loss diverged: it is .*[Ll]ower `lr`"):
        GIM(adata).train(30, lr=1e30, enable_progress_bar=False, accelerator="cpu")


def test_own_plan_options(adata, fit):
    options = {"optim_kwargs": {"weight_decay": 0.1}}
    model = fit(adata, epochs=5, train={"plan_kwargs": options, "lr": 0.01})
    assert options == {"optim_kwargs": {"weight_decay": 0.1}}
    np.testing.assert_allclose(model.history["learning_rate"]["learning_rate"].astype(float).iloc[0], 0.01)
