"""What a second worker gains in the search: `python benchmarks/scale/workers.py`, on quiet cores.

Simulated genes of which a tenth may regulate (suite `regulators`), the search alone: statistics of cells are gathered before. The parents of the
other genes are chosen in batches, which :mod:`joblib` gives to its workers; meanwhile the first process searches among regulators. Putting
together what workers found, and the prior, stay with it. What is gained in wall-clock time means something on quiet cores alone.

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
import torch  # noqa: E402
from benchmarks import _records, _report  # noqa: E402
from benchmarks.scale.regulated import simulate_regulated  # noqa: E402

from scgim._priors import usual_edge_log_odds  # noqa: E402
from scgim.structure import _leaves  # noqa: E402
from scgim.structure._over_graphs import with_probs_over_graphs  # noqa: E402
from scgim.structure._search import search_structure  # noqa: E402
from scgim.structure._statistics import StatisticsAccumulator  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scgim.structure import StructureResult
    from scgim.structure._statistics import ContextStatistics

N_REGULATORS = 10  # genes for each
OUTSIDE, BUSIEST = "of these, outside batches", "of these, busiest worker"


def screen(n_genes: int, n_drugs: int, n_cells: int) -> tuple[ContextStatistics, dict]:
    """Statistics of a screen, and options of its search."""
    n_regulators = n_genes // N_REGULATORS
    adata = simulate_regulated(
        n_genes=n_genes, n_regulators=n_regulators, n_drugs=n_drugs, n_cells=n_cells, n_controls=800, seed=0
    )
    contexts = adata.obs["perturbation"].astype(str) + " " + adata.obs["dosage"].astype(str)
    context, names = pd.factorize(contexts)
    drug = pd.factorize(pd.Series(names).str.split().str[0])[0]  # controls come first
    x = np.log1p(adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None])
    control = x[(drug == 0)[context]]
    accumulator = StatisticsAccumulator(torch.as_tensor(drug - 1), n_genes, n_genes)
    accumulator.update(torch.as_tensor((x - control.mean(0)) / control.std(0)), torch.as_tensor(context))
    regulators = adata.var["regulator"].to_numpy()
    return accumulator.finalise(), {"regulators": regulators, "edge_log_odds": usual_edge_log_odds(n_genes)}


def timed(function: Callable, task: object, *args: object) -> tuple[object, int, float]:
    """What a task gives, the process that it ran in, and its CPU seconds."""
    start = time.process_time()
    return _on_one_thread(function, task, *args), os.getpid(), time.process_time() - start


class Batches:
    """CPU seconds of the batches by process."""

    def __init__(self) -> None:
        self.by_process: dict[int, float] = {}

    def each(self, leaves: _leaves.Leaves, *args: object, **kwargs: object) -> Iterator[tuple[slice, object]]:
        """What `Leaves.each` gives, while seconds are noted."""
        for own, (result, process, seconds) in _each(leaves, *args, **kwargs):
            self.by_process[process] = self.by_process.get(process, 0.0) + seconds
            yield own, result


_on_one_thread, _each = _leaves._on_one_thread, _leaves.Leaves.each


def measure(statistics: ContextStatistics, options: dict, n_workers: int) -> tuple[dict[str, float], StructureResult]:
    """Seconds of one search, and what it finds."""
    batches = Batches()
    each = lambda self, *args, **kwargs: batches.each(self, *args, **kwargs)
    with (
        joblib.parallel_config("loky", n_jobs=n_workers),
        mock.patch.object(_leaves, "_on_one_thread", timed),
        mock.patch.object(_leaves.Leaves, "each", each),
    ):
        cpu, wall = time.process_time(), time.perf_counter()
        found = with_probs_over_graphs(statistics, search_structure(statistics, **options), **options)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    others = dict(batches.by_process)
    outside = cpu - others.pop(os.getpid(), 0.0)
    row = {"workers": n_workers, "wall-clock s": wall, "CPU s, first process": cpu, OUTSIDE: outside}
    return row | {
        "CPU s of batches": sum(batches.by_process.values()),
        BUSIEST: max(others.values(), default=0.0),
    }, found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a second worker gains in the search.")
    parser.add_argument("--genes", type=int, default=5000)
    parser.add_argument("--drugs", type=int, default=188, help="each at four doses")
    parser.add_argument("--cells", type=int, default=25, help="of each drug and dose")
    parser.add_argument("--no-docs", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    (statistics, told), rows, found = screen(options.genes, options.drugs, options.cells), [], []
    for n_workers in (1, 2):
        row, result = measure(statistics, told, n_workers)
        rows.append(row)
        found.append(result)
    same = np.array_equal(found[0].edge_probs, found[1].edge_probs) and found[0].score == found[1].score
    alone, two = rows
    serial = alone[OUTSIDE] / alone["CPU s, first process"]
    notes = [
        f"{options.genes} genes, {options.genes // N_REGULATORS} regulators, {options.drugs} drugs at four doses with {options.cells} cells each. "
        f"Results of both are {'equal, bit for bit' if same else 'NOT equal'}.",
        f"Outside batches: {serial:.3f} of the CPU seconds of one worker. Two are {alone['wall-clock s'] / two['wall-clock s']:.2f} times as fast.",
    ]
    command = (
        f"python benchmarks/scale/workers.py --genes {options.genes} --drugs {options.drugs} --cells {options.cells}"
    )
    provenance = _report.Provenance(command, [0], notes)
    _records.publish({"scale-workers": pd.DataFrame(rows)}, provenance, docs=not options.no_docs)
    return int(not same)


if __name__ == "__main__":
    raise SystemExit(main())
