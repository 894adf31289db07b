"""Placeholder."""

from contextlib import contextmanager


@contextmanager
def replaced(module):
    yield []
