"""What the documentation says of the package is true: names, links, citations, versions and commands exist."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

import scgim

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts)]
API = (DOCS / "api" / "index.md").read_text()
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def load_toml(name: str) -> dict:
    return tomllib.loads((ROOT / name).read_text())


@pytest.mark.parametrize("name", scgim.__all__)
def test_api_page_lists_every_public_name(name: str):
    module = importlib.import_module(f"scgim.{name}")
    if not hasattr(module, "__all__"):
        pytest.skip(f"scgim.{name} is empty")
    listed = re.findall(rf"^   {name}\.(\w+)$", API, flags=re.MULTILINE)
    assert sorted(listed) == sorted(module.__all__)


@pytest.mark.parametrize("page", ["api/index.md", "user_guide/results.md"])
def test_every_method_of_the_model_is_listed_by_its_task(page: str):
    model = scgim.model.GIM
    own = [base for base in model.__mro__ if base.__module__.startswith("scgim.")]
    methods = {name for base in own for name, value in vars(base).items() if name[0] != "_" and callable(value)}
    assert {"predict", "rank_drugs", "report"} <= methods
    text = (DOCS / page).read_text()
    keeping = {"setup_anndata", "load_registry", "view_setup_args", "convert_legacy_save"}
    assert [name for name in sorted(methods - keeping) if not re.search(rf"[`.]{name}[`(]", text)] == []


def test_developer_page_lists_files_that_exist():
    listed = re.findall(
        r"automodule:: (scgim\.[\w.]+)$", (DOCS / "api" / "developer.md").read_text(), flags=re.MULTILINE
    )
    assert listed
    missing = [name for name in listed if not (ROOT / "src" / f"{name.replace('.', '/')}.py").exists()]
    assert missing == []


@pytest.mark.parametrize("name", importlib.import_module("scgim.pl").__all__)
def test_every_plot_has_an_example_with_a_picture(name: str):
    text = (DOCS / "plots.md").read_text()
    pictures = re.findall(rf"scgim\.pl\.{name}\(.*\)\n```\n\n!\[.+\]\((.+)\)", text)
    assert f"_static/plots/{name}.png" in pictures  # the API page of the function shows this one
    assert all((DOCS / picture).is_file() for picture in pictures)


@pytest.mark.slow
def test_examples_of_plots_run(tmp_path: Path):
    spec = importlib.util.spec_from_file_location("draw_plots", DOCS / "draw_plots.py")
    draw_plots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_plots)
    drawn = draw_plots.draw(tmp_path)
    assert sorted(path.name for path in drawn) == sorted(path.name for path in (DOCS / "_static" / "plots").iterdir())


def test_names_and_links_are_found():
    """Single pages may have none, and then what follows says nothing of them."""
    text = "".join(page.read_text() for page in PAGES)
    assert len(re.findall(r"\bscgim\.(\w+)\.(\w+)", text)) > 20
    assert len(re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)) > 20


@pages
def test_pages_name_what_exists(page: Path):
    for name, attribute in re.findall(r"\bscgim\.(\w+)\.(\w+)", page.read_text()):
        if name in scgim.__all__ and hasattr(getattr(scgim, name), "__all__"):
            assert hasattr(getattr(scgim, name), attribute), f"scgim.{name}.{attribute}"


@pages
def test_relative_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_citations_are_in_the_bibliography():
    keys = set(re.findall(r"^@\w+\{([^,]+),", (DOCS / "references.bib").read_text(), flags=re.MULTILINE))
    sources = [*PAGES, *sorted((ROOT / "src").rglob("*.py"))]
    cited = {
        key.strip()
        for source in sources
        for keys_of_one in re.findall(r"(?:\{cite:\w+\}|:cite:\w+:)`([^`]+)`", source.read_text())
        for key in keys_of_one.split(",")
    }
    assert cited - keys == set()


def test_one_version_everywhere():
    version = load_toml("pyproject.toml")["project"]["version"]
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert citation is not None
    assert citation[1] == version == scgim.__version__


def test_constraints_pin_what_we_depend_on():
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [line for line in lines if line]
    if len(pins) == 1:
        pytest.skip("the pins were dropped, to test with the newest versions")
    assert pins[0].startswith("torch==")
    pinned = {pin.partition("==")[0] for pin in pins}
    project = load_toml("pyproject.toml")
    # methods to compare with are installed apart, each with what it needs
    groups = {name: group for name, group in project["dependency-groups"].items() if not name.startswith("peers")}
    groups = [entry for group in groups.values() for entry in group if isinstance(entry, str)]
    extras = [entry for extra in project["project"]["optional-dependencies"].values() for entry in extra]
    wanted = {re.split(r"[<>=\[;]", entry)[0] for entry in [*project["project"]["dependencies"], *extras, *groups]}
    assert wanted - pinned == {
        "pre-commit",
        "ray",
    }  # runs in environments of its own; its test skips where it is not installed


def test_commands_in_the_pages_are_make_targets():
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    used = set()
    for page in PAGES:
        used |= set(re.findall(r"`make ([a-z-]+)", page.read_text()))
        used |= set(re.findall(r"^make ([a-z-]+)", page.read_text(), flags=re.MULTILINE))
    assert used
    assert used <= targets
