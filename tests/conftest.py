from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "agg")
# The arrays in these tests are small: more threads cost time, and sums stay in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none; torch is loaded only if there is such a test."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(autouse=True)
def _quiet_autoshow():
    """A plot that is told nothing must not try to open a window."""
    if "scanpy" not in sys.modules:
        yield
        return
    settings = sys.modules["scanpy"].settings
    before = settings.autoshow
    settings.autoshow = False
    yield
    settings.autoshow = before


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with real screens; `SCGIM_DATA` names it. Tests that ask for it skip where there is none."""
    path = Path(os.environ.get("SCGIM_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data in `{path}`; set SCGIM_DATA to a folder that has them")
    return path
