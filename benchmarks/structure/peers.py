"""Other methods on the data of the suite `main`, each in an environment of its own kind.

The dependency groups `peers` and `peers-sdcd` of pyproject.toml name them; they ask for versions of numpy that exclude each other, and
some exclude ours. `--install` makes the environments; a method that does not install is reported as such. Expected: UT-IGSP, the best that is
not told the targets, averages an edge AUPRC of 0.5 (ER) and 0.8 (SF) on log1p of counts; methods that are told the targets are a ceiling,
not peers. A method that takes longer than `--peer-timeout` is stopped and reported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from benchmarks import _records, _report, common
from benchmarks._worlds import Job, open_world
from benchmarks.structure.suites import GRAPHS, VIEWS
from benchmarks.structure.suites import main as main_suite
from benchmarks.structure.tables import EDGES, TARGETS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from benchmarks._worlds import Place

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("peer_methods.py")
GROUPS = ("peers", "peers-sdcd")
FOLDER = Path(tempfile.gettempdir()) / "peers_venv"
# Method -> its name in tables, the module that it needs, and whether it is told the true targets.
METHODS = {
    "utigsp-1e-3": ("UT-IGSP, alpha 1e-3", "causaldag", False),
    "utigsp-1e-5": ("UT-IGSP, alpha 1e-5", "causaldag", False),
    "ges-centred": ("GES, contexts centred", "gies", False),
    "ges-controls": ("GES, controls", "gies", False),
    "dagma-centred": ("DAGMA, contexts centred", "dagma", False),
    "dagma-controls": ("DAGMA, controls", "dagma", False),
    "sdcd": ("SDCD", "sdcd", False),
    "dspin": ("D-SPIN", "dspin", False),
    "dspin-directed": ("D-SPIN, directed", "dspin", False),
    "forest": ("random forests", "sklearn", False),
    "correlation": ("correlation, controls", "numpy", False),
    "marginal": ("t-test", "scipy", False),
    "gies-told": ("GIES, told the targets", "gies", True),
    "sdcd-told": ("SDCD, told the targets", "sdcd", True),
}
_COLUMNS = {"edge_auroc": "edge AUROC"} | EDGES | {"target_auroc": "target AUROC"} | TARGETS | {"cpu": "CPU s"}
_OURS = "scGIM"


def add_options(parser: argparse.ArgumentParser, methods: Sequence[str] | None = None) -> None:
    """Options of the suite `peers`, which has all methods unless some are given."""
    methods = list(methods or METHODS)
    group = parser.add_argument_group("suite peers")
    group.add_argument("--peers-venv", type=Path, default=FOLDER, help="folder of the environments of the peers")
    group.add_argument("--install", action="store_true", help="make these environments first")
    group.add_argument("--methods", nargs="+", choices=methods, default=methods)
    group.add_argument("--peer-timeout", type=float, default=1800, help="seconds that a method may take")


def install(root: Path) -> None:
    """Make the environments and put each peer in one; those that do not install are named and left out."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    torch = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    for name in GROUPS:
        venv.create(root / name, with_pip=True)
        pins = root / name / "constraints.txt"
        pins.write_text(
            f"{torch[0]}\n" if torch else ""
        )  # the build that is at hand, not the newest with its GPU libraries
        for requirement in groups[name]:
            print(f"Installing {requirement}", flush=True)
            command = [_python(root, name), "-m", "pip", "install", "--quiet", "--constraint", pins, requirement]
            subprocess.run(command, check=False)


def _python(root: Path, group: str) -> Path:
    return root / group / "bin" / "python"


def find(root: Path, modules: set[str]) -> dict[str, Path]:
    """Python of an environment in which a module can be imported, for those that can."""
    found = {}
    for module, group in product(sorted(modules), GROUPS):
        python = _python(root, group)
        if module not in found and python.exists():
            done = subprocess.run([python, "-c", f"import {module}"], check=False, capture_output=True)
            if done.returncode == 0:
                found[module] = python
    return found


def jobs_of(seeds: Sequence[int], methods: Sequence[str]) -> list[Job]:
    """Every method on every data set of the suite `main`."""
    return [
        Job(
            {"method": METHODS[method][0], "graph": graph, "view": view, "peer": method},
            seed,
            {"graph": graph},
            view=view,
        )
        for method, graph, view, seed in product(methods, GRAPHS, VIEWS, seeds)
    ]


def call(python: Path, method: str, data: Path, view: str, timeout: float) -> tuple[dict[str, np.ndarray], dict]:
    """What a method finds in a data set, and its cost."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.npz"
        command = [python, SCRIPT, method, data, view, result]
        environment = os.environ | {"WANDB_MODE": "disabled", "TQDM_DISABLE": "1"}
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=timeout, env=environment
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{METHODS[method][0]} was stopped after {timeout:g} seconds") from None
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or [f"{method} ended with {done.returncode}"])[-1])
        found = dict(np.load(result))
    return found, json.loads(str(found["meta"]))


def measure(job: Job, place: Place, pythons: dict[str, Path], timeout: float) -> list[dict[str, float]]:
    """Scores and cost of one method on one data set."""
    _, data = open_world(job, place)
    method = str(job.labels["peer"])
    r, meta = call(pythons[METHODS[method][1]], method, data, job.view, timeout)
    z = np.load(data)
    row = {"cpu": meta["cpu"], "wall": meta["wall"], "memory_mb": meta["rss_mb"]}
    if "edge" in r:
        row |= common.structure_scores(z["A"], r["edge"], r["adj"])
    if "target" in r:
        row |= common.target_scores(z["ctx_targets"][1:], r["target"], r["target_bin"])
    return [row]


def run(options: argparse.Namespace) -> int:
    """Run the peers and write their tables; returns the number of runs that failed."""
    if options.install:
        install(options.peers_venv)
    pythons = find(options.peers_venv, {METHODS[method][1] for method in options.methods})
    if not pythons:
        print(f"No peers in `{options.peers_venv}`. Give --install to make their environments.", file=sys.stderr)
        return 1
    methods = [method for method in options.methods if METHODS[method][1] in pythons]
    absent = sorted({METHODS[method][1] for method in options.methods} - set(pythons))
    jobs, place = jobs_of(options.seeds, methods), _records.place_of(options)
    records = _records.records_of(options, "structure", "peers")
    work = partial(measure, place=place, pythons=pythons, timeout=options.peer_timeout)
    failed = _records.run_jobs(jobs, work, records, options.max_jobs)
    frame = records.of(jobs)
    if frame.empty:
        return failed
    notes = [f"`{name}` does not install here." for name in absent] + records.notes(jobs)
    ours, missing = _our_rows(options)
    notes += ["scGIM is left out: run the suite `main` first."] if missing else []
    command = "python benchmarks/structure/run.py peers --install"
    provenance = _report.Provenance(command, sorted(frame["seed"].unique().tolist()), notes)
    _records.publish(tables(pd.concat([ours, frame], ignore_index=True)), provenance, docs=not options.quick)
    return failed


def _our_rows(options: argparse.Namespace) -> tuple[pd.DataFrame, bool]:
    """Rows of the suite `main`, if it has been run, and whether it has not."""
    prefix = "quick_" if options.quick else ""
    jobs = main_suite(options.seeds)
    frame = _records.Records(options.work / "results" / f"{prefix}structure_main.csv").of(jobs)
    return frame.assign(method=_OURS), frame.empty


def tables(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """All methods on all kinds of data, and scGIM against the best that is not told the targets."""
    frame = frame.sort_values(["graph", "view"], kind="stable")
    found = {"structure-peers": _records.mean_and_spread(frame, ("graph", "view", "method"), _COLUMNS)}
    if _OURS in set(frame["method"]):
        found["structure-peers-goals"] = pd.DataFrame(_against_best(frame))
    return found


def _against_best(frame: pd.DataFrame) -> list[dict]:
    told = {name for name, _, is_told in METHODS.values() if is_told}
    rows = []
    for (graph, view), part in frame[~frame["method"].isin(told)].groupby(["graph", "view"]):
        for score, heading in {
            "edge_auprc": "edge AUPRC",
            "target_auprc": "target AUPRC",
            "target_f1": "target F1",
        }.items():
            means = part.groupby("method")[score].mean().dropna()
            peers = means.drop(_OURS)
            if len(peers):
                quantity = f"{graph}, {view}: {heading}, against {peers.idxmax()}"
                rows.append(_records.goal(quantity, float(means[_OURS]), round(float(peers.max()), 3), at_least=True))
    return rows
