"""What is fitted to learn what a fit costs.

Unless said otherwise a screen has 200 genes, 40 drugs at 4 doses and 20,000 cells, of which 800 are controls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks._worlds import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CONTROLS = 800


def _job(labels: dict, seed: int, *, n_cells: int = 20_000, **world: object) -> Job:
    """A screen of so many cells in all."""
    world = {"n_genes": 200, "n_drugs": 40, "n_unseen_drugs": 0, "n_controls": _CONTROLS, **world}
    n_contexts = int(world["n_drugs"]) * len(world.get("doses", range(4)))
    return Job(labels, seed, {**world, "n_cells": max(1, round((n_cells - _CONTROLS) / n_contexts))}, simulated=True)


def cells(seeds: Sequence[int]) -> list[Job]:
    """10,000 to 300,000 cells of 200 genes.

    Expected: linear time above some 50,000 cells, since the search looks at cells twice and a fit makes at least 10 passes; fewer cells take longer each, as a fit makes at least 400
    steps. 100,000 cells in 5 minutes and 3 GB.
    """
    return [_job({"cells": n}, s, n_cells=n) for n in (10_000, 30_000, 100_000, 300_000) for s in seeds]


def genes(seeds: Sequence[int]) -> list[Job]:
    """50 to 2,000 genes of 20,000 cells, any of which may regulate.

    Expected: at most quadratic time, 1,000 genes in 15 minutes, 2,000 in 30 minutes of a core.
    """
    return [_job({"genes": d}, s, n_genes=d) for d in (50, 100, 200, 400, 1000, 2000) for s in seeds]


def regulators(seeds: Sequence[int]) -> list[Job]:
    """500 to 5,000 genes, a tenth of which may regulate and are told; 25 drugs at 4 doses, 20,000 cells.

    Expected: time that grows with regulators times genes, and less: 5,000 genes in 15 minutes of a core and 6 GB, at an accuracy that does not
    depend on their number.
    """
    world = {"n_drugs": 25, "n_cells": 190}
    told = {"regulator_key": "regulator"}
    return [
        Job({"genes": d}, s, {"n_genes": d, "n_regulators": d // 10, **world}, simulated=True, setup=told)
        for d in (500, 1000, 2000, 5000)
        for s in seeds
    ]


def lines(seeds: Sequence[int]) -> list[Job]:
    """2,000 genes of three cell lines, 188 drugs at four doses, 48,000 cells; a third of the drugs act in one line only.

    Effects differ between lines (`effect_modifier_key`). Once a tenth of the genes may regulate, and once any may.

    Expected: the cost of as many genes and cells without lines, but for what is inferred of 2,257 contexts.
    """
    world = {"n_genes": 2000, "n_regulators": 200, "n_drugs": 188, "n_cells": 20, "n_lines": 3}
    levels = {"effect_modifier_key": "line"}
    setups = {"200, told": {**levels, "regulator_key": "regulator"}, "any": levels}
    return [
        Job({"genes": 2000, "regulators": who}, s, world, simulated=True, setup=setup)
        for who, setup in setups.items()
        for s in seeds
    ]


def contexts(seeds: Sequence[int]) -> list[Job]:
    """10 to 640 drugs at 4 doses, 100 genes of 40,000 cells.

    Expected: hardly any growth: cells are what takes time.
    """
    return [
        _job({"drugs": n, "contexts": 4 * n}, s, n_genes=100, n_drugs=n, n_cells=40_000)
        for n in (10, 40, 160, 640)
        for s in seeds
    ]


def features(seeds: Sequence[int]) -> list[Job]:
    """8 to 2,048 features of 200 drugs, 50 genes.

    Expected: the fit does not depend on features at all; the generator, which is fitted at the first prediction, works with distances
    between drugs, so that it hardly depends on their number either.
    """
    return [
        _job({"features": n}, s, n_genes=50, n_drugs=200, n_features=n, n_unseen_drugs=100)
        for n in (8, 32, 128, 512, 2048)
        for s in seeds
    ]


def library(seeds: Sequence[int]) -> list[Job]:
    """100 to 5,000 drugs at one dose with 8 cells each, 50 genes, 64 features.

    Expected: the fit is linear in cells. The generator solves systems as large as the number of drugs.
    """
    return [
        _job(
            {"drugs": n},
            s,
            n_genes=50,
            n_drugs=n,
            doses=(1.0,),
            n_features=64,
            n_unseen_drugs=100,
            n_cells=_CONTROLS + 8 * n,
        )
        for n in (100, 500, 1000, 2000, 5000)
        for s in seeds
    ]


def stored(seeds: Sequence[int]) -> list[Job]:
    """A screen in its file, 100 genes and 10 drugs; more cells by writing the same 100,000 again.

    Expected: screens of up to 128 MB of dense values are read into memory, so that it grows with them; beyond, by the columns of `obs` and no more,
    some 100 bytes a cell, where the counts take 400.
    """
    sizes = [
        (100_000, "in memory"),
        (100_000, "in the file"),
        (400_000, "in the file"),
        (400_000, "in memory"),
        (2_000_000, "in the file"),
    ]
    return [
        _job({"cells": n, "counts": where}, s, n_genes=100, n_drugs=10, n_cells=100_000)
        for n, where in sizes
        for s in seeds
    ]


def steps(seeds: Sequence[int]) -> list[Job]:
    """A step of training beside the arithmetic that it cannot do without, and an epoch beside one of SCVI.

    Expected: at most 1.5 times the bare arithmetic, and less than SCVI, whose encoder and decoder have more weights than a network of 200 genes.
    """
    return [_job({"genes": d}, s, n_genes=d) for d in (50, 200, 1000) for s in seeds]


SUITES: dict[str, Callable[[Sequence[int]], list[Job]]] = {
    suite.__name__: suite for suite in (cells, genes, regulators, lines, contexts, features, library, stored, steps)
}
