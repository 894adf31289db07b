"""The front half of a compilation again.

It is deterministic, so it gives the graphs and the places of values that the artifact was made
with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from fusec.diagnostics import InputError
from fusec.frontend.sources import Source, load_source
from fusec.ir import Graph, print_graph
from fusec.kernels.external.provider import parse_provider, records
from fusec.link.cache import ObjectCache, default_cache_directory
from fusec.lower.lowering import lower
from fusec.lower.memory_plan import UNBOUNDED
from fusec.lower.steps import KernelStep, Lowered
from fusec.options import selected_passes, settings_of
from fusec.rewrite import Decision, DecisionLog, Pass, run_pipeline
from fusec.runtime.artifact import Artifact
from fusec.target import Fp32Precision, Target, target_named

AS_READ = "import"


@dataclass(frozen=True, slots=True)
class Stage:
    """The graph after a pass that changed it.

    Attributes:
        name: of the pass; `import` for the graph as it was read.
        graph: a copy.
        rounds: whether the pass brings numbers into fewer bits, as was asked for.
        decisions: what was decided up to here.
    """

    name: str
    graph: Graph
    rounds: bool
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class Trust:
    """What a source may do, and where its adapter is; see `load_source`."""

    pickle: bool = False
    remote_code: bool = False
    adapter: Path | None = None
    example_inputs: Any = None
    dynamic_shapes: Any = None


@dataclass(slots=True)
class Compilation:
    """A source, and what an artifact's options make of it.

    Attributes:
        artifact: that was compiled from it.
        target: of the artifact.
        source: as it was read with the artifact's options.
        stages: the graph as it was read, and after each pass that changed it; see `rewrite`.
    """

    artifact: Artifact
    target: Target
    source: Source
    stages: list[Stage] = field(default_factory=list)

    @property
    def options(self) -> Mapping[str, Any]:
        """Of the compilation, as the artifact records them."""
        return cast("Mapping[str, Any]", self.artifact.manifest.options)

    @property
    def changed(self) -> bool:
        """Whether the source is another one than the artifact was compiled from."""
        return self.source.sha256 != self.artifact.manifest.source.sha256

    def rewrite(self) -> list[Stage]:
        """Run the passes and keep the graph after each that changes it; once.

        Raises:
            InputError: they give another graph than the artifact has.
        """
        if not self.stages:
            graph, log = self.source.graph.copy(), DecisionLog(self.source.decisions)
            stages = [Stage(AS_READ, graph.copy(), False, tuple(log))]

            def keep(each: Pass, graph: Graph, changes: int) -> None:
                if changes:
                    stages.append(Stage(each.name, graph.copy(), each.rounds, tuple(log)))

            run_pipeline(self.passes(), graph, self.target, log, keep)
            graph.drop_unused_parameters()
            self._check(graph)
            self.stages = stages
        return self.stages

    def passes(self) -> Iterable[Pass]:
        """As the artifact was compiled with."""
        options = self.options
        settings = settings_of(options["quantize"], options["mxfp4_align"], 1)
        return selected_passes(options["disable"], settings)

    def graph(self) -> Graph:
        """The rewritten graph."""
        graph = self.rewrite()[-1].graph.copy()
        graph.drop_unused_parameters()
        return graph

    def _check(self, graph: Graph) -> None:
        """Compare a rewritten graph with that of the artifact."""
        if print_graph(graph) == self.artifact.graph_text(self.target.name):
            return
        why = "the passes give another graph: another version of fusec, or of its libraries"
        if self.changed:
            why = "the source is another one than the artifact was compiled from"
        raise InputError(
            "the compilation cannot be repeated, which this needs",
            at=str(self.artifact.path),
            detail=(why,),
            hint="compile the source again, and verify what that gives",
        )

    def lower(self) -> Lowered:
        """The program of the artifact with the places of its values.

        Raises:
            InputError: its graph or its steps are not those of the artifact.
        """
        providers = [
            kernel for text in self.options["provider"] for kernel in records(parse_provider(text))
        ]
        lowered = lower(self.graph(), self.target, allow_host_fallback=True, providers=providers)
        ours = [
            (step.kernel.name, step.node.name)
            if isinstance(step, KernelStep)
            else ("onnxruntime", step.residual.node)
            for step in lowered.steps
        ]
        theirs = [
            (str(step.get("kernel", "onnxruntime")), str(step["node"]))
            for step in _steps(self.artifact, self.target.name)
        ]
        if ours != theirs:
            raise InputError(
                "the source lowers to other steps than the artifact has",
                at=str(self.artifact.path),
                hint="compile it again with this version of fusec, and without `--tuning`",
            )
        return lowered


def _steps(artifact: Artifact, target: str) -> list[Mapping[str, Any]]:
    steps = artifact.program(target).get("steps").tuple_of(lambda step: step.mapping())
    return [cast("Mapping[str, Any]", step) for step in steps]


def read_again(
    artifact: Artifact, target: str, source: Any, trust: Trust, report: Callable[[str], None]
) -> Compilation:
    """Read a source with the options that an artifact was compiled with.

    Args:
        artifact: compiled from it.
        target: one of the artifact.
        source: as `load_source` takes it.
        trust: what the source may do.
        report: is told what is being done.

    Raises:
        InputError: the source cannot be read.
    """
    options = cast("Mapping[str, Any]", artifact.manifest.options)
    is_folder = artifact.manifest.source.kind == "huggingface"
    read = load_source(
        source,
        dims=_dims(artifact) if is_folder else {},
        dtype=options["dtype"],
        attention_mask=bool(options["attention_mask"]),
        trust_pickle=trust.pickle,
        trust_remote_code=trust.remote_code,
        adapter=trust.adapter,
        example_inputs=trust.example_inputs,
        dynamic_shapes=trust.dynamic_shapes,
        report=report,
        store=ObjectCache(default_cache_directory()),
    )
    precision = cast("Fp32Precision", options["fp32_precision"])
    arch = artifact.target(target).arch
    host = target_named(arch) if target == "cpu" else None
    made_for = replace(target_named(target, host=host), fp32_precision=precision)
    return Compilation(artifact, made_for, read)


def _dims(artifact: Artifact) -> dict[str, str]:
    """The sizes that a model folder was compiled for, as they stand in its inputs."""
    found: dict[str, str] = {}
    for name, (low, high) in artifact.manifest.symbols.items():
        found[name] = f"{low}:" if high == UNBOUNDED else f"{low}:{high}"
    for spec in artifact.manifest.inputs:
        for name, size in zip(("batch", "seq"), spec.shape, strict=False):
            if isinstance(size, int) and (name == "batch" or spec.name != "pixel_values"):
                found.setdefault(name, str(size))
    return found
