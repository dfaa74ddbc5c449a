"""What is fitted to answer each question about drugs and doses that were never measured.

Unless said otherwise a world has 20 genes with 2 edges each on average, 40 drugs at doses 0.5, 1, 1.5 and 2 with 50 cells a context and 800
controls, and 20 features a drug, linear in its effects. Predicted are the same drugs at five other doses, one of them below
and one above those measured, and 20 new drugs at the four doses. The bar is the better of ridge and kernel ridge regression (krr)
by energy distance, data set by data set.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from benchmarks._worlds import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GRAPHS = ("er", "sf")
_MANY = {"n_drugs": 200, "feat_dim": 40}


def main(seeds: Sequence[int]) -> list[Job]:
    """The standard setting on counts, both graph families.

    Expected: on unseen doses an energy distance of at most 0.4 of the bar, since a regression on doses does not know that curves are monotone and saturate; on
    unseen drugs at most 0.7 of it: the features are linear in the effects, which suits ridge, but a regression on them does not know that
    a drug has few direct targets and that the rest follows.
    """
    return [Job({"graph": graph}, seed, {"graph": graph}) for graph, seed in product(GRAPHS, seeds)]


def drugs200(seeds: Sequence[int]) -> list[Job]:
    """200 drugs, 40 features.

    Expected: all regressions gain from more drugs. At most 0.4 of the bar on doses and 0.6 on drugs.
    """
    return [Job({"graph": graph}, seed, {"graph": graph, **_MANY}) for graph, seed in product(GRAPHS, seeds)]


def nonlinear(seeds: Sequence[int]) -> list[Job]:
    """Features that are a random tanh layer of the effects, with 40 and with 200 drugs.

    Expected: with 40 drugs nobody can learn the layer well, and at most 0.85 of the bar is reached on new drugs; with 200, at most 0.7. Doses
    of measured drugs do not need features: at most 0.4 in both.
    """
    jobs = []
    for n, graph, seed in product((40, 200), GRAPHS, seeds):
        world = {"graph": graph, "features": "nonlinear", **(_MANY if n == 200 else {})}
        jobs.append(Job({"drugs": n, "graph": graph}, seed, world))
    return jobs


def gaussian(seeds: Sequence[int]) -> list[Job]:
    """The standard setting on continuous data, every gene of unit variance in controls.

    Expected: as on counts; the world is linear here, so that mean shifts add up along the network as a regression takes them to, and the margin on new drugs is smaller.
    """
    return [Job({"graph": graph}, seed, {"graph": graph}, view="float") for graph, seed in product(GRAPHS, seeds)]


def ablation(seeds: Sequence[int]) -> list[Job]:
    """The standard ER world with its 20 features truncated to principal components, made noisy, or exchanged between drugs.

    Expected: unseen doses stay as they are. On new drugs errors grow as features say less, and the margin to the regressions with them; with features of other
    drugs all end near the mean training shift, and the error of mean shifts is at most 5 % above that of `trainmean`.
    """
    changes = ["as given", *(f"pca {k}" for k in (2, 5, 10)), *(f"noise {s:g}" for s in (0.3, 1, 3)), "shuffled"]
    return [Job({"change": change}, seed, {"graph": "er"}, features=change) for change, seed in product(changes, seeds)]


def genes(seeds: Sequence[int]) -> list[Job]:
    """20 to 200 genes, 200 drugs, 40 features.

    Expected: the margin on doses holds. On new drugs 40 features say less and less of 200 genes, and all methods come closer to the mean training shift.
    """
    return [
        Job({"genes": d}, seed, {"graph": "er", "d": d, "n_test_cells": 100, **_MANY})
        for d, seed in product((20, 50, 100, 200), seeds)
    ]


def library(seeds: Sequence[int]) -> list[Job]:
    """20 to 500 drugs, 20 features.

    Expected: with few drugs nothing can be learned of new ones, with many the regressions come close to what 20 features say; the margin is largest in between.
    """
    return [
        Job({"drugs": n}, seed, {"graph": "er", "n_drugs": n, "n_test_cells": 100})
        for n, seed in product((20, 40, 100, 200, 500), seeds)
    ]


SUITES: dict[str, Callable[[Sequence[int]], list[Job]]] = {
    suite.__name__: suite for suite in (main, drugs200, nonlinear, gaussian, ablation, genes, library)
}
