"""Folders that are written whole or not at all, and whose files are checked when they are read.

`model.json` describes a save: what it is, its content, and name, size and SHA-256 of each further file. It is put in
place last, in one step, so that a write that stops half-way leaves the earlier save as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import tokenize
import uuid
import zipfile
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scgim._storage._encoding import Arrays, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MANIFEST = "model.json"
FORMAT_VERSION = 1  # raise it when files of this version of scGIM cannot be read by an earlier one
_ARRAYS = "arrays.npz"

_REMEDIES = {
    errno.ENOSPC: "Free some space, or give a folder on another disk.",
    errno.EACCES: "Give a folder that you may write to.",
    errno.EPERM: "Give a folder that you may write to.",
    errno.EROFS: "Give a folder that you may write to.",
}
if hasattr(errno, "EDQUOT"):
    _REMEDIES[errno.EDQUOT] = _REMEDIES[errno.ENOSPC]
# what NumPy and the decoder raise for files of others
_FOREIGN = (
    *(
        ArithmeticError,
        EOFError,
        KeyError,
        MemoryError,
        NotImplementedError,
        OSError,
        SyntaxError,
        TypeError,
        ValueError,
    ),
    *(tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class Saved:
    """What a folder holds: its content, and the further files, verified, by the name they were written under."""

    content: Any
    files: dict[str, Path]


def has_manifest(folder: str | os.PathLike, prefix: str = "") -> bool:
    """Whether something was saved in the folder under this prefix."""
    return (Path(folder).expanduser() / f"{prefix}{MANIFEST}").is_file()


def write_folder(
    folder: str | os.PathLike,
    content: Any,
    *,
    kind: str,
    prefix: str = "",
    writers: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Write content to a folder, in place of what was saved there under the same prefix; other files are left alone.

    Parameters
    ----------
    folder
        Where to write; made if it does not exist.
    content
        What :func:`encode` takes.
    kind
        What is saved ("model", "checkpoint").
    prefix
        Put before the names of all files.
    writers
        Further files: name and function that writes the file at a path.

    Raises
    ------
    OSError
        The files could not be written. What was saved there before is unchanged.
    TypeError
        The content holds what cannot be saved.
    """
    if prefix and not _is_plain_name(prefix):
        raise ValueError(f"`prefix` {prefix!r} must not hold a path. Give the folder by its own argument.")
    target = Path(folder).expanduser().absolute()
    tree, arrays = encode(content, kind)
    exists = target.exists()
    # beside the target, so that putting it in place is a rename
    stage = (target if exists else target.parent) / f".{target.name}.saving-{uuid.uuid4().hex[:12]}"
    with _explained(target, kind, has_manifest(target, prefix)):
        try:
            stage.parent.mkdir(parents=True, exist_ok=True)
            stage.mkdir()
            all_writers = {_ARRAYS: lambda path: _write_arrays(path, arrays), **(writers or {})}
            files = [_write_file(stage, target, prefix, name, write) for name, write in all_writers.items()]
            document = {"kind": kind, "version": version("scgim"), "content": tree, "files": files}
            (stage / f"{prefix}{MANIFEST}").write_bytes(_render(document))
            _commit(stage, target, prefix, exists)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _write_file(stage: Path, target: Path, prefix: str, name: str, write: Callable[[Path], None]) -> dict:
    """Write one file; its name is new in the target, so that it replaces nothing before the manifest does."""
    path = stage / f"{prefix}{name}"
    write(path)
    digest = _digest(path)
    final = path.name
    if (target / final).exists():
        final = f"{path.stem}-{digest[:12]}{path.suffix}"
        path.rename(stage / final)
    return {"role": name, "name": final, "size": (stage / final).stat().st_size, "sha256": digest}


def _write_arrays(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _commit(stage: Path, target: Path, prefix: str, exists: bool) -> None:
    """Put the files in place, the manifest last, and clear away what it replaces."""
    for path in stage.iterdir():
        _sync(path)
    _sync(stage)
    if not exists:
        stage.rename(target)
        _sync(target.parent)
        return
    manifest = target / f"{prefix}{MANIFEST}"
    old, new, moved = _listed_files(manifest), _listed_files(stage / manifest.name), []
    try:
        for name in new:
            (stage / name).replace(target / name)
            moved.append(target / name)
        _sync(target)
        (stage / manifest.name).replace(manifest)
    except BaseException:
        for path in moved:
            if path.name not in old:
                path.unlink(missing_ok=True)
        raise
    _sync(target)
    with suppress(OSError):  # the save is done
        for name in old - new:
            (target / name).unlink(missing_ok=True)


def _listed_files(manifest: Path) -> set[str]:
    """Names of the files that belong to a manifest; none if it cannot be read."""
    try:
        files = _parse(manifest)["files"]
        return {entry["name"] for entry in files if _is_plain_name(entry["name"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # folders cannot be synchronised on Windows
    # Windows wants the file open for writing
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(target: Path, kind: str, had_save: bool) -> Iterator[None]:
    """Say what remains and what to do when writing fails."""
    try:
        yield
    except OSError as error:
        remains = f"The {kind} saved there before is unchanged." if had_save else "Nothing was left behind."
        remedy = _REMEDIES.get(error.errno or 0, "Give another folder.")
        reason = error.strerror or str(error)
        message = f"Could not save the {kind} to `{target}`: {reason}. {remains} {remedy}"
        raise (OSError(error.errno, message) if error.errno else OSError(message)) from error


def read_folder(folder: str | os.PathLike, *, kind: str, prefix: str = "") -> Saved:
    """Read and check what :func:`write_folder` wrote.

    Raises
    ------
    ValueError
        There is nothing, or it is foreign, damaged, incomplete or too new; the message names the file.
    """
    target = Path(folder).expanduser()
    manifest = target / f"{prefix}{MANIFEST}"
    if not manifest.is_file():
        raise ValueError(_explain_missing(target, kind, prefix))
    document = _parse(manifest)
    if document["kind"] != kind:
        raise ValueError(f"`{manifest}` holds a {document['kind']}, expected a {kind}.")
    files = _verified_files(target, document["files"], manifest)
    try:
        with np.load(files.pop(_ARRAYS), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return Saved(decode(document["content"], arrays), files)
    except _FOREIGN as error:
        raise ValueError(f"`{manifest}` cannot be used: {error}. {_restore(kind)}") from error


def _parse(manifest: Path) -> dict:
    """Document of a manifest, exactly as it was written."""
    raw = manifest.read_bytes()
    damaged = f"`{manifest}` is damaged or was not written by scGIM"
    try:
        outer = json.loads(raw)
        format_version, document = outer["format"], outer["document"]
        if type(format_version) is int and format_version > FORMAT_VERSION:
            raise ValueError(
                f"`{manifest}` was written by a newer scGIM (format {format_version}; this one, {version('scgim')}, reads "
                f"up to {FORMAT_VERSION}). Upgrade scGIM: `pip install --upgrade scgim`."
            )
        intact = raw == _render(document, format_version)
        _ = document["kind"], document["content"], document["files"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{damaged}: it is no manifest ({type(error).__name__}). {_restore()}") from error
    if not intact:
        raise ValueError(f"{damaged}: its checksum does not fit its content. {_restore()}")
    return document


def _verified_files(target: Path, entries: Any, manifest: Path) -> dict[str, Path]:
    """Role and path of the files that a manifest lists, all as they were written."""
    try:
        listed = [[entry[key] for key in ("role", "name", "size", "sha256")] for entry in entries]
        roles = {str(role) for role, *_ in listed}
    except (KeyError, TypeError) as error:
        raise ValueError(f"`{manifest}` was not written by scGIM ({error!r}). {_restore()}") from error
    if _ARRAYS not in roles:
        raise ValueError(f"`{manifest}` was not written by scGIM: it lists no arrays. {_restore()}")
    for _, name, size, digest in listed:
        if not _is_plain_name(name):
            raise ValueError(f"`{manifest}` names the file {name!r} outside its folder; it was not written by scGIM.")
        path = target / name
        if not path.is_file():
            raise ValueError(f"`{path}` is missing. {_restore()}")
        if path.stat().st_size != size:
            raise ValueError(f"`{path}` has {path.stat().st_size} bytes where {size} were saved. {_restore()}")
        if _digest(path) != digest:
            raise ValueError(f"`{path}` is damaged: its checksum is not that of the file that was saved. {_restore()}")
    return {str(role): target / name for role, name, *_ in listed}


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not any(c in name for c in "/\\:\0")


def _explain_missing(target: Path, kind: str, prefix: str) -> str:
    if not target.exists():
        return f"There is no folder `{target}`."
    if not target.is_dir():
        return f"`{target}` is a file. Give the folder that the {kind} was saved to."
    if (target / f"{prefix}model.pt").is_file():
        return (
            f"`{target}` holds a model in the format of scvi-tools (`{prefix}model.pt`). That is a pickle, which can run "
            "any code when it is opened, so scGIM does not open it. Fit the model again and save it with `GIM.save`."
        )
    saved = sorted(path.name.removesuffix(MANIFEST) for path in target.glob(f"*{MANIFEST}"))
    hint = f" Saved there are those with `prefix` {saved}." if saved else ""
    return f"`{target}` holds no saved {kind}: there is no `{prefix}{MANIFEST}`.{hint}"


def _restore(kind: str = "model") -> str:
    return f"Copy the folder again from where it was saved, or save the {kind} again."


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _render(document: dict, format_version: int = FORMAT_VERSION) -> bytes:
    """Bytes of a manifest: format and checksum first, for people who open the file."""
    # also NaN is text here: what JSON leaves open must not change a checksum
    checksum = hashlib.sha256(json.dumps(document).encode()).hexdigest()
    return json.dumps({"format": format_version, "checksum": checksum, "document": document}).encode()
