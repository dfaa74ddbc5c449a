"""Recovery of graph and targets on worlds with known answers: `python benchmarks/structure/run.py SUITE ...`.

Results are appended to a CSV file in the work folder as they come, so that an interrupted run goes on where it stopped; then the
tables of the suite are written to docs/benchmarks.md. What each suite asks, and what is expected of it, is in suites.py; `peers` runs other
methods on the data of `main`, see peers.py.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: CPU seconds are then those of one core
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import _records, _report  # noqa: E402
from benchmarks.structure import peers  # noqa: E402
from benchmarks.structure.measure import measure  # noqa: E402
from benchmarks.structure.suites import SUITES  # noqa: E402
from benchmarks.structure.tables import REPORTS, tables  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Recovery of graph and targets on worlds with known answers.")
    _records.add_options(parser, [*SUITES, "peers"])
    peers.add_options(parser)
    return parser.parse_args(arguments)


def run(suite: str, options: argparse.Namespace) -> int:
    """Run a suite and write its tables; returns the number of fits that failed."""
    jobs = SUITES[suite](options.seeds)
    records = _records.records_of(options, "structure", suite)
    place = _records.place_of(options)
    failed = _records.run_jobs(jobs, partial(measure, place=place), records, options.max_jobs)
    frame = records.of(jobs)
    if frame.empty:
        return failed
    notes = records.notes(jobs)
    draw = REPORTS[suite].figure
    if draw is not None and not options.quick:
        notes.append(draw(frame))
    command = f"python benchmarks/structure/run.py {suite}"
    provenance = _report.Provenance(command, sorted(frame["seed"].unique().tolist()), notes)
    _records.publish(tables(suite, frame), provenance, docs=not options.quick)
    return failed


def main(arguments: list[str] | None = None) -> int:
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # says the seed before every fit
    options = parse(arguments)
    failed = sum(peers.run(options) if suite == "peers" else run(suite, options) for suite in options.suites)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
