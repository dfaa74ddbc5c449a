"""What fits cost, in cells, genes, contexts, features and drugs: `python benchmarks/scale/run.py SUITE ...`.

Results are appended to a CSV file in the work folder as they come, so that an interrupted run goes on where it stopped; then the
tables of the suite are written to docs/benchmarks.md. Run it on a quiet machine. What each suite asks, and what is expected of it, is in
suites.py.
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
from benchmarks.scale import tables  # noqa: E402
from benchmarks.scale.measure import measure, measure_steps, screen_file  # noqa: E402
from benchmarks.scale.suites import SUITES  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What fits cost.")
    _records.add_options(parser, SUITES)
    parser.set_defaults(seeds=[0])
    return parser.parse_args(arguments)


def run(suite: str, options: argparse.Namespace) -> int:
    """Run a suite and write its tables; returns the number of fits that failed."""
    jobs = SUITES[suite](options.seeds)
    records, place = _records.records_of(options, "scale", suite), _records.place_of(options)
    for job in [job for job in jobs if not records.has(job)][: options.max_jobs]:
        screen_file(job, place)  # not in the process whose memory is measured
    work = partial(measure_steps if suite == "steps" else measure, place=place)
    failed = _records.run_jobs(jobs, work, records, options.max_jobs)
    frame = records.of(jobs)
    if frame.empty:
        return failed
    notes = [*records.notes(jobs), tables.exponents(suite, frame)]
    if suite in tables.FIGURES and not options.quick:
        notes.append(tables.figure(suite, frame))
    command = f"python benchmarks/scale/run.py {suite}"
    provenance = _report.Provenance(command, sorted(frame["seed"].unique().tolist()), [n for n in notes if n])
    _records.publish(tables.tables(suite, frame), provenance, docs=not options.quick)
    return failed


def main(arguments: list[str] | None = None) -> int:
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # says the seed before every fit
    options = parse(arguments)
    return int(sum(run(suite, options) for suite in options.suites) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
