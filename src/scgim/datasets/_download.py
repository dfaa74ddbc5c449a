"""Files from public servers: cached, checked against a hash, resumed after an interruption."""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

_CHUNK = 2**20  # bytes read and written in one go
_ATTEMPTS = 3
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class RemoteFile:
    """A file on a public server; `sha256` is None where no checksum is known."""

    name: str
    url: str
    sha256: str | None = None


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Folder for downloads: the argument, else the environment variable SCGIM_CACHE, else the user's cache folder."""
    return Path(cache_dir or os.environ.get("SCGIM_CACHE") or pooch.os_cache("scgim")).expanduser()


def fetch(file: RemoteFile, folder: Path, *, progress: bool) -> Path:
    """Path of the file in `folder`, downloaded unless it is there and has the right hash.

    A file without known checksum is trusted on first use: the sha256 of the first download is logged and kept beside
    it, and later uses are checked against that. This shows a file that has changed since, not one that was wrong from
    the start.

    Raises
    ------
    ConnectionError
        The server cannot be reached or does not have the file.
    ValueError
        What was downloaded does not have the expected hash.
    """
    record = folder / f"{file.name}.sha256"
    expected = file.sha256 or (record.read_text().strip() if record.is_file() else None)
    downloader = ResumingDownloader(folder / f"{file.name}.part", progress=progress)
    try:
        path = Path(pooch.retrieve(file.url, expected, fname=file.name, path=folder, downloader=downloader))
    except _NETWORK_ERRORS as error:
        raise ConnectionError(
            f"Could not download {file.url} ({error}). What has arrived so far is kept, and the next call goes on from "
            f"there. On a machine without internet access, put the file into `{folder}` by hand, or use "
            "`scgim.datasets.load_demo()`, which downloads nothing."
        ) from error
    except ValueError as error:
        advice = "" if file.sha256 else f" If the new file is to be trusted, delete `{record}` and call again."
        raise ValueError(
            f"What was downloaded from {file.url} is not the expected file: its sha256 is not {expected}. It was "
            f"damaged on the way or has changed on the server.{advice}"
        ) from error
    if expected is None:
        found = pooch.file_hash(str(path))
        record.write_text(f"{found}\n")
        logger.warning("No checksum of %s is known. The sha256 of this first download is %s.", file.url, found)
    return path


class ResumingDownloader:
    """Downloader for pooch that keeps what has arrived in `partial`, and asks the server only for the rest.

    Parameters
    ----------
    partial
        File for the incomplete download; it stays when the connection, or the user, breaks off.
    progress
        Show a progress bar.
    timeout
        Seconds to wait for the server.
    """

    def __init__(self, partial: Path, *, progress: bool, timeout: float = 60) -> None:
        self.partial = partial
        self.validator = partial.with_name(f"{partial.name}.tag")
        self.progress = progress
        self.timeout = timeout

    def __call__(self, url: str, output_file: str, pooch: Any = None, check_only: bool = False) -> None:
        """Download `url` to `output_file`, trying again a few times when the connection breaks."""
        for attempt in range(_ATTEMPTS):
            try:
                self._download(url)
                break
            except urllib.error.HTTPError:
                raise
            except _NETWORK_ERRORS as error:
                if attempt == _ATTEMPTS - 1:
                    raise
                logger.info("Download of %s broke off (%s); trying again.", url, error)
                time.sleep(attempt)
        shutil.move(self.partial, output_file)
        self.validator.unlink(missing_ok=True)

    def _download(self, url: str) -> None:
        done = self.partial.stat().st_size if self.partial.exists() else 0
        try:
            response = urllib.request.urlopen(self._request(url, done), timeout=self.timeout)
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not done:
                raise
            if error.headers.get("Content-Range") == f"bytes */{done}":
                return  # everything had arrived when it broke off
            self.partial.unlink()
            response = urllib.request.urlopen(self._request(url, 0), timeout=self.timeout)
        with response:
            if response.status != http.client.PARTIAL_CONTENT:
                done = 0  # the server sends the whole file: it has changed, or the server cannot resume
            self._save(response, done)

    def _request(self, url: str, done: int) -> urllib.request.Request:
        headers = {"User-Agent": "scgim"}
        if done:
            headers["Range"] = f"bytes={done}-"
            if self.validator.is_file():
                headers["If-Range"] = self.validator.read_text()
        return urllib.request.Request(url, headers=headers)

    def _save(self, response: Any, done: int) -> None:
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if tag and not tag.startswith("W/"):  # a weak tag does not promise the same bytes
            self.validator.write_text(tag)
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        name = self.partial.name.removesuffix(".part")
        bar = tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=name, disable=not self.progress)
        with bar, self.partial.open("ab" if done else "wb") as file:
            while block := response.read(_CHUNK):
                file.write(block)
                bar.update(len(block))
        arrived = self.partial.stat().st_size
        if total is not None and arrived < total:
            raise ConnectionError(f"the connection closed after {arrived} of {total} bytes")
