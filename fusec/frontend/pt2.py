"""Reads a `torch.export` archive without running anything that is in it.

`torch.export.load` unpickles sample inputs and weights, evaluates size expressions and executes
guards.  Here the archive is a ZIP of JSON and raw bytes: expressions and guards are read by
grammars of their own, pickled entries are refused, sample inputs are left alone, and weights are
mapped where they lie.  Source: torch/_export/serde/schema.py, version 8.
"""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fusec import symbolic
from fusec.diagnostics import InputError, ParseError, UnsupportedError
from fusec.dtypes import DTYPES
from fusec.frontend.aten import (
    Argument,
    AtenGraph,
    AtenInput,
    AtenNode,
    AtenOutput,
    AtenProgram,
    AtenSymbol,
    AtenTensor,
    AtenValue,
    Ref,
)
from fusec.frontend.zips import ZipMembers, open_zip
from fusec.ir.types import TensorType
from fusec.ir.weights import Bits, Weight, digest
from fusec.symbolic import Dim, Range

MAJOR = 8
NEWEST_MINOR = 20
MAX_JSON = 1 << 30
MAX_DEPTH = 64
UNBOUNDED = 1 << 62

SCALAR_TYPES: dict[int, str] = {
    1: "u8",
    2: "i8",
    3: "i16",
    4: "i32",
    5: "i64",
    6: "f16",
    7: "f32",
    8: "f64",
    9: "complex32",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bf16",
    28: "uint16",
    29: "f8e4m3fn",
    30: "f8e5m2",
    31: "f8e4m3fnuz",
    32: "float8_e5m2fnuz",
    33: "e8m0",
    34: "uint32",
    35: "uint64",
}
"""The enumeration `ScalarType`; PyTorch's names where fusec has none."""

LAYOUTS = {1: "sparse_coo", 2: "sparse_csr", 3: "sparse_csc", 6: "_mkldnn", 7: "strided"}
MEMORY_FORMATS = {
    1: "contiguous_format",
    2: "channels_last",
    3: "channels_last_3d",
    4: "preserve_format",
}

Json: TypeAlias = "Mapping[str, Any]"


@dataclass(frozen=True, slots=True)
class Archive:
    """What a `.pt2` file holds.

    Attributes:
        program: the exported program.
        guards: Python text of the conditions under which it was exported.
        shapes: the sizes of the inputs, by the text that guards use for each.
        hints: the size that each symbol had when it was exported.
        output_names: what the outputs are called.
        fingerprint: equal for equal archives.
        notes: what a person should know.
    """

    program: AtenProgram
    guards: tuple[str, ...]
    shapes: Mapping[str, tuple[Dim, ...]]
    hints: Mapping[str, int]
    output_names: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()


def read_pt2(path: Path) -> Archive:
    """Read the archive at `path`.

    Raises:
        InputError: it is damaged, of another schema version, or holds pickled entries.
        UnsupportedError: it holds something that a graph cannot, such as custom objects.
    """
    reader = _Reader(open_zip(path), path)
    try:
        return reader.archive()
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
        message = "the archive does not follow the `torch.export` schema"
        detail = (f"{type(error).__name__}: {error}",)
        raise InputError(message, at=str(path), detail=detail) from error
    except RecursionError:
        raise InputError("the archive nests deeper than any export", at=str(path)) from None


@dataclass(slots=True)
class _Reader:
    """One archive while it is read."""

    members: ZipMembers
    path: Path
    notes: list[str] = field(default_factory=list)
    hints: dict[str, int] = field(default_factory=dict)
    dims: dict[str, Dim | None] = field(default_factory=dict)
    payloads: dict[str, tuple[str, Json]] = field(default_factory=dict)

    def archive(self) -> Archive:
        name = self._model_name()
        program = self._json(f"models/{name}.json")
        self._check_version(program)
        self._find_payloads(name)
        module = program["graph_module"]
        signature = module["signature"]
        if "operator" in (program.get("verifiers") or ()):
            raise InputError("the archive is not of an ATen program", at=str(self.path))
        graph = _GraphReader(self, module["graph"]).graph()
        tensors = module["graph"]["tensor_values"]
        inputs = tuple(self._input(spec, tensors) for spec in signature["input_specs"])
        if len(inputs) != len(graph.inputs):
            raise InputError("the signature does not fit the graph", at=str(self.path))
        outputs = tuple(_output(spec) for spec in signature["output_specs"])
        if len(outputs) != len(graph.outputs):
            raise InputError("the signature does not fit the graph", at=str(self.path))
        users = [given for given, spec in zip(graph.outputs, outputs, strict=True) if _user(spec)]
        call = _call_signature(module)
        names = output_names(call.get("out_spec"), len(users))
        kept = [
            index
            for index, given in enumerate(graph.outputs)
            if not _user(outputs[index]) or isinstance(given, Ref)
        ]
        live = [name for name, given in zip(names, users, strict=True) if isinstance(given, Ref)]
        ranges: dict[str, Range] = {
            symbol: (max(int(held.get("min_val") or 0), 1), _bound(held.get("max_val")))
            for symbol, held in (program.get("range_constraints") or {}).items()
        }
        return Archive(
            AtenProgram(
                AtenGraph(graph.nodes, graph.inputs, tuple(graph.outputs[at] for at in kept)),
                inputs,
                tuple(outputs[at] for at in kept),
                ranges,
            ),
            tuple(str(guard) for guard in program.get("guards_code") or ()),
            guard_shapes(call.get("in_spec"), call.get("forward_arg_names"), inputs, graph.inputs),
            self.hints,
            tuple(live),
            self.members.fingerprint(),
            tuple(self.notes),
        )

    # --- the container ----------------------------------------------------------------------

    def _model_name(self) -> str:
        names = sorted(
            entry.removeprefix("models/").removesuffix(".json")
            for entry in self.members
            if entry.startswith("models/") and entry.endswith(".json")
        )
        if not names:
            raise InputError("the archive holds no exported program", at=str(self.path))
        if len(names) == 1:
            return names[0]
        listed = ", ".join(f"`{name}`" for name in names)
        if "model" not in names:
            hint = "save each program in an archive of its own"
            message = f"the archive holds {len(names)} programs: {listed}"
            raise InputError(message, at=str(self.path), hint=hint)
        self.notes.append(f"the archive holds {listed}; `model` is read")
        return "model"

    def _json(self, name: str) -> Json:
        try:
            held = json.loads(self.members.read(name, MAX_JSON))
        except (ValueError, RecursionError) as error:
            raise InputError(f"`{name}` is not sound JSON: {error}", at=str(self.path)) from None
        if not isinstance(held, dict):
            raise InputError(f"`{name}` is not a JSON object", at=str(self.path))
        return held

    def _check_version(self, program: Json) -> None:
        version = program["schema_version"]
        major, minor = int(version["major"]), int(version["minor"])
        if major != MAJOR:
            written = program.get("torch_version", "an unknown version")
            message = f"the archive has schema version {major}.{minor}, written by torch {written}"
            hint = f"version {MAJOR} is read: export again with torch 2.11 to 2.13, or update fusec"
            raise InputError(message, at=str(self.path), hint=hint)
        if minor > NEWEST_MINOR:
            known = f"{MAJOR}.{NEWEST_MINOR}"
            self.notes.append(f"the schema version {major}.{minor} is newer than {known}")

    def _find_payloads(self, name: str) -> None:
        order = self.members.read("byteorder", 16) if "byteorder" in self.members else b"little"
        if order.strip() != b"little":
            raise InputError("the archive's weights are not little-endian", at=str(self.path))
        for folder, kind in (("data/weights/", "weights"), ("data/constants/", "constants")):
            if f"{folder}{name}.pt" in self.members:
                message = f"the archive's {kind} are pickled, as older versions of torch wrote them"
                hint = "load it where you trust it, and save it again with `torch.export.save`"
                raise InputError(message, at=str(self.path), hint=hint)
            config = f"{folder}{name}_{kind}_config.json"
            if config not in self.members:
                continue
            for entry, held in self._json(config)["config"].items():
                if held.get("use_pickle") or held.get("tensor_meta") is None:
                    message = f"`{entry}` is a pickled object, which runs code when it is read"
                    hint = (
                        "weights have to be plain tensors: those of quantised modules are after "
                        "`program = program.run_decompositions({})`"
                    )
                    raise InputError(message, at=f"{self.path}: {config}", hint=hint)
                self.payloads[entry] = (folder, held)

    # --- the signature ----------------------------------------------------------------------

    def _input(self, spec: Json, tensors: Json) -> AtenInput:
        ((kind, held),) = spec.items()
        if kind == "user_input":
            ((form, value),) = held["arg"].items()
            if form in ("as_tensor", "as_sym_int"):
                return AtenInput("user", str(value.get("name", value.get("as_name"))))
            return AtenInput("fixed", form, None, None if form == "as_none" else value)
        if kind in ("parameter", "buffer", "tensor_constant"):
            name = str(held[f"{kind}_name"])
            return AtenInput("weight", name, self._weight(name, tensors[held["arg"]["name"]]))
        if kind == "constant_input":
            ((form, value),) = held["value"].items()
            return AtenInput("fixed", str(held["name"]), None, None if form == "as_none" else value)
        if kind == "token":
            return AtenInput("fixed", str(held["arg"]["name"]))
        hint = "export the model without custom objects"
        raise UnsupportedError(f"the program takes a `{kind}`", at=str(self.path), hint=hint)

    def _weight(self, name: str, declared: Json) -> Weight:
        if name not in self.payloads:
            raise InputError(f"the archive has no values for `{name}`", at=str(self.path))
        folder, held = self.payloads[name]
        meta = held["tensor_meta"]
        dtype = _dtype(meta["dtype"])
        if dtype not in DTYPES:
            raise UnsupportedError(f"`{name}` has the dtype `{dtype}`, which is not supported")
        shape, strides = _integers(meta["sizes"]), _integers(meta["strides"])
        if shape != _integers(declared["sizes"]) or dtype != _dtype(declared["dtype"]):
            raise InputError(f"the archive has two types for `{name}`", at=str(self.path))
        offset = _integer(meta["storage_offset"])
        begin, size = self.members.extent(folder + str(held["path_name"]))
        kind = TensorType(dtype, shape)
        lies = digest("pt2", str(self.path.absolute()), str(begin), str(offset), str(strides))
        identity = digest(lies, str(kind))
        if size == 0 and 0 not in shape:
            note = "the archive has no values for its weights, only names and shapes"
            if note not in self.notes:
                self.notes.append(note)
            return Weight(name, kind, None, identity)
        itemsize = DTYPES[dtype].itemsize
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if 0 not in shape and (last + 1) * itemsize > size:
            raise InputError(f"the bytes of `{name}` do not fit its shape", at=str(self.path))
        path, storage = self.path, DTYPES[dtype].numpy

        def read() -> Bits:
            if 0 in shape:
                return np.empty(shape, storage)
            flat = np.memmap(path, storage, "c", begin, (size // itemsize,))[offset:]
            steps = tuple(step * itemsize for step in strides)
            view = np.lib.stride_tricks.as_strided(flat, shape, steps)
            return np.ascontiguousarray(view).reshape(shape)

        return Weight(name, kind, read, identity)

    # --- sizes ------------------------------------------------------------------------------

    def size(self, held: Json) -> Dim:
        """A size, which has to be one that can be read."""
        ((form, value),) = held.items()
        if form == "as_int":
            return int(value)
        dim = self.expression(value)
        if dim is None:
            text = str(value["expr_str"])[:120]
            raise UnsupportedError(f"the size `{text}` is not an integer expression")
        return dim

    def expression(self, held: Json) -> Dim | None:
        """An expression over integers; `None` for any other."""
        text = str(held["expr_str"])
        if text not in self.dims:
            self.dims[text] = read_expression(text)
        dim = self.dims[text]
        hint = held.get("hint") or {}
        if isinstance(dim, symbolic.Expr) and isinstance(hint.get("as_int"), int):
            name = str(dim)
            if name.isidentifier():
                self.hints.setdefault(name, hint["as_int"])
        return dim


@dataclass(slots=True)
class _GraphReader:
    """One graph of the archive: names mean tensors and symbols of this graph alone."""

    reader: _Reader
    held: Json
    symbols: dict[str, AtenSymbol] = field(default_factory=dict)

    def graph(self) -> AtenGraph:
        for form in ("sym_int_values", "sym_bool_values", "sym_float_values"):
            for name, value in (self.held.get(form) or {}).items():
                self.symbols[name] = self._symbol(name, value, form == "sym_int_values")
        nodes = tuple(self._node(node) for node in self.held["nodes"])
        inputs = tuple(self._input(argument) for argument in self.held["inputs"])
        outputs = tuple(self._argument(argument) for argument in self.held["outputs"])
        return AtenGraph(nodes, inputs, outputs)

    def _symbol(self, name: str, held: Json, integer: bool) -> AtenSymbol:
        ((form, value),) = held.items()
        if form == "as_expr":
            dim = self.reader.expression(value) if integer else None
            return AtenSymbol(name, dim, str(value["expr_str"]))
        return AtenSymbol(name, int(value) if integer else None, str(value))

    def _input(self, argument: Json) -> AtenValue:
        ((form, value),) = argument.items()
        if form == "as_tensor":
            return self._tensor(value["name"])
        if form in ("as_sym_int", "as_sym_float", "as_sym_bool") and "as_name" in value:
            return self.symbols[value["as_name"]]
        return None

    def _tensor(self, name: str) -> AtenTensor:
        meta = self.held["tensor_values"][name]
        if meta["layout"] != 7:
            layout = LAYOUTS.get(meta["layout"], "unknown")
            raise UnsupportedError(f"`{name}` is a tensor of layout `{layout}`")
        shape = tuple(self.reader.size(size) for size in meta["sizes"])
        strides = tuple(self.reader.size(step) for step in meta["strides"])
        return AtenTensor(name, _dtype(meta["dtype"]), shape, strides)

    def _node(self, node: Json) -> AtenNode:
        args: list[Argument] = []
        kwargs: dict[str, Argument] = {}
        for given in node["inputs"]:
            value = self._argument(given["arg"])
            if given.get("kind") == 2:
                kwargs[str(given["name"])] = value
            else:
                args.append(value)
        outputs = tuple(value for held in node["outputs"] for value in self._outputs(held))
        metadata = node.get("metadata") or {}
        return AtenNode(
            str(node["target"]).removeprefix("torch.ops."),
            tuple(args),
            kwargs,
            outputs,
            module_path(str(metadata.get("nn_module_stack", ""))),
            source_line(str(metadata.get("stack_trace", ""))),
        )

    def _outputs(self, argument: Json) -> Iterator[AtenValue]:
        ((form, value),) = argument.items()
        if form == "as_tensors":
            yield from (self._tensor(entry["name"]) for entry in value)
        elif form == "as_optional_tensors":
            for entry in value:
                ((inner, held),) = entry.items()
                yield self._tensor(held["name"]) if inner == "as_tensor" else None
        elif form == "as_optional_tensor":
            ((inner, held),) = value.items()
            yield self._tensor(held["name"]) if inner == "as_tensor" else None
        elif form in ("as_sym_ints", "as_sym_floats", "as_sym_bools"):
            for entry in value:
                yield self.symbols[entry["as_name"]] if "as_name" in entry else None
        else:
            yield self._input(argument)

    def _argument(self, argument: Json) -> Argument:
        ((form, value),) = argument.items()
        match form:
            case "as_none":
                return None
            case "as_tensor":
                return Ref(str(value["name"]))
            case "as_tensors":
                return tuple(Ref(str(entry["name"])) for entry in value)
            case "as_nested_tensors":
                return tuple(tuple(Ref(str(e["name"])) for e in entries) for entries in value)
            case "as_optional_tensor":
                return self._optional(value)
            case "as_optional_tensors":
                return tuple(self._optional(entry) for entry in value)
            case "as_sym_int" | "as_sym_float" | "as_sym_bool":
                return self._number(value)
            case "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
                return tuple(self._number(entry) for entry in value)
            case "as_float":  # infinities and NaN are words
                return float(value)
            case "as_floats":
                return tuple(map(float, value))
            case "as_int" | "as_bool" | "as_string" | "as_operator":
                return value  # type: ignore[no-any-return]
            case "as_ints" | "as_bools" | "as_strings":
                return tuple(value)
            case "as_int_lists" | "as_float_lists":
                return tuple(tuple(entries) for entries in value)
            case "as_complex":
                return complex(value["real"], value["imag"])
            case "as_scalar_type":
                return _dtype(value)
            case "as_memory_format":
                return MEMORY_FORMATS[value]
            case "as_layout":
                return LAYOUTS[value]
            case "as_device":
                index = value.get("index")
                return str(value["type"]) if index is None else f"{value['type']}:{index}"
            case "as_graph":
                return _GraphReader(self.reader, value["graph"]).graph()
        hint = "export the model without custom objects"
        raise UnsupportedError(f"an argument `{form}` is not supported", hint=hint)

    def _optional(self, held: Json) -> Argument:
        ((form, value),) = held.items()
        return Ref(str(value["name"])) if form == "as_tensor" else None

    def _number(self, held: Json) -> Argument:
        ((form, value),) = held.items()
        if form != "as_name":
            return value  # type: ignore[no-any-return]
        known = self.symbols.get(value)
        return Ref(str(value)) if known is None or known.dim is None else known.dim


def _output(spec: Json) -> AtenOutput:
    ((kind, held),) = spec.items()
    if kind in ("user_output", "loss_output"):
        ((form, value),) = held["arg"].items() if kind == "user_output" else (("", held["arg"]),)
        name = value.get("name", "") if isinstance(value, dict) else form
        return AtenOutput("user", str(name))
    for key in ("buffer_name", "parameter_name", "user_input_name"):
        if key in held:
            return AtenOutput("mutation", str(held[key]))
    raise UnsupportedError(f"the program gives a `{kind}`", hint="export it for inference")


def _user(output: AtenOutput) -> bool:
    return output.kind == "user"


def _dtype(number: int) -> str:
    name = SCALAR_TYPES.get(number)
    if name is None:
        raise UnsupportedError(f"the archive has tensors of the unknown dtype {number}")
    return name


def _integers(held: Sequence[Json]) -> tuple[int, ...]:
    return tuple(_integer(entry) for entry in held)


def _integer(held: Json) -> int:
    value = held["as_int"]
    if type(value) is not int or not 0 <= value < UNBOUNDED:
        raise ValueError(f"{value!r} is not a size")
    return value


def _bound(value: object) -> int | None:
    return value if isinstance(value, int) and value < UNBOUNDED else None


def module_path(stack: str) -> str:
    """The innermost module of `key,path,class;key,path,class`."""
    parts = stack.rpartition(";")[2].split(",")
    return parts[1] if len(parts) > 2 else ""


def source_line(trace: str) -> str:
    """The innermost file and line of a stack trace, without the folders of a machine."""
    found = re.findall(r'File "([^"\n]+)", line (\d+)', trace)
    if not found:
        return ""
    file, line = found[-1]
    _, packages, inside = file.rpartition("site-packages/")
    return f"{inside if packages else file.rpartition('/')[2]}:{line}"


# --- names of inputs and outputs ------------------------------------------------------------


def _call_signature(module: Json) -> Json:
    for entry in module.get("module_call_graph") or ():
        if entry.get("fqn") == "":
            held: Json | None = entry.get("signature")
            return held or {}
    return {}


def _spec(text: object) -> Json | None:
    """A serialised tree of containers."""
    if not isinstance(text, str):
        return None
    try:
        _, held = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return held if isinstance(held, dict) else None


def _leaves(spec: Json, path: tuple[str | int, ...], depth: int) -> Iterator[tuple[str | int, ...]]:
    """The keys and positions that lead to each leaf."""
    children = spec.get("children_spec") or ()
    if spec.get("type") is None or depth > MAX_DEPTH:
        yield path
        return
    keys: Sequence[str | int] = range(len(children))
    context = spec.get("context")
    named = json.loads(context) if isinstance(context, str) else None
    if isinstance(named, list) and len(named) == len(children):
        keys = [key if isinstance(key, str | int) else str(key) for key in named]
    for key, child in zip(keys, children, strict=True):
        yield from _leaves(child, (*path, key), depth + 1)


def output_names(spec: object, count: int) -> tuple[str, ...]:
    """A name for each of `count` outputs.

    A mapping gives its keys, a position without a key its number: `logits`, `hidden_0`, `output_1`.

    Args:
        spec: the tree of the outputs, as `torch.utils._pytree.treespec_dumps` writes it.
        count: how many outputs there are.
    """
    read = _spec(spec)
    paths = list(_leaves(read, (), 0)) if read is not None else []
    if len(paths) != count:
        paths = [(index,) for index in range(count)]
    names: list[str] = []
    for path in paths:
        parts = [str(part) for part in path]
        if not path or isinstance(path[0], int):
            parts = ["output", *parts] if count > 1 else ["output"]
        name = re.sub(r"\W", "_", "_".join(parts))
        while name in names:
            name += "_"
        names.append(name)
    return tuple(names)


def guard_shapes(
    spec: object, arguments: object, inputs: Sequence[AtenInput], values: Sequence[AtenValue]
) -> dict[str, tuple[Dim, ...]]:
    """The sizes of the inputs by what guards call each input: `L['x']`, `L['xs'][0]`.

    Args:
        spec: the tree of `(args, kwargs)`, as `torch.utils._pytree.treespec_dumps` writes it.
        arguments: the names of the arguments of `forward`, in order.
        inputs: of the program; those that are no weights are the leaves of the tree.
        values: what each of `inputs` is.
    """
    leaves = [
        value
        for entry, value in zip(inputs, values, strict=True)
        if entry.kind in ("user", "fixed")
    ]
    read = _spec(spec)
    names = arguments if isinstance(arguments, list | tuple) else ()
    paths = list(_leaves(read, (), 0)) if read is not None else []
    shapes: dict[str, tuple[Dim, ...]] = {}
    if len(paths) != len(leaves):
        return shapes
    for path, value in zip(paths, leaves, strict=True):
        if not isinstance(value, AtenTensor) or len(path) < 2:
            continue
        side, first, *rest = path
        if side == 0:
            if not isinstance(first, int) or first >= len(names):
                continue
            first = names[first]
        shapes["L" + "".join(f"[{part!r}]" for part in (first, *rest))] = value.shape
        if side == 0 and (found := re.fullmatch(r"(\w+)_(\d+)", str(first))):  # of `*args`
            place = (found[1], int(found[2]), *rest)
            shapes.setdefault("L" + "".join(f"[{part!r}]" for part in place), value.shape)
    return shapes


# --- size expressions -----------------------------------------------------------------------

_TOKEN = re.compile(r"\s*(?:(-?\d+)|'([A-Za-z_]\w*|-?[\d.]+)'|([A-Za-z_]\w*)|([(),=*/%+-]))")

MAX_DIVISOR = 1 << 15
"""Numbers with a fraction are read where they are whole multiples of one part in so many."""


@dataclass(frozen=True, slots=True)
class _Real:
    """`top / by`, on the way to a size: floats that are exact for every size.

    So are sums and products of whole multiples of a power of two; a quotient by another number
    can only be rounded.
    """

    top: Dim
    by: int

    @staticmethod
    def of(value: Dim | _Real) -> _Real:
        """`value`, if one can reckon with it."""
        real = value if isinstance(value, _Real) else _Real(value, 1)
        if real.by & (real.by - 1) or real.by > MAX_DIVISOR:
            raise ParseError("a size is computed by floats that are not exact")
        return real

    def __add__(self, other: _Real) -> _Real:
        return _Real(self.top * other.by + other.top * self.by, self.by * other.by)

    def __mul__(self, other: _Real) -> _Real:
        return _Real(self.top * other.top, self.by * other.by)

    def over(self, other: _Real) -> _Real:
        """The quotient by a positive number."""
        if not isinstance(other.top, int) or other.top <= 0:
            raise ParseError("a size is divided by another one as floats")
        return _Real(self.top * other.by, self.by * other.top)

    def rounded(self, name: str) -> Dim:
        """The integer that is `FloorToInt`, `CeilToInt` or `TruncToInt` of it."""
        if name == "CeilToInt":
            return symbolic.ceil_divide(self.top, self.by)
        if name == "TruncToInt" and symbolic.bounds(self.top, {})[0] < 0:
            raise ParseError("a size is cut off a number that may be negative")
        return symbolic.floor_divide(self.top, self.by)


def read_expression(text: str) -> Dim | None:
    """An expression as sympy's `srepr` writes it, or in plain infix; `None` if it is neither."""
    if "(" not in text:
        return _infix(text)
    if len(text) > symbolic.MAX_TEXT * 16:
        return None
    tokens: list[str] = []
    position = 0
    while position < len(text.rstrip()):
        found = _TOKEN.match(text, position)
        if found is None:
            return _infix(text)
        tokens.append(found.group().strip())
        position = found.end()
    try:
        dim, end = _call(tokens, 0, 0)
    except (ParseError, IndexError, ValueError):
        return _infix(text)
    return dim if end == len(tokens) and not isinstance(dim, _Real) else _infix(text)


def _infix(text: str) -> Dim | None:
    try:
        return symbolic.parse_dim(text)
    except ParseError:
        return None


def _call(tokens: Sequence[str], at: int, depth: int) -> tuple[Dim | _Real, int]:
    """`Name(argument, ..., keyword=word)` from token `at`, and the token after it."""
    if depth > MAX_DEPTH:
        raise ParseError("a size expression nests too deeply")
    name = tokens[at]
    if tokens[at + 1] != "(":
        raise ParseError(f"unexpected `{name}`")
    at += 2
    if name in ("Symbol", "Integer", "Float"):
        first = tokens[at]
        while tokens[at] != ")":
            at += 1
        if name == "Float":
            return _Real(*Fraction(float(first.strip("'"))).as_integer_ratio()), at + 1
        value: Dim = symbolic.symbol(first.strip("'")) if name == "Symbol" else int(first)
        if name == "Symbol" and not first.strip("'").isidentifier():
            raise ParseError(f"`{first}` is not a name")
        return value, at + 1
    arguments: list[Dim | _Real] = []
    while tokens[at] != ")":
        argument, at = _call(tokens, at, depth + 1)
        arguments.append(argument)
        at += tokens[at] == ","
    return _combined(name, arguments), at + 1


def _combined(name: str, arguments: Sequence[Dim | _Real]) -> Dim | _Real:
    if name in ("FloorToInt", "CeilToInt", "TruncToInt"):
        (argument,) = arguments
        return argument.rounded(name) if isinstance(argument, _Real) else argument
    if name in ("ToFloat", "FloatTrueDiv", "IntTrueDiv"):
        first, *others = map(_Real.of, arguments)
        return first.over(*others) if others else first
    if name in ("Add", "Mul") and any(isinstance(argument, _Real) for argument in arguments):
        reals = map(_Real.of, arguments)
        return functools.reduce(_Real.__add__ if name == "Add" else _Real.__mul__, reals)
    dims = [argument for argument in arguments if not isinstance(argument, _Real)]
    if len(dims) != len(arguments):
        raise ParseError(f"`{name}` of numbers that are not integers")
    if name == "Add":
        return functools.reduce(operator.add, dims)
    if name == "Mul":
        return symbolic.product(dims)
    if name == "Pow" and len(dims) == 2 and isinstance(dims[1], int):
        if not 0 <= dims[1] <= symbolic.MAX_POWER:
            raise ParseError("the exponent of a size is too large")
        return symbolic.product([dims[0]] * dims[1])
    if name not in symbolic.FUNCTIONS or (name not in ("Min", "Max") and len(dims) != 2):
        raise ParseError(f"unknown function `{name}`")
    return symbolic.FUNCTIONS[name](*dims)
