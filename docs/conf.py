"""Configuration of the Sphinx documentation; `make docs` builds it with warnings as errors."""

from __future__ import annotations

import logging
import os
import re
import shutil
from importlib.metadata import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from numpy.typing import ArrayLike
from sphinx.ext.napoleon import NumpyDocstring
from sphinx_autodoc_typehints import format_annotation

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config
    from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).parent
ONLINE = os.environ.get("SCGIM_DOCS_ONLINE", "") not in ("", "0")

info = metadata("scgim")
source = dict(url.split(", ", 1) for url in info.get_all("Project-URL"))["Source"]

project = "scGIM"
author = "scGIM developers"
copyright = "2026, scGIM developers"
release = version = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "sphinxext.opengraph",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
nitpicky = True
default_role = "code"

# Notebooks are committed executed; the pages show what was run.
nb_execution_mode = "off"
nb_merge_streams = True
myst_heading_anchors = 3
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_image", "tasklist"]

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # sphinx_autodoc_typehints puts them beside the parameters
napoleon_google_docstring = False
napoleon_include_init_with_doc = False
napoleon_use_rtype = True
napoleon_custom_sections = ["Writes"]  # what a function stores in the AnnData it is given
typehints_defaults = "braces"
typehints_use_rtype = False  # type and prose of what is returned in one place
typehints_document_rtype_none = False
always_use_bars_union = True

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
ogp_site_url = "https://scgim.readthedocs.io/en/latest/"
ogp_social_cards = {"enable": False}  # cards are drawn with fonts from the network
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

suppress_warnings = [
    "config.cache",  # the formatter of types below is a function
    "sphinx_autodoc_typehints.guarded_import",  # types that are imported for checkers only
    "sphinx_autodoc_typehints.forward_reference",
]

# A checkout without notebooks must build too, and this warning has no type to name above.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(lambda record: "glob pattern" not in str(record.msg))

# Links into other libraries need their inventories from the network. Without them the build must still pass, and
# names that are not ours stay plain text; names of ours must always resolve.
inventories = {
    "python": "https://docs.python.org/3/",
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "lightning": "https://lightning.ai/docs/pytorch/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "networkx": "https://networkx.org/documentation/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "pyro": "https://docs.pyro.ai/en/stable/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
    "scvi-tools": "https://docs.scvi-tools.org/en/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}
intersphinx_mapping = {name: (url, None) for name, url in inventories.items()} if ONLINE else {}
nitpick_ignore = [("py:class", "scgim.data._settings.ScreenSettings")]  # an argument that users do not make
nitpick_ignore_regex = [
    (r"py:.*", r"scgim\.((module|nn|train|structure|interventions|fit|predict)\.)?_\w+(\..*)?"),  # inner parts, some of them on the developer page
    (r"py:.*", r"(scvi|lightning|pyro|torch|mudata|networkx)\..*"),  # inventories with gaps
    *([] if ONLINE else [(r"py:.*", r"(?!scgim\b).*")]),
]

html_math_renderer = "mathml"  # defined below
html_theme = "sphinx_book_theme"
html_title = "scGIM"
html_static_path = ["_static"]
html_css_files = ["css/custom.css"]
html_theme_options = {
    "repository_url": source,
    "use_repository_button": True,
    "path_to_docs": "docs/",
    "navbar_persistent": [],  # the sidebar has the search field
    "navigation_with_keys": False,
    "show_navbar_depth": 1,
}


def copy_tutorials() -> None:
    """Bring the notebooks from `tutorials/` under the documentation root, where Sphinx can see them."""
    target = HERE / "notebooks"
    target.mkdir(exist_ok=True)
    notebooks = {path.name: path for path in (HERE.parent / "tutorials").glob("*.ipynb")}
    for stale in target.glob("*.ipynb"):
        if stale.name not in notebooks:
            stale.unlink()
    for name, path in notebooks.items():
        copy = target / name
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            shutil.copyfile(path, copy)


def format_array_like(annotation: Any, config: Config) -> str | None:
    """Name `ArrayLike` in place of the ten types that it stands for."""
    parts, array_like = get_args(annotation), get_args(ArrayLike)
    if not all(part in parts for part in array_like):
        return None  # to be formatted as usual
    rest = [format_annotation(part, config) for part in parts if part not in array_like]
    return " | ".join([":data:`~numpy.typing.ArrayLike`", *rest])


typehints_formatter = format_array_like


def prose_returns(self: NumpyDocstring, section: str) -> list[str]:
    """Read a `Returns` section as prose, under a type or not: the type shown comes from the annotation."""
    lines = self._dedent(self._consume_to_next_section())
    if lines[0].strip() == ":":  # put there by sphinx_autodoc_typehints
        lines = lines[1:]
    if len(lines) > 1 and lines[1].startswith(" "):
        lines = self._dedent(lines[1:])
    return self._format_block(":returns: ", lines)


def hide_any_returned(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Leave out `Any` as the type of what plots return: the prose says which type it is when."""
    lines[:] = [re.sub(r"^:return: \S*typing\.Any\S* -- ", ":return: ", line) for line in lines]


def inline_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def display_math(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="equation"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({node["number"]})</span>')
    self.body.append(tex2mathml(node.astext(), as_block=True))
    self.body.append("</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    # equations as MathML, drawn by the browser itself: no script from the network, readable offline
    NumpyDocstring._parse_returns_section = prose_returns
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.connect("autodoc-process-docstring", hide_any_returned, priority=900)  # after the types were put there
    copy_tutorials()
