from __future__ import annotations

import gzip
import hashlib
import http.server
import re
import threading

import pytest


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves bytes from a dictionary; understands ranges, and can break off after some bytes."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        content = server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        current = self.headers.get("If-Range") in (None, tag)
        start = int(asked[1]) if asked and current and server.resumable else 0
        if asked and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        stop = server.break_after.pop(0) if server.break_after else None
        self.wfile.write(content[start : len(content) if stop is None else start + stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """Server on loopback: `files` (path to bytes), `requests` seen, `break_after` (bytes sent by the next answers)."""
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    instance.files, instance.requests, instance.break_after, instance.resumable = {}, [], [], True
    instance.address = f"http://127.0.0.1:{instance.server_port}"
    thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield instance
    instance.shutdown()
    thread.join()
    instance.server_close()


@pytest.fixture
def serve(server, monkeypatch):
    """Put the files of a data set on the server: `serve(module, name, {key: text})`."""
    from scgim.datasets._download import RemoteFile

    def put(module, name, texts):
        table = {}
        for key, text in texts.items():
            content = gzip.compress(text.encode(), mtime=0)
            server.files[f"/{key}.gz"] = content
            sha256 = hashlib.sha256(content).hexdigest()
            table[key] = RemoteFile(f"{key}.gz", f"{server.address}/{key}.gz", sha256)
        monkeypatch.setattr(module, name, table)

    return put
