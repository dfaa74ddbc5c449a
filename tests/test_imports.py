"""Who may import whom. Plots and metrics must work without torch, and the mathematics without AnnData."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "scgim"
FILES = sorted(PACKAGE.rglob("*.py"))
PUBLIC = ("model", "pl", "data", "metrics", "pp", "datasets", "structure", "tl")

ARRAYS = {"numpy", "scipy", "pandas", "anndata"}
LEARNING = {"torch", "pyro", "scvi", "lightning"}

# Part of the package -> (our own modules, other libraries) that it may import beside the standard library and itself.
# The longest prefix counts.
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "scgim": (set(), set()),
    "scgim._constants": (set(), set()),
    "scgim._docs": (set(), {"docrep"}),
    "scgim._backed": (set(), {"h5py", "numpy", "scipy", "anndata"}),
    "scgim._priors": (set(), {"torch"}),
    "scgim._departures": (set(), {"torch"}),
    "scgim._size_factors": ({"scgim._backed", "scgim._validation"}, {"numpy", "scipy"}),
    "scgim._validation": ({"scgim._constants", "scgim._backed"}, ARRAYS),
    "scgim._storage": (set(), {"numpy", "pandas"}),
    "scgim._report": ({"scgim._constants"}, {"numpy", "pandas"}),
    # from arrays to a model; each may import those above it
    "scgim.nn": (set(), {"torch", "pyro", "numpy"}),
    "scgim.structure": (
        {"scgim._departures", "scgim._priors", "scgim.nn"},
        {"torch", "numpy", "joblib", "networkx", "statsmodels"},
    ),
    "scgim.interventions": ({"scgim._departures", "scgim._priors"}, {"torch"}),
    "scgim.module": (
        {"scgim._priors", "scgim.nn", "scgim.structure", "scgim.interventions"},
        {"torch", "pyro", "scvi", "numpy"},
    ),
    "scgim.train": (
        {"scgim.module", "scgim._constants", "scgim._storage", "scgim._backed"},
        LEARNING | {"numpy", "pandas", "scipy"},
    ),
    "scgim.fit": (
        {
            "scgim._constants",
            "scgim._departures",
            "scgim._priors",
            "scgim._validation",
            "scgim.nn",
            "scgim.structure",
            "scgim.interventions",
            "scgim.module",
            "scgim.train",
        },
        {"torch", "scvi", "lightning", "numpy", "pandas", "threadpoolctl", "tqdm"},
    ),
    "scgim.predict": (
        {
            "scgim._constants",
            "scgim._backed",
            "scgim._validation",
            "scgim.nn",
            "scgim.interventions",
            "scgim.module",
            "scgim.train",
        },
        {"torch", "scvi"} | ARRAYS,
    ),
    "scgim.model": (
        {
            "scgim._priors",
            "scgim._size_factors",
            "scgim.nn",
            "scgim.interventions",
            "scgim.module",
            "scgim.train",
            "scgim.fit",
            "scgim.predict",
            "scgim._constants",
            "scgim._validation",
            "scgim._storage",
            "scgim._backed",
            "scgim._docs",
            "scgim._report",
        },
        LEARNING | ARRAYS | {"rich"},
    ),
    "scgim.data": (
        {"scgim._constants", "scgim._docs", "scgim._validation", "scgim.pp"},  # pp: a name that was moved
        ARRAYS | {"networkx", "sklearn"},
    ),
    "scgim.metrics": (
        {"scgim._constants", "scgim._docs", "scgim._backed", "scgim._validation"},
        ARRAYS | {"networkx", "sklearn"},
    ),
    "scgim.pp": (
        {"scgim._constants", "scgim._docs", "scgim._backed", "scgim._validation"},
        ARRAYS | {"scanpy", "sklearn", "rdkit", "threadpoolctl", "tqdm"},
    ),
    "scgim.datasets": (
        {"scgim._constants", "scgim._docs", "scgim._validation", "scgim.data"},
        ARRAYS | {"scanpy", "pooch", "h5py", "tqdm"},
    ),
    "scgim.tl": ({"scgim._constants", "scgim._docs", "scgim._report"}, ARRAYS | {"networkx"}),
    "scgim.pl": (
        {
            "scgim._constants",
            "scgim._docs",
            "scgim._report",
            "scgim._backed",
            "scgim._size_factors",
            "scgim._validation",
        },
        ARRAYS | {"scanpy", "matplotlib", "networkx", "rdkit", "sklearn"},
    ),
}

# Private names of other packages that have no public equal.
ALLOWED_PRIVATE = {
    # the base classes of scvi-tools: what its developer documentation has subclasses call and define
    "_get_init_params",
    "_get_setup_method_args",
    "_validate_anndata",
    # named tuples; documented, the underscore only keeps it apart from the fields
    "_replace",
}


def module_name(path: Path) -> str:
    parts = ("scgim", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rule_of(module: str) -> str:
    return max((prefix for prefix in ALLOWED if within(module, prefix)), key=len)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported_modules(source: str, path: Path) -> set[str]:
    """Absolute names of all that a file imports when it runs, inside functions too."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(source)]
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    while nodes:
        node = nodes.pop()
        if is_type_checking(node):  # never runs
            nodes.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            # `from scgim import pl` imports a module, `from scgim.pl import network` a function of one
            found.update(f"{base}.{alias.name}" if base == "scgim" else base for alias in node.names)
        nodes.extend(ast.iter_child_nodes(node))
    return found


def test_imported_modules_sees_every_form():
    source = """
from typing import TYPE_CHECKING
import numpy as np
from scgim import pl
from ._graph import acyclicity
if TYPE_CHECKING:
    import torch
def late():
    from scipy import sparse
"""
    found = imported_modules(source, PACKAGE / "nn" / "__init__.py")
    assert found == {"typing", "numpy", "scgim.pl", "scgim.nn._graph", "scipy"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_dependencies_point_one_way(path: Path):
    module = module_name(path)
    rule = rule_of(module)
    ours, others = ALLOWED[rule]
    for name in sorted(imported_modules(path.read_text(), path)):
        top = name.split(".")[0]
        if top == "scgim":
            assert within(name, rule) or any(within(name, allowed) for allowed in ours), f"{module} imports {name}"
        else:
            assert top in sys.stdlib_module_names or top in others, f"{module} imports {name}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_imports(source: str) -> set[str]:
    """Modules and names of other packages that a file imports, private ones and those of `anndata.compat`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        others = [name for name in names if not within(name, "scgim")]
        found.update(n for n in others if within(n, "anndata.compat") or any(map(is_private, n.split("."))))
    return found


def private_attributes(source: str) -> set[str]:
    """Private names that a file reads from objects, `x._name`."""
    nodes = ast.walk(ast.parse(source))
    return {
        n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load) and is_private(n.attr)
    }


def own_names(source: str) -> set[str]:
    """Names that a file gives to functions, classes, variables and attributes."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def test_private_names_are_seen_in_every_form():
    source = """
from __future__ import annotations
import scipy._lib.doccer
from anndata._core import views
from anndata import compat
from anndata.compat import H5Array
from torch import __version__, _VF
from scgim._constants import REGISTRY
from ._graph import acyclicity
def draw(self):
    from scvi.model.base import _base_model
    self._own = torch._standard_gamma(self._theirs)
"""
    assert private_imports(source) == {
        "scipy._lib.doccer",
        "anndata._core.views",
        "anndata.compat",
        "anndata.compat.H5Array",
        "torch._VF",
        "scvi.model.base._base_model",
    }
    assert private_attributes(source) - own_names(source) == {"_standard_gamma", "_theirs"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_public_modules_and_names_are_imported(path: Path):
    assert private_imports(path.read_text()) == set()


def test_only_public_attributes_of_others_are_read():
    """What no file of ours defines belongs to others."""
    sources = [path.read_text() for path in FILES]
    foreign = set().union(*map(private_attributes, sources)) - set().union(*map(own_names, sources))
    assert foreign == ALLOWED_PRIVATE


def test_what_is_imported_is_declared():
    project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text())["project"]
    declared = {
        re.split(r"[<>=]", entry)[0] for entry in project["dependencies"] + project["optional-dependencies"]["chem"]
    }
    distribution = {"pyro": "pyro-ppl", "scvi": "scvi-tools", "sklearn": "scikit-learn"}
    imported = {name.split(".")[0] for path in FILES for name in imported_modules(path.read_text(), path)}
    others = imported - set(sys.stdlib_module_names) - {"scgim"}
    assert {distribution.get(name, name) for name in others} == declared


def test_plots_and_data_do_not_load_torch():
    # Other libraries may come to load torch on their own; this is about what our modules add.
    code = """
import sys
import anndata, networkx, pandas, scanpy, scipy.sparse, sklearn.metrics
before = set(sys.modules)
import scgim
for name in ("pl", "metrics", "data", "pp", "datasets", "tl"):
    getattr(scgim, name)
added = {name.split(".")[0] for name in set(sys.modules) - before}
print(" ".join(sorted(added & {"torch", "pyro", "scvi", "lightning"})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_submodules_are_listed_and_load_on_first_use():
    import scgim

    assert set(scgim.__all__) == set(PUBLIC)
    assert set(PUBLIC) <= set(dir(scgim))
    with pytest.raises(AttributeError, match="no attribute 'modell'"):
        _ = scgim.modell


def public_objects():
    """Pairs of name and object: what the public modules export, and the members that our classes and mixins define."""
    for module_name in PUBLIC:
        module = importlib.import_module(f"scgim.{module_name}")
        for name in getattr(module, "__all__", []):
            obj = getattr(module, name)
            yield f"{module_name}.{name}", obj
            if inspect.isclass(obj):
                own = [base for base in obj.__mro__ if base.__module__.startswith("scgim.")]
                for member in sorted({member for base in own for member in vars(base) if not member.startswith("_")}):
                    yield f"{module_name}.{name}.{member}", inspect.getattr_static(obj, member)


def test_public_names_have_finished_docstrings():
    for name, obj in public_objects():
        if isinstance(obj, classmethod | staticmethod):
            obj = obj.__func__
        elif not (callable(obj) or isinstance(obj, property)):
            continue
        doc = inspect.getdoc(obj)
        assert doc, f"{name} has no docstring"
        assert "%(" not in doc, f"{name} has a docstring fragment that was not filled in"
