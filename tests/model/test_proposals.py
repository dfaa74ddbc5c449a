"""What to measure next, where it can be told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def clear_model(clear):
    return clear[1]


def test_doses_are_proposed_in_order_of_what_they_tell(clear_model):
    told = clear_model.propose_doses("drug_03", [0.01, 0.5, 1.0, 2.0, 4.0], n=2)
    assert told.index.names == ["perturbation", "dosage"]
    assert set(told.index.get_level_values("dosage")) == {0.01, 0.5, 1.0, 2.0, 4.0}
    assert told["gain"].notna().sum() == 2
    assert told["gain"].iloc[0] == pytest.approx(told["information"].iloc[0]) == told["information"].max()
    assert told["gain"].iloc[1] < told["gain"].iloc[0]
    np.testing.assert_allclose(told["information"], told["of_targets"] + told["of_ec50"])
    assert told.xs(0.01, level="dosage")["information"].item() == pytest.approx(0, abs=0.02)  # nothing happens there
    assert (told["information"] > -0.02).all()


def test_doses_of_all_drugs_compete(clear_model):
    told = clear_model.propose_doses(n=6)
    picked = told[told["gain"].notna()]
    assert len(picked) == 6
    assert picked["gain"].is_monotonic_decreasing
    assert len(told.index.unique()) == 20 * 21
    one = clear_model.propose_doses(picked.index[0][0])
    assert one.index[0] == picked.index[0]
    pd.testing.assert_frame_equal(clear_model.propose_doses(n=6), told)


def test_wrong_doses_are_refused(clear_model):
    with pytest.raises(ValueError, match="'drug_99', which were not measured"):
        clear_model.propose_doses("drug_99")
    with pytest.raises(ValueError, match="not above zero"):
        clear_model.propose_doses("drug_00", [0.0, 1.0])
    with pytest.raises(ValueError, match="`candidates` is empty"):
        clear_model.propose_doses("drug_00", [])
    with pytest.raises(ValueError, match="`candidates` contains nan"):
        clear_model.propose_doses("drug_00", [np.nan])
    with pytest.raises(ValueError, match="at least 1"):
        clear_model.propose_doses("drug_00", n=0)


def test_doses_need_a_screen_with_doses(adata, fit):
    one = adata[adata.obs["dosage"].isin([0.0, 2.0])].copy()
    model = fit(one, {"dosage_key": None, "size_factor_key": "size_factor"}, epochs=2)
    with pytest.raises(ValueError, match="without doses"):
        model.propose_doses()


def test_drugs_that_tell_most_are_not_alike(known):
    gim = known()

    base = 100 * np.eye(3)[[0, 1, 2, 0, 1]] * np.array([1, 1, 1, -1, -1])[:, None]  # far from those measured
    names = [f"lib_{i}" for i in range(10)]
    library = pd.DataFrame(np.concatenate([base, base + 1e-3]), names, gim.drug_embedding.columns)
    picked = gim.propose_drugs(library, 3)
    assert {int(name[-1]) % 5 % 3 for name in picked.index} == {0, 1, 2}  # one of each direction
    assert picked["gain"].is_monotonic_decreasing
    assert 0 < picked["gain"].sum() <= 1


def test_drugs_toward_a_change_come_by_their_upper_bound(known):
    gim = known()
    library = gim.adata.uns["drug_embedding"]
    options = {"dosage": 3.0, "n_draws": 20, "n_samples": 50}
    ranked = gim.rank_drugs(library, ["a"], **options)
    picked = gim.propose_drugs(library, 3, toward=["a"], **options)
    assert picked.index.tolist() == ranked["upper"].sort_values(ascending=False).index[:3].tolist()
    pd.testing.assert_frame_equal(picked, ranked.loc[picked.index], check_like=True)


def test_wrong_libraries_are_refused(known, adata, fit):
    gim = known()
    with pytest.raises(ValueError, match="between 1 and the number of drugs, 14"):
        gim.propose_drugs(gim.adata.uns["drug_embedding"], 15)
    del adata.uns["drug_embedding"]
    model = fit(adata, {"drug_embedding_key": None, "size_factor_key": "size_factor"}, epochs=2)
    with pytest.raises(ValueError, match="without drug features"):
        model.propose_drugs(pd.DataFrame(np.eye(2)), 1)
