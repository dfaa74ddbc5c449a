"""Forty drugs that were not measured, ranked by a wanted change whose true answer is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scvi

import scgim

if TYPE_CHECKING:
    from collections.abc import Iterator

N_UNSEEN, _DOSAGE = 40, 2.0
METRICS = ("change", "cosine", "correlation", "distance")


def rows(seed: int) -> Iterator[dict]:
    """For each measure of agreement, the place of the truly best drug, and what intervals hold."""
    world = scgim.data.ScreenSimulator(n_unseen_drugs=N_UNSEEN, n_unseen_cells=1, seed=seed)
    screen = world.screen()
    train = screen[screen.obs["split"] == "train"].copy()
    scvi.settings.seed = seed
    scgim.model.GIM.setup_anndata(train, size_factor_key="size_factor")
    model = scgim.model.GIM(train)
    model.train(accelerator="cpu", enable_progress_bar=False)
    library = world.drug_embedding.drop(index=model.perturbations)
    true = world.total_effects(_DOSAGE).T.loc[library.index]
    rng = np.random.default_rng([seed, 9])
    genes = rng.choice(world.gene_names, 4, replace=False)
    wanted = pd.Series([1.0, 1.0, -1.0, -1.0], genes)
    for metric in METRICS:
        ranked = model.rank_drugs(library, wanted, dosage=_DOSAGE, metric=metric)
        answer = true_score(true[genes], wanted, metric)
        yield {
            "metric": metric,
            "seed": seed,
            "place": ranked.index.get_loc(answer.idxmax()) + 1,
            "spearman": ranked["score"].corr(answer, method="spearman"),
            "score_within": float(ranked["score"].between(ranked["lower"], ranked["upper"]).mean()),
            "truth_within": truth_within(answer, ranked),
        }


def true_score(effects: pd.DataFrame, wanted: pd.Series, metric: str) -> pd.Series:
    """Agreement of true effects with the wanted change, written anew: drugs x genes that are wanted."""
    if metric == "distance":
        return -np.sqrt(np.square(effects - wanted).sum(axis=1))
    if metric == "change":
        achieved = (effects * np.sign(wanted)).clip(upper=wanted.abs(), axis=1)
        return (achieved * wanted.abs()).sum(axis=1) / wanted.abs().sum()
    if metric == "correlation":
        effects, wanted = effects.sub(effects.mean(axis=1), axis=0), wanted - wanted.mean()
    return effects @ wanted / np.sqrt(np.square(effects).sum(axis=1) * np.square(wanted).sum())


def truth_within(answer: pd.Series, ranked: pd.DataFrame) -> float:
    """Share of the drugs whose true score lies in its interval; what does nothing to these genes has no true direction."""
    answer = answer[ranked.index]
    return float(answer.between(ranked["lower"], ranked["upper"])[answer.notna()].mean())


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Over worlds: how often the truly best drug comes first and among the first three, and shares within the intervals."""
    groups = frame.groupby("metric", sort=False)
    return pd.DataFrame(
        {
            "best drug first": groups["place"].agg(lambda place: f"{int((place == 1).sum())} of {len(place)}"),
            "among the first three": groups["place"].agg(lambda place: f"{int((place <= 3).sum())} of {len(place)}"),
            "worst place": groups["place"].max(),
            "rank correlation": groups["spearman"].mean(),
            "scores within their interval": groups["score_within"].min(),
            "true values within": groups["truth_within"].mean(),
        }
    ).rename_axis("metric")
