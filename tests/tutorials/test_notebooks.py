"""Tutorials are committed executed, without errors, and need only what `make tutorials` installs."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
_MODULES = {"scvi-tools": "scvi", "pyro-ppl": "pyro", "scikit-learn": "sklearn"}


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def installed() -> set[str]:
    """Modules of the packages that `make tutorials` installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = [
        re.split(r"[<>=!~\[ ;]", entry)[0] for entry in project["dependencies"] + extras["chem"] + extras["tutorials"]
    ]
    return {_MODULES.get(name, name.replace("-", "_")) for name in names} | {"scgim"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_tutorial_was_run_from_top_to_bottom_without_errors(path):
    cells = code_cells(path)
    assert cells
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_tutorial_tells_nothing_of_the_machine(path):
    """`tutorials/run.py` sees to that."""
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        assert "execution" not in cell["metadata"]
        shown = [
            part
            for output in cell.get("outputs", [])
            for part in (output.get("text", []), output.get("data", {}).get("text/plain", []))
        ]
        text = "".join(["".join(part) for part in shown] + cell["source"])
        assert not re.search(r"(?<![\w.)])/(home|root|tmp|usr|work|opt|Users|private)/|site-packages", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_tutorial_says_whether_data_are_real(path):
    first = json.loads(path.read_text())["cells"][0]["source"]
    assert ("**Real data.**" if path.stem.startswith("real_") else "**Simulated data.**") in "".join(first)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_tutorial_needs_only_what_is_installed_for_it(path):
    used: set[str] = set()
    for cell in code_cells(path):
        lines = [line for line in "".join(cell["source"]).splitlines() if not line.lstrip().startswith(("%", "!"))]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used.add(node.module.split(".")[0])
    assert "scgim" in used
    assert used <= installed() | set(sys.stdlib_module_names)
