"""Constants that could have been matched to worlds of one kind, each changed by itself, on worlds of other kinds.

The constants were chosen on screens of 20 genes from the common generator. Here the same screens are never used: `kinetic` is the world of
benchmarks/worlds/kinetic.py at 45 genes, `gnw` are the 10-gene networks of GeneNetWeaver with their feedback and continuous values, and
`nonlinear` are scale-free graphs of 24 genes whose mechanisms are random networks of few, shallow cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from benchmarks._worlds import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Change:
    """Another value of one constant: attributes of modules, by their full names, arguments of the model, or a number added to its seed."""

    attributes: Mapping[str, object] = field(default_factory=dict)
    model: Mapping[str, object] = field(default_factory=dict)
    seed: int = 0


def _of(name: str, values: Mapping[str, object]) -> dict[str, Change]:
    return {label: Change({f"scgim.{name}": value}) for label, value in values.items()}


def one_function(h: Tensor, is_linear: bool) -> list[Tensor]:
    """Functions that the search regresses on, without the even one."""
    return [h] if is_linear else [h, h.tanh()]


def steeper(h: Tensor, is_linear: bool) -> list[Tensor]:
    """Functions that the search regresses on, saturating twice as early."""
    return [h] if is_linear else [h, (2 * h).tanh() / 2, (2 * h).tanh().square() / 4]


_LOG_2 = math.log(2)
_STEPS = ((1.0, 0.0), (1.0, 1.5), (1.0, -1.5))
_EXPONENTS = (0.5, 1.1, 2.0, 3.6)
# Constants that enter fits of every world; the seed tells how far a change of nothing goes.
ANY = {
    "seed of the fit": {"another": Change(seed=1000)},
    "edge prior": _of("_priors.EDGE_LOG_ODDS", {"half": -2.0 - _LOG_2, "double": -2.0 + _LOG_2}),
    "first target prior": {
        label: Change({f"{name}_PROB": by * 0.08, f"{name}S": by * 1.5})
        for name in ["scgim.structure._search._FIRST_TARGET"]
        for label, by in {"half": 0.5, "double": 2.0}.items()
    },
    "Hill exponents": _of(
        "interventions._curves._EXPONENTS",
        {"half as many": _EXPONENTS, "twice as many": tuple(np.geomspace(0.5, 5, 16))},
    ),
    "centre of exponents": _of("interventions._curves._LOG_EXPONENT_LOC", {"1": 0.0, "2.25": math.log(2.25)}),
    "spread of exponents": _of("interventions._curves._LOG_EXPONENT_SD", {"half": 0.3, "double": 1.2}),
    "margin of programmes": _of("interventions._effects._MARGIN", {"half": 5.0, "double": 20.0}),
}
COUNTS = {
    "cells that the likelihood is worth": _of("nn._information._CELLS_WORTH", {"half": 50.0, "double": 200.0}),
}
# Of more genes than are scored as parents of each, and of as many or fewer.
SCREENED = {
    "genes scored as parents of each": _of("structure._climb._FEW_GENES", {"double": 82}),
    "further parents scored": _of("structure._climb._N_NEAR", {"half": 5, "double": 20}),
}
NOT_SCREENED = {"genes scored as parents of each": _of("structure._climb._FEW_GENES", {"half": 20})}
NONLINEAR = {
    "functions of the first search": _of(
        "fit._statistics._basis", {"no even one": one_function, "twice as steep": steeper}
    ),
    "steps of single parents": _of("structure._functions._STEPS", {"none": (), "3 of 5": _STEPS}),
    "random units": _of("structure._functions._N_UNITS", {"half": 32, "double": 128}),
    "hidden units": {"half": Change(model={"n_hidden": 4}), "double": Change(model={"n_hidden": 16})},
}
_LINEAR_SUITE = {AS_IT_IS: {"": Change()}, **ANY, **COUNTS, **SCREENED}
_NONLINEAR_SUITE = {AS_IT_IS: {"": Change()}, **ANY, **COUNTS, **NOT_SCREENED, **NONLINEAR}
CHANGES = {
    "kinetic": _LINEAR_SUITE,
    "gnw": {AS_IT_IS: {"": Change()}, **ANY, **NONLINEAR},
    "nonlinear": _NONLINEAR_SUITE,
}

WORLDS: dict[str, dict[str, object]] = {
    "kinetic": {
        "n_genes": 45,
        "n_regulators": 8,
        "n_drugs": 12,
        "n_new_drugs": 4,
        "n_classes": 6,
        "n_cells": 12,
        "n_controls": 200,
    },
    "gnw": {},
    "nonlinear": {
        "n_genes": 24,
        "graph": "sf",
        "edges_per_gene": 2,
        "mechanism": "mlp",
        "n_drugs": 12,
        "doses": (0.5, 1.0, 2.0),
        "n_cells": 10,
        "n_controls": 150,
        "n_unseen_drugs": 4,
        "unseen_doses": (1.5,),
        "mean_count": 3.0,
    },
}


def _jobs(world: str, seeds: Sequence[int], **options: object) -> list[Job]:
    """A fit as it is and one for each other value of each constant; `options` are those of the model."""
    found = []
    for seed, constant in product(seeds, CHANGES[world]):
        for value, change in CHANGES[world][constant].items():
            labels = {"constant": constant, "value": value}
            setup = {"drug_embedding_key": None} if world == "gnw" else {}
            made = {"maker": world, **WORLDS[world]}
            view = "float" if world == "gnw" else "count"
            found.append(Job(labels, seed, made, view=view, setup=setup, model={**options, **change.model}))
    return found


def kinetic(seeds: Sequence[int]) -> list[Job]:
    """The kinetic world at 45 genes.

    Expected: no constant moves a score by more than worlds differ; more candidate parents find no more edges.
    """
    return _jobs("kinetic", seeds)


def gnw(seeds: Sequence[int]) -> list[Job]:
    """GeneNetWeaver's networks of 10 genes, values continuous, mechanisms nonlinear; seeds 0 and 1 are the two networks.

    Expected: as above. There are no features, so that doses alone are predicted.
    """
    return _jobs("gnw", [seed for seed in seeds if seed < 2], mechanism="mlp")


def nonlinear(seeds: Sequence[int]) -> list[Job]:
    """Scale-free graphs of 24 genes with nonlinear mechanisms.

    Expected: as above; fewer functions find fewer edges.
    """
    return _jobs("nonlinear", seeds, mechanism="mlp")


SUITES: dict[str, Callable[[Sequence[int]], list[Job]]] = {suite.__name__: suite for suite in (kinetic, gnw, nonlinear)}
