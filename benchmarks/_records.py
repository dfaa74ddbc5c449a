"""Runs that can be interrupted: one job at a time, each in a process of its own, its rows appended to a CSV file at once."""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from benchmarks import _report
from benchmarks._worlds import Place
from tqdm.auto import tqdm

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from benchmarks._worlds import Job

ROOT = Path(__file__).parents[1]
_IDENTITY, _ERROR, _CODE = "job", "error", "code"


class Records:
    """Results of the jobs of a suite, kept in a CSV file.

    Parameters
    ----------
    path
        The file; read if it exists.
    fresh
        Start anew.
    """

    def __init__(self, path: Path, *, fresh: bool = False):
        self.path, self.code = path, code_digest()
        if fresh:
            path.unlink(missing_ok=True)
        self._all = pd.read_csv(path) if path.exists() else pd.DataFrame({_IDENTITY: [], _ERROR: [], _CODE: []})

    def has(self, job: Job) -> bool:
        """Whether a job has been done; one that failed is tried again."""
        mine = self._all[self._all[_IDENTITY] == job.identity]
        return len(mine) > 0 and bool(mine[_ERROR].isna().all())

    def add(self, job: Job, rows: Iterable[Mapping], error: str | None = None) -> None:
        """Put the rows of a job in place of what there was of it, and save."""
        common = {_IDENTITY: job.identity, _ERROR: error, _CODE: self.code, **job.labels, "seed": job.seed}
        new = pd.DataFrame([{**common, **row} for row in rows] or [common])
        kept = self._all[self._all[_IDENTITY] != job.identity]
        self._all = pd.concat([kept, new], ignore_index=True) if len(kept) else new
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".part")
        self._all.to_csv(unfinished, index=False)
        unfinished.replace(self.path)

    def of(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """Rows of the given jobs that did not fail, in the order of the jobs."""
        position = {job.identity: i for i, job in enumerate(jobs)}
        mine = self._all[self._all[_IDENTITY].isin(position) & self._all[_ERROR].isna()]
        in_order = mine.sort_values(_IDENTITY, key=lambda identity: identity.map(position), kind="stable")
        return in_order.drop(columns=[_IDENTITY, _ERROR])

    def failed(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """Labels of the given jobs that failed, and the column `error`."""
        mine = self._all[self._all[_IDENTITY].isin([job.identity for job in jobs]) & self._all[_ERROR].notna()]
        return mine.drop(columns=[_IDENTITY])

    def notes(self, jobs: Sequence[Job]) -> list[str]:
        """What a reader of a table made of these jobs has to know."""
        mine = self._all[self._all[_IDENTITY].isin([job.identity for job in jobs])]
        missing, failed = len(jobs) - mine[_IDENTITY].nunique(), mine[_ERROR].dropna()
        notes = [f"{missing} of {len(jobs)} fits {'is' if missing == 1 else 'are'} still to be run."] if missing else []
        if len(failed):
            notes.append(
                f"{len(failed)} {'fit' if len(failed) == 1 else 'fits'} failed: {'; '.join(sorted(set(failed)))}."
            )
        if mine[_CODE].nunique() > 1:
            notes.append(f"The rows come from {mine[_CODE].nunique()} states of the code.")
        return notes


def code_digest() -> str:
    """Short name of the state of the package's code."""
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted((ROOT / "src").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def run_jobs(jobs: Sequence[Job], measure: Callable[[Job], list[dict]], records: Records, limit: int | None) -> int:
    """Run what has not been run, at most `limit` jobs; returns how many failed."""
    waiting = [job for job in jobs if not records.has(job)][:limit]
    failed = 0
    with tqdm(waiting, unit="fit", smoothing=0, disable=None) as bar:
        for job in bar:
            bar.set_postfix({**job.labels, "seed": job.seed})
            rows, error = isolated(measure, job)
            records.add(job, rows, error)
            if error is not None:
                failed += 1
                print(f"{dict(job.labels)}, seed {job.seed}: {error}", file=sys.stderr)
    return failed


def isolated(measure: Callable[[Job], list[dict]], job: Job) -> tuple[list[dict], str | None]:
    """Rows of a job, or none and the error, from a process of its own.

    So peak memory is that of one fit, and one that is killed does not end the run. The process is forked from one that has loaded
    the libraries, which takes seconds, and has run nothing: a fork of a process with threads can hang.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scgim"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        future = pool.submit(measure, job)
        error = future.exception()
        if error is None:
            return future.result(), None
    return [], f"{type(error).__name__}: {error}".splitlines()[0]


def add_options(parser: argparse.ArgumentParser, suites: Iterable[str]) -> None:
    """Options that all benchmarks on simulated data have."""
    names = list(suites)
    parser.add_argument("suites", nargs="+", choices=names, metavar="suite", help=f"one or more of {', '.join(names)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--bench", type=Path, default=ROOT.parent / "shared" / "bench", help="folder with make_synth.py and score.py"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "scgim_bench", help="folder for data and results"
    )
    parser.add_argument("--fresh", action="store_true", help="discard earlier results of these suites")
    parser.add_argument("--max-jobs", type=int, help="fits to run now; 0 makes the tables of what there is")
    parser.add_argument("--quick", action="store_true", help="tiny worlds, to see that all runs; docs are left alone")


def place_of(options: argparse.Namespace) -> Place:
    """Folders that the options name."""
    return Place(options.bench, options.work, options.quick)


def records_of(options: argparse.Namespace, group: str, suite: str) -> Records:
    """Records of a suite; those of quick runs are kept apart."""
    name = f"{'quick_' if options.quick else ''}{group}_{suite}.csv"
    return Records(options.work / "results" / name, fresh=options.fresh)


def publish(tables: Mapping[str, pd.DataFrame], provenance: _report.Provenance, *, docs: bool) -> None:
    """Print tables, and write them into the documentation if asked, with the notes below the first."""
    for name, frame in tables.items():
        print(f"\n{name}\n{_report.to_markdown(frame)}", flush=True)
    print("\n".join(provenance.notes))
    if docs:
        first, *others = tables
        _report.write_table(first, tables[first], provenance)
        bare = replace(provenance, notes=())
        _report.write_tables({name: tables[name] for name in others}, bare)


def mean_and_spread(frame: pd.DataFrame, by: Sequence[str], columns: Mapping[str, str]) -> pd.DataFrame:
    """Mean and standard deviation of columns over data sets, as text, a row a group; `columns` maps them to headings."""
    rows = []
    for key, group in frame.groupby(list(by), sort=False, dropna=False):
        row = dict(zip(by, key, strict=True))
        row |= {heading: spread(group[name]) for name, heading in columns.items() if name in group}
        rows.append({**row, "fits": len(group)})
    return pd.DataFrame(rows)


def spread(values: pd.Series) -> str:
    """Mean and standard deviation as text."""
    values = values.dropna().to_numpy(dtype=float)
    if not len(values):
        return ""
    mean = _report.format_value(float(values.mean()))
    return f"{mean} ± {_report.format_value(float(values.std(ddof=1)))}" if len(values) > 1 else mean


def goal(quantity: str, value: float, bound: float, *, at_least: bool) -> dict[str, object]:
    """Row of a table of goals."""
    if not np.isfinite(value):
        return {"quantity": quantity, "goal": "", "measured": value, "met": ""}
    sign, met = ("≥", value >= bound) if at_least else ("≤", value <= bound)
    return {"quantity": quantity, "goal": f"{sign} {bound:g}", "measured": float(value), "met": "yes" if met else "no"}
