"""Prediction of drugs and doses that were never measured: `python benchmarks/prediction/run.py SUITE ...`.

Results are appended to a CSV file in the work folder as they come, so that an interrupted run goes on where it stopped; then the
tables of the suite are written to docs/benchmarks.md. What each suite asks, and what is expected of it, is in suites.py.
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
from benchmarks.prediction.measure import measure  # noqa: E402
from benchmarks.prediction.suites import SUITES  # noqa: E402
from benchmarks.prediction.tables import FIGURES, remarks, tables  # noqa: E402

# Scored by the generator's own scorer as well, which takes as long as a fit.
_CHECKED = ("main", "gaussian")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prediction of drugs and doses that were never measured.")
    _records.add_options(parser, SUITES)
    return parser.parse_args(arguments)


def run(suite: str, options: argparse.Namespace) -> int:
    """Run a suite and write its tables; returns the number of fits that failed."""
    jobs = SUITES[suite](options.seeds)
    records = _records.records_of(options, "prediction", suite)
    work = partial(measure, place=_records.place_of(options), check=suite in _CHECKED)
    failed = _records.run_jobs(jobs, work, records, options.max_jobs)
    frame = records.of(jobs)
    if frame.empty:
        return failed
    notes = [*remarks(frame), *records.notes(jobs)]
    if suite in FIGURES and not options.quick:
        notes += FIGURES[suite](frame)
    command = f"python benchmarks/prediction/run.py {suite}"
    provenance = _report.Provenance(command, sorted(frame["seed"].unique().tolist()), notes)
    _records.publish(tables(suite, frame), provenance, docs=not options.quick)
    return failed


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # says the seed before every fit
    return int(sum(run(suite, options) for suite in options.suites) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
