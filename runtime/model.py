"""A loaded model: checks what a caller gives, runs it, gives numpy arrays back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import InputError, ParseError
from fusec.dtypes import DTYPES, DType, bf16_to_f32, f32_to_bf16
from fusec.runtime.artifact import Artifact, TensorSpec
from fusec.runtime.layout import StepTime, Storage, Watch
from fusec.runtime.probe import Probed
from fusec.symbolic import Dim, Expr, evaluate, symbols_of

Array = NDArray[np.generic]
Widen = Callable[[NDArray[np.uint16]], NDArray[np.float32]]
Narrow = Callable[[NDArray[np.float32]], NDArray[np.uint16]]

_NUMPY_NAMES = {
    "bfloat16": "bf16",
    "float8_e4m3fn": "f8e4m3fn",
    "float8_e4m3fnuz": "f8e4m3fnuz",
    "float8_e5m2": "f8e5m2",
    "float8_e8m0fnu": "e8m0",
}
"""Types of the `ml_dtypes` package, which share fusec's storage."""


class Runner(Protocol):
    """What runs a program: an executor of the CPU or of a device."""

    @property
    def threads(self) -> int | None:
        """Threads of the host that take part in a step; `None` on a device."""

    def run(
        self,
        inputs: Mapping[str, Storage],
        symbols: Mapping[str, int],
        times: list[StepTime] | None = None,
        watch: Watch | None = None,
    ) -> dict[str, Storage]:
        """Run it once."""

    def arena_bytes(self, symbols: Mapping[str, int]) -> int:
        """The size of the arena for these sizes of the inputs."""

    def probe(self) -> Probed:
        """What the machine gives at most."""

    def widened(self, bits: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Contiguous bf16 as f32."""

    def narrowed(self, values: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Contiguous f32 as bf16, rounded to nearest even."""

    def close(self) -> None:
        """Give everything back."""


class Model:
    """A model on one device; calls from several threads take turns.

    As a context it closes at the end.

    Attributes:
        artifact: what it was loaded from.
        target: of the artifact that runs.
        reason: why it is that target.
        inputs: names, dtypes and shapes, in order.
        outputs: names, dtypes and shapes, in order.
        symbols: inclusive range of each symbolic size.
    """

    def __init__(self, artifact: Artifact, target: str, executor: Runner, reason: str = "") -> None:
        self.artifact = artifact
        self.target = target
        self.reason = reason
        self.inputs = artifact.manifest.inputs
        self.outputs = artifact.manifest.outputs
        self.symbols = artifact.manifest.symbols
        self._executor = executor

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"<Model on {self.target}: ({inputs}) -> ({outputs})>"

    def __call__(self, **inputs: object) -> dict[str, Array]:
        """Run the model; see `run`."""
        return self.run(inputs)

    def run(self, inputs: Mapping[str, object]) -> dict[str, Array]:
        """Run the model.

        Integers may be given in a narrower type, floats for `f32` in a narrower one, and `float32`
        for `bf16` and `f16`, which rounds to nearest even.  `f8` types are given as raw bytes
        (`uint8`).  Nested lists of numbers take the type that is wanted.

        Args:
            inputs: an array, or something `numpy.asarray` takes, for each input.

        Returns:
            An array for each output; `bf16` comes as `float32`, `f8` types as `uint8`.

        Raises:
            InputError: an input is missing, unknown, or of a wrong dtype, rank or size, or holds
                an index outside of the table it indexes.
        """
        return self._run(inputs, None)

    def run_stored(self, inputs: Mapping[str, Storage]) -> dict[str, Storage]:
        """Run the model on arrays as they are stored, `bf16` as `uint16`; nothing is converted.

        Args:
            inputs: a contiguous array for each input, in the storage type of its dtype.

        Raises:
            InputError: as for `run`.
        """
        arrays = check_inputs(self.inputs, self.symbols, inputs, as_stored)
        return self._execute(arrays, None)

    def profile(self, inputs: Mapping[str, object]) -> tuple[dict[str, Array], list[StepTime]]:
        """Run the model and take the time of every step."""
        times: list[StepTime] = []
        return self._run(inputs, times), times

    def watch(self, inputs: Mapping[str, object], watch: Watch) -> dict[str, Array]:
        """Run the model step by step; `watch` may read its memory after each."""
        return self._run(inputs, None, watch)

    def arena_bytes(self, **sizes: int) -> int:
        """Bytes of intermediate values that a run needs at these sizes.

        Args:
            sizes: a value for each of `symbols`; one of a single value may be left out.

        Raises:
            InputError: a size is missing, is none of the model, or is outside of its range.
        """
        given = {name: low for name, (low, high) in self.symbols.items() if low == high} | sizes
        if given.keys() != self.symbols.keys():
            names = ", ".join(f"`{name}`" for name in self.symbols) or "none"
            raise InputError(f"the sizes that vary are {names}", hint="give each of them once")
        for name, size in given.items():
            _check_range(name, size, self.symbols[name])
        return self._executor.arena_bytes(given)

    @property
    def threads(self) -> int | None:
        """Threads that take part in a step; `None` on a GPU."""
        return self._executor.threads

    def probe(self) -> Probed:
        """Measure what the machine gives at most; takes up to two seconds."""
        return self._executor.probe()

    def close(self) -> None:
        """Give the memory of the device back; the model cannot run any more."""
        self._executor.close()

    def __enter__(self) -> Self:
        """The model itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _run(
        self,
        inputs: Mapping[str, object],
        times: list[StepTime] | None,
        watch: Watch | None = None,
    ) -> dict[str, Array]:
        narrowed, widened = self._executor.narrowed, self._executor.widened
        arrays = check_inputs(
            self.inputs, self.symbols, inputs, partial(to_storage, narrowed=narrowed)
        )
        outputs = self._execute(arrays, times, watch)
        return {spec.name: shown(spec.dtype, outputs[spec.name], widened) for spec in self.outputs}

    def _execute(
        self,
        arrays: Mapping[str, Storage],
        times: list[StepTime] | None,
        watch: Watch | None = None,
    ) -> dict[str, Storage]:
        symbols = bind_symbols(self.inputs, self.symbols, arrays)
        return self._executor.run(arrays, symbols, times, watch)


def check_inputs(
    specs: Sequence[TensorSpec],
    symbols: Mapping[str, tuple[int, int]],
    inputs: Mapping[str, object],
    converted: Callable[[TensorSpec, object], Storage] | None = None,
) -> dict[str, Storage]:
    """Every input as a contiguous array in the storage type of its dtype.

    Args:
        specs: of the inputs.
        symbols: ranges of their sizes.
        inputs: what was given.
        converted: turns one into that; by default `to_storage`.

    Raises:
        InputError: an input is missing or unknown, or has a wrong dtype or rank.
    """
    known = {spec.name: spec for spec in specs}
    if inputs.keys() != known.keys():
        raise _wrong_names(known, inputs)
    arrays: dict[str, Storage] = {}
    for name, spec in known.items():
        array = (converted or to_storage)(spec, inputs[name])
        check_rank(spec, array)
        arrays[name] = array
    return arrays


def _wrong_names(known: Mapping[str, TensorSpec], inputs: Mapping[str, object]) -> InputError:
    hint = f"the inputs are {', '.join(f'`{spec}`' for spec in known.values()) or 'none'}"
    unknown = next((name for name in inputs if name not in known), None)
    if unknown is not None:
        return InputError(f"there is no input `{unknown}`", hint=hint)
    missing = next(name for name in known if name not in inputs)
    return InputError(f"the input `{missing}` is missing", hint=hint)


def check_rank(spec: TensorSpec, array: Array) -> None:
    """Refuse an input with another number of dims.

    Raises:
        InputError: it has more or fewer.
    """
    if array.ndim != len(spec.shape):
        raise InputError(
            f"the input `{spec.name}` must have {len(spec.shape)} dims, `{_sizes(spec.shape)}`, "
            f"but {array.ndim} were given, `{_sizes(array.shape)}`",
            hint="reshape it, or add the dims that it lacks: `array[None]`",
        )


def bind_symbols(
    specs: Sequence[TensorSpec],
    symbols: Mapping[str, tuple[int, int]],
    arrays: Mapping[str, Array],
) -> dict[str, int]:
    """The value of every symbol, from the sizes of the inputs.

    Raises:
        InputError: a size is not the one compiled in, is out of range, or differs between inputs.
    """
    values: dict[str, int] = {}
    origin: dict[str, str] = {}
    later: list[tuple[TensorSpec, int, Expr]] = []
    for spec in specs:
        for axis, (dim, size) in enumerate(zip(spec.shape, arrays[spec.name].shape, strict=True)):
            if isinstance(dim, int):
                if size != dim:
                    raise _wrong_size(spec, axis, size, str(dim), arrays)
                continue
            name = _symbol(dim)
            if name is None:
                later.append((spec, axis, dim))
                continue
            _bind(name, size, spec.name, symbols, values, origin)
    for spec, axis, dim in later:
        size = arrays[spec.name].shape[axis]
        unbound = symbols_of(dim) - values.keys()
        if len(unbound) == 1:
            (name,) = unbound
            solved = _solve(dim, name, size, symbols[name], values)
            if solved is None:
                raise _wrong_size(spec, axis, size, str(dim), arrays)
            _bind(name, solved, spec.name, symbols, values, origin)
        elif _value(dim, values) != size:
            raise _wrong_size(spec, axis, size, f"{dim} = {_value(dim, values)}", arrays)
    for name, (low, high) in symbols.items():
        if name not in values and low == high:
            values[name] = low
    return values


@cache
def _symbol(dim: Expr) -> str | None:
    """The symbol that `dim` is, if it is no more than that."""
    name = str(dim)
    return name if symbols_of(dim) == {name} else None


def to_storage(spec: TensorSpec, value: object, narrowed: Narrow = f32_to_bf16) -> Storage:
    """`value` as a contiguous array in the storage type of `spec.dtype`.

    Args:
        spec: what is wanted.
        value: an array, or something that `numpy.asarray` takes.
        narrowed: rounds contiguous f32 to bf16.

    Raises:
        InputError: its type cannot be turned into that without loss.
    """
    dtype = DTYPES[spec.dtype]
    if type(value) is np.ndarray and value.dtype == dtype.numpy and dtype.name != "bf16":
        return np.require(value, requirements=["C", "A"]).reshape(value.shape)
    declared = hasattr(value, "dtype")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"the input `{spec.name}` is not an array: {error}") from None
    given = _NUMPY_NAMES.get(array.dtype.name)
    if given is not None:
        raw = np.ascontiguousarray(array).view(DTYPES[given].numpy).reshape(array.shape)
        if given == spec.dtype:
            return raw
        array = bf16_to_f32(raw.astype(np.uint16, copy=False)) if given == "bf16" else array
    converted = _converted(dtype, array, declared, narrowed)
    if converted is None:
        raise _wrong_dtype(spec, array, declared)
    shape = converted.shape
    return np.require(converted, dtype.numpy, ["C", "A"]).reshape(shape)


def as_stored(spec: TensorSpec, value: object) -> Storage:
    """`value`, which is a contiguous array in the storage type of `spec.dtype` already.

    Raises:
        InputError: it is something else.
    """
    dtype = DTYPES[spec.dtype].numpy
    if isinstance(value, np.ndarray) and value.dtype == dtype:
        if value.flags.c_contiguous and value.flags.aligned:
            return value
    given = getattr(value, "dtype", type(value).__name__)
    raise InputError(
        f"the input `{spec.name}` must be a contiguous array of {dtype}, but {given} was given"
    )


def shown(dtype: str, array: Storage, widened: Widen = bf16_to_f32) -> Array:
    """An output as callers get it: bf16 widened to float32."""
    if dtype == "bf16":
        return widened(array.view(np.uint16))
    return array


def _converted(dtype: DType, array: Array, declared: bool, narrowed: Narrow) -> Array | None:
    """`array` in the storage type of `dtype`, or `None` where that could lose something."""
    source = array.dtype
    if not declared and source.kind in "iuf" and dtype.is_float and dtype.bits >= 16:
        # Python's numbers have no precision of their own; nor has an empty list a type.
        array = array.astype(np.float64 if dtype.bits == 64 else np.float32)
        source = array.dtype
    if not declared and array.size == 0 and dtype.is_integer:
        return array.astype(dtype.numpy)
    if dtype.name == "bf16":
        if source.kind == "f" and source.itemsize <= 4:
            return narrowed(np.require(array, np.float32, ["C", "A"]).reshape(array.shape))
        return None
    if dtype.name == "f16" and source == np.float32:
        with np.errstate(over="ignore"):
            return array.astype(np.float16)
    if source == dtype.numpy:
        return array
    same_kind = source.kind in "iu" if dtype.is_integer else source.kind == "f" and dtype.is_float
    if not declared and dtype.is_integer and source.kind in "iu":
        limits = np.iinfo(str(dtype.numpy))
        if array.min() >= limits.min and array.max() <= limits.max:
            return array.astype(dtype.numpy)
    if same_kind and dtype.bits > 8 and np.can_cast(source, dtype.numpy, "safe"):
        return array.astype(dtype.numpy)
    return None


def _wrong_dtype(spec: TensorSpec, array: Array, declared: bool) -> InputError:
    dtype = DTYPES[spec.dtype]
    wanted = "float32" if spec.dtype == "bf16" else dtype.numpy.name
    hint = f"convert it: `.astype(numpy.{wanted})`"
    if not declared:
        words = {"int": "integers", "uint": "integers", "bool": "`true` or `false`"}
        hint = f"give a rectangular array of {words.get(dtype.kind, 'numbers')}"
    given = {"U": "text", "O": "something else"}.get(array.dtype.kind, str(array.dtype))
    return InputError(
        f"the input `{spec.name}` must be {spec.dtype}, but {given} was given", hint=hint
    )


def _wrong_size(
    spec: TensorSpec, axis: int, size: int, expected: str, arrays: Mapping[str, Array]
) -> InputError:
    return InputError(
        f"dim {axis} of the input `{spec.name}` must be {expected}, but it is {size}",
        hint=f"`{spec.name}` is `{_sizes(spec.shape)}`; "
        f"`{_sizes(arrays[spec.name].shape)}` was given",
    )


def _bind(
    name: str,
    size: int,
    source: str,
    symbols: Mapping[str, tuple[int, int]],
    values: dict[str, int],
    origin: dict[str, str],
) -> None:
    if values.setdefault(name, size) != size:
        raise InputError(
            f"`{name}` is {values[name]} in the input `{origin[name]}` but {size} in `{source}`",
            hint="inputs that share a size must agree on it",
        )
    origin.setdefault(name, source)
    _check_range(name, size, symbols[name], f" in the input `{source}`")


def _check_range(name: str, size: int, compiled_for: tuple[int, int], where: str = "") -> None:
    low, high = compiled_for
    if low <= size <= high:
        return
    hint = f"compile it with `--dim {name}={min(low, size)}:{max(high, size)}`"
    if size == 0:
        hint = f"ranges begin at 1; `--dim {name}=0` compiles an `.onnx` file for an empty one"
    message = f"`{name}` is {size}{where}, but the artifact was compiled for {low}..{high}"
    raise InputError(message, hint=hint)


def _solve(
    dim: Expr, name: str, size: int, range_: tuple[int, int], values: Mapping[str, int]
) -> int | None:
    """The value of the symbol that gives `size`, by bisection: sizes grow with their symbols."""
    low, high = range_
    while low < high:
        middle = (low + high) // 2
        if _value(dim, {**values, name: middle}) < size:
            low = middle + 1
        else:
            high = middle
    return low if _value(dim, {**values, name: low}) == size else None


def _value(dim: Dim, values: Mapping[str, int]) -> int:
    try:
        return evaluate(dim, values)
    except ParseError as error:
        raise InputError(f"the inputs do not fix the size `{dim}`: {error}") from None


def _sizes(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"
