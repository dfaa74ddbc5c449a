"""Saves are whole or not there at all, loading runs no code, and every problem names the file and the remedy."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import scgim._storage._folder as folder_module
from scgim._storage._folder import _render
from scgim.model import GIM


@pytest.fixture(scope="module")
def small(_train_split, fit) -> GIM:
    """A model of few epochs; tests must not change it."""
    return fit(_train_split[:, :4].copy(), epochs=1)


@pytest.fixture(scope="module")
def saved_once(small, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    small.save(path)
    return path


@pytest.fixture
def saved(saved_once, tmp_path) -> Path:
    """A saved model, a fresh copy."""
    return Path(shutil.copytree(saved_once, tmp_path / "model"))


def load(path) -> GIM:
    return GIM.load(path, adata=False, accelerator="cpu")


def digest(model: GIM) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.module.state_dict().values())


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def rewrite(path: Path, change) -> None:
    """Change the document of a manifest, checksum and all, as someone would who means harm."""
    manifest = path / "model.json"
    document = json.loads(manifest.read_bytes())["document"]
    change(document)
    manifest.write_bytes(_render(document))


def changed(model: GIM) -> GIM:
    """The same model with other parameters."""
    other = GIM(None, registry=model.registry)
    for name, value in vars(model).items():
        if name.endswith("_"):
            setattr(other, name, value)
    other.module.on_load(other)
    other.module.load_state_dict(
        {n: v + 1 if v.is_floating_point() else v for n, v in model.module.state_dict().items()}
    )
    return other


def test_folder_holds_json_and_arrays_only(saved, small):
    assert set(contents(saved)) == {"model.json", "arrays.npz"}
    with np.load(saved / "arrays.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)
    document = json.loads((saved / "model.json").read_text())
    assert document["format"] == 1
    assert document["document"]["content"]["attributes"]["gene_names_"] == small.gene_names_


def test_loading_needs_no_pickle(saved, small, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was opened")

    for module, names in ((pickle, ("load", "loads", "Unpickler")), (torch, ("load",))):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    assert digest(load(saved)) == digest(small)


def test_existing_folder_is_kept_unless_overwritten(saved, small):
    before = contents(saved)
    with pytest.raises(ValueError, match=r"already exists.*overwrite=True"):
        small.save(saved)
    assert contents(saved) == before
    (saved / "notes.txt").write_text("mine")
    other = changed(small)
    other.save(saved, overwrite=True)
    assert digest(load(saved)) == digest(other) != digest(small)
    assert (saved / "notes.txt").read_text() == "mine"
    assert len(list(saved.iterdir())) == 3  # the arrays of the earlier save are gone


def test_prefixes_share_a_folder(saved, small):
    other = changed(small)
    other.save(saved, prefix="b_", overwrite=True)
    assert digest(load(saved)) == digest(small)
    assert digest(GIM.load(saved, adata=False, accelerator="cpu", prefix="b_")) == digest(other)
    with pytest.raises(ValueError, match=r"no `c_model.json`.*'', 'b_'"):
        GIM.load(saved, adata=False, prefix="c_")
    with pytest.raises(ValueError, match="`prefix` 'x/y' must not hold a path"):
        small.save(saved, prefix="x/y", overwrite=True)


class FailAt:
    """Lets some calls of functions pass and fails at one of them."""

    def __init__(self, monkeypatch, n: int, error: BaseException):
        self.left, self.error = n, error
        for owner, name in (
            (np, "savez"),
            (os, "fsync"),
            (Path, "mkdir"),
            (Path, "write_bytes"),
            (Path, "rename"),
            (Path, "replace"),
            (Path, "unlink"),
        ):
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name)))

    def wrap(self, function):
        def wrapped(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                raise self.error
            return function(*args, **kwargs)

        return wrapped


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full", "interrupted"])
@pytest.mark.parametrize("exists", [True, False])
def test_failure_at_any_step_leaves_the_old_or_the_new_model(saved_once, small, tmp_path, monkeypatch, error, exists):
    other = changed(small)
    n_steps = 0
    for step in range(1, 30):
        path = tmp_path / f"{step}" / "model"
        path.parent.mkdir()
        if exists:
            shutil.copytree(saved_once, path)
        with monkeypatch.context() as patch:
            fail = FailAt(patch, step, error)
            try:
                other.save(path, overwrite=True)
            except (OSError, KeyboardInterrupt) as raised:
                assert isinstance(raised, type(error))  # noqa: PT017
        if fail.left > 0:
            break
        n_steps += 1
        assert [p.name for p in path.parent.iterdir()] in (["model"], [])  # nothing unfinished beside it
        if path.exists():
            assert digest(load(path)) in (digest(small), digest(other))
            assert not [p for p in path.iterdir() if p.is_dir()]
        else:
            assert not exists
    assert n_steps >= 6


def test_full_disk_says_so(saved, small, monkeypatch):
    before = contents(saved)
    FailAt(monkeypatch, 3, FULL)
    with pytest.raises(OSError, match=r"No space left.*saved there before is unchanged\. Free some space") as raised:
        small.save(saved, overwrite=True)
    assert raised.value.errno == errno.ENOSPC
    assert str(saved) in str(raised.value)
    assert contents(saved) == before


def test_full_disk_while_the_data_are_written(saved, small, monkeypatch):
    before = contents(saved)

    def fail(file, adata, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError("Can't write data (file write failed)")

    monkeypatch.setattr("anndata.io.write_h5ad", fail)
    with pytest.raises(OSError, match=r"Can't write data.*unchanged"):
        small.save(saved, overwrite=True, save_anndata=True)
    assert contents(saved) == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_unwritable_folder_says_so(small, tmp_path, monkeypatch, number):
    FailAt(monkeypatch, 2, OSError(number, os.strerror(number)))  # root may write anywhere
    with pytest.raises(OSError, match=r"Could not save the model to.*Nothing was left behind.*may write to"):
        small.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(small, tmp_path):
    path = tmp_path / "model"
    path.write_text("mine")
    with pytest.raises(ValueError, match="is a file. Give a folder"):
        small.save(path, overwrite=True)
    with pytest.raises(ValueError, match="is a file. Give the folder"):
        load(path)
    with pytest.raises(ValueError, match="There is no folder"):
        load(tmp_path / "other")


def test_attribute_that_is_no_data_is_named(saved, small):
    before = contents(saved)
    other = changed(small)
    other.helper_ = {"a": [1, len]}
    with pytest.raises(TypeError, match=r"`model\['attributes'\]\['helper_'\]\['a'\]\[1\]` is of type"):
        other.save(saved, overwrite=True)
    assert contents(saved) == before


def test_own_attributes_come_back(small, tmp_path):
    other = changed(small)
    other.notes_ = {"who": "me", "when": (2026, np.arange(3))}
    other.save(tmp_path / "model")
    found = load(tmp_path / "model").notes_
    assert found["who"] == "me"
    np.testing.assert_array_equal(found["when"][1], np.arange(3))


class Evil:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_saves_of_scvi_tools_are_refused_with_the_reason(tmp_path):
    torch.save({"model_state_dict": {}, "attr_dict": Evil(tmp_path / "trace")}, tmp_path / "model.pt")
    for open_it in (load, GIM.load_registry, GIM.view_setup_args):
        with pytest.raises(ValueError, match=r"format of scvi-tools.*pickle, which can run any code"):
            open_it(tmp_path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["model.json", "arrays.npz"])
def test_pickles_in_place_of_files_do_not_run(saved, tmp_path, name):
    (saved / name).write_bytes(pickle.dumps(Evil(tmp_path / "trace")))
    with pytest.raises(ValueError, match=rf"{name}` .*(damaged|bytes where).*save the model again"):
        load(saved)
    assert not (tmp_path / "trace").exists()


def test_pickled_arrays_with_a_fitting_checksum_do_not_run(saved, tmp_path):
    evil = np.array([Evil(tmp_path / "trace")], dtype=object)
    np.savez(saved / "arrays.npz", a0=evil)

    def accept(document):
        path = saved / "arrays.npz"
        document["files"][0] |= {"size": path.stat().st_size, "sha256": folder_module._digest(path)}

    rewrite(saved, accept)
    with pytest.raises(ValueError, match=r"model.json` cannot be used.*allow_pickle"):
        load(saved)
    assert not (tmp_path / "trace").exists()


def test_attributes_that_are_no_results_are_not_set(saved, small):
    def add(document):
        document["content"]["attributes"] |= {"__class__": "x", "save": "x", "_adata": "x", "module": "x"}

    rewrite(saved, add)
    loaded = load(saved)
    assert type(loaded) is GIM
    assert callable(loaded.save)
    assert digest(loaded) == digest(small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["content"].pop("state"), "holds no model of this version"),
        (lambda d: d["content"]["attributes"].pop("registry_"), "holds no model of this version"),
        (lambda d: d["content"]["attributes"].pop("init_params_"), "does not fit this version"),
        (lambda d: d["content"]["state"].pop("intercept"), "does not fit this version.*intercept"),
        (lambda d: d["content"]["attributes"]["registry_"].update(model_name="Other"), "class 'Other', not 'GIM'"),
        (lambda d: d["files"][0].update(name="../arrays.npz"), "outside its folder"),
        (lambda d: d["files"][0].update(name="lost.npz"), "lost.npz` is missing"),
        (lambda d: d.update(kind="checkpoint"), "holds a checkpoint, expected a model"),
        (lambda d: d["content"]["attributes"].update(x_={"__type__": "eval"}), "not written by scGIM"),
    ],
)
def test_saves_with_other_content_are_explained(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_unknown_setup_arguments_are_explained(saved, adata):
    rewrite(saved, lambda d: d["content"]["attributes"]["registry_"]["setup_args"].update(colour_key="red"))
    with pytest.raises(ValueError, match=r"set up with \['colour_key'\], unknown to this version"):
        GIM.load(saved, adata=adata[:, :4].copy())


def test_newer_formats_ask_for_an_upgrade(saved):
    manifest = saved / "model.json"
    document = json.loads(manifest.read_bytes())["document"]
    manifest.write_bytes(_render(document, format_version=2))
    with pytest.raises(ValueError, match=r"newer scGIM \(format 2; .*reads up to 1\).*pip install --upgrade scgim"):
        load(saved)


def test_damaged_data_are_told_from_a_damaged_model(small, tmp_path):
    path = tmp_path / "model"
    small.save(path, save_anndata=True)
    with (path / "adata.h5ad").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\x00\xff")
    with pytest.raises(ValueError, match=r"adata.h5ad` is damaged"):
        GIM.load(path)


def test_without_data_there_is_a_warning_and_a_model(saved, small):
    with pytest.warns(UserWarning, match="No data were saved with the model.*adata=False"):
        loaded = GIM.load(saved, accelerator="cpu")
    assert loaded.adata is None
    with pytest.raises(ValueError, match="model was loaded without data"):
        loaded.save(saved.with_name("b"), save_anndata=True)
    loaded.save(saved.with_name("c"))
    assert digest(load(saved.with_name("c"))) == digest(small)


def test_arguments_that_do_not_apply_are_refused(saved, small):
    for options in ({"save_kwargs": {"pickle_protocol": 5}}, {"legacy_mudata_format": True}):
        with pytest.raises(ValueError, match=f"{list(options)[0]}.*do not apply"):
            small.save(saved, overwrite=True, **options)
    with pytest.raises(ValueError, match="backup_url.*do not apply"):
        GIM.load(saved, backup_url="https://example.org/model")
    with pytest.raises(ValueError, match="no saves in the legacy format"):
        GIM.convert_legacy_save(saved, saved)
    with pytest.raises(TypeError, match="`adata` must be an AnnData, None or False, found str"):
        GIM.load(saved, adata="cells.h5ad")
    with pytest.raises(ValueError, match="`accelerator` must be"):
        GIM.load(saved, adata=False, accelerator="warp")


def test_setup_is_shown_without_loading(saved, capsys):
    GIM.view_setup_args(saved)
    assert "perturbation_key" in capsys.readouterr().out
    assert GIM.load_registry(saved)["setup_args"]["control"] == "control"
