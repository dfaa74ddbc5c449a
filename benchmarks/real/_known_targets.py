"""Ranks of the known targets of drugs among the modelled genes, by a model and by simple statistics."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from benchmarks.real._knock_outs import rank_genes
from benchmarks.real._screens import MODEL
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    import scgim


def read(adata: AnnData) -> dict[str, list[str]]:
    """Known targets of each drug that are measured, from obs `targets`, where names are separated by `|`; drugs without are left out."""
    drugs = adata.obs.drop_duplicates("perturbation").set_index("perturbation")["targets"].astype(str)
    found = {drug: [gene for gene in text.split("|") if gene in adata.var_names] for drug, text in drugs.items()}
    return {drug: genes for drug, genes in sorted(found.items()) if genes and drug != "control"}


def model_ranks(model: scgim.model.GIM) -> dict[str, pd.DataFrame]:
    """Ranks of genes, drugs x genes, by target probability and by direct effect over its standard deviation at the best dose."""
    probs = model.get_targets().groupby(level="perturbation").max()
    effects, sds = model.get_effects(return_sd=True)
    certainty = (effects.abs() / sds.clip(lower=1e-12)).groupby(level="perturbation").max()
    return {
        f"{MODEL}, probability": rank_genes(probs, certainty.loc[probs.index]),
        f"{MODEL}, effect over sd": rank_genes(certainty),
    }


def simple_ranks(adata: AnnData) -> dict[str, pd.DataFrame]:
    """Ranks by Welch's test of all wells of a drug, and by their mean shift in control standard deviations."""
    control = adata.X[(adata.obs["perturbation"] == "control").to_numpy()]
    sd = np.maximum(control.std(axis=0, ddof=1), 1e-8)
    wells = {drug: adata.X[rows] for drug, rows in adata.obs.groupby("perturbation", observed=True).indices.items()}
    del wells["control"]
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Precision loss"
        )  # wells at the upper limit of the scale are the same
        t = {drug: np.abs(stats.ttest_ind(x, control, equal_var=False).statistic) for drug, x in wells.items()}
    z = {drug: np.abs(x.mean(axis=0) - control.mean(axis=0)) / sd for drug, x in wells.items()}
    return {
        name: rank_genes(pd.DataFrame.from_dict(values, orient="index", columns=adata.var_names))
        for name, values in (("t-test", t), ("z-score", z))
    }


def rank_table(ranks: Mapping[str, pd.DataFrame], known: Mapping[str, list[str]]) -> pd.DataFrame:
    """Rank of the best of each drug's known targets by each method; a row a drug."""
    rows = {}
    for drug, genes in known.items():
        best = {f"rank: {name}": int(frame.loc[drug, genes].min()) for name, frame in ranks.items()}
        rows[drug] = {"measured targets": ", ".join(genes), **best}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("drug")


def chance(n_genes: int, n_targets: int) -> float:
    """Expected reciprocal rank of the best of some genes in a random order."""
    # The best is at rank r where none of the targets is among the first r - 1, and one is at r.
    ranks = np.arange(1, n_genes - n_targets + 2)
    later = np.concatenate([[1.0], np.cumprod((n_genes - n_targets - ranks[:-1] + 1) / (n_genes - ranks[:-1] + 1))])
    return float((later * n_targets / (n_genes - ranks + 1) / ranks).sum())


def summary(
    table: pd.DataFrame, n_genes: int, known: Mapping[str, list[str]], seconds: Mapping[str, float]
) -> pd.DataFrame:
    """One row a method: mean reciprocal rank of the best known target and how often it is high up; and chance."""
    rows = []
    for column in table.columns[1:]:
        name, ranks = column.removeprefix("rank: "), table[column].to_numpy()
        row = {"method": name, "mean reciprocal rank": float((1 / ranks).mean()), "first": int((ranks == 1).sum())}
        row |= {"within ten": int((ranks <= 10).sum()), "median rank": float(np.median(ranks))}
        rows.append({**row, "drugs": len(table), "genes": n_genes, "CPU seconds": seconds.get(name, np.nan)})
    random = float(np.mean([chance(n_genes, len(genes)) for genes in known.values()]))
    rows.append({"method": "chance", "mean reciprocal rank": random, "drugs": len(table), "genes": n_genes})
    return pd.DataFrame(rows)
