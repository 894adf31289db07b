"""The front half of a compilation again.

It is deterministic, so it gives the graphs and the places of values that the artifact was made
with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from fusec.diagnostics import InputError, UsageError
from fusec.extensions import as_recorded
from fusec.frontend.sources import Source, load_source
from fusec.ir import Graph, print_graph
from fusec.kernels.external.provider import parse_provider, records
from fusec.kernels.tuning import Tables, choosing, read_tables
from fusec.link.cache import ObjectCache, default_cache_directory
from fusec.lower.lowering import lower
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
class Given:
    """What a compilation was given beside the source and its options; see `fusec.compile`."""

    trust_pickle: bool = False
    trust_remote_code: bool = False
    adapter: Path | None = None
    tuning: tuple[Path, ...] = ()
    example_inputs: Any = None
    dynamic_shapes: Any = None


@dataclass(slots=True)
class Compilation:
    """A source, and what an artifact's options make of it.

    Attributes:
        artifact: that was compiled from it.
        target: of the artifact.
        source: as it was read with the artifact's options.
        given: what it was given beside these.
        stages: the graph as it was read, and after each pass that changed it; see `rewrite`.
    """

    artifact: Artifact
    target: Target
    source: Source
    given: Given
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
        pipeline = as_recorded(options["extensions"]).pipeline
        return selected_passes(options["disable"], settings, pipeline)

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
            UsageError: the artifact was compiled with another table of tiles.
        """
        providers = [
            kernel for text in self.options["provider"] for kernel in records(parse_provider(text))
        ]
        providers += as_recorded(self.options["extensions"]).kernels
        with choosing(_tables(self.artifact, self.target, self.given.tuning).tile):
            lowered = lower(
                self.graph(), self.target, allow_host_fallback=True, providers=providers
            )
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
                hint="compile it again with this version of fusec",
            )
        return lowered


def _steps(artifact: Artifact, target: str) -> list[Mapping[str, Any]]:
    steps = artifact.program(target).get("steps").tuple_of(lambda step: step.mapping())
    return [cast("Mapping[str, Any]", step) for step in steps]


def read_again(
    artifact: Artifact, target: str, source: Any, given: Given, report: Callable[[str], None]
) -> Compilation:
    """Read a source with the options that an artifact was compiled with.

    Args:
        artifact: compiled from it.
        target: one of the artifact.
        source: as `load_source` takes it.
        given: what else the compilation was given.
        report: is told what is being done.

    Raises:
        InputError: the source cannot be read.
    """
    options = cast("Mapping[str, Any]", artifact.manifest.options)
    precision = cast("Fp32Precision", options["fp32_precision"])
    arch = artifact.target(target).arch
    host = target_named(arch) if target == "cpu" else None
    made_for = replace(target_named(target, host=host), fp32_precision=precision)
    read = load_source(
        source,
        dims=options["dims"],
        dtype=options["dtype"],
        attention_mask=bool(options["attention_mask"]),
        trust_pickle=given.trust_pickle,
        trust_remote_code=given.trust_remote_code,
        adapter=given.adapter,
        example_inputs=given.example_inputs,
        dynamic_shapes=given.dynamic_shapes,
        report=report,
        store=ObjectCache(default_cache_directory()),
    )
    return Compilation(artifact, made_for, read, given)


def _tables(artifact: Artifact, target: Target, paths: Sequence[Path]) -> Tables:
    """The tables of tiles that an artifact was compiled with.

    Raises:
        UsageError: others are given, or none.
    """
    recorded = cast("Mapping[str, str]", artifact.manifest.options["tuning"])
    tables = read_tables(paths, [each.target for each in artifact.manifest.targets])
    wanted, given = recorded.get(target.name), tables.digests.get(target.name)
    if given == wanted:
        return tables
    if wanted is None:
        how, hint = "without a table of tiles", "leave `--tuning` out"
    else:
        how = "with another table of tiles" if given else "with a table of tiles"
        hint = "give the same with `--tuning TABLE`"
    raise UsageError(f"the artifact was compiled {how} for `{target.name}`", hint=hint)
