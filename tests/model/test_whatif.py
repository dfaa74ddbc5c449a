"""Combinations, experiments on genes and given cells: against closed forms, in a model whose parameters are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy import sparse

import scgim

if TYPE_CHECKING:
    from scgim.model import GIM

INTERCEPT, CENTRE, SPREAD = (
    np.array([2.0, 1.5, 1.0, 2.5]),
    np.array([2.0, 1.5, 1.0, 2.0]),
    np.array([0.5, 0.8, 0.5, 0.4]),
)
A, B, C, D = range(4)


@pytest.fixture(scope="module")
def gim(known) -> GIM:
    return known()


@pytest.fixture(scope="module")
def emax(gim) -> dict[str, np.ndarray]:
    return dict(zip(gim.perturbations, gim.module.knowledge.interventions().emax.numpy(), strict=True))


def test_effects_of_drugs_add_up(gim, emax):
    both = gim.predict_combination({"drug_00": 1.0, "drug_01": 3.0}, n_samples=20, seed=0)
    for gene in (A, D):  # without parents, so that the mean is known
        log_mean = INTERCEPT[gene] + 0.5 * emax["drug_00"][gene] + 0.75 * emax["drug_01"][gene]
        np.testing.assert_allclose(both.layers["expected"][:, gene], np.exp(log_mean), rtol=1e-5)
    child = np.exp(INTERCEPT[B] + 0.6 * (np.log1p(both.X.toarray()[:, A]) - CENTRE[A]) / SPREAD[A])
    np.testing.assert_allclose(both.layers["expected"][:, B], child, rtol=1e-5)
    assert sparse.issparse(both.X)


def test_one_drug_is_no_combination(gim):
    alone = gim.predict("drug_04", 1.0, n_samples=50, seed=1)
    same = gim.predict_combination({"drug_04": 1.0}, n_samples=50, seed=1)
    also = gim.predict_combination({"drug_04": 1.0, "drug_05": 0.0}, n_samples=50, seed=1)
    for other in (same, also):
        np.testing.assert_array_equal(other.X.toarray(), alone.X.toarray())
    assert list(also.obs["perturbation"].unique()) == ["drug_04+drug_05"]


def test_several_combinations(gim, emax):
    asked = [{}, {"drug_02": 3.0, "drug_03": 1.0}, {"drug_02": 0.5}]
    out = gim.predict_combination(asked, n_samples=4, seed=0)
    assert list(out.obs["perturbation"]) == ["control"] * 4 + ["drug_02+drug_03"] * 4 + ["drug_02"] * 4
    assert list(out.obs["dosages"]) == ["0"] * 4 + ["3+1"] * 4 + ["0.5"] * 4
    np.testing.assert_array_equal(out.obs["dosage"], [0.0] * 4 + [np.nan] * 4 + [0.5] * 4)
    shift = [0.0, 0.75 * emax["drug_02"][D] + 0.5 * emax["drug_03"][D], emax["drug_02"][D] / 3]
    np.testing.assert_allclose(out.layers["expected"][::4, D], np.exp(INTERCEPT[D] + np.array(shift)), rtol=1e-5)


def test_combinations_can_be_written(gim, tmp_path):
    gim.predict_combination([{"drug_00": 1.0, "drug_01": 3.0}], n_samples=2).write_h5ad(tmp_path / "both.h5ad")


def test_targets_are_united(known):
    """A gene that either drug acts on loses its parents, if interventions are hard; at a dosage of 0 none does."""
    hard = known(intervention="hard")
    targets = torch.zeros(12, 4, dtype=torch.float64)
    targets[0, B] = targets[1, C] = 1.0
    hard.module.knowledge.target_probs[:] = targets
    hard.module.knowledge.emax[:] = 1.0
    drugs = {"drug_00": 1.0, "drug_01": 3.0}
    expected = hard.predict_combination(drugs, n_samples=30, seed=0).layers["expected"]
    np.testing.assert_allclose(expected[:, B], np.exp(INTERCEPT[B] + 0.5), rtol=1e-5)
    np.testing.assert_allclose(expected[:, C], np.exp(INTERCEPT[C] + 0.75), rtol=1e-5)
    expected = hard.predict_combination({**drugs, "drug_01": 0.0}, n_samples=30, seed=0).layers["expected"]
    assert np.ptp(expected[:, C]) > 0


def test_combination_with_a_new_drug(gim, emax):
    table = gim.adata.uns["drug_embedding"]
    out = gim.predict_combination({"drug_00": 3.0, "new_1": 3.0}, table, n_samples=500, seed=0)
    # the map from features to effects is linear and known
    log_mean = INTERCEPT[D] + 0.75 * (emax["drug_00"][D] + table.loc["new_1", "f1"])
    assert np.log(out.layers["expected"][:, D]).mean() == pytest.approx(log_mean, abs=0.1)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"drug_99": 1.0}, ValueError, "'drug_99' not among the measured perturbations"),
        ({"drug_00": -1.0}, ValueError, "`dosage` contains -1"),
        ({"drug_00": "1uM"}, ValueError, "`dosage` holds text such as '1uM'"),
        (["drug_00"], ValueError, "`combinations` must be a mapping"),
        ([], ValueError, "`combinations` must be a mapping"),
    ],
)
def test_wrong_combinations(gim, asked, error, message):
    with pytest.raises(error, match=message):
        gim.predict_combination(asked)


def test_new_drug_without_features(gim):
    table = gim.adata.uns["drug_embedding"]
    with pytest.raises(KeyError, match="'drug_99'.*`drug_embedding.index`"):
        gim.predict_combination({"drug_99": 1.0}, table)
    with pytest.raises(ValueError, match=r"Columns of `drug_embedding` \(2\)"):
        gim.predict_combination({"new_0": 1.0}, table[["f0", "f1"]])
    with pytest.raises(ValueError, match="`n_samples` must be at least 1"):
        gim.predict_combination({"drug_00": 1.0}, n_samples=0)


@pytest.mark.parametrize("size_factor", [1.0, 2.0])
def test_a_gene_that_is_set_moves_its_children_only(gim, size_factor):
    out = gim.intervene({"b": 6.5}, n_samples=50, size_factor=size_factor, seed=0)
    expected = out.layers["expected"]
    np.testing.assert_allclose(expected[:, B], 6.5 * size_factor)
    np.testing.assert_array_equal(out.X.toarray()[:, B], np.rint(6.5 * size_factor))
    child = size_factor * np.exp(INTERCEPT[C] - 0.4 * (np.log1p(6.5) - CENTRE[B]) / SPREAD[B])
    np.testing.assert_allclose(expected[:, C], child, rtol=1e-5)
    for gene in (A, D):
        np.testing.assert_allclose(expected[:, gene], size_factor * np.exp(INTERCEPT[gene]), rtol=1e-5)
    assert set(out.obs["perturbation"]) == {"do(b=6.5)"}


def test_a_gene_that_is_set_ignores_drugs(gim, emax):
    out = gim.intervene({"a": 0.0}, perturbation="drug_01", dosage=3.0, n_samples=10, seed=0)
    assert (out.X.toarray()[:, A] == 0).all()
    child = np.exp(INTERCEPT[B] - 0.6 * CENTRE[A] / SPREAD[A])
    np.testing.assert_allclose(out.layers["expected"][:, B], child, rtol=1e-5)
    np.testing.assert_allclose(
        out.layers["expected"][:, D], np.exp(INTERCEPT[D] + 0.75 * emax["drug_01"][D]), rtol=1e-5
    )
    assert set(out.obs["perturbation"]) == {"drug_01+do(a=0)"}
    assert set(out.obs["dosage"]) == {3.0}


@pytest.mark.parametrize("intervention", ["shift", "hard"])
def test_a_gene_that_is_pushed_keeps_its_parents(known, intervention):
    out = known(intervention=intervention).intervene({"b": 0.7, "d": -1.0}, kind="shift", n_samples=30, seed=0)
    log_mean = INTERCEPT[B] + 0.7 + 0.6 * (np.log1p(out.X.toarray()[:, A]) - CENTRE[A]) / SPREAD[A]
    np.testing.assert_allclose(out.layers["expected"][:, B], np.exp(log_mean), rtol=1e-5)
    np.testing.assert_allclose(out.layers["expected"][:, D], np.exp(INTERCEPT[D] - 1.0), rtol=1e-5)


def test_continuous_genes_are_set_in_the_units_of_the_data(known):
    normal = known(likelihood="normal")
    out = normal.intervene({"a": -1.5}, n_samples=40, seed=0)
    np.testing.assert_allclose(out.X[:, A], -1.5)
    child = CENTRE[B] + SPREAD[B] * (INTERCEPT[B] + 0.6 * (-1.5 - CENTRE[A]) / SPREAD[A])
    np.testing.assert_allclose(out.layers["expected"][:, B], child, rtol=1e-5)


def test_genes_and_a_combination(gim, emax):
    drugs = {"drug_00": 1.0, "drug_01": 1.0}
    out = gim.intervene({"a": 1.0}, perturbation=drugs, n_samples=5, seed=0)
    log_mean = INTERCEPT[D] + 0.5 * (emax["drug_00"][D] + emax["drug_01"][D])
    np.testing.assert_allclose(out.layers["expected"][:, D], np.exp(log_mean), rtol=1e-5)
    assert set(out.obs["perturbation"]) == {"drug_00+drug_01+do(a=1)"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": {"x": 1.0}}, "Genes 'x' are not in the model"),
        ({"genes": {}}, "`genes` must give at least one gene its value"),
        ({"genes": ["a"]}, "`genes` must give at least one gene its value"),
        ({"genes": {"a": -1.0}}, "counts are not negative"),
        ({"genes": {"a": np.nan}}, "Values are finite"),
        ({"genes": {"a": 1.0}, "kind": "cut"}, "`kind` must be 'set' or 'shift', found 'cut'"),
        ({"genes": {"a": 1.0}, "perturbation": ["drug_00", "drug_01"]}, "`perturbation` holds 2 drugs"),
        ({"genes": {"a": 1.0}, "dosage": 1.0}, "`dosage` was given"),
    ],
)
def test_wrong_experiments(gim, options, message):
    with pytest.raises(ValueError, match=message):
        gim.intervene(**options)


def test_given_cells_under_a_drug(gim, emax):
    cells = gim.adata[:6].copy()
    cells.obs["size_factor"] = [1.0, 1.0, 2.0, 2.0, 0.5, 0.5]
    cells.obs["patient"] = list("uvwxyz")
    out = gim.predict_cells(cells, ["drug_00", "drug_01"], dosage=[1.0, 3.0], seed=0)
    effect = np.repeat([0.5 * emax["drug_00"][D], 0.75 * emax["drug_01"][D]], 6)
    background = np.tile(np.array([1.0, 2.0] * 3) * cells.obs["size_factor"].to_numpy(), 2)
    np.testing.assert_allclose(out.layers["expected"][:, D], background * np.exp(INTERCEPT[D] + effect), rtol=1e-5)
    assert list(out.obs["control_cell"]) == list(cells.obs_names) * 2
    assert list(out.obs["patient"]) == list("uvwxyz") * 2
    assert list(out.obs["batch"]) == ["one", "two"] * 6
    assert list(out.obs["perturbation"]) == ["drug_00"] * 6 + ["drug_01"] * 6
    assert list(out.obs["dosage"]) == [1.0] * 6 + [3.0] * 6
    assert not [c for c in out.obs if c.startswith("_scvi")]
    assert out.obs_names.is_unique


def test_given_cells_under_a_combination(gim, emax):
    out = gim.predict_cells(gim.adata[:2], {"drug_00": 1.0, "drug_01": 1.0}, seed=0)
    log_mean = INTERCEPT[D] + 0.5 * (emax["drug_00"][D] + emax["drug_01"][D])
    np.testing.assert_allclose(out.layers["expected"][:, D], np.array([1.0, 2.0]) * np.exp(log_mean), rtol=1e-5)


def test_given_cells_need_their_covariates(gim):
    cells = gim.adata[:3].copy()
    with pytest.raises(KeyError, match="'batch'"):
        gim.predict_cells(cells[:, :], "drug_00") if cells.obs.pop("batch") is None else gim.predict_cells(
            cells, "drug_00"
        )
    cells = gim.adata[:3].copy()
    cells.obs["batch"] = "three"
    with pytest.raises(ValueError, match="'batch' has values that were not in the training data: 'three'"):
        gim.predict_cells(cells, "drug_00")
    with pytest.raises(ValueError, match="`cells` has no cells"):
        gim.predict_cells(gim.adata[:0], "drug_00")


def test_keys_of_the_model_are_overwritten(screen):
    """Copied columns must not go on to call the cells controls."""
    adata = screen[screen.obs["split"] == "train"].copy()
    adata.obs = adata.obs.rename(columns={"perturbation": "drug", "dosage": "dose"})
    scgim.model.GIM.setup_anndata(adata, perturbation_key="drug", dosage_key="dose")
    model = scgim.model.GIM(adata)
    model.train(1, enable_progress_bar=False, accelerator="cpu")
    cells = adata[adata.obs["drug"] == "control"][:4]
    out = model.predict_cells(cells, "drug_2", dosage=2.0, seed=0)
    for perturbation, dosage in (("drug", "dose"), ("perturbation", "dosage")):
        assert set(out.obs[perturbation]) == {"drug_2"}
        assert set(out.obs[dosage]) == {2.0}
    # read off the counts, relative to the training cells
    model.control_pool_["log_size"][0] = 0.3
    out = model.predict_cells(cells, "drug_2", dosage=2.0, seed=0)
    totals = cells.X.toarray().sum(1)
    np.testing.assert_allclose(out.obs["size_factor"], totals / (adata.X.sum() / adata.n_obs), rtol=1e-5)


def test_combinations_and_experiments_of_a_simulated_world(clear):
    """What the fitted model says of two drugs together, and of a gene that is held, is what the simulator does."""
    world, model = clear
    truth = np.log(world.sample(n_cells=8000, seed=0).mean())
    control = np.log(model.predict_combination({}, n_samples=8000, seed=0).layers["expected"].mean(0))
    for options in ({"drugs": {"drug_02": 2.0, "drug_05": 1.0}}, {"do": {"gene_1": 1.0}}, {"do": {"gene_4": 30.0}}):
        if "do" in options:
            predicted = model.intervene(options["do"], n_samples=8000, seed=0)
        else:
            predicted = model.predict_combination(options["drugs"], n_samples=8000, seed=0)
        change = np.log(predicted.layers["expected"].mean(0)) - control
        true_change = np.log(world.sample(**options, n_cells=8000, seed=0).mean()) - truth
        assert np.abs(change - true_change).max() < 0.35, options
        assert np.corrcoef(change, true_change)[0, 1] > 0.95, options
