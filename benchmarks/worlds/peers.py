"""Other methods on worlds that share no code with the package, beside scGIM: `python benchmarks/worlds/run.py peers --install`.

The environments and most methods are those of :mod:`benchmarks.structure.peers`. Every method is given the same cells by context: counts as log1p of
counts over size factors, continuous values as they are, each gene on its own scale. Edges are scored twice, among all pairs and as if it were known
which genes regulate. A drug's targets are scored by the largest score over its doses. The worlds of GeneNetWeaver and BoolODE are run with the first
seed alone, and so are methods that take long (`SLOW`) on the kinetic world.

Expected: D-SPIN and scGIM, which ask the same, are best at targets; UT-IGSP, which needs linear mechanisms without circles, is not.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from benchmarks import _records, _report, common
from benchmarks._worlds import Job
from benchmarks.structure import peers as peers_of_structure
from benchmarks.worlds import gnw, hsc, measure

import scgim

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from benchmarks._worlds import Place

METHODS = (
    "dspin",
    "dspin-directed",
    "utigsp-1e-3",
    "utigsp-1e-5",
    "dagma-centred",
    "forest",
    "correlation",
    "marginal",
)
SLOW = ("utigsp-1e-3", "dspin-directed", "forest")
# What each of our rows changes in the set-up.
OURS = {"scGIM": {}, "scGIM, regulators told": {"regulator_key": "regulator"}}
NAMES = {method: peers_of_structure.METHODS[method][0] for method in METHODS}
WORLDS = {name: {"maker": "gnw", "name": name} for name in ("size10_1", "size10_2", "size100_1")} | {
    "haematopoiesis": {"maker": "hsc"},
    "kinetic": {"maker": "kinetic", "mean_count": 2.0},
}
_BY = ["world", "method"]
_COLUMNS = {
    "edge_auprc": "edge AUPRC",
    "edge_auprc_told": "edge AUPRC, regulators told",
    "edge_precision": "edge precision",
    "edge_recall": "edge recall",
    "target_auprc": "target AUPRC",
    "target_precision": "target precision",
    "target_recall": "target recall",
    "cpu": "CPU s",
}
_NOTES = (
    "Counts are log1p of counts over size factors, and genes are divided by their standard deviation within contexts. Edges of one graph are ranked as 0 and 1; regulators told, pairs whose first gene does not regulate "
    "are left out of the ranking, random forests are grown on regulators alone, and scGIM has a row in which it is told them in its fit. In "
    "haematopoiesis all genes regulate. "
    "D-SPIN has a spin for each gene, a sample for each drug and dose, and its defaults: responses relative to controls rank targets, which it does not "
    "call; its network has no direction unless it is asked for one, and strengths from 0.05 on, which it draws, are its graph.",
    "inspre is not on PyPI and is left out.",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the suite `peers`."""
    peers_of_structure.add_options(parser, METHODS)


def jobs_of(seeds: Sequence[int], methods: Sequence[str]) -> list[Job]:
    """Our fits and every method on every world; names of methods are the last in their labels."""
    jobs = []
    for (name, world), method in product(WORLDS.items(), [*OURS, *methods]):
        if name == "haematopoiesis" and OURS.get(method):
            continue  # all its genes regulate
        kinetic = world["maker"] == "kinetic"
        setup = {} if kinetic else {"drug_embedding_key": None}
        view = "count" if kinetic else "float"
        labels = {"world": name, "method": NAMES.get(method, method), "peer": method}
        for seed in seeds if kinetic and method not in SLOW else seeds[:1]:
            jobs.append(Job(labels, seed, world, view=view, setup=setup | OURS.get(method, {})))
    return jobs


def open_world(job: Job, place: Place, data: Path) -> AnnData:
    """Cells of a world, with `var["regulator"]`."""
    if job.world["maker"] == "kinetic":
        return measure.make(job, place)
    adata = hsc.read(data) if job.world["maker"] == "hsc" else gnw.read(data, str(job.world["name"]))
    adata.var["regulator"] = adata.varp["true_adjacency"].toarray().any(1)
    return gnw.fewer(adata) if place.quick else adata


def ours(adata: AnnData, job: Job, place: Place) -> tuple[dict[str, np.ndarray], float]:
    """What scGIM finds, a row of targets a drug, and its CPU seconds."""
    model, cost = common.fit(job, adata, place)
    prob = model.get_targets().groupby(level="perturbation").first().loc[drugs_of(adata)].to_numpy()
    found = {"edge": model.get_adjacency().to_numpy(), "adj": common.fitted_graph(model)}
    return found | {"target": prob, "target_bin": prob > 0.5}, cost.cpu


def theirs(adata: AnnData, job: Job, python: Path, timeout: float) -> tuple[dict[str, np.ndarray], float]:
    """What another method finds, a row of targets a drug, and its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        drug = write(adata, path, counts=job.view == "count")
        found, meta = peers_of_structure.call(python, str(job.labels["peer"]), path, "float", timeout)
    for name in ("target", "target_bin"):
        if name in found:
            table = pd.DataFrame(found[name]).groupby(np.asarray(drug)).max()
            found[name] = table.loc[drugs_of(adata)].to_numpy()
    return found, meta["cpu"]


def drugs_of(adata: AnnData) -> list[str]:
    """Drugs of the training cells, in the order of the truth."""
    trained = set(adata.obs.loc[adata.obs["split"] == "train", "perturbation"])
    return [drug for drug in adata.varm["true_targets"] if drug in trained]


def write(adata: AnnData, path: Path, *, counts: bool) -> list[str]:
    """File of the training cells as the peers read it; returns the drug of each context but the first, the controls.

    Genes are divided by their standard deviation within contexts, which the penalty of DAGMA needs and nothing else feels.
    """
    train = adata[adata.obs["split"] == "train"]
    values = measure.log_values(train) if counts else np.asarray(train.X)
    drug, dose = train.obs["perturbation"].astype(str).to_numpy(), train.obs["dosage"].to_numpy(dtype=float)
    treated = (
        pd.DataFrame({"drug": drug, "dose": dose})[drug != "control"].drop_duplicates().sort_values(["drug", "dose"])
    )
    number = {context: i for i, context in enumerate(treated.itertuples(index=False, name=None), start=1)}
    context = np.array([number.get(own, 0) for own in zip(drug, dose, strict=True)])
    within = values - pd.DataFrame(values).groupby(context).transform("mean").to_numpy()
    true = adata.varm["true_targets"][treated["drug"]].to_numpy().T
    np.savez(
        path,
        X_float=values / (within.std(0) + 1e-8),
        ctx=context,
        ctx_targets=np.concatenate([np.zeros((1, adata.n_vars), dtype=bool), true.astype(bool)]),
        A=adata.varp["true_adjacency"].toarray(),
    )
    return treated["drug"].tolist()


def scores(found: Mapping[str, np.ndarray], adata: AnnData) -> dict[str, float]:
    """Recovery of edges, of edges whose first gene regulates, and of targets, as far as a method has them."""
    row: dict[str, float] = {}
    truth, regulator = adata.varp["true_adjacency"].toarray(), adata.var["regulator"].to_numpy()
    if "edge" in found:
        row["edge_auprc"] = scgim.metrics.edge_metrics(truth, found["edge"])["auprc"]
        if not regulator.all():
            told = found.get("edge_told", found["edge"]) * regulator[:, None]
            row["edge_auprc_told"] = scgim.metrics.edge_metrics(truth, told)["auprc"]
    if "adj" in found:
        called = scgim.metrics.edge_metrics(truth, found["adj"])
        row |= {f"edge_{name}": called[name] for name in ("precision", "recall")}
    if "target" in found:
        targets = adata.varm["true_targets"][drugs_of(adata)].T.to_numpy()
        row["target_auprc"] = scgim.metrics.target_metrics(targets, found["target"])["auprc"]
        if "target_bin" in found:
            called = scgim.metrics.target_metrics(targets, found["target_bin"])
            row |= {f"target_{name}": called[name] for name in ("precision", "recall")}
    return row


def measure_one(job: Job, place: Place, data: Path, pythons: Mapping[str, Path], timeout: float) -> list[dict]:
    """Scores and cost of one method on one world."""
    adata, method = open_world(job, place, data), str(job.labels["peer"])
    if method in OURS:
        found, cpu = ours(adata, job, place)
    else:
        module = peers_of_structure.METHODS[method][1]
        found, cpu = theirs(adata, job, pythons[module], timeout)
    return [scores(found, adata) | {"cpu": cpu}]


def run(options: argparse.Namespace) -> int:
    """Run the peers and ourselves and write the table; returns the number of runs that failed."""
    if options.install:
        peers_of_structure.install(options.peers_venv)
    needed = {method: peers_of_structure.METHODS[method][1] for method in options.methods}
    pythons = peers_of_structure.find(options.peers_venv, set(needed.values()))
    if not pythons:
        print(f"No peers in `{options.peers_venv}`. Give --install to make their environments.", file=sys.stderr)
        return 1
    jobs = jobs_of(options.seeds, [method for method in options.methods if needed[method] in pythons])
    records, place = _records.records_of(options, "worlds", "peers"), _records.place_of(options)
    work = partial(measure_one, place=place, data=options.data, pythons=pythons, timeout=options.peer_timeout)
    failed = _records.run_jobs(jobs, work, records, options.max_jobs)
    frame = records.of(jobs)
    if frame.empty:
        return failed
    absent = [f"`{module}` does not install here." for module in sorted(set(needed.values()) - set(pythons))]
    seeds = sorted(frame["seed"].unique().tolist())
    command = f"python benchmarks/worlds/run.py peers --install --seeds {' '.join(map(str, seeds))}"
    provenance = _report.Provenance(
        f"{command} --peer-timeout {options.peer_timeout:g}", seeds, [*_NOTES, *absent, *records.notes(jobs)]
    )
    _records.publish(tables(frame, records.failed(jobs)), provenance, docs=not options.quick)
    return failed


def tables(frame: pd.DataFrame, failed: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A row a world and method; those that failed say why."""
    table = _records.mean_and_spread(frame, _BY, _COLUMNS)
    if len(failed):
        why = failed.groupby(_BY)["error"].agg(lambda errors: "; ".join(sorted(set(errors)))).rename("failed")
        table = table.merge(why.reset_index(), how="outer", on=_BY)
        table["fits"] = table["fits"].fillna(0).astype(int)
    worlds, methods = list(WORLDS), [*OURS, *NAMES.values()]
    order = [(worlds.index(world), methods.index(method)) for world, method in table[_BY].itertuples(index=False)]
    return {"worlds-peers": table.iloc[sorted(range(len(table)), key=order.__getitem__)].reset_index(drop=True)}
