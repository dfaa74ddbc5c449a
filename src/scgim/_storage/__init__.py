"""Files that hold data only: written whole or not at all, checked when read, and never run as code."""

from __future__ import annotations

from scgim._storage._encoding import decode, encode
from scgim._storage._folder import FORMAT_VERSION, MANIFEST, Saved, has_manifest, read_folder, write_folder

__all__ = ["FORMAT_VERSION", "MANIFEST", "Saved", "decode", "encode", "has_manifest", "read_folder", "write_folder"]
