"""Worlds that share no code with the package: `python benchmarks/worlds/run.py SUITE ...`, as `make bench-worlds` calls it.

Results are appended to a CSV file in the work folder as they come, so that an interrupted run goes on where it stopped; then the
tables of the suite are written to docs/benchmarks.md. What each suite asks, and what is expected of it, is in suites.py; `peers` runs other
methods on some of these worlds, see peers.py.
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
from benchmarks.worlds import gnw, hsc, measure, peers, planted, screen  # noqa: E402
from benchmarks.worlds.suites import SUITES  # noqa: E402
from benchmarks.worlds.tables import remarks, tables  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Worlds that share no code with the package.")
    _records.add_options(parser, [*SUITES, "peers"])
    peers.add_options(parser)
    parser.set_defaults(seeds=[0, 1, 2])
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="folder with the structures of sciPlex's drugs, the worlds of GeneNetWeaver and BoolODE, and the screens that targets are planted in",
    )
    return parser.parse_args(arguments)


def run(suite: str, options: argparse.Namespace) -> int:
    """Run a suite and write its tables; returns the number of fits that failed."""
    jobs = SUITES[suite](options.seeds)
    records = _records.records_of(options, "worlds", suite)
    place = _records.place_of(options)
    of_files = {"sciplex": screen.measure, "gnw": gnw.measure, "hsc": hsc.measure, "planted": planted.measure}
    work = (
        partial(of_files[suite], place=place, data=options.data)
        if suite in of_files
        else partial(measure.measure, place=place)
    )
    failed = _records.run_jobs(jobs, work, records, options.max_jobs)
    frame = records.of(jobs)
    if frame.empty:
        return failed
    seeds = sorted(frame["seed"].unique().tolist())
    notes = [*remarks(suite, frame), *records.notes(jobs)]
    command = f"python benchmarks/worlds/run.py {suite} --seeds {' '.join(map(str, seeds))}"
    _records.publish(tables(suite, frame), _report.Provenance(command, seeds, notes), docs=not options.quick)
    return failed


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # says the seed before every fit
    failed = sum(peers.run(options) if suite == "peers" else run(suite, options) for suite in options.suites)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
