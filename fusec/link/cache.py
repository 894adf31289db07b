"""Compiled objects, kept by what they were compiled from."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from fusec.diagnostics import InputError
from fusec.runtime.files import write_errors

HINT = "set `XDG_CACHE_HOME` to a folder that can be written to, for kernels that are compiled"


def default_cache_directory() -> Path:
    """`fusec` in the cache folder of the user: the XDG Base Directory Specification.

    Raises:
        InputError: none is set, and the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "fusec"
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise InputError(f"user {os.getuid()} has no home with a cache folder", hint=HINT)
    return Path(home) / ".cache" / "fusec"


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
        """Write `made` into the cache.

        Raises:
            InputError: the folder cannot be written to.
        """
        path = self.path(digest)
        with write_errors(path, HINT):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            try:
                temporary.write_bytes(made)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        return path
