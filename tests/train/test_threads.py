"""A fit has the threads that were asked for, whatever other libraries did to the pool, and leaves the pool as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import scgim
from scgim.train._threads import MIN_ELEMENTS, asked_threads, threads_for

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
if sys.argv[1] == "torch first":
    import torch
import scgim
adata = scgim.data.simulate_screen(n_genes=12, n_drugs=4, n_cells=20, n_controls=100, seed=0)
scgim.pp.select_genes(adata, 8)
import torch
from scgim.fit import _fit
before, during = torch.get_num_threads(), []
for name in ("gather_statistics", "gather_information"):
    def noting(*args, function=getattr(_fit, name), **kwargs):
        during.append(torch.get_num_threads())
        return function(*args, **kwargs)
    setattr(_fit, name, noting)
scgim.model.GIM.setup_anndata(adata)
model = scgim.model.GIM(adata)
model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
assert len(during) > 1 and set(during) == {1}, during
assert torch.get_num_threads() == before
"""


@pytest.mark.parametrize("order", ["torch first", "torch later"])
def test_choice_of_genes_does_not_change_the_threads_of_a_fit(order):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(scgim.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", SCRIPT, order], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_environment_limits_the_threads(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for value, expected in {"2": 2, "8": 3, "": 3, "many": 3}.items():
            monkeypatch.setenv("OMP_NUM_THREADS", value)
            assert asked_threads() == expected
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        for n, expected in ((MIN_ELEMENTS - 1, 1), (MIN_ELEMENTS, 2), (None, 2)):
            with threads_for(n):
                assert torch.get_num_threads() == expected
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
