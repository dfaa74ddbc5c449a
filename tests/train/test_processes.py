"""Several processes that share the minibatches end with one model, close to that of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

_SCRIPT = """
import os, sys
import numpy as np, scvi
import scgim
from scgim.model import GIM

adata = scgim.data.simulate_screen(n_genes=5, n_drugs=6, n_cells=40, n_controls=200, n_unseen_drugs=0, seed=0)
GIM.setup_anndata(adata, size_factor_key="size_factor")
scvi.settings.seed = 0
model = GIM(adata)
n = int(sys.argv[1])
several = {"devices": n, "strategy": "ddp"} if n > 1 else {}
model.train(20, accelerator="cpu", enable_progress_bar=False, early_stopping=False, **several)
rank = os.environ.get("LOCAL_RANK", "0")
np.savez(sys.argv[2] + rank, effects=model.get_effects(), graph=model.adjacency_, n=model.trainer.world_size)
if model.trainer.is_global_zero:
    model.save(sys.argv[2] + "model")
"""


def _train(n_processes: int, prefix: str) -> list:
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE")}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-c", _SCRIPT, str(n_processes), prefix]
    if n_processes > 1:  # Lightning starts the others by the file that runs
        script = prefix + "train.py"
        Path(script).write_text(_SCRIPT)
        command = [sys.executable, script, str(n_processes), prefix]
    folder = Path(prefix).parent  # scvi-tools writes a log where it is started
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return [np.load(f"{prefix}{rank}.npz") for rank in range(n_processes)]


def test_two_processes_end_with_the_model_of_one(tmp_path):
    one = _train(1, str(tmp_path / "one"))[0]
    first, second = _train(2, str(tmp_path / "two"))
    assert first["n"] == 2
    np.testing.assert_array_equal(first["effects"], second["effects"])
    assert (first["graph"] != one["graph"]).sum() <= 1  # one that the evidence leaves open, with other minibatches
    assert np.abs(one["effects"]).max() > 0.5
    np.testing.assert_allclose(first["effects"], one["effects"], atol=0.2)  # other minibatches
    assert (tmp_path / "twomodel").is_dir()
