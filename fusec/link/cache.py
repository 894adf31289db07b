"""Compiled objects, kept by what they were compiled from."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def default_cache_directory() -> Path:
    """`fusec` in the cache folder of the user: the XDG Base Directory Specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "fusec"


class ObjectCache:
    """Files by the digest of all that went into them.

    Args:
        directory: made when the first object is kept.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, digest: str) -> Path:
        """Where the object with this digest is, or would be."""
        return self.directory / "objects" / digest[:2] / f"{digest}.o"

    def find(self, digest: str) -> Path | None:
        """The object with this digest, if it is kept."""
        path = self.path(digest)
        return path if path.is_file() else None

    def keep(self, digest: str, made: Path) -> Path:
        """Copy the file `made` into the cache; whoever comes second with the same digest wins."""
        return self.keep_bytes(digest, made.read_bytes())

    def keep_bytes(self, digest: str, made: bytes) -> Path:
        """Write `made` into the cache."""
        path = self.path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            temporary.write_bytes(made)
            temporary.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        return path
