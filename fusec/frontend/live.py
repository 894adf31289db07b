"""Export of live modules: named sizes shared between inputs, and an account of what was promised.

`torch.export` may refuse a named size, or specialise it.  The order of what is tried: named sizes;
the same with guards turned into run-time assertions; sizes found automatically, with the limits
read from the guards (`fusec.frontend.guards`).  Whatever is promised in the end is what the
program was shown to hold for; a range that a person asked for is never cut in silence.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import re
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch._decomp import get_decompositions
from torch.export import _trace
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

import fusec
from fusec.diagnostics import InputError, UsageError
from fusec.frontend.aten import AtenProgram
from fusec.frontend.dims import RESERVED, DimRequest, DimSpec, dim_specs, range_text
from fusec.frontend.pt2 import guard_shapes, source_line
from fusec.frontend.translate import AUTOCAST
from fusec.symbolic import Dim

Axes: TypeAlias = Mapping[int, str]
"""The names of the dynamic axes of one input."""

BATCH_SAMPLES = (3, 5, 7, 11, 13)
SAMPLES = (37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127)
MAX_CONSTANT = 256
SHOWN = 240
"""Characters of an exporter's message that are shown."""

EXPORT_FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
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
    automatic: set[str] = set()
    while True:
        named = {
            name: torch.export.Dim.AUTO if name in automatic else _named(name, call.specs[name])
            for name in dynamic
        }
        refusals: list[str] = []
        for deferred in (False, True):
            try:
                program = _export(module, call, named, deferred=deferred)
            except _DimsRefusedError as error:
                refusals.append(str(error))
                continue
            return Exported(program, _symbol_names(program, call), tuple(notes))
        refused = (_names_in(refusals[0], dynamic) or set(dynamic)) - automatic
        if not refused:
            message = f"`torch.export` refuses the dynamic sizes: {_short(refusals[0])}"
            raise InputError(message, hint="give them one value each, such as `batch=1`")
        listed = ", ".join(f"`{name}`" for name in sorted(refused))
        notes.append(f"`torch.export` does not keep {listed} in its range: {_short(refusals[0])}")
        automatic |= refused


def _names_in(refusal: str, names: Sequence[str]) -> set[str]:
    """The sizes that a refusal of `torch.export` is about."""
    listed = re.findall(r"Constraints violated \(([^)]*)\)", refusal)
    said = {name.strip() for entry in listed for name in entry.split(",")}
    said |= set(re.findall(r"You marked (\w+) as dynamic", refusal))
    return said & set(names)


class _DimsRefusedError(Exception):
    """`torch.export` would not keep a named size dynamic."""


def _named(name: str, spec: DimSpec) -> Any:
    return torch.export.Dim(name, min=spec.minimum, max=spec.maximum)


def _export(
    module: nn.Module, call: Call, named: Mapping[str, Any], *, deferred: bool
) -> torch.export.ExportedProgram:
    values = (*call.args, *call.kwargs.values())
    shapes = [
        _with_dims(value, entry, named) for value, entry in zip(values, call.shapes, strict=True)
    ]
    # Code that makes tensors without saying where is met by a second attempt, with meta as default.
    first = next(module.parameters(), None)
    on_meta = first is not None and first.device.type == "meta"
    places: list[AbstractContextManager[object]] = [nullcontext()]
    places += [torch.device("meta")] if on_meta else []
    failure: BaseException | None = None
    for place in places:
        try:
            with (
                quiet(),
                evaluating(module),
                _naming(module, call.kwargs),
                _ConstantsOnMeta(),
                place,
            ):
                program = torch.export.export(
                    module,
                    call.args,
                    dict(call.kwargs),
                    dynamic_shapes=_by_parameter(module, call, shapes) if named else None,
                    strict=False,
                    prefer_deferred_runtime_asserts_over_guards=deferred,
                )
                return unwrapped(program)
        except EXPORT_FAILURES as error:
            if named and _about_dims(str(error)):
                raise _DimsRefusedError(str(error)) from None
            failure = failure or error
            if "device" not in str(error):
                break
    assert failure is not None
    kind = type(module).__name__
    hint = "`torch.export.export(module, args)` has to accept the model"
    why = _short(str(failure)) or type(failure).__name__
    if isinstance(failure, GuardOnDataDependentSymNode):
        why = f"a branch or a loop is data-dependent, by `{failure.cond}`, and no graph holds it"
        hint = "let that line compute all elements alike, for example with a mask, not a selection"
    elif "Unsupported input type" in why or "not a known type" in why:
        hint = "export a module around the model that takes and returns tensors, and makes of them "
        hint += "what else the model takes, such as a cache of keys and values"
    message = f"`torch.export` cannot export `{kind}`: {why}"
    raise InputError(message, at=_line_of_model(failure), hint=hint) from failure


def _line_of_model(failure: BaseException) -> str | None:
    """The innermost line on the way to `failure` that is of neither PyTorch, Python nor fusec."""
    folders = tuple(str(Path(file).parent) for file in (torch.__file__, fusec.__file__))
    python = str(Path(inspect.__file__).parent)
    lines = [
        f'File "{frame.filename}", line {frame.lineno}'
        for frame in traceback.extract_tb(failure.__traceback__)
        if not frame.filename.startswith((*folders, "<"))
        and ("site-packages" in frame.filename or not frame.filename.startswith(python))
    ]
    return source_line(lines[-1]) if lines else None


def _about_dims(text: str) -> bool:
    words = (
        "Constraints violated",
        "Expected op to be",  # a bound of a size that is no integer, as `batch < 64/3`
        "specialized",
        "Specializations",
        "marked",
        "dynamic_shapes",
    )
    return any(word in text for word in words)


def _with_dims(value: Any, entry: Any, named: Mapping[str, Any]) -> Any:
    """The dynamic axes of `value` in a container of its form, which `torch.export` insists on."""
    dims = [
        axes and {axis: named[name] for axis, name in axes.items() if name in named}
        for axes in _leaf_axes(value, entry)
    ]
    return pytree.tree_unflatten(dims, pytree.tree_structure(value))


def _names(module: nn.Module, count: int) -> list[str]:
    return list(inspect.signature(module.forward).parameters)[:count]


@contextmanager
def _naming(module: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """`forward` has parameters called `names`, for `torch.export` fails for `**kwargs`."""
    forward = module.forward
    parameters = dict(inspect.signature(forward).parameters)
    unnamed = [name for name in names if name not in parameters]
    if not unnamed:
        yield
        return
    kept = [each for each in parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in unnamed]

    def named(*args: object, **kwargs: object) -> object:
        return forward(*args, **kwargs)

    named.__signature__ = inspect.Signature([*kept, *added])  # type: ignore[attr-defined]
    own = "forward" in vars(module)
    module.forward = named
    try:
        yield
    finally:
        if own:
            module.forward = forward
        else:
            del module.forward


def _by_parameter(module: nn.Module, call: Call, shapes: Sequence[Any]) -> dict[str, Any]:
    """`shapes` by the parameters of `forward`, as `torch.export` wants; `*args` is one of them."""
    positional = len(call.args)
    by_name = dict(zip(call.kwargs, shapes[positional:], strict=True))
    bound = inspect.signature(module.forward).bind(*shapes[:positional], **by_name)
    return dict(bound.arguments)


def _symbol_names(program: torch.export.ExportedProgram, call: Call) -> dict[str, str]:
    """The names a person gave, by the symbols that `torch.export` made."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    specs = program.graph_signature.input_specs
    users = [
        node
        for node, spec in zip(placeholders, specs, strict=True)
        if spec.kind == InputKind.USER_INPUT
    ]
    names: dict[str, str] = {}
    for node, axes in zip(users, _axes_of((call.args, call.kwargs), call.shapes), strict=True):
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


def _axes_of(
    call: tuple[tuple[Any, ...], Mapping[str, Any]], shapes: Sequence[Any]
) -> Iterator[Axes | None]:
    """The axes of every leaf, in the order in which `torch.export` flattens the arguments."""
    args, kwargs = call
    for value, entry in zip((*args, *kwargs.values()), shapes, strict=True):
        yield from _leaf_axes(value, entry)


def _leaf_axes(value: Any, entry: Any) -> Iterator[Axes | None]:
    if entry is None:
        yield from itertools.repeat(None, pytree.tree_structure(value).num_leaves)
    elif isinstance(value, Mapping | list | tuple):
        parts = dict(value) if isinstance(value, Mapping) else dict(enumerate(value))
        entries = dict(enumerate(entry)) if isinstance(entry, list | tuple) else entry
        if parts.keys() != entries.keys():
            hint = "write a container of the same form, or `None` for no dynamic axes"
            raise UsageError(f"`{entry}` does not fit an input of {len(parts)} parts", hint=hint)
        for key, part in parts.items():
            yield from _leaf_axes(part, entries[key])
    elif isinstance(entry, Mapping):
        yield entry
    else:
        hint = 'name the axes of a tensor: `{"x": {0: "batch"}}`'
        raise UsageError(f"`{entry}` does not name the axes of an input", hint=hint)


class _ConstantsOnMeta(TorchFunctionMode):
    """Makes numbers that code puts on the meta device nodes; as constants they lose their values.

    These are `torch.tensor(number, device=x.device)` and lists in an index.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.scalar_tensor) and args:
            device = given.get("device")
            if device is not None and torch.device(device).type == "meta":
                numbers = _numbers(args[0])
                if numbers is not None and len(numbers) <= MAX_CONSTANT:
                    return _nodes(args[0], numbers, given.get("dtype"))
        if func is torch.Tensor.__getitem__ and args[0].device.type == "meta":
            args = (args[0], _without_lists(args[1]))
        return func(*args, **given)


def _without_lists(index: Any) -> Any:
    """An index in which lists of numbers, such as in `x[:, [0]]`, are tensors."""
    if isinstance(index, tuple):
        return tuple(_without_lists(part) for part in index)
    numbers = _numbers(index) if isinstance(index, list) else None
    return index if not numbers else _nodes(index, numbers, None)


def _numbers(data: Any) -> list[bool | int | float] | None:
    """The numbers in nested lists; `None` if there is anything else in them."""
    if type(data) in (bool, int, float):
        return [data]
    if not isinstance(data, list | tuple):
        return None
    parts = [_numbers(part) for part in data]
    found = [part for part in parts if part is not None]
    return [number for part in found for number in part] if len(found) == len(parts) else None


def _nodes(data: Any, numbers: Sequence[bool | int | float], dtype: Any) -> torch.Tensor:
    """A tensor of `numbers` on meta, made by operations that an export records."""
    if dtype is None:
        kinds = {type(number) for number in numbers} or {float}
        whole = torch.int64 if int in kinds else torch.bool
        dtype = torch.get_default_dtype() if float in kinds else whole
    parts = [torch.full((), number, dtype=dtype, device="meta") for number in numbers]
    if not isinstance(data, list | tuple):
        return parts[0]
    shape: list[int] = []
    while isinstance(data, list | tuple):
        shape.append(len(data))
        data = data[0] if data else None
    return torch.stack(parts).reshape(shape) if parts else torch.empty(shape, device="meta")


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
    """Without the warnings that exporters print about their own insides.

    Nor the graph up to a failure, hundreds of lines, which `torch.export` prints at any level.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    vars(_trace)["print"] = lambda *values, **options: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        vars(_trace).pop("print", None)
        logging.disable(before)


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
    causes = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    joined = " ".join(causes or lines).rstrip(".")
    return joined if len(joined) <= SHOWN else joined[:SHOWN] + "..."


# --- what callers need ----------------------------------------------------------------------


def guard_facts(
    program: torch.export.ExportedProgram, aten: AtenProgram
) -> tuple[tuple[str, ...], dict[str, tuple[Dim, ...]], dict[str, int]]:
    """The guards of an export, what their names for inputs mean, and the sizes at export."""
    guards = tuple(str(text) for text in getattr(program, "_guards_code", None) or ())
    hints: dict[str, int] = {}
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        for size in value.shape if isinstance(value, torch.Tensor) else ():
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and size.node.has_hint():
                hints[str(size.node.expr)] = int(size.node.hint)
    spec = program.call_spec.in_spec
    signature = program.module_call_graph[0].signature if program.module_call_graph else None
    names = getattr(signature, "forward_arg_names", None)
    try:
        text = pytree.treespec_dumps(spec) if spec is not None else None
    except NotImplementedError:
        text = None
    return guards, guard_shapes(text, names, aten.inputs, aten.graph.inputs), hints


def unwrapped(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program on the plain tensors in its weights, such as the codes and scales of torchao."""
    if not any(map(is_traceable_wrapper_subclass, program.state_dict.values())):
        return program
    with quiet():
        plain: torch.export.ExportedProgram = program.run_decompositions({})
    return plain


def decomposed(
    program: torch.export.ExportedProgram, targets: Iterable[str]
) -> torch.export.ExportedProgram | None:
    """The program with the operations `targets` taken apart; `None` if PyTorch can take none."""
    table: dict[Any, Any] = dict(torch.export.default_decompositions())
    table |= get_decompositions([torch.ops.aten.grid_sampler_2d])
    wanted = set(targets)
    chosen = {op: rule for op, rule in table.items() if str(op) in wanted}
    if not chosen and AUTOCAST not in wanted:
        return None
    try:
        with quiet():
            taken: torch.export.ExportedProgram = program.run_decompositions(chosen)
    except EXPORT_FAILURES:
        return None
    ordered = any(spec.kind is InputKind.TOKEN for spec in taken.graph_signature.input_specs)
    return None if ordered else taken  # rules that check what they made want an order of effects


def module_call(
    module: nn.Module,
    example_inputs: Any,
    dynamic_shapes: Any,
    dims: Mapping[str, DimRequest] | None,
) -> Call:
    """How to call a module that is not of transformers.

    Args:
        module: to export.
        example_inputs: a tensor, positional arguments, or arguments by name.
        dynamic_shapes: names for axes, as `torch.export.export` takes `Dim`s; `None` for the
            names in `dims` at their usual axes: `batch` at 0 and `seq` at 1.
        dims: ranges by name.

    Raises:
        UsageError: there are no example inputs, or a name in `dims` has no axis.
    """
    if example_inputs is None:
        kind = type(module).__name__
        hint = "give `example_inputs`; a factory may return `(module, example_inputs)`"
        raise UsageError(f"`{kind}` needs example inputs to be exported with", hint=hint)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, Mapping):
        kwargs = dict(example_inputs)
    elif isinstance(example_inputs, torch.Tensor):
        args = (example_inputs,)
    else:
        args = tuple(example_inputs)
    specs = dim_specs(dims)
    if dynamic_shapes is None:
        shapes = _usual_shapes((*args, *kwargs.values()), specs)
    else:
        listed = _listed_shapes(module, dynamic_shapes, len(args), list(kwargs))
        shapes = tuple(_axis_names(entry, specs) for entry in listed)
    sizes = sizes_at(args, kwargs, shapes)
    for name in specs:
        if name not in sizes:
            hint = '`dynamic_shapes={"x": {0: "' + name + '"}}` says which axis that is'
            raise UsageError(f"no axis of the inputs is called `{name}`", hint=hint)
    wanted = {}
    for name, size in sizes.items():
        if not (name.isidentifier() and name.isascii()) or name in RESERVED:
            reserved = ", ".join(f"`{word}`" for word in sorted(RESERVED))
            hint = f"take another word of letters, digits and `_`; reserved are {reserved}"
            raise UsageError(f"a size cannot be called `{name}`", hint=hint)
        spec = specs.setdefault(name, DimSpec())
        keep = size >= 2 and _within(size, spec) and spec.static is None
        wanted[name] = size if keep else sample_sizes({name: spec}, set())[name]
    resized = [
        _resized(value, entry, wanted)
        for value, entry in zip((*args, *kwargs.values()), shapes, strict=True)
    ]
    return Call(
        tuple(resized[: len(args)]),
        dict(zip(kwargs, resized[len(args) :], strict=True)),
        shapes,
        specs,
    )


def _usual_shapes(values: Sequence[Any], specs: Mapping[str, DimSpec]) -> tuple[Any, ...]:
    """`batch` at axis 0 and `seq` at axis 1 of every tensor that has the size of the first."""
    usual = {name: axis for name, axis in (("batch", 0), ("seq", 1)) if name in specs}
    sizes: dict[str, int] = {}

    def axes(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: axes(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(axes(part) for part in value)
        if not isinstance(value, torch.Tensor):
            return None
        held: dict[int, str] = {}
        for name, axis in usual.items():
            if value.ndim > axis and value.shape[axis] == sizes.setdefault(name, value.shape[axis]):
                held[axis] = name
        return held

    return tuple(axes(value) for value in values)


def _listed_shapes(
    module: nn.Module, dynamic_shapes: Any, positional: int, keywords: Sequence[str]
) -> list[Any]:
    """One entry for each argument, positional ones first."""
    if isinstance(dynamic_shapes, Mapping):
        names = [*_names(module, positional), *keywords]
        unknown = sorted(set(map(str, dynamic_shapes)) - set(names))
        if unknown:
            hint = "the inputs are " + ", ".join(f"`{name}`" for name in names)
            raise UsageError(f"`dynamic_shapes` names `{unknown[0]}`, not an input", hint=hint)
        return [dynamic_shapes.get(name) for name in names]
    entries = list(dynamic_shapes)
    if len(entries) != positional + len(keywords):
        message = f"`dynamic_shapes` has {len(entries)} entries for {positional + len(keywords)}"
        raise UsageError(f"{message} inputs")
    return entries


def _axis_names(entry: Any, specs: dict[str, DimSpec]) -> Any:
    """`entry` with names instead of `Dim`s; the range of a `Dim` counts unless one is asked for."""
    if entry is None:
        return None
    if isinstance(entry, Mapping) and all(isinstance(key, int) for key in entry):
        axes = ((axis, _axis_name(held, specs)) for axis, held in entry.items())
        return {axis: name for axis, name in axes if name is not None}
    if isinstance(entry, Mapping):
        return {key: _axis_names(part, specs) for key, part in entry.items()}
    parts = list(entry)
    if all(part is None for part in parts):
        return None
    if all(part is None or not isinstance(part, Mapping | list | tuple) for part in parts):
        return _axis_names(dict(enumerate(parts)), specs)
    return type(entry)(_axis_names(part, specs) for part in parts)


def _axis_name(held: Any, specs: dict[str, DimSpec]) -> str | None:
    if held is None or isinstance(held, int):
        return None
    name = held if isinstance(held, str) else getattr(held, "__name__", None)
    if not isinstance(name, str):
        hint = 'name the axis: `{"x": {0: "batch"}}`'
        raise UsageError(f"`{held}` does not name an axis", hint=hint)
    if hasattr(held, "root"):
        hint = "give the program that `torch.export.export(module, args, ...)` makes with it"
        raise UsageError(f"`{name}` is computed from a size, and is not the name of one", hint=hint)
    if not isinstance(held, str) and name not in specs:
        least, most = int(getattr(held, "min", 1)), getattr(held, "max", None)
        bounded = isinstance(most, int) and most < 1 << 40
        specs[name] = DimSpec(max(least, 1), None, most if bounded else None)
    return name


def sizes_at(
    args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Sequence[Any]
) -> dict[str, int]:
    """The size that each name has in the example inputs."""
    sizes: dict[str, int] = {}
    leaves, _ = pytree.tree_flatten((tuple(args), dict(kwargs)))
    for tensor, named in zip(leaves, _axes_of((tuple(args), kwargs), shapes), strict=True):
        for axis, name in (named or {}).items():
            if not isinstance(tensor, torch.Tensor) or axis >= tensor.ndim:
                raise UsageError(f"an input has no axis {axis} to be called `{name}`")
            size = int(tensor.shape[axis])
            if sizes.setdefault(name, size) != size:
                message = f"`{name}` is {sizes[name]} in one example input and {size} in another"
                raise UsageError(message)
    return sizes


def _resized(value: Any, entry: Any, sizes: Mapping[str, int]) -> Any:
    """`value` with its named axes repeated or cut to `sizes`."""
    if entry is None:
        return value
    if isinstance(value, Mapping):
        return {key: _resized(part, entry[key], sizes) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = zip(value, entry, strict=True)
        return type(value)(_resized(part, inner, sizes) for part, inner in parts)
    for axis, name in entry.items():
        if value.shape[axis] != sizes[name] and value.shape[axis]:
            places = torch.arange(sizes[name], device=value.device) % value.shape[axis]
            value = value.index_select(axis, places)
    return value
