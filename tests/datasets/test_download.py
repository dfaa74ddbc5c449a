from __future__ import annotations

import hashlib
import logging

import numpy as np
import pytest

from scgim.datasets import _download
from scgim.datasets._download import RemoteFile, cache_folder, fetch

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def file(server, monkeypatch):
    monkeypatch.setattr(_download.time, "sleep", lambda seconds: None)
    server.files["/data.bin"] = CONTENT
    return RemoteFile("data.bin", f"{server.address}/data.bin", SHA256)


def test_download_and_cache(server, file, tmp_path):
    path = fetch(file, tmp_path / "new", progress=False)
    assert path == tmp_path / "new" / "data.bin"
    assert path.read_bytes() == CONTENT
    assert fetch(file, tmp_path / "new", progress=False) == path
    assert server.requests == [("/data.bin", None)]
    assert [p.name for p in path.parent.iterdir()] == ["data.bin"]


def test_broken_connections_are_resumed(server, file, tmp_path):
    server.break_after = [1_500_000, 1_000_000]
    assert fetch(file, tmp_path, progress=False).read_bytes() == CONTENT
    assert [r for _, r in server.requests] == [None, "bytes=1500000-", "bytes=2500000-"]


def test_the_next_call_goes_on_where_the_last_one_failed(server, file, tmp_path):
    server.break_after = [1_000_000, 0, 0]
    with pytest.raises(ConnectionError, match=r"Could not download .*closed after 1000000 of 3000000 bytes.*goes on"):
        fetch(file, tmp_path, progress=False)
    assert (tmp_path / "data.bin.part").stat().st_size == 1_000_000
    assert not (tmp_path / "data.bin").exists()
    server.requests.clear()
    assert fetch(file, tmp_path, progress=False).read_bytes() == CONTENT
    assert server.requests == [("/data.bin", "bytes=1000000-")]


def test_complete_part_is_not_downloaded_again(server, file, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert fetch(file, tmp_path, progress=False).read_bytes() == CONTENT


def test_part_that_is_too_long_is_dropped(server, file, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(file, tmp_path, progress=False).read_bytes() == CONTENT


def test_server_without_ranges_starts_over(server, file, tmp_path):
    server.resumable = False
    server.break_after = [1_000_000]
    assert fetch(file, tmp_path, progress=False).read_bytes() == CONTENT


def test_file_that_changed_on_the_server_is_not_mixed(server, file, tmp_path):
    server.break_after = [1_000_000, 0, 0]
    other = CONTENT[::-1]
    with pytest.raises(ConnectionError):
        fetch(file, tmp_path, progress=False)
    server.files["/data.bin"] = other
    changed = RemoteFile(file.name, file.url, hashlib.sha256(other).hexdigest())
    assert fetch(changed, tmp_path, progress=False).read_bytes() == other


def test_damaged_download_is_refused(server, file, tmp_path):
    server.files["/data.bin"] = CONTENT[:-1] + b"x"
    with pytest.raises(ValueError, match=f"not the expected file: its sha256 is not {SHA256}"):
        fetch(file, tmp_path, progress=False)
    assert not (tmp_path / "data.bin").exists()
    server.files["/data.bin"] = CONTENT
    assert fetch(file, tmp_path, progress=False).read_bytes() == CONTENT


def test_damaged_cache_is_downloaded_again(server, file, tmp_path):
    fetch(file, tmp_path, progress=False).write_bytes(b"damaged")
    assert fetch(file, tmp_path, progress=False).read_bytes() == CONTENT


def test_unknown_hash_is_trusted_on_first_use_only(server, file, tmp_path, caplog):
    file = RemoteFile(file.name, file.url)
    with caplog.at_level(logging.WARNING, logger="scgim"):
        path = fetch(file, tmp_path, progress=False)
    assert f"The sha256 of this first download is {SHA256}" in caplog.text
    assert (tmp_path / "data.bin.sha256").read_text().strip() == SHA256
    path.unlink()
    server.files["/data.bin"] = b"something else"
    with pytest.raises(ValueError, match=r"has changed on the server. If the new file is to be trusted, delete"):
        fetch(file, tmp_path, progress=False)


def test_file_put_there_by_hand_is_used(server, file, tmp_path):
    (tmp_path / "data.bin").write_bytes(CONTENT)
    fetch(file, tmp_path, progress=False)
    assert server.requests == []


def test_offline(file, tmp_path):
    offline = RemoteFile(file.name, "http://127.0.0.1:1/data.bin", SHA256)
    with pytest.raises(ConnectionError, match=r"Could not download .*by hand, or use `scgim.datasets.load_demo\(\)`"):
        fetch(offline, tmp_path, progress=False)


def test_file_that_is_not_there(server, file, tmp_path):
    missing = RemoteFile("other.bin", f"{server.address}/other.bin", SHA256)
    with pytest.raises(ConnectionError, match="404"):
        fetch(missing, tmp_path, progress=False)
    assert len(server.requests) == 1


def test_progress_bar(server, file, tmp_path, capsys):
    fetch(file, tmp_path, progress=True)
    assert "data.bin: 100%" in capsys.readouterr().err


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SCGIM_CACHE", str(tmp_path / "env"))
    assert cache_folder(None) == tmp_path / "env"
    assert cache_folder(tmp_path) == tmp_path
    monkeypatch.delenv("SCGIM_CACHE")
    assert cache_folder(None).name == "scgim"
