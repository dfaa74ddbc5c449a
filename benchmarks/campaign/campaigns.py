"""Campaigns on simulated worlds: a screen, then three rounds of experiments, each chosen by what is known so far.

All ways of choosing start from the same screen, and an experiment gives the same cells whoever asks for it.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from scipy import sparse

import scgim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

N_ROUNDS = 3
DOSES = tuple(np.round(np.geomspace(0.1, 10, 9), 3))  # that can be asked for
_N_GENES, _N_CONTROLS = 10, 300
_LARGEST = 2.0  # dose of the library

Arm = tuple[str, float]


class Experiment:
    """A world, and the contexts that were measured in it."""

    def __init__(self, world: scgim.data.ScreenSimulator, n_cells: int, seed: int):
        self.world, self.n_cells, self.seed = world, n_cells, seed
        self.measured: list[Arm] = []
        self.cells = [world.sample(n_cells=_N_CONTROLS, seed=seed)]

    def measure(self, arms: list[Arm]) -> None:
        """Cells of some drugs and doses; of one that was measured before, others."""
        for drug, dosage in arms:
            label = f"{self.seed} {drug} {dosage:g} {self.measured.count((drug, dosage))}"
            self.cells.append(self.world.sample({drug: dosage}, n_cells=self.n_cells, seed=zlib.crc32(label.encode())))
            self.measured.append((drug, dosage))

    def fit(self, *, features: bool) -> scgim.model.GIM:
        """A model of all that was measured."""
        arms = [("control", 0.0), *self.measured]
        n = [len(part) for part in self.cells]
        x = pd.concat(self.cells)
        obs = pd.DataFrame(
            {
                "perturbation": np.repeat([drug for drug, _ in arms], n),
                "dosage": np.repeat([dosage for _, dosage in arms], n),
                "size_factor": 1.0,
            },
            [f"cell_{i}" for i in range(len(x))],
        )
        adata = ad.AnnData(sparse.csr_matrix(x.to_numpy(dtype=np.float32)), obs=obs, var=pd.DataFrame(index=x.columns))
        adata.uns["drug_embedding"] = self.world.drug_embedding.loc[list(dict.fromkeys(d for d, _ in self.measured))]
        scvi.settings.seed = self.seed
        scgim.model.GIM.setup_anndata(
            adata, size_factor_key="size_factor", drug_embedding_key="drug_embedding" if features else None
        )
        model = scgim.model.GIM(adata)
        model.train(accelerator="cpu", enable_progress_bar=False)
        return model


class Campaign(NamedTuple):
    """A campaign: the world and the first screen, the ways of choosing, and the scores of a model."""

    start: Callable[[int], Experiment]
    policies: dict[str, Callable[[scgim.model.GIM, Experiment, np.random.Generator], list[Arm]]]
    score: Callable[[scgim.model.GIM, Experiment], dict[str, float]]
    features: bool

    def rows(self, seed: int) -> Iterator[dict]:
        """Scores after each round, for each way of choosing."""
        first = self.start(seed).fit(features=self.features)
        for name, choose in self.policies.items():
            experiment, model = self.start(seed), first
            rng = np.random.default_rng([seed, 7])
            yield {"policy": name, "round": 0, "seed": seed, **self.score(model, experiment)}
            for step in range(1, N_ROUNDS + 1):
                experiment.measure(choose(model, experiment, rng))
                model = experiment.fit(features=self.features)
                yield {"policy": name, "round": step, "seed": seed, **self.score(model, experiment)}


# which dose next? -----------------------------------------------------------------------------------------------------

_N_DRUGS = 10


def start_doses(seed: int) -> Experiment:
    """Ten drugs at one dose each, EC50s over a factor of twenty."""
    world = scgim.data.ScreenSimulator(
        n_genes=_N_GENES, n_drugs=_N_DRUGS, ec50=(0.3, 6.0), max_targets=2, n_features=4, seed=seed
    )
    out = Experiment(world, 20, seed)
    out.measure([(drug, 1.0) for drug in world.drug_names])
    return out


def told_doses(model: scgim.model.GIM, experiment: Experiment, rng: np.random.Generator) -> list[Arm]:
    """Ten contexts by expected information."""
    return model.propose_doses(candidates=DOSES, n=_N_DRUGS).index[:_N_DRUGS].tolist()


def random_doses(model: scgim.model.GIM, experiment: Experiment, rng: np.random.Generator) -> list[Arm]:
    """For each drug a dose at random."""
    return [(drug, float(rng.choice(DOSES))) for drug in experiment.world.drug_names]


def spread_doses(model: scgim.model.GIM, experiment: Experiment, rng: np.random.Generator) -> list[Arm]:
    """For each drug the dose farthest from those that it has, in logarithms."""
    out = []
    for drug in experiment.world.drug_names:
        own = np.log([dosage for name, dosage in experiment.measured if name == drug])
        gap = np.abs(np.log(DOSES)[:, None] - own).min(1)
        out.append((drug, DOSES[int(gap.argmax())]))
    return out


def score_doses(model: scgim.model.GIM, experiment: Experiment) -> dict[str, float]:
    """Error of EC50s in e-folds, of curves relative to their size, and ranking of targets."""
    world, names = experiment.world, list(experiment.world.drug_names)
    known = model.module.knowledge.interventions()
    order = [model.perturbations.index(name) for name in names]
    targets = world.drugs.targets
    error = known.log_ec50.numpy()[order] - np.log(np.where(targets, world.drugs.ec50, 1.0))
    curves, true = [], []
    for dosage in DOSES:
        curves.append(model.get_effects(names, dosage).to_numpy())
        true.append(world.drugs.shift(np.arange(len(names)), np.full(len(names), dosage)))
    miss, size = np.square(np.array(curves) - true).mean(), np.square(true).mean()
    probs = model.get_targets(names, 1.0).to_numpy()
    return {
        "ec50_error": float(np.abs(error[targets]).mean()),
        "curve_error": float(np.sqrt(miss / size)),
        "target_auprc": scgim.metrics.target_metrics(targets, probs)["auprc"],
    }


# which drug next? -----------------------------------------------------------------------------------------------------

_N_LIBRARY, _N_FIRST, _N_NEXT = 60, 10, 5


def start_drugs(seed: int) -> Experiment:
    """Ten drugs of a library of sixty at one dose."""
    world = scgim.data.ScreenSimulator(
        n_genes=_N_GENES, n_drugs=_N_LIBRARY, max_targets=2, n_features=8, doses=(_LARGEST,), seed=seed
    )
    out = Experiment(world, 30, seed)
    first = np.random.default_rng([seed, 3]).choice(_N_LIBRARY, _N_FIRST, replace=False)
    out.measure([(world.drug_names[i], _LARGEST) for i in np.sort(first)])
    return out


def left(experiment: Experiment) -> pd.DataFrame:
    """Features of the drugs that were not measured."""
    return experiment.world.drug_embedding.drop(index=[drug for drug, _ in experiment.measured])


def told_drugs(model: scgim.model.GIM, experiment: Experiment, rng: np.random.Generator) -> list[Arm]:
    """Drugs that tell most of the library."""
    return [(drug, _LARGEST) for drug in model.propose_drugs(left(experiment), _N_NEXT).index]


def random_drugs(model: scgim.model.GIM, experiment: Experiment, rng: np.random.Generator) -> list[Arm]:
    """Drugs at random."""
    return [(str(drug), _LARGEST) for drug in rng.choice(left(experiment).index, _N_NEXT, replace=False)]


@cache
def true_effects(world: scgim.data.ScreenSimulator) -> pd.DataFrame:
    """Total effects of the library, drugs x genes."""
    return world.total_effects(_LARGEST, n_cells=3000).T


def score_library(model: scgim.model.GIM, experiment: Experiment) -> dict[str, float]:
    """Error of the total effects of the whole library, relative to their size."""
    true, library = true_effects(experiment.world), experiment.world.drug_embedding
    found = model.get_total_effects(library, _LARGEST, n_samples=500)
    miss = np.square(found.to_numpy() - true.loc[library.index].to_numpy()).mean()
    return {"library_error": float(np.sqrt(miss / np.square(true.to_numpy()).mean()))}


def goal(experiment: Experiment) -> dict[str, list[str]]:
    """Two genes that should go up and two that should go down, at random."""
    genes = np.random.default_rng([experiment.seed, 5]).choice(experiment.world.gene_names, 4, replace=False).tolist()
    return {"up": genes[:2], "down": genes[2:]}


def by_bound(model: scgim.model.GIM, experiment: Experiment, rng: np.random.Generator) -> list[Arm]:
    """Drugs of the highest upper bound."""
    found = model.propose_drugs(left(experiment), _N_NEXT, toward=goal(experiment), dosage=_LARGEST)
    return [(drug, _LARGEST) for drug in found.index]


def by_score(model: scgim.model.GIM, experiment: Experiment, rng: np.random.Generator) -> list[Arm]:
    """Drugs of the highest score."""
    found = model.rank_drugs(left(experiment), goal(experiment), dosage=_LARGEST)
    return [(drug, _LARGEST) for drug in found.index[:_N_NEXT]]


def score_best(model: scgim.model.GIM, experiment: Experiment) -> dict[str, float]:
    """Wanted change that the best drug measured so far brings about in truth, as a share of what the best of the library does."""
    wanted, true = goal(experiment), true_effects(experiment.world)
    achieved = (true[wanted["up"]].sum(axis=1) - true[wanted["down"]].sum(axis=1)) / 4
    best = achieved[[drug for drug, _ in experiment.measured]].max()
    return {"share_of_best": float(best / achieved.max()), "found_best": float(best == achieved.max())}


CAMPAIGNS = {
    "doses": Campaign(
        start_doses, {"propose_doses": told_doses, "spread": spread_doses, "random": random_doses}, score_doses, False
    ),
    "drugs": Campaign(start_drugs, {"propose_drugs": told_drugs, "random": random_drugs}, score_library, True),
    "goal": Campaign(
        start_drugs,
        {"propose_drugs, toward": by_bound, "rank_drugs": by_score, "random": random_drugs},
        score_best,
        True,
    ),
}
