"""Generative intervention models for single-cell drug screens."""

from __future__ import annotations

import importlib
import logging
from importlib.metadata import version

__all__ = ["data", "datasets", "metrics", "model", "pl", "pp", "structure", "tl"]
__version__ = version("scgim")

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str):
    """Import submodules on first use, so that plotting a saved result does not load torch."""
    if name in __all__:
        return importlib.import_module(f"scgim.{name}")
    raise AttributeError(f"module 'scgim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
