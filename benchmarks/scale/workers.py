"""What a second worker gains in the search: `python benchmarks/scale/workers.py`, on quiet cores.

Simulated genes of which a tenth may regulate (suite `regulators`), the search alone. The parents of the other genes are chosen in batches, which
:mod:`joblib` gives to its workers; the network among regulators, and putting together what workers found, stay with the first process.
Of the CPU seconds of one worker, those outside the batches are the serial share. Amdahl's law says what two workers can gain at most with it;
the gain in wall-clock time, which is less by what it takes to hand things over, means something on quiet cores alone.

Both searches must find the same graph and probabilities, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before torch: workers are to share the cores, not threads
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import joblib  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from benchmarks import _records, _report  # noqa: E402
from benchmarks.scale.regulated import simulate_regulated  # noqa: E402

from scgim.structure import _leaves, learn_graph  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scgim.structure import StructureResult

N_REGULATORS = 10  # genes for each
N_DRUGS, N_CELLS = 25, 190
OUTSIDE, BUSIEST = "of these, outside batches", "of these, busiest worker"


def screen(n_genes: int) -> dict:
    """Arguments of :func:`scgim.structure.learn_graph`."""
    adata = simulate_regulated(
        n_genes=n_genes, n_regulators=n_genes // N_REGULATORS, n_drugs=N_DRUGS, n_cells=N_CELLS, n_controls=800, seed=0
    )
    contexts = adata.obs["perturbation"].astype(str) + " " + adata.obs["dosage"].astype(str)
    context, names = pd.factorize(contexts)
    drug = pd.factorize(pd.Series(names).str.split().str[0])[0]  # controls come first
    x = np.log1p(adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None])
    return {"x": x, "context": context, "group": drug - 1, "regulators": adata.var["regulator"]}


def timed(function: Callable, task: object, *args: object) -> tuple[object, int, float]:
    """What a task gives, the process that it ran in, and its CPU seconds."""
    start = time.process_time()
    return _on_one_thread(function, task, *args), os.getpid(), time.process_time() - start


class Batches:
    """CPU seconds of this process while batches are worked on, and those of the batches by process."""

    def __init__(self) -> None:
        self.own, self.by_process = 0.0, {}

    def each(self, leaves: _leaves.Leaves, *args: object, **kwargs: object) -> Iterator[tuple[slice, object]]:
        """What `Leaves.each` gives, while seconds are noted."""
        found = _each(leaves, *args, **kwargs)
        while True:
            start = time.process_time()
            item = next(found, None)
            self.own += time.process_time() - start
            if item is None:
                return
            own, (result, process, seconds) = item
            self.by_process[process] = self.by_process.get(process, 0.0) + seconds
            yield own, result


_on_one_thread, _each = _leaves._on_one_thread, _leaves.Leaves.each


def measure(arrays: dict, n_workers: int) -> tuple[dict[str, float], StructureResult]:
    """Seconds of one search, and what it finds."""
    batches = Batches()
    each = lambda self, *args, **kwargs: batches.each(self, *args, **kwargs)
    with (
        joblib.parallel_config("loky", n_jobs=n_workers),
        mock.patch.object(_leaves, "_on_one_thread", timed),
        mock.patch.object(_leaves.Leaves, "each", each),
    ):
        cpu, wall = time.process_time(), time.perf_counter()
        found = learn_graph(**arrays)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    in_batches = sorted(batches.by_process.values(), reverse=True)
    row = {"workers": n_workers, "wall-clock s": wall, "CPU s, first process": cpu, OUTSIDE: cpu - batches.own}
    return row | {"CPU s of batches": sum(in_batches), BUSIEST: in_batches[0]}, found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a second worker gains in the search.")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--no-docs", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    arrays, rows, found = screen(options.genes), [], []
    for n_workers in (1, 2):
        row, result = measure(arrays, n_workers)
        rows.append(row)
        found.append(result)
    same = np.array_equal(found[0].edge_probs, found[1].edge_probs) and found[0].score == found[1].score
    alone, two = rows
    serial = alone[OUTSIDE] / alone["CPU s, first process"]
    # batches go to both workers while the first process waits, so that these two follow each other
    shared = two["CPU s, first process"] + two[BUSIEST]
    notes = [
        f"{options.genes} genes, {options.genes // N_REGULATORS} regulators. Results of both are {'equal, bit for bit' if same else 'NOT equal'}.",
        f"Outside batches: {serial:.3f} of the CPU seconds of one worker. By Amdahl's law two gain at most {1 / (serial + (1 - serial) / 2):.2f}; "
        f"by the CPU seconds of the first process and of the busiest worker, {alone['CPU s, first process'] / shared:.2f}; "
        f"in wall-clock time, {alone['wall-clock s'] / two['wall-clock s']:.2f}.",
    ]
    command = f"python benchmarks/scale/workers.py --genes {options.genes}"
    provenance = _report.Provenance(command, [0], notes)
    _records.publish({"scale-workers": pd.DataFrame(rows)}, provenance, docs=not options.no_docs)
    return int(not same)


if __name__ == "__main__":
    raise SystemExit(main())
