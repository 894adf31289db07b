"""Triton's language while a launch is interpreted, with less work for each operation.

A tensor of a kernel costs Triton some fifty calls of Python, nearly all of them about its shape and
type, which are the same in every program.  Here they are made once.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle
from triton.runtime.jit import JITFunction

from fusec.emulator.arithmetic import mend

_LANGUAGE = types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
"""Stands for a function that sees both modules, which the interpreter patches where it sees
them."""

_ONE = tl.constexpr(1)
_NO_AXES = tl.tuple([])

Change = tuple[Any, str, Any]
"""An object, one of its attributes, and the value that it has while a launch runs."""


class FastSemantic(TritonSemantic):  # type: ignore[misc]
    """What operations mean, with nothing done for tensors of one shape and type."""

    def broadcast_impl_value(self, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        """Both operands in one shape; a scalar is not written out."""
        left, right = lhs.type, rhs.type
        if left.is_block():
            if not right.is_block():
                return lhs, _spread(rhs, left)
            if left.shape.values == right.shape.values:
                return lhs, rhs
        elif right.is_block():
            return _spread(lhs, right), rhs
        else:
            return lhs, rhs
        result: tuple[Any, Any] = super().broadcast_impl_value(lhs, rhs)
        return result


def _spread(scalar: Any, kind: Any) -> Any:
    """A scalar as a tensor of the shape of `kind`."""
    data = np.broadcast_to(scalar.handle.data, kind.shape.values)
    handle = TensorHandle(data, scalar.handle.dtype.scalar)
    return tl.tensor(handle, tl.block_type(scalar.type.scalar, kind.shape.values))


@contextmanager
def interpreting(semantic: FastSemantic, call: Callable[..., Any]) -> Iterator[None]:
    """Triton's language, as the interpreter means it.

    Args:
        semantic: what operations mean.
        call: what calling a function of `triton.jit` does.
    """
    mend()
    changes = _changes(semantic, call)
    before = [(owner, name, owner.__dict__.get(name, None)) for owner, name, _ in changes]
    missing = {i for i, (owner, name, _) in enumerate(changes) if name not in owner.__dict__}
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        with triton.knobs.runtime.scope():
            triton.knobs.runtime.interpret = True
            yield
    finally:
        for i, (owner, name, value) in reversed([*enumerate(before)]):
            if i in missing:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


@cache
def _changes(semantic: FastSemantic, call: Callable[..., Any]) -> tuple[Change, ...]:
    """All that differs while a launch runs: what the interpreter changes, and what is made fast."""
    original = interpreter._patch_attr

    def patch(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        scope.set_attr(owner, name, _bound(member, semantic))

    interpreter._patch_attr = patch
    try:
        scope = interpreter._patch_lang(_LANGUAGE)
    finally:
        interpreter._patch_attr = original
    changed = [(owner, name, owner.__dict__[name]) for owner, name, _ in scope._changes]
    scope.restore()
    # Each attribute once: modules share members, and what was changed first was the original.
    by_place = {(id(owner), name): (owner, name, value) for owner, name, value in changed}
    return (
        *by_place.values(),
        (tl.tensor, "__init__", _tensor_init),
        (tl.block_type, "__init__", _block_init(tl.block_type.__init__)),
        (interpreter, "_get_np_dtype", _by_name(interpreter._get_np_dtype)),
        (interpreter, "interpreter_semantic", semantic),
        (JITFunction, "__call__", call),
    )


def _bound(member: Any, semantic: FastSemantic) -> Callable[..., Any]:
    """A function of the language with its meaning given, whatever it is called with."""
    inner = getattr(member, "__wrapped__", member)

    def bound(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = semantic
        return inner(*args, **kwargs)

    return bound


def _tensor_init(self: Any, handle: Any, type: Any) -> None:
    self.handle = handle
    self.type = type
    self.dtype = type.scalar
    known = type.__dict__.get("_fusec_shape")
    self.shape, self.numel = known or (_NO_AXES, _ONE)


def _block_init(original: Callable[..., None]) -> Callable[..., None]:
    known: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(getattr(size, "value", size) for size in getattr(shape, "values", shape))
        found = known.get((element_ty.name, sizes))
        if found is None:
            original(self, element_ty, shape)
            axes = tl.tuple([tl.constexpr(size) for size in sizes])
            self._fusec_shape = axes, tl.constexpr(int(np.prod(sizes)))
            known[element_ty.name, sizes] = dict(self.__dict__)
        else:
            self.__dict__.update(found)

    return init


def _by_name(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of a type, asked once for each name."""
    known: dict[str, Any] = {}

    def asked(kind: Any) -> Any:
        if kind.name not in known:
            known[kind.name] = original(kind)
        return known[kind.name]

    return asked
