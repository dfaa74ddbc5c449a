"""What is fitted to answer each question about recovery of the graph and of drug targets.

Unless said otherwise a world has 20 genes with 2 edges each on average, 40 drugs at 4 doses with 50 cells a context, 800 controls
and 1 to 3 targets a drug; "count" are negative-binomial counts, "float" is linear Gaussian with every gene scaled to unit variance.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from benchmarks._worlds import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GRAPHS = ("er", "sf")
VIEWS = ("count", "float")
# Few test cells where only the structure is looked at; the training cells are the same.
_FEW = {"n_test_cells": 2}


def main(seeds: Sequence[int]) -> list[Job]:
    """The standard setting, both graph families and both views.

    Expected: on counts, mean edge AUPRC at least 0.98, F1 0.97, at most 1.5 errors a graph, target AUPRC at least 0.98 and F1 0.94, in 15
    CPU seconds. On Gaussian data of equal scale, where shifts leave the covariance within a context as it is and direction shows in the
    means alone, edge AUPRC at least 0.85 (ER) and 0.9 (SF), target AUPRC at least 0.85. Calibration errors at most 0.05; since most pairs of genes
    have no edge, that alone says little, so look at precision and recall beside it.
    """
    return [
        Job({"graph": graph, "view": view}, seed, {"graph": graph}, view=view)
        for graph, view, seed in product(GRAPHS, VIEWS, seeds)
    ]


def size(seeds: Sequence[int]) -> list[Job]:
    """20 to 500 genes on counts with 200 drugs; 1,000 genes once, to see that they run.

    Expected: recovery hardly falls with size while there are about as many drugs as it takes to hit every gene (200 drugs have some 400
    targets), and CPU time grows between d and d squared. At 500 genes, edge AUPRC at least 0.95 in 15 CPU minutes and 4 GB.
    """
    jobs = []
    for d, graph, seed in product((20, 50, 100, 200, 500, 1000), GRAPHS, seeds):
        if d < 1000 or (graph == "er" and seed == seeds[0]):
            jobs.append(Job({"genes": d, "graph": graph}, seed, {"d": d, "graph": graph, "n_drugs": 200, **_FEW}))
    return jobs


def density(seeds: Sequence[int]) -> list[Job]:
    """1, 2 and 4 edges a gene.

    Expected: sparse graphs are found without error. With 4 edges a gene each one is weaker (the signal of all parents together is held
    fixed), more genes move with each drug, and first recall falls, then direction.
    """
    return [
        Job(
            {"edges a gene": k, "graph": graph, "view": view},
            seed,
            {"graph": graph, "edges_per_node": k, **_FEW},
            view=view,
        )
        for k, graph, view, seed in product((1, 2, 4), GRAPHS, VIEWS, seeds)
    ]


def combined(seeds: Sequence[int]) -> list[Job]:
    """100 genes and 40 drugs, with one thing more that is hard; the other suites of counts change one thing at a time.

    Expected: 40 drugs have some 80 targets among 100 genes, so that half of the genes are never one. On counts their noise directs the edges
    between those; on Gaussian data of equal scale nothing does, and errors are reversed edges. Hard interventions and more edges cost little.
    """
    rows = [
        ("counts", {}, {}, "count"),
        ("Gaussian", {}, {}, "float"),
        ("Gaussian, 200 drugs", {"n_drugs": 200}, {}, "float"),
        ("hard interventions", {"intervention": "hard"}, {"intervention": "hard"}, "count"),
        ("4 edges a gene", {"edges_per_node": 4}, {}, "count"),
    ]
    return [
        Job({"world": name, "graph": graph}, seed, {"d": 100, "graph": graph, **world, **_FEW}, view=view, model=model)
        for (name, world, model, view), graph, seed in product(rows, GRAPHS, seeds)
    ]


def drugs(seeds: Sequence[int]) -> list[Job]:
    """10, 40 and 200 drugs.

    Expected: with 10 drugs half of the genes are never a target, and edges between those have to be directed by their noise alone: on
    counts that works (a count's noise tells parent from child), on Gaussian data it cannot.
    """
    return [
        Job({"drugs": n, "graph": graph, "view": view}, seed, {"graph": graph, "n_drugs": n, **_FEW}, view=view)
        for n, graph, view, seed in product((10, 40, 200), GRAPHS, VIEWS, seeds)
    ]


def features(seeds: Sequence[int]) -> list[Job]:
    """How much drug features must tell: their dimension 5 to 40, and noise up to their own standard deviation.

    Expected: graph and targets of the measured drugs do not depend on features at all, since cells say more. Targets and cells of drugs
    never measured do: they get better with dimension up to about the number of directions in which effects vary, and fade to the effect of a typical drug with noise.
    """
    jobs = []
    for dimension, noise, seed in product((5, 10, 20, 40), (0.0, 0.1, 0.3, 1.0), seeds):
        if dimension == 20 or noise == 0.1:
            world = {"graph": "er", "feat_dim": dimension, "feat_noise": noise}
            jobs.append(Job({"dimension": dimension, "noise": noise, "predict": "yes"}, seed, world))
    return jobs


def joint(seeds: Sequence[int]) -> list[Job]:
    """Few cells a context and few controls: do features of all drugs help to find the targets of each?

    Worlds of :func:`scgim.data.simulate_screen` with 4 edges a gene and a mean count of 4, so that the graph is not found without error whatever
    the features: 40 drugs at 3 doses, 100 controls, 5, 10 and 50 cells a context. Features are absent (none), as the world gives them
    (informative), with noise of twice their standard deviation (weak), or those of another drug (shuffled).

    Expected: informative features raise target AUPRC most at 5 cells a context, by at least 0.02, and least at 50, where cells say more than
    features. Weak features gain less. Shuffled features cost nothing: target AUPRC at most 0.01 below that without features. The graph is learned
    from all contexts at once, so that edges gain less than targets.
    """
    changes = {"none": "as given", "informative": "as given", "weak": "noise 2", "shuffled": "shuffled"}
    jobs = []
    for n, (name, change), seed in product((5, 10, 50), changes.items(), seeds):
        world = {"edges_per_gene": 4, "mean_count": 4.0, "doses": (0.5, 1.0, 2.0), "n_controls": 100, "n_cells": n}
        setup = {"drug_embedding_key": None} if name == "none" else {}
        labels = {"cells a context": n, "features": name}
        jobs.append(Job(labels, seed, world, simulated=True, setup=setup, features=change))
    return jobs


def hard(seeds: Sequence[int]) -> list[Job]:
    """Hard interventions: a target loses its parents.

    Expected: as good as shifts on counts, and better than shifts on Gaussian data, where cutting the parents changes the covariance and so tells of direction.
    """
    world = {"intervention": "hard", **_FEW}
    return [
        Job({"graph": graph, "view": view}, seed, {"graph": graph, **world}, view=view, model={"intervention": "hard"})
        for graph, view, seed in product(GRAPHS, VIEWS, seeds)
    ]


def mlp(seeds: Sequence[int]) -> list[Job]:
    """Mechanisms that are random networks of one tanh layer, fitted by linear and by nonlinear mechanisms.

    Expected: the linear model finds most edges, since few of the mechanisms are without slope, and loses direction where they bend; the
    nonlinear one is close to what linear worlds allow.
    """
    return [
        Job(
            {"graph": graph, "fitted": fitted},
            seed,
            {"graph": graph, "mechanism": "mlp"},
            simulated=True,
            model={"mechanism": fitted},
        )
        for graph, fitted, seed in product(GRAPHS, ("linear", "mlp"), seeds)
    ]


def noise(seeds: Sequence[int]) -> list[Job]:
    """Measurement noise: the graph acts on hidden log expression, counts are Poisson draws of it; 250 cells a context.

    Expected: no method sees the hidden expression, and with a mean count of 1 most of the variance of a gene is noise of counting, which a plain count model takes for noise of the
    gene: it explains what a parent does by everything that goes with it. Corrected for that, edge AUPRC should be at least 1.4 times, target AUPRC 1.2 times that of the plain model at mean counts of 1 and 10.
    Rows: "default" is what the data choose, "direct" the plain count model, "latent" the model of hidden expression that `measurement="latent"` asks for, and "hidden expression" a fit of what
    cannot be measured: the ceiling.
    """
    fits: dict[str, dict] = {"default": {}, "direct": {"measurement": "direct"}, "latent": {"measurement": "latent"}}
    jobs = []
    for graph, mean, seed in product(GRAPHS, (0.3, 1.0, 3.0, 10.0), seeds):
        world = {"graph": graph, "measurement": "poisson", "mean_count": mean, "n_cells": 250}
        labels = {"mean count": mean, "graph": graph}
        jobs += [
            Job({**labels, "fitted": name}, seed, world, simulated=True, model=model) for name, model in fits.items()
        ]
        jobs.append(Job({**labels, "fitted": "hidden expression"}, seed, world, simulated=True, view="latent"))
    return jobs


def misspecification(seeds: Sequence[int]) -> list[Job]:
    """What the fit takes for granted and the world does not keep; each row beside the fit that knows better, on ER graphs.

    Expected: the likelihood matters little among counts (Poisson calls too many targets and edges), much on log1p of them. A linear fit of a nonlinear world and the reverse cost
    little. Shift and hard interventions taken for each other keep the graph and lose targets. Hidden causes add edges between the genes that they move, as nothing in the model
    can explain these otherwise. Batch and depth do the same when left out and nothing when given. A cyclic truth costs the feedback edges and little else.
    """
    rows: list[tuple[str, str, dict, dict]] = [
        ("as assumed", "as assumed", {}, {}),
        ("NB counts", "poisson", {}, {"model": {"likelihood": "poisson"}}),
        ("NB counts", "normal on log1p", {}, {"view": "log1p"}),
        ("Poisson counts", "nb", {"likelihood": "poisson"}, {}),
        ("Poisson counts", "poisson", {"likelihood": "poisson"}, {"model": {"likelihood": "poisson"}}),
        ("MLP mechanisms", "linear", {"mechanism": "mlp"}, {}),
        ("MLP mechanisms", "mlp", {"mechanism": "mlp"}, {"model": {"mechanism": "mlp"}}),
        ("linear mechanisms", "mlp", {}, {"model": {"mechanism": "mlp"}}),
        ("hard interventions", "shift", {"intervention": "hard"}, {}),
        ("hard interventions", "hard", {"intervention": "hard"}, {"model": {"intervention": "hard"}}),
        ("shift interventions", "hard", {}, {"model": {"intervention": "hard"}}),
        ("1 hidden cause", "without", {"n_confounders": 1}, {}),
        ("3 hidden causes", "without", {"n_confounders": 3}, {}),
        ("4 batches", "without", {"n_batches": 4}, {}),
        ("4 batches", "batch_key", {"n_batches": 4}, {"setup": {"batch_key": "batch"}}),
        ("depth varies", "without", {"library_size_sd": 0.5}, {"setup": {"size_factor_key": "no_size_factor"}}),
        ("depth varies", "estimated", {"library_size_sd": 0.5}, {"setup": {"size_factor_key": None}}),
        ("depth varies", "size factors", {"library_size_sd": 0.5}, {}),
        ("1 feedback edge", "acyclic", {"n_feedback": 1}, {}),
        ("4 feedback edges", "acyclic", {"n_feedback": 4}, {}),
    ]
    return [
        Job({"world": name, "fitted": fitted}, seed, world, simulated=True, **options)
        for (name, fitted, world, options), seed in product(rows, seeds)
    ]


def states(seeds: Sequence[int]) -> list[Job]:
    """Hidden causes of a quarter of the genes each, with a standard deviation of 0.5 on the log mean; not told.

    Expected: none found where there are none, and edges and targets as ever. With one, edge AUPRC at least 0.95, with three 0.85: genes that
    share a cause and are never moved by drugs may as well act on each other. Drawn cells vary as much as observed ones do.
    """
    worlds: list[tuple[str, dict]] = [
        ("none", {}),
        ("none, scale-free graph", {"graph": "sf"}),
        ("1 hidden cause", {"n_confounders": 1}),
        ("3 hidden causes", {"n_confounders": 3}),
    ]
    return [Job({"world": name}, seed, world, simulated=True) for (name, world), seed in product(worlds, seeds)]


def depth(seeds: Sequence[int]) -> list[Job]:
    """Cells that differ in depth, which is estimated where nobody says.

    Expected: edge AUPRC at least 0.95 where depth varies by half an e-fold, as with the true size factors; none estimated where there is none.
    """
    worlds: list[tuple[str, dict]] = [
        ("depth varies", {"library_size_sd": 0.5}),
        ("varies little", {"library_size_sd": 0.2}),
        ("varies much", {"library_size_sd": 1.0}),
        ("varies, 10 genes", {"library_size_sd": 0.5, "n_genes": 10}),
        ("varies, 1 hidden cause", {"library_size_sd": 0.5, "n_confounders": 1}),
        ("none", {}),
    ]
    rows = [(name, "estimated", world, {"size_factor_key": None}) for name, world in worlds]
    rows.insert(1, ("depth varies", "given", worlds[0][1], {}))
    return [
        Job({"world": name, "size factors": fitted}, seed, world, simulated=True, setup=setup)
        for (name, fitted, world, setup), seed in product(rows, seeds)
    ]


SUITES: dict[str, Callable[[Sequence[int]], list[Job]]] = {
    suite.__name__: suite
    for suite in (
        main,
        size,
        density,
        combined,
        drugs,
        features,
        joint,
        hard,
        mlp,
        noise,
        misspecification,
        states,
        depth,
    )
}
