"""Do the tests see it when the scientific core is changed? `python benchmarks/mutants/run.py --number 70 --seed 0`.

Small changes are drawn at random (mutate.py), each is made in a copy of the tree, and the tests of the folders that should see it are
run until one fails. What no test sees is written to docs/contributing.md. Outcomes are kept in a file, by the code and the change, so
that an interrupted run goes on; since tests are added and not taken away, what was seen is not tested again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402
from benchmarks import _report  # noqa: E402
from benchmarks.mutants.mutate import Mutant, sample  # noqa: E402

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

PAGE = ROOT / "docs" / "contributing.md"
# Tests that should see a change, by folder of the package, quick ones first: a change must be seen near to where it is made.
TESTS = {
    "structure": ("structure", "fit"),
    "interventions": ("interventions", "predict"),
    "fit": ("fit",),
    "module": ("module", "fit"),
    "predict": ("predict", "model/test_uncertainty.py", "model/test_whatif.py"),
}
# Further tests of single files, from cells to cells.
ALSO = {
    "_controls.py": ("model/test_controls.py",),
    "_covariates.py": ("model/test_covariates.py",),
    "_curves.py": ("model/test_results.py",),
    "_drugs.py": ("model/test_predict.py",),
    "_hidden.py": ("model/test_latent.py",),
    "_knowledge.py": ("model/test_priors.py",),
    "_likelihood.py": ("model/test_score.py",),
}
_IMPORTED = ["torch", "scvi", "scanpy", "lightning.pytorch", "pyro", "sklearn", "pytest"]
_OUTCOMES = {0: "passed", 1: "failed", 2: "error", 3: "error", 4: "error"}  # errors: what is tested cannot be imported
_PYTEST = 100  # added to the exit codes of pytest, so that those of a child that went wrong are told apart


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Which changes of the scientific core the tests do not see.")
    parser.add_argument("--number", type=int, default=70, help="changes to try")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument(
        "--timeout", type=float, default=900.0, help="seconds for the tests of one; seen if they do not end"
    )
    parser.add_argument("--records", type=Path, default=ROOT / ".mutants.json", help="outcomes of earlier runs")
    parser.add_argument("--copies", type=Path, default=None, help="folder for the copy of the tree")
    return parser.parse_args(arguments)


def copy_of_tree(folder: Path) -> Path:
    """A copy of what the tests need; the checkout is never touched."""
    tree = folder / "tree"
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in ("src", "tests", "benchmarks", "docs", "tutorials"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, tree / name)
    return tree


def run_tests(tree: str, tests: tuple[str, ...]) -> None:
    """Run tests in a copy of the tree and exit with the code of pytest: the work of a child process."""
    os.chdir(tree)
    sys.dont_write_bytecode = True  # or a change within the same second would not be seen
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    paths = [str(Path(tree, "src")), tree]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    sys.path[:0] = paths
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    import pytest

    # what is imported beforehand cannot be rewritten to show more of what fails, which nobody reads here
    options = [
        "-x",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    os._exit(_PYTEST + int(pytest.main([*options, *(f"tests/{name}" for name in tests)])))


def outcome(context: BaseContext, tree: Path, tests: tuple[str, ...], timeout: float) -> str:
    """Whether tests pass, fail, or do not end, in a copy of the tree as it stands."""
    process = context.Process(target=run_tests, args=(str(tree), tests))  # type: ignore[attr-defined]
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        return "no end"
    code = (process.exitcode or 0) - _PYTEST
    if code not in _OUTCOMES:
        raise RuntimeError(f"The process that ran {tests} went wrong, with exit code {process.exitcode}.")
    return _OUTCOMES[code]


def room_of(mutant: Mutant) -> str:
    return mutant.path.parent.name


def tests_of(mutant: Mutant) -> tuple[str, ...]:
    return (*TESTS[room_of(mutant)], *ALSO.get(mutant.path.name, ()))


def identity(mutant: Mutant) -> str:
    """The same as long as the file and the change are."""
    return hashlib.sha256(f"{mutant.path.name}\n{mutant.code()}".encode()).hexdigest()[:16]


def try_all(mutants: list[Mutant], options: argparse.Namespace) -> list[str]:
    """Outcome of the tests of each mutant."""
    known = json.loads(options.records.read_text()) if options.records.exists() else {}
    context = multiprocessing.get_context("forkserver")  # what all tests import is imported once
    context.set_forkserver_preload(_IMPORTED)
    with tempfile.TemporaryDirectory(dir=options.copies) as folder:
        tree = copy_of_tree(Path(folder))
        # a test that fails anyway sees nothing
        needed = tuple(sorted({tests for mutant in mutants for tests in tests_of(mutant)}))
        if outcome(context, tree, needed, 10 * options.timeout) != "passed":
            raise RuntimeError("Tests fail in a copy of the tree as it is.")
        for k, mutant in enumerate(mutants):
            if known.get(identity(mutant), "passed") == "passed":
                place = tree / mutant.path.relative_to(ROOT)
                place.write_text(mutant.code(), encoding="utf-8")
                known[identity(mutant)] = outcome(context, tree, tests_of(mutant), options.timeout)
                shutil.copy(mutant.path, place)
                options.records.write_text(json.dumps(known, indent=1))
            before, after = mutant.lines()
            print(
                f"{k + 1}/{len(mutants)} {known[identity(mutant)]}: {mutant.path.name}: {before} -> {after}", flush=True
            )
    return [known[identity(mutant)] for mutant in mutants]


def tables(mutants: list[Mutant], outcomes: list[str]) -> dict[str, pd.DataFrame]:
    """How many changes were seen by folder, and those that were not."""
    tried, missed = Counter(map(room_of, mutants)), Counter()
    rows = []
    for mutant, found in zip(mutants, outcomes, strict=True):
        if found == "passed":
            missed[room_of(mutant)] += 1
            before, after = (f"`{line}`" for line in mutant.lines())
            place = f"{room_of(mutant)}/{mutant.path.name}"
            rows.append({"file": place, "in": mutant.function(), "code": before, "changed to, unseen": after})
    counts = pd.DataFrame(
        [{"folder": r, "changes": tried[r], "seen": tried[r] - missed[r], "unseen": missed[r]} for r in TESTS]
    )
    total = {"folder": "all", **counts.drop(columns="folder").sum().to_dict()}
    counts = pd.concat([counts, pd.DataFrame([total])], ignore_index=True)
    return {"mutants": counts, "survivors": pd.DataFrame(rows, columns=["file", "in", "code", "changed to, unseen"])}


def main() -> None:
    options = parse()
    files = [path for room in TESTS for path in (ROOT / "src" / "scgim" / room).glob("*.py")]
    mutants = sample(files, options.number, options.seed)
    found = tables(mutants, try_all(mutants, options))
    command = f"make mutants MUTANTS={options.number} SEED={options.seed}"
    _report.write_tables(found, _report.Provenance(command, [options.seed]), PAGE)


if __name__ == "__main__":
    main()
