"""What is known of targets and edges helps where data are few, and does not override them unseen."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scvi

import scgim
from scgim._priors import usual_edge_log_odds
from scgim.model import GIM

OPTIONS = {"max_epochs": 15, "accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def screen():
    return scgim.data.simulate_screen(
        n_genes=8, n_drugs=8, doses=(1.0,), n_cells=10, n_controls=60, mean_count=3.0, n_unseen_drugs=0, seed=5
    )


def fit(screen, **options) -> GIM:
    adata = screen.copy()
    GIM.setup_anndata(adata, size_factor_key="size_factor")
    scvi.settings.seed = 0
    model = GIM(adata, **options)
    model.train(**OPTIONS)
    return model


def truth(screen) -> tuple[pd.DataFrame, pd.DataFrame]:
    """True targets (perturbations x genes) and edges (genes x genes)."""
    targets = screen.varm["true_targets"].T > 0
    edges = pd.DataFrame(np.asarray(screen.varp["true_adjacency"].todense()) != 0, screen.var_names, screen.var_names)
    return targets, edges


def as_prior(known: pd.DataFrame, sure: float) -> pd.DataFrame:
    return known.astype(float) * (2 * sure - 1) + (1 - sure)


@pytest.fixture(scope="module")
def plain(screen):
    return fit(screen)


def error(found: pd.DataFrame, known: pd.DataFrame) -> float:
    return float((found - known).abs().to_numpy().mean())


@pytest.mark.filterwarnings("ignore:The data do not bear out:UserWarning")
def test_known_targets_help(screen, plain):
    targets, edges = truth(screen)
    told = fit(screen, target_prior=as_prior(targets, 0.95))
    before, after = (m.get_targets().droplevel("dosage").loc[targets.index] for m in (plain, told))
    assert error(after, targets) < 0.5 * error(before, targets)
    assert error(told.get_adjacency(), edges) <= error(plain.get_adjacency(), edges) + 0.02


@pytest.mark.filterwarnings("ignore:The data do not bear out:UserWarning")
def test_known_edges_help(screen, plain):
    _, edges = truth(screen)
    told = fit(screen, network_prior=as_prior(edges, 0.95))
    assert error(told.get_adjacency(), edges) < 0.5 * error(plain.get_adjacency(), edges)


def test_wrong_prior_gives_way_to_clear_data():
    screen = scgim.data.simulate_screen(n_genes=6, n_drugs=6, n_cells=100, n_unseen_drugs=0, seed=1)
    targets, edges = truth(screen)
    wrong = as_prior(~edges, 0.7)
    message = r"do not bear out \d+ of the \d+ (targets|edges).*calls likely: .* -> .*\(0.70, now 0"
    with pytest.warns(UserWarning, match=message):
        model = fit(screen, target_prior=as_prior(~targets, 0.7), network_prior=wrong)
    found = model.get_targets().groupby("perturbation").first().loc[targets.index]
    assert ((found > 0.5) == targets).to_numpy().mean() > 0.95
    assert ((model.get_adjacency() > 0.5) == edges).to_numpy().mean() > 0.95


def test_prior_agrees_with_no_prior_where_it_says_nothing(screen, plain):
    nothing = pd.DataFrame(np.nan, ["drug_0", "unknown"], [screen.var_names[0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="Simulated control cells differ")  # says nothing of the prior
        model = fit(screen, target_prior=nothing.rename(index={"drug_0": plain.perturbations[0]}))
    pd.testing.assert_frame_equal(model.get_targets(), plain.get_targets())


def test_an_edge_of_which_nothing_is_known_is_rarer_among_more_genes():
    """A gene has about two parents among 20 genes and among 2,000."""
    few, many = (usual_edge_log_odds(d) for d in (20, 2000))
    assert few == usual_edge_log_odds(5) == -2.0
    np.testing.assert_allclose(19 / (1 + np.exp(-few)), 2.26, atol=0.01)
    np.testing.assert_allclose(1999 / (1 + np.exp(-many)), 2.7, atol=0.01)


def test_priors_enter_each_step(screen):
    targets, _ = truth(screen)
    adata = screen.copy()
    GIM.setup_anndata(adata, size_factor_key="size_factor")
    model = GIM(adata, target_prior=as_prior(targets, 0.9).iloc[:3, :2])
    probs = model.module.knowledge.prior_target_probs().numpy()
    usual = float(model.module.knowledge.prior[0])
    expected = pd.DataFrame(usual, model.perturbations, adata.var_names)
    expected.update(as_prior(targets, 0.9).iloc[:3, :2])
    np.testing.assert_allclose(probs, expected, rtol=1e-5)
    assert GIM(adata).module.knowledge.known_targets() is None


@pytest.mark.filterwarnings("ignore:The data do not bear out:UserWarning")
def test_priors_are_saved(screen, tmp_path):
    targets, edges = truth(screen)
    model = fit(screen, target_prior=as_prior(targets, 0.9), network_prior=as_prior(edges, 0.9))
    model.save(tmp_path / "model")
    loaded = GIM.load(tmp_path / "model", adata=False)
    pd.testing.assert_frame_equal(loaded.get_targets(), model.get_targets())
    np.testing.assert_array_equal(loaded.module.knowledge.known_targets(), model.module.knowledge.known_targets())
    np.testing.assert_array_equal(loaded.module.knowledge.edge_log_odds, model.module.knowledge.edge_log_odds)


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        ([[0.5]], TypeError, "`target_prior` must be a pandas DataFrame of probabilities, found list"),
        (pd.DataFrame(1.0, ["drug_0"], ["gene_0"]), ValueError, "strictly between 0 and 1, found '1.0'.*say 0.99"),
        (pd.DataFrame("x", ["drug_0"], ["gene_0"]), TypeError, "must hold numbers"),
        (pd.DataFrame(0.5, ["other"], ["gene_0"]), ValueError, "names none of the perturbations.*'other'"),
        (pd.DataFrame(0.5, ["drug_0"], ["other"]), ValueError, "names none of the genes"),
        (pd.DataFrame(0.5, ["drug_0", "drug_0"], ["gene_0"]), ValueError, "names perturbations twice: 'drug_0'"),
    ],
)
def test_wrong_priors(screen, prior, error, message):
    adata = screen.copy()
    drug = next(name for name in adata.obs["perturbation"].cat.categories if name != "control")
    if isinstance(prior, pd.DataFrame):
        prior = prior.rename(index={"drug_0": drug}, columns={"gene_0": adata.var_names[0]})
        message = message.replace("drug_0", drug)
    GIM.setup_anndata(adata)
    with pytest.raises(error, match=message):
        GIM(adata, target_prior=prior)


def test_targets_of_guides():
    screen = scgim.data.simulate_screen(
        n_genes=4, n_drugs=3, n_unseen_drugs=0, doses=(1.0,), n_cells=5, n_controls=10, seed=0
    )
    first, second, third = (name for name in screen.obs["perturbation"].cat.categories if name != "control")
    genes = {first: screen.var_names[2], second: screen.var_names[0], third: "UNMEASURED"}
    screen.obs["guide"] = screen.obs["perturbation"].astype(str).replace(genes)
    prior = scgim.pp.guide_targets(screen, "guide")
    assert prior.index.tolist() == prior.columns.tolist() == sorted([genes[first], genes[second]])
    np.testing.assert_array_equal(prior.to_numpy(), [[0.95, np.nan], [np.nan, 0.95]])
    with pytest.raises(ValueError, match="No perturbation in .*named after a gene"):
        scgim.pp.guide_targets(screen, "perturbation")
    with pytest.raises(ValueError, match="`probability` must lie"):
        scgim.pp.guide_targets(screen, "guide", probability=1.0)
