"""What lowering makes of a graph: buffers, and steps that read and write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fusec.ir import Graph, Node, Weight
from fusec.kernels.launch import OWN_PACKAGE, HipSource, Launch, Storage, TritonSource
from fusec.kernels.registry import Choice, Kernel
from fusec.lower.codegen_cpp import GeneratedFunction, print_file
from fusec.lower.costs import Cost
from fusec.lower.fusion import Grouping
from fusec.lower.memory_plan import THREADS, MemoryPlan, largest_sizes
from fusec.symbolic import Dim, evaluate
from fusec.target import Target


@dataclass(frozen=True, slots=True)
class Residual:
    """A node that onnxruntime runs.

    Attributes:
        node: its name in the graph.
        op: of the node.
        reason: why nothing else runs it.
        path: of the module that it comes from.
        model: the entry of the artifact that holds it, such as `residual/gfx942/0.onnx`.
    """

    node: str
    op: str
    reason: str
    path: str
    model: str


@dataclass(slots=True)
class Buffer:
    """Memory of the program while it is made; see `fusec.runtime.program`."""

    kind: str
    bytes: Dim
    name: str = ""


@dataclass(frozen=True, slots=True)
class KernelStep:
    """One call: `launch.operands[i].buffer` are positions in `Lowered.buffers`.

    Attributes:
        launch: what is called.
        kernel: the record that it came from.
        node: that is computed, or the first one of several.
        op: of the node, or of all of them.
        written: buffers that hold more after it.
        cost: what it moves and computes.
        nodes: all that are computed, where they are several.
        scratch: a buffer that is passed last.
        over: for a buffer that it fills, one that it reads and may overwrite element by element.
    """

    launch: Launch
    kernel: Kernel
    node: Node
    op: str
    written: frozenset[int]
    cost: Cost
    nodes: tuple[str, ...] = ()
    scratch: int | None = None
    over: Mapping[int, int] = field(default_factory=dict)

    @property
    def source(self) -> TritonSource | HipSource | None:
        """What makes its code object, on a GPU; `None` for a call of a library, and on a CPU."""
        code = self.launch.code
        return code if isinstance(code, TritonSource | HipSource) else None


@dataclass(frozen=True, slots=True)
class OnnxStep:
    """A node left to onnxruntime, on dense operands."""

    residual: Residual
    inputs: tuple[tuple[str, Storage], ...]
    outputs: tuple[tuple[str, Storage], ...]
    cost: Cost


Step = KernelStep | OnnxStep


@dataclass(frozen=True, slots=True)
class UsedKernel:
    """A symbol that the program calls, and where it comes from.

    Attributes:
        name: of the record, or of the generator.
        op: that it computes.
        provider: `cpp` or `codegen`.
        symbol: the function.
        source: its file below the folder of `package`; "" if generated.
        node: the first node that it computes.
        package: the Python package that holds `source`.
    """

    name: str
    op: str
    provider: str
    symbol: str
    source: str
    node: str
    package: str = OWN_PACKAGE


@dataclass(frozen=True, slots=True)
class Lowered:
    """A lowered graph.

    Attributes:
        graph: what was lowered.
        target: for what.
        buffers: of the program.
        steps: in order.
        plan: where arena buffers lie.
        inputs: the buffer of each input.
        outputs: where each output lies, in order.
        weights: everything that must be stored, packed as the kernels read it, in order.
        functions: generated C++.
        residual: nodes that onnxruntime runs, with reasons.
        choices: by the name of each node that needs a kernel: the kernel, and those that were asked
            before it, each with the reason why it cannot compute the node.
        storages: where each value lies that something reads or writes in memory.
        grouping: which nodes share a step.
    """

    graph: Graph
    target: Target
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    plan: MemoryPlan
    inputs: Mapping[str, int]
    outputs: tuple[Storage, ...]
    weights: tuple[Weight, ...]
    functions: tuple[GeneratedFunction, ...]
    residual: tuple[Residual, ...]
    choices: Mapping[str, Choice]
    storages: Mapping[str, Storage]
    grouping: Grouping

    @property
    def kernel_steps(self) -> tuple[KernelStep, ...]:
        """The steps that call a kernel."""
        return tuple(step for step in self.steps if isinstance(step, KernelStep))

    @property
    def kernels(self) -> tuple[UsedKernel, ...]:
        """Every symbol that is called, once."""
        found: dict[str, UsedKernel] = {}
        for step in self.kernel_steps:
            record, symbol = step.kernel, step.launch.symbol
            used = UsedKernel(
                name=record.name,
                op=step.op,
                provider=record.provider,
                symbol=symbol,
                source=record.source,
                node=step.node.name,
                package=record.package,
            )
            found.setdefault(symbol, used)
        return tuple(found.values())

    def launched(self) -> tuple[Step, ...]:
        """What runs at the largest sizes.

        Of launches that serve a range of sizes each, those of other sizes have an empty grid.
        """
        sizes = largest_sizes(self.graph.symbols)
        return tuple(
            step
            for step in self.steps
            if isinstance(step, OnnxStep) or all(evaluate(size, sizes) for size in step.launch.grid)
        )

    @property
    def launches(self) -> int:
        """Calls in one run at the largest sizes."""
        return len(self.launched())

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(weight.nbytes for weight in self.weights)

    @property
    def arena_bytes(self) -> int:
        """Bytes of the arena at `arena_sizes`."""
        return self.plan.bytes_at({**self.arena_sizes, "threads": THREADS})

    @property
    def arena_sizes(self) -> dict[str, int]:
        """The largest sizes; one without bound counts as its smallest."""
        ranges = self.graph.symbols.items()
        return {name: least if most is None else most for name, (least, most) in ranges}

    def generated_source(self) -> str:
        """The source file of the generated functions."""
        return print_file(self.functions)


def step_buffers(step: Step) -> list[int]:
    """The buffers that a step reads or writes."""
    if isinstance(step, OnnxStep):
        return [storage.buffer for _, storage in (*step.inputs, *step.outputs)]
    scratch = [] if step.scratch is None else [step.scratch]
    return [storage.buffer for storage in step.launch.operands] + scratch
