"""The demo and the code of the README run, on a small world."""

from __future__ import annotations

import importlib.util
import re
from functools import partial
from pathlib import Path

import anndata
import pandas as pd
import pytest

import scgim

ROOT = Path(__file__).parents[2]

small_world = partial(
    scgim.data.simulate_screen,
    n_genes=8,
    n_drugs=20,
    n_cells=25,
    n_controls=300,
    n_unseen_drugs=3,
    unseen_doses=(0.75,),
    library_size_sd=0.3,
)


@pytest.fixture(autouse=True)
def _small_and_short(monkeypatch):
    monkeypatch.setattr("scgim.datasets.load_demo", small_world)
    train = scgim.model.GIM.train
    monkeypatch.setattr("scgim.model.GIM.train", lambda self: train(self, max_epochs=3, enable_progress_bar=False))


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tutorials" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_demo_writes_what_it_promises_and_runs_twice(tmp_path, capsys, monkeypatch):
    demo, output = load_script("demo"), tmp_path / "with a space"
    demo.main(output, seed=0)
    monkeypatch.setattr(demo, "draw", lambda *args: None)  # slow, and files are simply written again
    demo.main(output, seed=0)
    printed = capsys.readouterr().out
    for text in (
        "Doses held out",
        "Drugs held out",
        "discrimination",
        "mean of drugs",
        "nearest dose",
        "direct targets",
        "SHD",
    ):
        assert text in printed
    for pattern in demo.FILES:
        assert list(output.glob(pattern.rstrip("/"))), pattern
    adata = anndata.read_h5ad(output / "screen.h5ad")
    model = scgim.model.GIM.load(output / "model", adata=False)
    pd.testing.assert_frame_equal(
        adata.varm["gim_targets"], model.get_targets().groupby(level=0).first().T, check_names=False, check_dtype=False
    )


def test_code_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 10  # as its heading says
    names: dict = {}
    exec(code.replace('"drug_19"', "model.perturbations[-1]"), names)
    assert names["predicted"].n_obs == 3 * 1000
