"""What is fitted to worlds that share no code with the package, and what is expected of it.

The kinetic world, see kinetic.py: 100 genes of which 10 regulate, 40 drugs at three of four doses with 40 cells a context and 800 controls,
a mean count of 2 a gene. Predicted are the fourth dose, in rotation, and 8 new drugs. The bar is the best simple baseline by energy distance,
world by world. The stand-in for sciPlex is described in sciplex_like.py.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from benchmarks._worlds import Job
from benchmarks.worlds.planted import SOURCES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# What each row of the table `variants` changes in the kinetic world, and in the set-up of the model.
VARIANTS: dict[str, tuple[Mapping[str, object], Mapping[str, object]]] = {
    "as it is": ({}, {}),
    "3 hidden states": ({"n_states": 3}, {}),
    "2 cell lines": ({"n_lines": 2}, {"categorical_covariate_keys": ["cell_line"]}),
    "5 feedback edges": ({"n_feedback": 5}, {}),
    "30 regulators": ({"n_regulators": 30}, {}),
    "saturating features": ({"nonlinear_features": True}, {}),
    "no classes of drugs": ({"n_classes": None}, {}),
}


def kinetic(seeds: Sequence[int]) -> list[Job]:
    """The kinetic world with a mean count of 2 and of 0.5.

    Expected: targets found better than by a t-test, which calls what is downstream too. Predictions not worse than the bar, on doses or on
    drugs: what a drug does to rates is carried by a network of another form than the model's, so that no large margin is due.
    """
    return [
        Job({"mean count": mean}, seed, {"maker": "kinetic", "mean_count": mean})
        for mean, seed in product((2.0, 0.5), seeds)
    ]


def variants(seeds: Sequence[int]) -> list[Job]:
    """The kinetic world with what the model does not know of.

    Expected: hidden states and feedback cost edges; predictions stay at the bar or below.
    """
    return [
        Job({"world": name}, seed, {"maker": "kinetic", **world}, setup=setup)
        for (name, (world, setup)), seed in product(VARIANTS.items(), seeds)
    ]


def sciplex(seeds: Sequence[int]) -> list[Job]:
    """The stand-in for sciPlex, with at most 20 and with all cells of a drug, dose and line.

    Expected: the published methods have either the correlation of shifts or the distance between distributions. Wanted are both: a
    correlation above that of every baseline, and an energy distance not above that of `trainmean`.
    """
    setup = {"categorical_covariate_keys": ["cell_line", "batch"]}
    sizes = {"at most 20": {"most_cells": 20}, "all, 10 to 100": {}}
    return [
        Job({"cells": name}, seed, {"maker": "sciplex", **size}, setup=setup)
        for (name, size), seed in product(sizes.items(), seeds)
    ]


def gnw(seeds: Sequence[int]) -> list[Job]:
    """Three worlds of GeneNetWeaver, continuous values; seeds are those of the fit.

    Expected: targets found better than by a t-test and edges better than by correlation, and probabilities that hold: mechanisms are of
    another form and have feedback, so that what they say wrongly must not pass for targets.
    """
    setup = {"drug_embedding_key": None}
    return [
        Job({"world": name}, seed, {"maker": "gnw", "name": name}, view="float", setup=setup)
        for name, seed in product(("size10_1", "size10_2", "size100_1"), seeds)
    ]


def hsc(seeds: Sequence[int]) -> list[Job]:
    """The haematopoietic network made with BoolODE, continuous values; seeds are those of the fit.

    Expected: edges found better than by correlation. Cells are of two kinds that exclude each other, and nearly all edges lie in circles, so
    that many will be missed.
    """
    setup = {"drug_embedding_key": None}
    return [Job({"world": "haematopoiesis"}, seed, {"maker": "hsc"}, view="float", setup=setup) for seed in seeds]


def regulators(seeds: Sequence[int]) -> list[Job]:
    """The kinetic world, told its ten regulators or not, by counts (direct), by moments of hidden expression (latent), and as the data choose.

    Expected: moments see through the noise of counts that the regulators are read with, so that edges are found where regulators are told
    and, for the most part, where they are not; by counts, genes of one regulator explain each other. What the data choose has the graph of
    moments, and predictions like those by counts.
    """
    told = {"found": {}, "told": {"regulator_key": "regulator"}}
    return [
        Job(
            {"mean count": mean, "measurement": measurement, "regulators": name},
            seed,
            {"maker": "kinetic", "mean_count": mean},
            setup=setup,
            model={"measurement": measurement},
        )
        for measurement, mean, (name, setup), seed in product(
            ("auto", "latent", "direct"), (2.0, 0.5), told.items(), seeds
        )
    ]


def planted(seeds: Sequence[int]) -> list[Job]:
    """Targets planted in cells of three screens, 100 genes of the largest mean; with features of drugs that say nothing; and none.

    Expected: target AUPRC at least 0.85 (Papalexi, whose genes have few counts) and 0.92 (Zhao), a calibration error of at most 0.02, and at most
    0.1 genes called for a drug that does nothing. Of treated cells (Zhao) as of those that are not; less of the cells of McFaline-Figueroa, whose genes
    have fewest counts.
    """
    rows = [
        ("papalexi", "planted"),
        ("papalexi", "random features"),
        ("papalexi", "nothing to find"),
        ("zhao", "planted"),
        ("zhao", "random features"),
        ("zhao", "nothing to find"),
        ("zhao, treated", "planted"),
        ("mcfaline", "planted"),
    ]
    return [
        Job(
            {"cells": source, "targets": kind},
            seed,
            {"maker": "planted", "source": source, "kind": kind, "n_genes": 100},
            setup={
                "categorical_covariate_keys": SOURCES[source].covariates,
                "drug_embedding_key": "drug_embedding" if kind == "random features" else None,
            },
        )
        for (source, kind), seed in product(rows, seeds)
    ]


SUITES: dict[str, Callable[[Sequence[int]], list[Job]]] = {
    suite.__name__: suite for suite in (kinetic, variants, regulators, sciplex, gnw, hsc, planted)
}
