"""What constants matter: `python benchmarks/sensitivity/run.py SUITE ...`, as `make bench-sensitivity` calls it.

Results are appended to a CSV file in the work folder as they come, so that an interrupted run goes on where it stopped; then the
table of the suite is written to docs/benchmarks.md. What each suite changes is in suites.py.
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
from benchmarks.sensitivity.measure import measure  # noqa: E402
from benchmarks.sensitivity.suites import SUITES  # noqa: E402
from benchmarks.sensitivity.tables import remarks, tables  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One constant changed at a time, on worlds of several kinds.")
    _records.add_options(parser, SUITES)
    parser.set_defaults(seeds=[0, 1, 2])
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder that has GeneNetWeaver's networks"
    )
    return parser.parse_args(arguments)


def run(suite: str, options: argparse.Namespace) -> int:
    """Run a suite and write its table; returns the number of fits that failed."""
    jobs = SUITES[suite](options.seeds)
    records = _records.records_of(options, "sensitivity", suite)
    work = partial(measure, place=_records.place_of(options), data=options.data)
    failed = _records.run_jobs(jobs, work, records, options.max_jobs)
    frame = records.of(jobs)
    if frame.empty:
        return failed
    frame["value"] = frame["value"].fillna("").astype(str)
    seeds = sorted(frame["seed"].unique().tolist())
    command = f"python benchmarks/sensitivity/run.py {suite} --seeds {' '.join(map(str, seeds))}"
    provenance = _report.Provenance(command, seeds, [*remarks(frame), *records.notes(jobs)])
    _records.publish(tables(suite, frame), provenance, docs=not options.quick)
    return failed


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # says the seed before every fit
    return int(sum(run(suite, options) for suite in options.suites) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
