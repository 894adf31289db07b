"""Compiled objects, kept by what they were compiled from."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from fusec.diagnostics import InputError, reason_of

_HINT = "set `XDG_CACHE_HOME` to a folder that can be written to"

_SEAL = hashlib.sha256().digest_size


def default_cache_directory() -> Path:
    """`fusec` in the cache folder of the user: the XDG Base Directory Specification.

    Raises:
        InputError: the user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "fusec"
    try:
        return Path.home() / ".cache" / "fusec"
    except RuntimeError:
        raise InputError("this user has no home folder to keep objects in", hint=_HINT) from None


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
        """The file with this digest, if one is kept; whether it is whole is for its reader to say.

        A power cut may leave an empty file, or half of one.
        """
        path = self.path(digest)
        return path if path.is_file() else None

    def find_object(self, digest: str) -> Path | None:
        """The file of `keep` with this digest; `None` if there is none, or it is damaged."""
        path = self.find(digest)
        if path is None:
            return None
        data = path.read_bytes()
        whole = hashlib.sha256(data[:-_SEAL]).digest() == data[-_SEAL:]
        return path if whole else None

    def keep(self, digest: str, made: Path) -> Path:
        """Copy the ELF file `made` into the cache; whoever comes second with the same digest wins.

        The SHA-256 of its bytes is put behind them, where linkers and loaders do not look.
        """
        data = made.read_bytes()
        return self.keep_bytes(digest, data + hashlib.sha256(data).digest())

    def keep_bytes(self, digest: str, made: bytes) -> Path:
        """Write `made` into the cache.

        Raises:
            InputError: the folder cannot be written to.
        """
        path = self.path(digest)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(made)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            message = f"cannot keep objects in the cache: {reason_of(error)}"
            raise InputError(message, at=str(self.directory), hint=_HINT) from error
        return path
