"""Takes what a person names as a model, tells what it is, and makes a graph of it."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from fusec.diagnostics import FusecError, InputError, InternalError, UsageError, did_you_mean
from fusec.frontend import graph_cache
from fusec.frontend.aten import AtenProgram
from fusec.frontend.dims import DimRequest, DimSpec, dim_specs
from fusec.frontend.graph_cache import Store
from fusec.frontend.sniff import HOW_TO_EXPORT, UNPICKLED_UNDER_TRUST, Kind, refusal, sniff
from fusec.frontend.symbols import Promise, name_symbols, promise
from fusec.frontend.translate import build_graph, unknown_ops
from fusec.ir.graph import Graph
from fusec.ir.text import print_graph
from fusec.rewrite.decisions import Decision

if TYPE_CHECKING:
    from fusec.frontend.huggingface import Prepared
    from fusec.frontend.live import Call, Exported

_UNSOUND = (KeyError, TypeError, AttributeError, IndexError, ValueError)
"""What translating a program raises whose parts do not fit together."""

SourceKind = Literal["export", "onnx", "huggingface", "module"]
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
DTYPE_NAMES = ("f32", "bf16", "f16")

ExampleInputs: TypeAlias = Any
"""A tensor, a sequence of positional arguments, or a mapping of arguments by name."""

Report: TypeAlias = Callable[[str], None]
"""Is told what is being done, for a progress line."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model as fusec took it in.

    Attributes:
        kind: `export`, `onnx`, `huggingface` or `module`.
        name: of the file, the folder or the class.
        sha256: of the file; for a folder of its configuration and the headers of its weights; for
            an archive of its listing with checksums; for live code of the graph.
        graph: what it computes.
        decisions: fusions that the frontend made or refused.
        tokenizer_path: the folder's `tokenizer.json`.
        notes: what a person should know, in sentences.
        files: what it was read from beside what was named: files, or folders of them.
    """

    kind: SourceKind
    name: str
    sha256: str
    graph: Graph
    decisions: tuple[Decision, ...] = ()
    tokenizer_path: Path | None = None
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """What `load_source` was asked for; see there."""

    dims: Mapping[str, DimRequest] | None = None
    dtype: str | None = None
    attention_mask: bool = False
    trust_pickle: bool = False
    trust_remote_code: bool = False
    adapter: Path | None = None
    example_inputs: ExampleInputs = None
    dynamic_shapes: Any = None
    report: Report = lambda _: None
    store: Store | None = None


def load_source(
    source: Any,
    *,
    dims: Mapping[str, DimRequest] | None = None,
    dtype: str | None = None,
    attention_mask: bool = False,
    trust_pickle: bool = False,
    trust_remote_code: bool = False,
    adapter: Path | None = None,
    example_inputs: ExampleInputs = None,
    dynamic_shapes: Any = None,
    report: Report | None = None,
    store: Store | None = None,
) -> Source:
    """Make a graph of a model.

    Args:
        source: a path to a `.pt2` or `.pt` archive, an `.onnx` file or a Hugging Face folder;
            `package.module:factory`; a live `torch.nn.Module` or `ExportedProgram`.
        dims: the sizes to keep dynamic, by name, each with its range.  A model of transformers
            has `batch` and `seq`; an archive has those it was exported with.  For any other
            module `batch` is axis 0 of its inputs and `seq` axis 1, unless `dynamic_shapes` says
            which axes have which name; sizes not named are those of the example inputs.
        dtype: `f32`, `bf16` or `f16`, of weights and inputs that are floats; `None` for the dtype
            that the model has.
        attention_mask: whether a model of transformers takes a mask.
        trust_pickle: whether pickles may be loaded, which runs the code in them.
        trust_remote_code: whether code that comes with a model folder may be run.
        adapter: a folder of PEFT with a LoRA adapter for a model folder.
        example_inputs: for a live module or a pickled one: a tensor, positional arguments, or
            arguments by name.
        dynamic_shapes: as for `torch.export.export`, with names (or `Dim`s) for the axes:
            `{"x": {0: "batch"}}`.
        report: is told what is being done.
        store: where graphs of model folders are kept and found again.

    A factory gives a module, an `ExportedProgram`, `(module, example_inputs)`, or
    `(module, example_inputs, dynamic_shapes)`.

    Raises:
        InputError: the source cannot be read, or not as asked.
        UsageError: an option does not go with the source.
    """
    if dtype is not None and dtype not in DTYPE_NAMES:
        known = ", ".join(f"`{name}`" for name in DTYPE_NAMES)
        raise UsageError(f"unknown dtype `{dtype}` for a model", hint=f"known are {known}")
    options = Options(
        dims,
        dtype,
        attention_mask,
        trust_pickle,
        trust_remote_code,
        adapter,
        example_inputs,
        dynamic_shapes,
        report or (lambda _: None),
        store,
    )
    if isinstance(source, str | Path):
        text = str(source)
        if is_factory(text):
            return _from_factory(text, options)
        return _from_path(Path(source), options)
    return _from_object(source, type(source).__name__, options)


def is_factory(text: str) -> bool:
    """Whether a source is `package.module:factory`, and not a file of such a name."""
    return FACTORY.fullmatch(text) is not None and not Path(text).exists()


def name_of(source: str | Path) -> str:
    """What a source is called: as its file or its folder, or `package.module:factory`."""
    if is_factory(str(source)):
        return str(source)
    path = Path(source)
    return path.resolve().name if path.is_dir() else path.name


# --- kinds ----------------------------------------------------------------------------------


def _from_path(path: Path, options: Options) -> Source:
    kind = sniff(path)
    if kind is Kind.FOLDER:
        return _from_folder(path, options)
    if kind is Kind.ADAPTER:
        return _from_adapter(path, options)
    if kind is Kind.PT2:
        return _from_archive(path, options)
    if kind is Kind.ONNX:
        return _from_onnx(path, options)
    if kind in UNPICKLED_UNDER_TRUST and options.trust_pickle:
        return _from_pickle(path, kind, options)
    raise refusal(kind, path)


def _from_archive(path: Path, options: Options) -> Source:
    from fusec.frontend.pt2 import read_pt2

    _no_model_options(options, "an archive of `torch.export`")
    options.report(f"reading {path.name}")
    archive = read_pt2(path)
    names = name_symbols(archive.program)
    specs = dim_specs(options.dims, names.values())
    promised = promise(archive.program, archive.guards, archive.shapes, archive.hints, names, specs)
    try:
        graph, notes = _graph(promised, path.stem, archive.output_names)
    except (InternalError, *_UNSOUND) as error:
        # An archive is not trusted to be sound: to define what it names, to have the right types.
        message = "the archive's program cannot be translated: it is damaged, or fusec is at fault"
        detail = (f"{type(error).__name__}: {error}",)
        hint = "export it again; if that changes nothing, report the archive"
        raise InputError(message, at=str(path), detail=detail, hint=hint) from error
    return Source(
        "export", path.name, archive.fingerprint, graph, (), None, (*archive.notes, *notes)
    )


def _from_onnx(path: Path, options: Options) -> Source:
    from fusec.frontend.huggingface import require

    require("onnx", "onnx")
    from fusec.frontend.onnx import read_onnx

    _no_model_options(options, "an ONNX model")
    options.report(f"reading {path.name}")
    files: set[Path] = set()
    graph = read_onnx(path, options.dims, files)
    return Source("onnx", path.name, _file_hash(path), graph, files=tuple(files))


def _from_adapter(folder: Path, options: Options) -> Source:
    """An adapter that names the folder of its model."""
    import_torch()
    from fusec.frontend.adapter import base_of

    if options.adapter is not None:
        hint = "name that folder, or leave `--adapter` out"
        message = f"`{folder}` is an adapter; `--adapter` goes with the folder of a model"
        raise UsageError(message, hint=hint)
    base = base_of(folder)
    source = _from_folder(base, replace(options, adapter=folder))
    return replace(source, name=name_of(folder), files=(base,))


def _from_folder(folder: Path, options: Options) -> Source:
    from fusec.frontend.huggingface import prepare_folder

    if options.example_inputs is not None:
        raise UsageError("a model folder takes no example inputs")
    prepared = prepare_folder(
        folder,
        dims=options.dims,
        dtype=options.dtype,
        attention_mask=options.attention_mask,
        trust_remote_code=options.trust_remote_code,
        adapter=options.adapter,
    )
    digest = _folder_hash(folder, options.adapter)
    made = _exported_folder(folder, prepared, digest, options)
    tokenizer = folder / "tokenizer.json"
    return Source(
        "huggingface",
        name_of(folder),
        digest,
        made.graph,
        made.decisions,
        tokenizer if tokenizer.is_file() else None,
        (*prepared.notes, *made.notes),
    )


def _exported_folder(
    folder: Path, prepared: Prepared, folder_digest: str, options: Options
) -> graph_cache.Exported:
    """The graph of a folder, kept for the next time unless code in the folder shapes it."""
    store = options.store
    if store is None or options.trust_remote_code:
        return _export_folder(folder, prepared, options)
    digest = graph_cache.graph_digest(
        folder_digest,
        {
            "name": folder.name,
            "dims": prepared.call.specs,
            "dtype": options.dtype,
            "attention_mask": options.attention_mask,
            "adapter": options.adapter is not None,
        },
    )
    found = graph_cache.find(store, digest, prepared.checkpoint)
    if found is not None:
        return found
    made = _export_folder(folder, prepared, options)
    graph_cache.keep(store, digest, made, prepared.checkpoint)
    # What is found later has been printed and parsed: so is this, and both compile to one artifact.
    return graph_cache.find(store, digest, prepared.checkpoint) or made


def _export_folder(folder: Path, prepared: Prepared, options: Options) -> graph_cache.Exported:
    from fusec.frontend.exported import weight_of
    from fusec.frontend.huggingface import computed_buffers

    options.report("exporting")
    program, exported, decisions = _export(prepared.model, prepared.call)
    held = dict(prepared.checkpoint)
    stored = {name for name, _ in prepared.model.named_parameters(remove_duplicate=False)}
    if not prepared.complete:
        stored |= set(prepared.model.state_dict())
    computed = [
        entry.name
        for entry in program.inputs
        if entry.weight is not None and entry.weight.read is None
        if entry.name not in held and entry.name not in stored
    ]
    for name, tensor in computed_buffers(prepared.model, computed).items():
        held[name] = weight_of(name, tensor)
    inputs = tuple(
        replace(entry, weight=held[entry.name]) if entry.name in held else entry
        for entry in program.inputs
    )
    graph, notes = _promised_graph(
        replace(program, inputs=inputs), exported, prepared.call, folder.name
    )
    return graph_cache.Exported(graph, (*_fired(graph), *decisions), notes)


def _from_factory(text: str, options: Options) -> Source:
    made, inputs, shapes = made_by_factory(text)
    inputs = inputs if options.example_inputs is None else options.example_inputs
    shapes = shapes if options.dynamic_shapes is None else options.dynamic_shapes
    options = replace(options, example_inputs=inputs, dynamic_shapes=shapes)
    source = _from_object(made, text, options)
    code = getattr(sys.modules[text.partition(":")[0]], "__file__", None)
    return source if code is None else replace(source, files=(Path(code),))


def made_by_factory(text: str) -> tuple[Any, ExampleInputs, Any]:
    """What `package.module:factory` gives: a model, and maybe example inputs and dynamic shapes.

    Raises:
        InputError: there is no such module, or nothing of that name in it, or its code fails.
    """
    module_name, _, path = text.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = "a factory is `package.module:name`, importable from here"
        raise InputError(f"cannot import `{module_name}`: {error}", hint=hint) from error
    except (Exception, SystemExit) as error:
        raise _failed(f"importing `{module_name}`", error) from error
    finally:
        if added:
            sys.path.remove(here)
    made: Any = module
    for part in path.split("."):
        if not hasattr(made, part):
            hint = did_you_mean(path, dir(made)) or "a factory is `package.module:name`"
            raise InputError(f"`{module_name}` has no `{path}`", hint=hint)
        made = getattr(made, part)
    import_torch()
    import torch

    if callable(made) and not isinstance(made, torch.nn.Module):
        try:
            made = made()
        except FusecError:
            raise
        except (Exception, SystemExit) as error:
            raise _failed(f"the factory `{text}`", error) from error
    if isinstance(made, tuple) and len(made) in (2, 3):
        model, inputs, shapes = (*made, None)[:3]
        return model, inputs, shapes
    return made, None, None


def _failed(what: str, error: BaseException) -> InputError:
    """That code which a person gave to make a model raises `error`, and at which line."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = frames[-1].filename != __file__  # a call with wrong arguments is in no line of theirs
    at = f"{frames[-1].filename}:{frames[-1].lineno}" if inside else None
    if isinstance(error, SyntaxError) and error.filename is not None:
        at = f"{error.filename}:{error.lineno}"
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return InputError(f"{what} fails: {said}", at=at, hint="`--debug` shows the whole traceback")


def _from_pickle(path: Path, kind: Kind, options: Options) -> Source:
    import_torch()
    import torch

    from fusec.frontend.live import EXPORT_FAILURES, quiet

    try:
        with quiet():
            if kind is Kind.TORCHSCRIPT:
                script = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
                held: Any = _from_torchscript(script, options)
            else:
                held = torch.load(str(path), map_location="cpu", weights_only=False)
    except (*EXPORT_FAILURES, EOFError, OSError, pickle.UnpicklingError) as error:
        hint = "the code of the model has to be importable"
        if kind is not Kind.PICKLED_MODULE:
            hint = HOW_TO_EXPORT
        raise InputError(f"`{path}` cannot be loaded here: {error}", hint=hint) from error
    if not isinstance(held, torch.nn.Module | torch.export.ExportedProgram):
        raise InputError(
            f"`{path}` holds a `{type(held).__name__}`, not a model", hint=HOW_TO_EXPORT
        )
    if isinstance(held, torch.export.ExportedProgram):
        options = replace(options, example_inputs=None)
    source = _from_object(held, path.name, options)
    return replace(source, sha256=_file_hash(path))


def _from_torchscript(script: Any, options: Options) -> Any:
    """A TorchScript module as an exported program, for the shapes of the example inputs."""
    import torch
    from torch._export.converter import TS2EPConverter

    given = options.example_inputs
    if given is None:
        raise UsageError("a TorchScript module needs example inputs", hint=HOW_TO_EXPORT)
    named = given if isinstance(given, Mapping) else {}
    args = () if named else ((given,) if isinstance(given, torch.Tensor) else tuple(given))
    return TS2EPConverter(script, args, dict(named)).convert()


def _from_object(held: Any, name: str, options: Options) -> Source:
    import_torch()
    import torch

    if isinstance(held, torch.export.ExportedProgram):
        return _from_program(held, name, options)
    if isinstance(held, torch.nn.Module):
        return _from_module(held, name, options)
    hint = "a source is a path, `package.module:factory`, an `nn.Module` or an `ExportedProgram`"
    if isinstance(held, type):
        raise InputError(f"`{held.__name__}` is a class, not a model", hint="make one: `Model()`")
    raise InputError(f"`{name}` gives a `{type(held).__name__}`, not a model", hint=hint)


def _from_program(program: Any, name: str, options: Options) -> Source:
    from fusec.frontend.live import guard_facts, unwrapped

    _no_model_options(options, "an `ExportedProgram`")
    program = unwrapped(program)
    aten, _ = _translated(program)
    names = name_symbols(aten)
    specs = dim_specs(options.dims, names.values())
    guards, shapes, hints = guard_facts(program, aten)
    promised = promise(aten, guards, shapes, hints, names, specs)
    graph, notes = _graph(promised, "program", None)
    return Source("module", name, _graph_hash(graph), graph, (), None, notes)


def _from_module(module: Any, name: str, options: Options) -> Source:
    from fusec.frontend.huggingface import model_call, without_cache
    from fusec.frontend.live import module_call

    if options.adapter is not None:
        raise UsageError("`--adapter` is for model folders")
    if options.dtype is not None:
        module, options = _in_dtype(module, options, options.dtype)
    is_model = hasattr(module, "main_input_name") and hasattr(module, "config")
    with ExitStack() as stack:
        if options.example_inputs is None and is_model:
            stack.enter_context(without_cache(module))
            call = model_call(module, options.dims, options.attention_mask)
        else:
            if options.attention_mask:
                raise UsageError("`--attention-mask` is for models of transformers")
            call = module_call(module, options.example_inputs, options.dynamic_shapes, options.dims)
        options.report("exporting")
        program, exported, decisions = _export(module, call)
    graph, notes = _promised_graph(program, exported, call, type(module).__name__)
    decisions = (*_fired(graph), *decisions)
    return Source("module", name, _graph_hash(graph), graph, decisions, None, notes)


def _in_dtype(module: Any, options: Options, dtype: str) -> tuple[Any, Options]:
    """A copy of the module in `dtype`, and its example inputs: those that are floats likewise."""
    import copy

    import torch
    from torch.utils import _pytree as pytree

    from fusec.frontend.tensors import dtype_of

    wanted = dtype_of(dtype)

    def changed(leaf: Any) -> Any:
        is_float = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return leaf.to(wanted) if is_float else leaf

    inputs = pytree.tree_map(changed, options.example_inputs)
    return copy.deepcopy(module).to(wanted), replace(options, example_inputs=inputs)


# --- from an exported program to a graph ----------------------------------------------------


def _export(module: Any, call: Call) -> tuple[AtenProgram, Exported, tuple[Decision, ...]]:
    from fusec.frontend import delta_rule, selective_scan
    from fusec.frontend.huggingface import fixed_frequencies, masks_by_broadcast
    from fusec.frontend.live import export_module

    with ExitStack() as stack:
        stack.enter_context(fixed_frequencies(module, call))
        stack.enter_context(masks_by_broadcast())
        scans = stack.enter_context(selective_scan.replaced(module))
        rules = stack.enter_context(delta_rule.replaced(module))
        exported = export_module(module, call)
    aten, program = _translated(exported.program)
    return aten, replace(exported, program=program), (*scans, *rules)


def _translated(program: Any) -> tuple[AtenProgram, Any]:
    """The program as data; operations that fusec does not know are taken apart by PyTorch."""
    from fusec.frontend.exported import from_exported_program
    from fusec.frontend.live import decomposed

    aten = from_exported_program(program)
    tried: set[str] = set()
    while unknown := unknown_ops(aten) - tried:  # what one is taken apart into may be unknown, too
        smaller = decomposed(program, unknown)
        if smaller is None:
            break
        tried |= unknown
        aten, program = from_exported_program(smaller), smaller
    return aten, program


def _fired(graph: Graph) -> tuple[Decision, ...]:
    """What was replaced by one operation before export."""
    return tuple(
        Decision(node.op, node.origin.path, "fired", node=node.name)
        for node in graph.nodes()
        if node.op in ("gated_delta_rule", "selective_scan")
    )


def _promised_graph(
    aten: AtenProgram, exported: Exported, call: Call, name: str
) -> tuple[Graph, tuple[str, ...]]:
    from fusec.frontend.live import guard_facts

    guards, shapes, hints = guard_facts(exported.program, aten)
    specs: Mapping[str, DimSpec] = {
        key: spec for key, spec in call.specs.items() if spec.static is None
    }
    promised = promise(aten, guards, shapes, hints, exported.names, specs)
    lost = sorted(set(specs) - {promised.names.get(symbol, symbol) for symbol in aten.symbols})
    for key in lost:
        if specs[key].asked:
            raise InputError(
                f"`torch.export` fixed the size `{key}`, which was asked for in {specs[key]}",
                hint=f"ask for one value, `{key}=N`",
            )
    sizes = _fixed_sizes(call, lost)
    more = [
        f"`torch.export` fixed the size `{key}` at {size}; ask for another with `{key}=N`"
        for key, size in sizes.items()
    ]
    graph, notes = _graph(promised, name, None)
    return graph, (*exported.notes, *more, *notes)


def _fixed_sizes(call: Call, names: Sequence[str]) -> dict[str, int]:
    """The sizes of the example inputs that have these names."""
    from fusec.frontend.live import sizes_at

    sizes = sizes_at(call.args, call.kwargs, call.shapes)
    return {name: sizes[name] for name in names}


def _graph(
    promised: Promise, name: str, output_names: Sequence[str] | None
) -> tuple[Graph, tuple[str, ...]]:
    notes: list[str] = []
    names = {symbol: outer for symbol, outer in promised.names.items() if outer != symbol}
    graph = build_graph(
        promised.program,
        name=re.sub(r"\W", "_", name, flags=re.ASCII),
        rename=names,
        ranges=promised.ranges,
        output_names=output_names,
        notes=notes,
    )
    return graph, (*promised.notes, *notes)


# --- small things ---------------------------------------------------------------------------


def import_torch() -> None:
    """Check that torch is installed.

    Raises:
        InputError: it is not.
    """
    from fusec.frontend.huggingface import require

    require("torch", "torch")


def _no_model_options(options: Options, what: str) -> None:
    for given, flag in (
        (options.dtype, "`--dtype`"),
        (options.attention_mask, "`--attention-mask`"),
        (options.adapter is not None, "`--adapter`"),
        (options.example_inputs is not None, "example inputs"),
        (options.dynamic_shapes is not None, "dynamic shapes"),
    ):
        if given:
            hint = "it is for model folders and live modules; export the model that way instead"
            raise UsageError(f"{what} does not take {flag}: it is fixed when exported", hint=hint)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_hash(folder: Path, adapter: Path | None) -> str:
    """Of the configuration and of the header and size of each weight file, not of the weights."""
    from fusec.frontend.safetensors_index import find_files

    state = hashlib.sha256((folder / "config.json").read_bytes())
    files = list(find_files(folder))
    if adapter is not None:
        state.update((adapter / "adapter_config.json").read_bytes())
        files.append(adapter / "adapter_model.safetensors")
    for path in files:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            said = f"{path.name}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape")
            state.update(said + file.read(length))
    return state.hexdigest()


def _graph_hash(graph: Graph) -> str:
    return hashlib.sha256(print_graph(graph).encode()).hexdigest()
