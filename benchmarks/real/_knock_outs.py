"""What the benchmarks on knock-outs and knock-downs share: the gene that was hit is known, and is it found among those measured?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData

    import scgim

TESTS = {"t-test": "t-test", "Wilcoxon": "wilcoxon"}
FALSE_DISCOVERY = 0.05
GIM = "scGIM, probability"


class Ranking(NamedTuple):
    """What a method says of every perturbation and gene; both frames are perturbations x genes."""

    ranks: pd.DataFrame
    called: pd.DataFrame | None
    """None for a method that only ranks."""


def measured_targets(adata: AnnData) -> list[str]:
    """Knocked-out genes that are measured."""
    return [name for name in adata.obs["perturbation"].cat.categories if name in adata.var_names]


def by_seed(
    fit: Callable[[int], tuple[scgim.model.GIM, float]], seeds: Sequence[int]
) -> Iterator[tuple[scgim.model.GIM, dict[str, Ranking], pd.DataFrame]]:
    """Model of each seed, its rankings and their summary, whose rows name the seed if there are several; `fit` returns a model and its CPU seconds."""
    for seed in seeds:
        model, cpu = fit(seed)
        rankings = model_rankings(model)
        summary = summary_table(rankings, dict.fromkeys(rankings, cpu))
        if len(seeds) > 1:
            summary = summary.rename(index=lambda name, seed=seed: f"{name}, seed {seed}")
        yield model, rankings, summary


def rank_genes(*strength: pd.DataFrame) -> pd.DataFrame:
    """Rank of each gene within its perturbation, 1 for the largest; ties of the first frame are broken by the next."""
    ranks = np.stack(
        [
            np.lexsort([-frame.loc[name].to_numpy() for frame in reversed(strength)]).argsort() + 1
            for name in strength[0].index
        ]
    )
    return pd.DataFrame(ranks, strength[0].index, strength[0].columns)


def model_rankings(model: scgim.model.GIM) -> dict[str, Ranking]:
    """Genes by target probability, by direct effect, and by that over its standard deviation."""
    probs = model.get_targets().droplevel("dosage")
    effects, sds = (frame.droplevel("dosage").abs() for frame in model.get_effects(return_sd=True))
    certainty = effects / sds.clip(lower=1e-12)
    return {
        GIM: Ranking(rank_genes(probs, certainty), probs > 0.5),
        "scGIM, effect": Ranking(rank_genes(effects), None),
        "scGIM, effect over sd": Ranking(rank_genes(certainty), None),
    }


def marginal_rankings(log: AnnData) -> tuple[dict[str, Ranking], dict[str, float]]:
    """Genes by marginal tests of each perturbation against controls on a log scale, and their CPU seconds."""
    rankings, seconds = {}, {}
    for name, method in TESTS.items():
        start = time.process_time()
        sc.tl.rank_genes_groups(log, "perturbation", reference="control", method=method, key_added=name)
        table = sc.get.rank_genes_groups_df(log, None, key=name)
        seconds[name] = time.process_time() - start
        wide = {c: table.pivot(index="group", columns="names", values=c)[log.var_names] for c in table.columns[2:]}
        rankings[name] = Ranking(rank_genes(wide["scores"].abs()), wide["pvals_adj"] < FALSE_DISCOVERY)
        if name == "t-test":
            rankings["fold change"] = Ranking(rank_genes(wide["logfoldchanges"].abs()), None)
            seconds["fold change"] = seconds[name]
    return rankings, seconds


def log_normalised(adata: AnnData) -> AnnData:
    """Counts normalised by the size factors that the model has, then log1p."""
    log = ad.AnnData(adata.X.multiply(1 / adata.obs["size_factor"].to_numpy()[:, None]).tocsr(), adata.obs, adata.var)
    sc.pp.log1p(log)
    return log


def target_table(model: scgim.model.GIM, rankings: dict[str, Ranking]) -> pd.DataFrame:
    """Rank of the true target by each method, and how many other genes each calls; a row a measured target."""
    probs, effects = (frame.droplevel("dosage") for frame in (model.get_targets(), model.get_effects()))
    rows = []
    for name in probs.index.intersection(probs.columns):
        row = {"knock-out": name, "probability": probs.loc[name, name], "direct effect": effects.loc[name, name]}
        row |= {f"rank: {method}": int(r.ranks.loc[name, name]) for method, r in rankings.items()}
        for method, r in rankings.items():
            if r.called is not None:
                row[f"others called: {method}"] = int(r.called.loc[name].drop(name).sum())
        rows.append(row)
    return pd.DataFrame(rows).set_index("knock-out")


def summary_table(rankings: dict[str, Ranking], seconds: dict[str, float]) -> pd.DataFrame:
    """One row a method: mean reciprocal rank of the true targets, how often first and within six, and genes called."""
    rows = []
    for method, r in rankings.items():
        known = r.ranks.index.intersection(r.ranks.columns)
        ranks = np.array([r.ranks.loc[name, name] for name in known])
        row = {"method": method, "mean reciprocal rank": float((1 / ranks).mean()), "first": int((ranks == 1).sum())}
        row |= {"within six": int((ranks <= 6).sum()), "worst rank": int(ranks.max()), "targets": len(known)}
        row |= dict.fromkeys(("others called, these", "called, all knock-outs", "called, median"), np.nan)
        row["CPU seconds"] = seconds.get(method, np.nan)
        if r.called is not None:
            true = sum(bool(r.called.loc[name, name]) for name in known)
            row["true called"] = true
            row["others called, these"] = int(r.called.loc[known].to_numpy().sum()) - true
            row["called, all knock-outs"] = int(r.called.to_numpy().sum())
            row["called, median"] = float(r.called.sum(axis=1).median())
        rows.append(row)
    return pd.DataFrame(rows).set_index("method")
