"""Campaigns: experiments do not depend on who asks, and tables count what they say."""

from __future__ import annotations

import importlib

import numpy as np
import pandas as pd


def load(name: str):
    return importlib.import_module(f"benchmarks.{name}")


def test_an_experiment_gives_the_same_cells_whoever_asks():
    campaigns = load("campaign.campaigns")
    one, two = (campaigns.start_doses(3) for _ in range(2))
    one.measure([("drug_4", 0.1), ("drug_2", 10.0)])
    two.measure([("drug_2", 10.0)])
    pd.testing.assert_frame_equal(one.cells[-1], two.cells[-1])
    two.measure([("drug_2", 10.0)])
    assert not two.cells[-1].equals(two.cells[-2])  # measured again, other cells
    assert one.measured[:10] == two.measured[:10] == [(f"drug_{i}", 1.0) for i in range(10)]


def test_doses_are_spread_farthest_from_those_measured():
    campaigns = load("campaign.campaigns")
    experiment = campaigns.start_doses(0)
    chosen = campaigns.spread_doses(None, experiment, np.random.default_rng(0))
    assert [drug for drug, _ in chosen] == list(experiment.world.drug_names)
    assert {dose for _, dose in chosen} == {10.0}  # as far from 1 as 0.1, but for rounding
    experiment.measure(chosen)
    assert {dose for _, dose in campaigns.spread_doses(None, experiment, np.random.default_rng(0))} == {0.1}


def test_the_share_of_the_best_is_that_of_true_effects():
    campaigns = load("campaign.campaigns")
    experiment = campaigns.start_drugs(1)
    found = campaigns.score_best(None, experiment)
    assert found["share_of_best"] < 1
    assert found["found_best"] == 0
    wanted, true = campaigns.goal(experiment), experiment.world.total_effects(2.0, n_cells=3000)
    achieved = true.loc[wanted["up"]].sum() - true.loc[wanted["down"]].sum()
    experiment.measure([(achieved.idxmax(), 2.0)])
    assert campaigns.score_best(None, experiment) == {"share_of_best": 1.0, "found_best": 1.0}


def test_tables_compare_with_random_choice_in_the_same_world():
    run = load("campaign.run")
    rows = [
        (policy, step, seed, error)
        for policy, errors in {"told": [0.1, 0.4, 0.5], "random": [0.3, 0.4, 0.2]}.items()
        for seed, error in enumerate(errors)
        for step in range(4)
    ]
    table = run.summary(pd.DataFrame(rows, columns=["policy", "round", "seed", "curve_error"]))
    assert table["round"].tolist() == [1, 2, 3, 1, 2, 3]
    assert table["curve error: better than random"].tolist() == ["", "", "1 of 3 (1 alike)", "", "", ""]
    assert table["curve error"].iloc[0].startswith("0.333 ±")


def test_every_campaign_has_its_place_in_the_documentation():
    page = load("_report").DOCS.read_text(encoding="utf-8")
    for name in load("campaign.run").ROWS:
        assert f"<!-- campaign-{name}:start -->" in page


def test_true_scores_are_those_that_drugs_are_ranked_by():
    import torch

    from scgim.predict._ranking import agreement

    ranking = load("campaign.ranking")
    rng = np.random.default_rng(0)
    effects, wanted = pd.DataFrame(rng.normal(size=(6, 4))), pd.Series([1.0, 1.0, -1.0, -1.0])
    for metric in ranking.METRICS:
        found = agreement(torch.tensor(effects.to_numpy()), torch.tensor(wanted.to_numpy()), metric)
        np.testing.assert_allclose(ranking.true_score(effects, wanted, metric), found)
