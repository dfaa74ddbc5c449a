"""Screens to try scGIM on: a simulated one that needs no network, and public ones, downloaded and cached or read from a file."""

from __future__ import annotations

from scgim.datasets._demo import load_demo
from scgim.datasets._kang import kang_2018
from scgim.datasets._papalexi import papalexi_2021
from scgim.datasets._sciplex import sciplex2, sciplex3

__all__ = ["kang_2018", "load_demo", "papalexi_2021", "sciplex2", "sciplex3"]
