"""Whatever happens to the files of a saved model, loading them gives that model or a ValueError, and runs nothing.

`SCGIM_FUZZ=100000` tries that many damaged folders in place of a few hundred; the number is printed at the end (`-s`).
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import scvi

import scgim
from scgim._storage._folder import _digest, _render
from scgim.model import GIM

N_TRIALS = int(os.environ.get("SCGIM_FUZZ", "300"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved model with its data, and another one."""
    base = tmp_path_factory.mktemp("fuzz")
    for name, seed in (("model", 0), ("other", 1)):
        adata = scgim.data.simulate_screen(
            n_genes=4, n_drugs=3, doses=(0.5, 2.0), n_cells=5, n_controls=20, n_features=2, n_unseen_drugs=0, seed=seed
        )
        GIM.setup_anndata(adata, size_factor_key="size_factor")
        scvi.settings.seed = seed
        model = GIM(adata)
        model.train(1, enable_progress_bar=False, accelerator="cpu")
        model.save(base / name, save_anndata=True)
    return base


def flip_bits(data: bytes, random: np.random.Generator) -> bytes:
    out = bytearray(data)
    for position in random.integers(len(out), size=random.integers(1, 4)):
        out[position] ^= 1 << random.integers(8)
    return bytes(out)


def overwrite(data: bytes, random: np.random.Generator) -> bytes:
    start, n = random.integers(len(data)), random.integers(1, 200)
    return data[:start] + random.bytes(n) + data[start + n :]


def truncate(data: bytes, random: np.random.Generator) -> bytes:
    return data[: random.integers(len(data))]


def repeat(data: bytes, random: np.random.Generator) -> bytes:
    start, stop = sorted(random.integers(len(data) + 1, size=2))
    return data[:stop] + data[start:]


def noise(data: bytes, random: np.random.Generator) -> bytes:
    return random.bytes(random.integers(300))


CHANGES = (flip_bits, overwrite, truncate, repeat, noise)


def state(model: GIM) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.module.state_dict().items()}


def load(path: Path) -> dict[str, bytes] | None:
    """Parameters of the loaded model; None if it was refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return state(GIM.load(path, accelerator="cpu"))
        except ValueError as error:
            assert len(str(error)) > 30  # noqa: PT017
            return None


def test_damaged_files(folder, tmp_path):
    random, expected, n_intact = np.random.default_rng(0), load(folder / "model"), 0
    names = sorted(path.name for path in (folder / "model").iterdir())
    path = tmp_path / "model"
    shutil.copytree(folder / "model", path)
    for trial in range(N_TRIALS):
        name, change = names[trial % len(names)], CHANGES[random.integers(len(CHANGES))]
        original = (folder / "model" / name).read_bytes()
        (path / name).write_bytes(change(original, random))
        found = load(path)
        same = (path / name).read_bytes() == original
        assert found == expected if same else found is None, (name, change.__name__)
        n_intact += same
        (path / name).write_bytes(original)
    assert n_intact < 0.2 * N_TRIALS
    print(f"{N_TRIALS} damaged folders tried")  # noqa: T201


@pytest.mark.parametrize("name", ["model.json", "arrays.npz", "adata.h5ad"])
def test_files_of_another_model(folder, tmp_path, name):
    path = Path(shutil.copytree(folder / "model", tmp_path / "model"))
    shutil.copy(folder / "other" / name, path / name)
    assert load(path) is None
    (path / name).unlink()
    assert load(path) is None


def test_swapped_files(folder, tmp_path):
    path = Path(shutil.copytree(folder / "model", tmp_path / "model"))
    (path / "arrays.npz").rename(path / "x")
    (path / "adata.h5ad").rename(path / "arrays.npz")
    (path / "x").rename(path / "adata.h5ad")
    assert load(path) is None


def nodes(tree, found: list) -> list:
    """All places in a tree where a value can be put: pairs of container and key."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        found.append((tree, key))
        nodes(tree[key], found)
    return found


STRANGE = (
    None,
    True,
    -1,
    2**40,
    1e300,
    "",
    "x",
    "__class__",
    [],
    {},
    [[]],
    {"__type__": "tuple"},
    {"__type__": "index"},
)


def test_manifests_with_other_content_and_a_fitting_checksum(folder, tmp_path):
    """Someone who means harm can make checksums fit; then a model or a ValueError is what comes."""
    random, path = np.random.default_rng(1), Path(shutil.copytree(folder / "model", tmp_path / "model"))
    original = json.loads((path / "model.json").read_bytes())["document"]
    for _ in range(N_TRIALS // 3):
        document = json.loads(json.dumps(original))
        places = nodes(document, [])
        container, key = places[random.integers(len(places))]
        container[key] = STRANGE[random.integers(len(STRANGE))]
        (path / "model.json").write_bytes(_render(document))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                GIM.load(path, adata=False, accelerator="cpu")
            except ValueError:
                continue


def test_arrays_with_other_content_and_a_fitting_checksum(folder, tmp_path):
    random, path = np.random.default_rng(2), Path(shutil.copytree(folder / "model", tmp_path / "model"))
    original = json.loads((path / "model.json").read_bytes())["document"]
    data = (path / "arrays.npz").read_bytes()
    for _ in range(N_TRIALS // 3):
        (path / "arrays.npz").write_bytes(CHANGES[random.integers(len(CHANGES))](data, random))
        document = json.loads(json.dumps(original))
        for entry in document["files"]:
            if entry["name"] == "arrays.npz":
                entry |= {"size": (path / "arrays.npz").stat().st_size, "sha256": _digest(path / "arrays.npz")}
        (path / "model.json").write_bytes(_render(document))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                GIM.load(path, adata=False, accelerator="cpu")
            except ValueError:
                continue
