"""Benchmarks on real data: `python benchmarks/real/run.py --data FOLDER`, as `make bench-real` calls it.

Prints every table and writes it to docs/benchmarks.md. The folder is described in the docstring of each data set's file; a data
set whose file is absent is left out, and said so.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

# Before torch and numba, which share one pool of threads: CPU seconds are then those of one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import _report  # noqa: E402
from benchmarks.real import cellbox, dixit, kang, l1000, macseq, norman, papalexi, sachs, shrna, zhao  # noqa: E402

SETS = {
    "papalexi": papalexi,
    "dixit": dixit,
    "macseq": macseq,
    "l1000": l1000,
    "shrna": shrna,
    "zhao": zhao,
    "kang": kang,
    "norman": norman,
    "cellbox": cellbox,
    "sachs": sachs,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run scGIM and its baselines on real data and write docs/benchmarks.md."
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with the data sets")
    parser.add_argument("--only", nargs="+", choices=list(SETS), default=list(SETS), help="data sets to run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds to fit with")
    parser.add_argument("--quick", action="store_true", help="small subsets, to see that all runs; docs are left alone")
    return parser.parse_args(arguments)


def command(options: argparse.Namespace, name: str) -> str:
    """Command that makes the tables of one data set again."""
    seeds = " ".join(str(seed) for seed in options.seeds)
    return f"python benchmarks/real/run.py --only {name} --seeds {seeds}"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    missing = 0
    for name in options.only:
        module = SETS[name]
        if not (options.data / module.FILE).exists():
            print(f"{name}: no `{module.FILE}` in the data folder, left out.", file=sys.stderr)
            missing += 1
            continue
        print(f"\n{name}: {module.__doc__.splitlines()[0]}", flush=True)
        tables = module.run(options.data, seeds=options.seeds, quick=options.quick)
        for table, frame in tables.items():
            print(f"\n{table}\n{_report.to_markdown(frame)}", flush=True)
        if not options.quick:
            provenance = _report.Provenance(command(options, name), options.seeds)
            _report.write_tables(tables, provenance)
    return int(missing == len(options.only))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="The '.*_dataloader' does not have many workers")
    warnings.filterwarnings("ignore", message="The number of training batches")
    warnings.filterwarnings("ignore", message="`isinstance\\(treespec, LeafSpec\\)` is deprecated")
    raise SystemExit(main())
