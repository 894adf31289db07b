"""A lock that a forked child does not find held: the thread that held it is not there to let go."""

from __future__ import annotations

import os
import threading
import weakref


class Lock:
    """Held by one thread at a time, in a `with` statement; free in every forked child.

    What it guards must hold together at any step of Python, for a child goes on from there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def free(self) -> None:
        """Forget who holds it."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _free_all() -> None:
    for lock in _locks:
        lock.free()


os.register_at_fork(after_in_child=_free_all)
