"""Runs Triton functions with Triton's interpreter, checking every access to memory.

Functions need not be made for the interpreter: while a launch runs, whatever `triton.jit` made is
interpreted where it is called.  The high bits of each pointer hold the number of the operand that
it came from, so that reading past one buffer into the next does not go unnoticed.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import ASTTransformer, InterpreterOptions, TensorHandle

from fusec.diagnostics import FusecError
from fusec.emulator.arithmetic import GpuBuilder
from fusec.emulator.language import FastSemantic, interpreting
from fusec.emulator.races import Races
from fusec.kernels.launch import TritonSource
from fusec.link.triton_build import triton_function
from fusec.runtime.driver import LaunchError

TAG_SHIFT = 48
"""Addresses of a process have 47 bits; those above hold the number of an operand, from 1."""

NUMBERS: Mapping[str, Any] = {
    "i32": (tl.int32, np.int32),
    "u32": (tl.uint32, np.uint32),
    "i64": (tl.int64, np.int64),
    "u64": (tl.uint64, np.uint64),
    "fp32": (tl.float32, np.float32),
    "fp64": (tl.float64, np.float64),
}
"""Types of parameters: Triton's, and numpy's."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """An argument that is an address.

    Attributes:
        address: where it points.
        begin: the first address of the buffer that it points into.
        end: the address behind its last byte.
    """

    address: int
    begin: int
    end: int


class AccessError(LaunchError):
    """A kernel reads or writes outside of the buffer of an operand."""


class CheckedBuilder(GpuBuilder):
    """The interpreter's operations, with every access to memory checked."""

    def __init__(self) -> None:
        super().__init__()
        self.options: Any = InterpreterOptions(sanitize_overflow=False)
        self.spans: list[tuple[int, int, str]] = []
        self.races = Races((), 1)

    def create_load(self, ptr: Any, *rest: Any) -> Any:
        """Load every lane."""
        mask = TensorHandle(np.ones_like(ptr.data, dtype=bool), tl.int1)
        return super().create_masked_load(self._checked(ptr, None, writes=False), mask, None, *rest)

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
        """Load the lanes of `mask`."""
        real = self._checked(ptrs, mask, writes=False)
        return super().create_masked_load(real, mask, other, *rest)

    def create_store(self, ptr: Any, val: Any, *rest: Any) -> Any:
        """Store every lane."""
        mask = TensorHandle(np.ones_like(ptr.data, dtype=bool), tl.int1)
        real = self._checked(ptr, None, writes=True)
        return super().create_masked_store(real, val, mask, *rest)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        """Store the lanes of `mask`."""
        real = self._checked(ptrs, mask, writes=True)
        return super().create_masked_store(real, value, mask, *rest)

    def create_atomic_cas(self, *operands: Any) -> Any:
        """Compare and swap.

        Raises:
            LaunchError: always: no kernel needs it, and programs that wait for each other would
                need more than an order.
        """
        raise LaunchError("it uses an atomic operation, which the emulator does not run")

    create_atomic_rmw = create_atomic_cas

    def _checked(self, pointers: Any, mask: Any, *, writes: bool) -> Any:
        """`pointers` without the numbers of operands.

        Raises:
            AccessError: a lane of `mask` is outside of the buffer of its operand, or another
                program of the launch accesses what it does.
        """
        does = "writes" if writes else "reads"
        places = pointers.data
        used = places if mask is None else places[np.broadcast_to(mask.data, places.shape)]
        if not used.size:
            return pointers
        first, last = int(used.min()), int(used.max())
        number = first >> TAG_SHIFT
        tag = number << TAG_SHIFT
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        if not 1 <= number <= len(self.spans):
            raise AccessError(f"it {does} at {first:#x}, which no operand points to")
        begin, end, name = self.spans[number - 1]
        if first - tag < begin or last - tag + size > end:
            raise AccessError(
                f"it {does} bytes {first - tag - begin} to {last - tag - begin + size} of the "
                f"buffer of `{name}`, which has {end - begin}"
            )
        wrong = self.races.check(used - np.uint64(tag), size, places.size, writes)
        if wrong is not None:
            raise AccessError(f"it {does} in the buffer of `{name}` {wrong}")
        return TensorHandle(places - np.uint64(tag), pointers.dtype)


_BUILDER = CheckedBuilder()
_SEMANTIC = FastSemantic(_BUILDER)


def run(
    source: TritonSource,
    arguments: Sequence[Pointer | int | float],
    grid: tuple[int, int, int],
    wave: int,
) -> None:
    """Run every program of a launch, in an order that no kernel may rely on.

    Args:
        source: of the kernel.
        arguments: what its signature takes, in order.
        grid: programs along each axis.
        wave: lanes of a wave.

    Raises:
        AccessError: it accesses memory outside of the buffers of its operands.
        LaunchError: it raises anything else.
    """
    given: dict[str, Any] = dict(source.constants)
    spans: list[tuple[int, int, str]] = []
    for (name, kind), value in zip(source.signature, arguments, strict=True):
        if isinstance(value, Pointer):
            spans.append((value.begin, value.end, name))
            given[name] = _pointer(value.address + (len(spans) << TAG_SHIFT), kind)
        else:
            given[name] = _number(value, kind)
    function = _interpreted(triton_function(source).fn)
    if set(given) != set(inspect.signature(function).parameters):
        raise LaunchError(
            f"`{source.function}` is not the function that the code was made of",
            hint="compile the artifact again with this version of fusec",
        )
    _BUILDER.spans = spans
    lanes = source.warps * wave if source.warps > 1 else 0
    _BUILDER.races = Races([span[:2] for span in spans], _smallest(source), lanes)
    _BUILDER.set_grid_dim(*grid)
    with interpreting(_SEMANTIC, _call), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for number in np.random.default_rng(0).permutation(grid[0] * grid[1] * grid[2]):
            x, y, z = (int(index) for index in np.unravel_index(number, grid))
            _BUILDER.set_grid_idx(x, y, z)
            _BUILDER.races.program = int(number)
            try:
                function(**given)
            except Exception as error:
                raise _located(error, source, (x, y, z)) from error


def _smallest(source: TritonSource) -> int:
    """Bytes of the smallest element that an operand has."""
    kinds = [tl.str_to_ty(kind, None) for _, kind in source.signature if kind.startswith("*")]
    return min((max(1, kind.element_ty.primitive_bitwidth // 8) for kind in kinds), default=1)


def _located(error: Exception, source: TritonSource, program: tuple[int, ...]) -> FusecError:
    kind = AccessError if isinstance(error, AccessError) else LaunchError
    what = str(error) if isinstance(error, FusecError) else repr(error)
    message = f"`{source.function}` fails in program {program}: {what}"
    return kind(message, detail=(str(dict(source.constants)),))


def _pointer(address: int, kind: str) -> Any:
    pointed = tl.str_to_ty(kind, None)
    return tl.tensor(TensorHandle(np.array([address], np.uint64), pointed), pointed)


def _number(value: int | float, kind: str) -> Any:
    ours, numpys = NUMBERS[kind]
    return tl.tensor(TensorHandle(np.array([value], numpys), ours), ours)


@cache
def _interpreted(function: Any) -> Any:
    """The Python function `function`, rewritten so that what it assigns are tensors."""
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    tree = ast.fix_missing_locations(ASTTransformer().visit(tree))
    ast.increment_lineno(tree, first - 1)
    namespace = {
        **vars(interpreter),
        **function.__globals__,
        "interpreter_semantic": _SEMANTIC,
    }
    exec(compile(tree, inspect.getsourcefile(function) or "", "exec"), namespace)
    return namespace[definition.name]


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What calling a function of `triton.jit` does while a launch runs."""
    return _interpreted(function.fn)(*args, **kwargs)
