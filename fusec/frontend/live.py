"""Export of live modules: named sizes shared between inputs, and an account of what was promised.

`torch.export` may refuse a named size, or specialise it.  The order of what is tried: named sizes;
the same with guards turned into run-time assertions; sizes found automatically, with the limits
read from the guards (`fusec.frontend.guards`).  Whatever is promised in the end is what the
program was shown to hold for; a range that a person asked for is never cut in silence.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from fusec.diagnostics import InputError, UsageError
from fusec.frontend.dims import DimSpec, range_text

Axes: TypeAlias = Mapping[int, str]
"""The names of the dynamic axes of one input."""

BATCH_SAMPLES = (3, 5, 7, 11, 13)
SAMPLES = (37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127)
SHOWN = 400
"""Characters of an exporter's message that are shown."""

EXPORT_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) + (
    NotImplementedError,
    AssertionError,
    ImportError,
    NameError,
)
"""What `torch.export` and the code of a model raise; UserError of dynamo is a RuntimeError."""


@dataclass(frozen=True, slots=True)
class Call:
    """How a module is called.

    Attributes:
        args: positional arguments: tensors, containers of tensors, or constants.
        kwargs: arguments by name.
        shapes: for each argument, positional ones first, the names of its dynamic axes: a mapping
            for a tensor, a container of mappings for a container, `None` for static.
        specs: the range of each name.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    shapes: tuple[Any, ...] = ()
    specs: Mapping[str, DimSpec] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported module.

    Attributes:
        program: what `torch.export` gave.
        names: of the symbols that it made, those a person knows.
        notes: what was promised otherwise than asked, in sentences.
    """

    program: torch.export.ExportedProgram
    names: Mapping[str, str]
    notes: tuple[str, ...] = ()


def export_module(module: nn.Module, call: Call) -> Exported:
    """Export `module` in evaluation mode, with the dynamic sizes of `call`.

    Raises:
        InputError: the module cannot be exported, or not with a size that a person asked for.
    """
    static = {name: spec.static for name, spec in call.specs.items() if spec.static is not None}
    dynamic = [name for name in call.specs if name not in static]
    notes: list[str] = []
    if not dynamic:
        return Exported(_export(module, call, {}, deferred=False), {})
    refusal = ""
    for deferred in (False, True):
        named = {name: _named(name, call.specs[name]) for name in dynamic}
        try:
            program = _export(module, call, named, deferred=deferred)
        except _DimsRefusedError as error:
            refusal = refusal or str(error)
            continue
        return Exported(program, _symbol_names(program, call), tuple(notes))
    automatic = {name: torch.export.Dim.AUTO for name in dynamic}
    program = _export(module, call, automatic, deferred=False)
    notes.append(f"`torch.export` refused the named sizes: {_short(refusal)}")
    return Exported(program, _symbol_names(program, call), tuple(notes))


class _DimsRefusedError(Exception):
    """`torch.export` would not keep a named size dynamic."""


def _named(name: str, spec: DimSpec) -> Any:
    return torch.export.Dim(name, min=spec.minimum, max=spec.maximum)


def _export(
    module: nn.Module, call: Call, named: Mapping[str, Any], *, deferred: bool
) -> torch.export.ExportedProgram:
    shapes = tuple(_with_dims(entry, named) for entry in call.shapes)
    positional = len(call.args)
    spread: Any = None
    if named:
        by_name = dict(zip(call.kwargs, shapes[positional:], strict=True))
        spread = (*shapes[:positional], *by_name.values()) if not call.kwargs else by_name
        if call.kwargs and positional:
            spread = {**dict(zip(_names(module, positional), shapes, strict=False)), **by_name}
    try:
        with quiet(), evaluating(module):
            return torch.export.export(
                module,
                call.args,
                dict(call.kwargs),
                dynamic_shapes=spread,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=deferred,
            )
    except EXPORT_FAILURES as error:
        text = str(error)
        if named and _about_dims(text):
            raise _DimsRefusedError(text) from None
        kind = type(module).__name__
        hint = "`torch.export.export(module, args)` has to accept the model"
        message = f"`torch.export` cannot export `{kind}`: {_short(text) or type(error).__name__}"
        raise InputError(message, hint=hint) from error


def _about_dims(text: str) -> bool:
    words = ("Constraints violated", "specialized", "Specializations", "marked", "dynamic_shapes")
    return any(word in text for word in words)


def _with_dims(entry: Any, named: Mapping[str, Any]) -> Any:
    if entry is None:
        return None
    if isinstance(entry, Mapping):
        if all(isinstance(axis, int) for axis in entry):
            return {axis: named[name] for axis, name in entry.items() if name in named}
        return {key: _with_dims(part, named) for key, part in entry.items()}
    return type(entry)(_with_dims(part, named) for part in entry)


def _names(module: nn.Module, count: int) -> list[str]:
    import inspect

    return list(inspect.signature(module.forward).parameters)[:count]


def _symbol_names(program: torch.export.ExportedProgram, call: Call) -> dict[str, str]:
    """The names a person gave, by the symbols that `torch.export` made."""
    wanted: list[Axes | None] = []
    flat_inputs, _ = torch.utils._pytree.tree_flatten((call.args, dict(call.kwargs)))
    leaves = list(_axes_of((call.args, call.kwargs), call.shapes))
    del flat_inputs
    wanted.extend(leaves)
    users = set(program.graph_signature.user_inputs)
    names: dict[str, str] = {}
    position = 0
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in users:
            continue
        axes = wanted[position] if position < len(wanted) else None
        position += 1
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not axes:
            continue
        for axis, name in axes.items():
            size = value.shape[axis]
            if isinstance(size, torch.SymInt):
                text = str(size.node.expr)
                if re.fullmatch(r"[A-Za-z_]\w*", text):
                    names[text] = name
    return names


def _axes_of(call: tuple[tuple[Any, ...], Mapping[str, Any]], shapes: Sequence[Any]) -> Iterator[
    Axes | None
]:
    """The axes of every leaf, in the order in which `torch.export` flattens the arguments."""
    args, kwargs = call
    for value, entry in zip((*args, *kwargs.values()), shapes, strict=True):
        yield from _leaf_axes(value, entry)


def _leaf_axes(value: Any, entry: Any) -> Iterator[Axes | None]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _leaf_axes(value[key], None if entry is None else entry[key])
    elif isinstance(value, list | tuple):
        for position, part in enumerate(value):
            yield from _leaf_axes(part, None if entry is None else entry[position])
    elif value is not None:
        yield entry


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in evaluation mode and without gradients; every submodule as before afterwards."""
    before = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in before:
            part.training = True


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that exporters print about their own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def sample_sizes(specs: Mapping[str, DimSpec], taken: set[int]) -> dict[str, int]:
    """A size to export with for each name: at least 2 and unlike any size in `taken`.

    A size of 0 or 1, or one that equals a size of the model, would be mistaken for a constant.
    """
    sizes: dict[str, int] = {}
    used = set(taken)
    for name, spec in specs.items():
        static = spec.static
        if static is not None:
            sizes[name] = static
            continue
        preferred = BATCH_SAMPLES if name == "batch" else SAMPLES
        fits = [size for size in (*preferred, *SAMPLES, *BATCH_SAMPLES) if _within(size, spec)]
        free = [size for size in fits if size not in used]
        if spec.optimum is not None and spec.optimum >= 2 and spec.optimum not in used:
            free.insert(0, spec.optimum)
        lowest = max(2, spec.minimum)
        choice = free[0] if free else (fits[0] if fits else lowest)
        if not _within(choice, spec):
            raise UsageError(
                f"the size `{name}` is dynamic in {range_text(spec.range)}, which has no value to "
                "export with",
                hint=f"give it one value, `{name}=1`, or a maximum of at least 2",
            )
        sizes[name] = choice
        used.add(choice)
    return sizes


def _within(size: int, spec: DimSpec) -> bool:
    return spec.minimum <= size and (spec.maximum is None or size <= spec.maximum)


def sizes_of(module: nn.Module) -> set[int]:
    """Every size of every parameter and buffer of `module`."""
    tensors = [*module.parameters(), *module.buffers()]
    return {size for tensor in tensors for size in tensor.shape}


def _short(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    joined = " ".join(lines).rstrip(".")
    return joined if len(joined) <= SHOWN else joined[:SHOWN] + "..."
