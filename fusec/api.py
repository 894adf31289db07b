"""The compiler as a function: from a model to an artifact, step by step."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, get_args

from fusec import __version__
from fusec.command import compile_command, dim_text
from fusec.diagnostics import UnsupportedError, UsageError, counted
from fusec.dump import Dump, DumpRequest, dump_request, passes_until
from fusec.extensions import NONE as NO_EXTENSIONS
from fusec.extensions import Extensions, installed
from fusec.frontend.dims import DimRequest
from fusec.frontend.sources import Source, load_source, name_of
from fusec.ir import Graph, print_graph
from fusec.kernels.external.provider import parse_provider, records
from fusec.kernels.registry import Choice
from fusec.kernels.tuning import choosing, read_tables
from fusec.link.artifact_writer import ArtifactContents, WeightStorage, check_output, write_artifact
from fusec.link.build import build_target, merge_targets
from fusec.link.cache import ObjectCache, default_cache_directory
from fusec.link.toolchain import find_toolchain
from fusec.lower.layers import unfused_by_layer
from fusec.lower.memory_plan import UNBOUNDED
from fusec.options import (
    Requirement,
    check_requirements,
    parse_dims,
    parse_quantise,
    parse_requirement,
    selected_passes,
    settings_of,
    with_fp32_precision,
)
from fusec.passes.hints import hint_for
from fusec.report import alike, artifact_name, counts_text, inspect_document, size_text
from fusec.rewrite import Decision, DecisionLog, Pass, run_pipeline
from fusec.runtime.artifact import Source as SourceRecord
from fusec.runtime.artifact import TensorSpec, open_artifact
from fusec.runtime.cpu import host_features
from fusec.target import Target, best_cpu_arch, target_named

Dims: TypeAlias = Sequence[str] | Mapping[str, DimRequest] | None
"""Ranges of named sizes: `NAME=MIN:OPT:MAX`, one or several, or by name."""


class Reporter(Protocol):
    """Is told what goes on, stage by stage; the lines appended in a stage are for people."""

    def stage(self, word: str) -> AbstractContextManager[list[str]]:
        """Enter a stage."""

    def status(self, text: str) -> None:
        """Say what is being done at the moment; the next text takes its place."""

    def progress(self, done: int, total: int) -> None:
        """Say how much of a stage is done."""


class Silent:
    """Tells nobody."""

    @contextmanager
    def stage(self, word: str) -> Iterator[list[str]]:
        """Enter a stage."""
        yield []

    def status(self, text: str) -> None:
        """Say nothing."""

    def progress(self, done: int, total: int) -> None:
        """Say nothing."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What `compile` wrote.

    Attributes:
        path: of the artifact.
        document: what `fusec inspect --json` prints about it.
    """

    path: Path
    document: Mapping[str, Any]


def compile(
    source: object,
    output: str | os.PathLike[str] | None = None,
    *,
    target: str | Sequence[str] = "cpu",
    example_inputs: Mapping[str, object] | Sequence[object] | None = None,
    dynamic_shapes: object = None,
    dims: Dims = (),
    require: Sequence[str] = (),
    disable: Sequence[str] = (),
    quantize: Sequence[str] = (),
    mxfp4_align: str = "pad",
    tp: int = 1,
    dtype: str | None = None,
    fp32_precision: str = "highest",
    weights: WeightStorage = "embed",
    attention_mask: bool = False,
    allow_host_fallback: bool = False,
    provider: Sequence[str] = (),
    extensions: bool = True,
    tuning: Sequence[str | os.PathLike[str]] = (),
    trust_pickle: bool = False,
    trust_remote_code: bool = False,
    adapter: str | os.PathLike[str] | None = None,
    dump_ir: str | os.PathLike[str] | None = None,
    dump_ir_after: Sequence[str] = (),
    jobs: int | None = None,
    toolchain: str | None = None,
    reporter: Reporter | None = None,
) -> Compiled:
    """Compile a model into an artifact; needs no GPU.

    Args:
        source: a path (`.pt2`, `.pt`, `.onnx`, a model folder), `package.module:factory`, an
            `nn.Module` or an `ExportedProgram`.
        output: the artifact; by default the source's name in the current folder.
        target: one or more architectures or products.
        example_inputs: tensors to export an `nn.Module` with, by name or position.
        dynamic_shapes: names of the axes of these inputs that stay dynamic, in the form that
            `torch.export.export` takes, such as `{"x": {0: "batch"}}`.
        dims: ranges of named sizes: `NAME=MIN:OPT:MAX`, or a mapping to `(1, 64)` and the like.
        require: fusions that must fire: `FUSION` or `FUSION>=N`; one, or several, as all options
            that the command line takes repeatedly.
        disable: passes to leave out.
        quantize: formats of weights: `fp8-tensor`, `fp8-token`, `fp8-block`, `mxfp4` or `mxfp8`,
            for linears and experts, `FORMAT:experts`, or `FORMAT:PATTERN` over names of weights;
            the first that fits a weight counts.
        mxfp4_align: `pad` sizes that the native mxfp4 kernels do not take, or `reject` those
            kernels.
        tp: ranks that heads are divided among; only 1 can be compiled, see `decide` for more.
        dtype: of a model folder: `f32`, `bf16` or `f16`; by default the configuration's.
        fp32_precision: of products of f32 on CPUs whose matrix units take bf16: `highest` is as
            accurate as f32, `high` has 16 bits of each factor, `medium` 8.
        weights: `embed` in the artifact, `external` beside it, or `none`; a source that has no
            values, such as a folder with only `config.json`, gives `none`.
        attention_mask: whether a model folder also takes `attention_mask`.
        allow_host_fallback: whether a GPU target may leave operations to the host.
        provider: libraries whose kernels are preferred, such as `aiter==0.1.14`.
        extensions: whether what installed distributions add takes part: `fusec.extensions`.
        tuning: tables of `fusec tune`, each for another target; they come before those that ship
            with fusec.
        trust_pickle: whether pickled modules may be loaded, which runs code in them.
        trust_remote_code: whether code that comes with a model folder may be run.
        adapter: a folder of PEFT with a LoRA adapter for a model folder.
        dump_ir: a folder for the graph after each pass that changed it, and what changed; `-` for
            standard output.
        dump_ir_after: passes after which alone to write it.
        jobs: compilers to run at once; by default one a processor.
        toolchain: the C++ compiler for CPU targets: `clang++`, `g++`, `zig` or a path; by default
            the first of these that is found.
        reporter: is told what goes on.

    Raises:
        FusecError: a subclass for each exit code of the command line.
    """
    require, disable, quantize = map(_texts, (require, disable, quantize))
    provider, dump_ir_after = _texts(provider), _texts(dump_ir_after)
    tuning = [tuning] if isinstance(tuning, str | os.PathLike) else tuning
    if weights not in get_args(WeightStorage):
        hint = "write `embed`, `external` or `none`"
        raise UsageError(f"unknown `--weights {weights}`", hint=hint)
    asked = {
        "disable": sorted(disable),
        "quantize": quantize,
        "mxfp4_align": mxfp4_align,
        "tp": tp,
        "dtype": dtype,
        "fp32_precision": fp32_precision,
        "weights": weights,
        "attention_mask": attention_mask,
        "allow_host_fallback": allow_host_fallback,
        "provider": sorted(provider),
        "extensions": extensions,
        "tuning": tuning,
        "trust_pickle": trust_pickle,
        "trust_remote_code": trust_remote_code,
        "adapter": adapter,
        "toolchain": toolchain,
    }
    report = reporter or Silent()
    if jobs is not None and jobs < 1:
        raise UsageError(f"`--jobs {jobs}` is no number of compilers", hint="give 1 or more")
    targets = with_fp32_precision(_targets(target), fp32_precision)
    added = _extensions(extensions)
    requirements = tuple(parse_requirement(text, added.fusions) for text in require)
    passes = selected_passes(disable, settings_of(quantize, mxfp4_align, tp), added.pipeline)
    dump = dump_request(dump_ir, dump_ir_after, passes, [each.name for each in targets])
    providers = [kernel for text in provider for kernel in records(parse_provider(text))]
    tables = read_tables(list(map(Path, tuning)), [each.name for each in targets])
    if not requirements:  # those that are not met on a rank are told first
        _check_ranks(tp, targets)
    files = source, adapter, toolchain, *tuning
    path = _output(source, output)
    if path is not None:
        check_output(path, weights, *files)
    if not all(each.is_gpu for each in targets):
        find_toolchain(toolchain)  # what is missing is told before a model is read
    read = _read(
        source,
        report,
        dims=_requests(dims),
        dtype=dtype,
        attention_mask=attention_mask,
        trust_pickle=trust_pickle,
        trust_remote_code=trust_remote_code,
        adapter=None if adapter is None else Path(adapter),
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
    )
    path = path or Path(artifact_name(read.name))
    check_output(path, weights, *files, *read.files)
    with report.stage("rewrite") as said:
        rewritten = {
            each.name: _rewritten(read, each, passes, requirements, dump, len(targets) > 1)
            for each in targets
        }
        said += _said_of_decisions({name: log for name, (_, log) in rewritten.items()})
        said += _said_of_dump(dump)
        said += _said_of_requests(
            quantize, read.graph, {each: rewritten[each.name][1] for each in targets}
        )
    _check_ranks(tp, targets)
    unfused = unfused_by_layer(read.graph)
    with report.stage("link") as said, choosing(tables.tile):
        built = [
            build_target(
                rewritten[each.name][0],
                each,
                allow_host_fallback=allow_host_fallback,
                jobs=jobs or os.cpu_count() or 1,
                toolchain=toolchain,
                providers=(*providers, *added.kernels),
                unfused=unfused,
                progress=report.progress,
            )
            for each in targets
        ]
        said += [each.summary for each in built]
    by_target, stored = merge_targets(built)
    graphs = {each.name: print_graph(rewritten[each.name][0]) for each in targets}
    contents = ArtifactContents(
        name=read.name,
        source=SourceRecord(read.kind, read.name, read.sha256),
        inputs=_specs(read.graph, read.graph.inputs, read.graph.inputs),
        outputs=_specs(read.graph, read.graph.output_names, read.graph.outputs),
        symbols={
            name: (low, UNBOUNDED if high is None else high)
            for name, (low, high) in read.graph.symbols.items()
        },
        graph=graphs[targets[0].name],
        source_graph=print_graph(read.graph),
        target_graphs={
            name: text for name, text in graphs.items() if text != graphs[targets[0].name]
        },
        origins={each.name: _made_from(rewritten[each.name][0]) for each in targets},
        decisions=[
            {"target": each.name, **_with_backend(decision, made.choices).as_json()}
            for each, made in zip(targets, built, strict=True)
            for decision in rewritten[each.name][1]
        ],
        targets=by_target,
        weights=stored,
        tools={
            "fusec": __version__,
            **_versions(),
            **{k: v for b in built for k, v in b.tools.items()},
        },
        options={
            "dtype": dtype,
            "fp32_precision": fp32_precision,
            "disable": sorted(disable),
            "attention_mask": attention_mask,
            "quantize": list(quantize),
            "mxfp4_align": mxfp4_align,
            "provider": sorted(provider),
            "extensions": added.document(),
            "tuning": tables.digests,
            "dims": {name: dim_text(request) for name, request in _requests(dims).items()},
            "command": _command(source, read.name, targets, example_inputs, dims, asked),
        },
        residual={name: model for each in built for name, model in each.residual.items()},
        tokenizer=None if read.tokenizer_path is None else read.tokenizer_path.read_bytes(),
    )
    if any(weight.read is None for each in built for weight in each.weights):
        weights = "none"  # the source has names and shapes only, and says so in its notes
    with report.stage("wrote") as said:
        written = write_artifact(path, contents, storage=weights, progress=report.progress)
        document = inspect_document(open_artifact(path))
        said += [_said_of_file(path, written.bytes, document)]
    return Compiled(path, document)


def _with_backend(decision: Decision, choices: Mapping[str, Choice]) -> Decision:
    """The decision, with the kernel that computes its node and those that cannot."""
    choice = choices.get(decision.node) if decision.status == "fired" else None
    if choice is None:
        return decision
    refused = tuple({"backend": each.kernel, "reason": each.reason} for each in choice.refused)
    backend = None if choice.kernel is None else choice.kernel.name
    return replace(decision, backend=backend, rejected=(*decision.rejected, *refused))


def decide(
    source: object,
    target: str | Sequence[str],
    *,
    dims: Dims = (),
    disable: Sequence[str] = (),
    quantize: Sequence[str] = (),
    mxfp4_align: str = "pad",
    tp: int = 1,
    dtype: str | None = None,
    extensions: bool = True,
    trust_pickle: bool = False,
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, DecisionLog]:
    """What would fire and what would be refused, by target; the arguments are those of `compile`.

    Nothing is lowered, so operations that a target cannot run yet do not matter.
    """
    found = rewrite(
        source,
        target,
        dims=dims,
        disable=disable,
        quantize=quantize,
        mxfp4_align=mxfp4_align,
        tp=tp,
        dtype=dtype,
        extensions=extensions,
        trust_pickle=trust_pickle,
        trust_remote_code=trust_remote_code,
        reporter=reporter,
    )
    return {name: log for name, (_, log) in found.items()}


def rewrite(
    source: object,
    target: str | Sequence[str],
    *,
    dims: Dims = (),
    disable: Sequence[str] = (),
    quantize: Sequence[str] = (),
    mxfp4_align: str = "pad",
    tp: int = 1,
    dtype: str | None = None,
    fp32_precision: str = "highest",
    attention_mask: bool = False,
    extensions: bool = True,
    trust_pickle: bool = False,
    trust_remote_code: bool = False,
    adapter: str | os.PathLike[str] | None = None,
    dump_ir: str | os.PathLike[str] | None = None,
    dump_ir_after: Sequence[str] = (),
    stop_after: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, tuple[Graph, DecisionLog]]:
    """The rewritten graph and what was decided, by target; the arguments are those of `compile`.

    With `stop_after` the passes after that one do not run: a name, of which the first counts, or a
    label such as `25-canonicalise`, as files of `dump_ir` are called.
    """
    report = reporter or Silent()
    disable, quantize, dump_ir_after = map(_texts, (disable, quantize, dump_ir_after))
    targets = with_fp32_precision(_targets(target), fp32_precision)
    pipeline = _extensions(extensions).pipeline
    passes = selected_passes(disable, settings_of(quantize, mxfp4_align, tp), pipeline)
    if stop_after is not None:
        passes = passes_until(stop_after, passes)
    dump = dump_request(dump_ir, dump_ir_after, passes, [each.name for each in targets])
    read = _read(
        source,
        report,
        dims=_requests(dims),
        dtype=dtype,
        attention_mask=attention_mask,
        trust_pickle=trust_pickle,
        trust_remote_code=trust_remote_code,
        adapter=None if adapter is None else Path(adapter),
    )
    with report.stage("rewrite") as said:
        found = {
            each.name: _rewritten(read, each, passes, (), dump, len(targets) > 1)
            for each in targets
        }
        said += _said_of_decisions({name: log for name, (_, log) in found.items()})
        said += _said_of_dump(dump)
        said += _said_of_requests(
            quantize, read.graph, {each: found[each.name][1] for each in targets}
        )
    return found


def _read(source: object, report: Reporter, **asked: Any) -> Source:
    """The stage that takes the source in; `asked` are arguments of `load_source`."""
    with report.stage("export") as said:
        store = ObjectCache(default_cache_directory())
        read = load_source(source, report=report.status, store=store, **asked)
        said += _said_of_source(read)
    return read


def _command(
    source: object,
    name: str,
    targets: Sequence[Target],
    example_inputs: object,
    dims: Dims,
    asked: Mapping[str, object],
) -> str | None:
    """The command that does the same; none for a model in memory, or inputs from there."""
    if not isinstance(source, str | os.PathLike) or example_inputs is not None:
        return None
    names = [target.name for target in targets]
    return compile_command(source, name, names, _requests(dims), asked)


def _check_ranks(tp: int, targets: Sequence[Target]) -> None:
    if tp > 1:
        raise UnsupportedError(
            f"programs for one of {tp} ranks are not lowered yet",
            hint=f"`fusec explain SOURCE --target {targets[0].name} --tp {tp}` shows what fuses on "
            "each rank",
        )


def _output(source: object, output: str | os.PathLike[str] | None) -> Path | None:
    """Where to write; `None` where that is not known before a model in memory is read.

    Raises:
        UsageError: it is a folder.
    """
    if output is None:
        return Path(artifact_name(name_of(source))) if isinstance(source, str | Path) else None
    if os.path.isdir(output):
        raise UsageError(f"`{output}` is a folder", hint="name a file, such as `-o model.fusec`")
    return Path(output)


def _extensions(wanted: bool) -> Extensions:
    return installed() if wanted else NO_EXTENSIONS


def _targets(names: str | Sequence[str]) -> tuple[Target, ...]:
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise UsageError("no target is given", hint="name one, such as `gfx950` or `cpu`")
    host = best_cpu_arch(host_features()) if "cpu" in map(str.lower, wanted) else None
    found = {target.name: target for name in wanted for target in [target_named(name, host=host)]}
    return tuple(found.values())


def _texts(given: Sequence[str]) -> Sequence[str]:
    """What may be given several times; a text alone is one, not its letters."""
    return [given] if isinstance(given, str) else given


def _requests(dims: Dims) -> Mapping[str, DimRequest]:
    return dims if isinstance(dims, Mapping) else parse_dims(_texts(dims or ()))


def _rewritten(
    source: Source,
    target: Target,
    passes: Iterable[Pass],
    requirements: Iterable[Requirement],
    dump: DumpRequest | None,
    by_target: bool,
) -> tuple[Graph, DecisionLog]:
    graph, log = source.graph.copy(), DecisionLog(source.decisions)
    graph.mark_imported()
    watcher = None
    if dump is not None:
        watcher = Dump(dump.for_target(target.name, by_target), graph, target.name, log)
    run_pipeline(passes, graph, target, log, watcher)
    log.advise(hint_for)
    graph.drop_unused_parameters()
    check_requirements(requirements, log, target.name, several=by_target)
    return graph, log


def _made_from(graph: Graph) -> dict[str, list[str]]:
    """For each node, the nodes of the imported graph that it took the place of."""
    return {node.name: sorted(graph.made_from(node.name)) for node in graph.nodes()}


def _specs(graph: Graph, names: Sequence[str], values: Sequence[str]) -> tuple[TensorSpec, ...]:
    kinds = [graph.type(value) for value in values]
    return tuple(
        TensorSpec(name, kind.dtype, kind.shape) for name, kind in zip(names, kinds, strict=True)
    )


def _versions() -> dict[str, str]:
    """Versions of what may have shaped the graph."""
    found = {}
    for name in ("numpy", "networkx", "torch", "transformers", "onnx"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _said_of_source(source: Source) -> list[str]:
    spans = (
        f"{name} {low}..{high if high is not None else ''}"
        for name, (low, high) in source.graph.symbols.items()
    )
    dims = ", ".join(spans)
    first = f"{source.kind}, {len(source.graph):,} nodes" + (f", dims {dims}" if dims else "")
    return [first, *source.notes]


def _said_of_decisions(logs: Mapping[str, DecisionLog], most: int = 5) -> list[str]:
    lines: list[str] = []
    for name, log in logs.items():
        prefix = f"{name}: " if len(logs) > 1 else ""
        lines.append(prefix + (counts_text(log.fired()) or "nothing fused"))
        refused = log.refused()
        sites = [decision.site for decision in refused]
        groups = alike([f"{d.fusion}: `{d.code}` ({d.reason})" for d in refused])
        for text, places in groups[:most]:
            fusion, _, why = text.partition(": ")
            more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
            lines.append(f"{prefix}refused {fusion} at {sites[places[0]]}{more}: {why}")
        if (left := sum(len(places) for _, places in groups[most:])) > 0:
            lines.append(f"{prefix}and {left} more: `fusec explain` lists them")
    return lines


def _said_of_dump(dump: DumpRequest | None) -> list[str]:
    if dump is None or dump.folder is None:
        return []
    return [f"graphs after passes, and what each one changed: `{dump.folder}`"]


def _said_of_requests(
    quantize: Sequence[str], graph: Graph, logs: Mapping[Target, DecisionLog]
) -> list[str]:
    """That a request fits nothing.

    Args:
        quantize: as on the command line.
        graph: as it was read.
        logs: what was decided, by target.
    """
    lines: list[str] = []
    names = {name for held in graph.parameters.values() for name in (held.name, *held.made_from)}
    routed = any(row.fusion.partition("_")[0] == "moe" for log in logs.values() for row in log)
    for request in map(parse_quantise, quantize):
        if request.pattern == "experts":
            if not routed:
                lines.append(f"`--quantize {request}` fits nothing: there are no routed experts")
        elif not fnmatch.filter(names, request.pattern):
            lines.append(f"`--quantize {request}` fits no weight of this model")
    return lines


def _said_of_file(path: Path, size: int, document: Mapping[str, Any]) -> str:
    weights = document["weights"]
    residual = sum(len(target["residual"]) for target in document["targets"])
    launches = ", ".join(f"{t['launches']} launches on {t['target']}" for t in document["targets"])
    left = f"{counted(residual, 'operation')} residual" if residual else "nothing residual"
    return (
        f"{path}, {size_text(size)} ({size_text(weights['bytes'])} of weights); {launches}, {left}"
    )
