"""What the steps of an artifact move and compute, and what a machine gives at most.

The compiler works costs out (`fusec.lower.costs` says how) and writes them into programs; this
reads them back for the sizes of one run, and knows the data sheets of GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusec.diagnostics import InputError, UsageError
from fusec.runtime.artifact import Artifact, Manifest
from fusec.runtime.cpu import available_cpus
from fusec.runtime.documents import Field, evaluate_dim
from fusec.runtime.program import THREADS
from fusec.target import Target, data_sheet

UNITS = ("f64", "f32", "f16", "bf16", "f8", "f4", "i64")

USUAL_SIZE = 128
"""What a size is where nobody said, if its range allows it: tokens of a short prompt."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step takes, for the sizes of one run.

    Attributes:
        node: that it computes, or the first of several.
        op: of the node, or of all of them.
        kernel: the record of the kernel; `onnxruntime` for a residual step.
        nodes: all that it computes.
        read: bytes that it reads.
        write: bytes that it writes.
        flops: operations; 0 where fusec gives the operation no meaning.
        unit: what they are done in.
    """

    node: str
    op: str
    kernel: str
    nodes: tuple[str, ...]
    read: int
    write: int
    flops: int
    unit: str

    @property
    def bytes(self) -> int:
        """Bytes that it moves."""
        return self.read + self.write


@dataclass(frozen=True, slots=True)
class Limits:
    """What a machine gives at most.

    Attributes:
        bytes_per_second: from and to memory.
        flops_per_second: by unit; one that is missing is not known to limit anything.
        source: where the figures come from.
    """

    bytes_per_second: float
    flops_per_second: Mapping[str, float]
    source: str

    def seconds(self, cost: StepCost) -> float:
        """The least time that a step takes: that of its bytes or of its operations."""
        return max(self.memory_seconds(cost), self.compute_seconds(cost))

    def memory_seconds(self, cost: StepCost) -> float:
        """The time of the bytes of a step."""
        return cost.bytes / self.bytes_per_second

    def compute_seconds(self, cost: StepCost) -> float:
        """The time of the operations of a step."""
        rate = self.flops_per_second.get(cost.unit)
        return 0.0 if rate is None else cost.flops / rate

    def bound(self, cost: StepCost) -> str:
        """What limits a step: `memory` or `compute`."""
        longer = self.compute_seconds(cost) > self.memory_seconds(cost)
        return "compute" if longer else "memory"


def step_costs(artifact: Artifact, target: str, sizes: Mapping[str, int]) -> list[StepCost]:
    """The cost of every step that runs at `sizes`, in order.

    Launches that serve other sizes, whose grid is empty, are left out.

    Args:
        artifact: an open artifact.
        target: one that it was compiled for.
        sizes: the value of each symbol; `threads` may be among them.

    Raises:
        InputError: the artifact is older than costs.
        ArtifactError: it has no such target, or its program is damaged.
    """
    found = (step_cost(step, sizes) for step in artifact.program(target).get("steps").items())
    return [cost for cost in found if cost is not None]


def step_nodes(step: Field) -> tuple[str, ...]:
    """The nodes that a step of a program computes."""
    nodes = step.get_or_none("nodes")
    return (step.get("node").string(),) if nodes is None else nodes.tuple_of(Field.string)


def step_cost(step: Field, sizes: Mapping[str, int]) -> StepCost | None:
    """The cost of a step of a program at `sizes`; `None` for a launch that serves other sizes.

    Raises:
        InputError: the artifact is older than costs.
        ArtifactError: the step is damaged.
    """
    values = {THREADS: available_cpus(), **sizes}
    grid = step.get_or_none("grid")
    sides = [] if grid is None else grid.items()
    if not all(evaluate_dim(side.dim(), values, side.at) for side in sides):
        return None
    cost = step.get_or_none("cost")
    if cost is None:
        raise InputError(
            "the artifact does not say what its steps cost: an older fusec compiled it",
            at=step.at,
            hint="compile it again",
        )

    def number(key: str) -> int:
        size = cost.get(key)
        return evaluate_dim(size.dim(-(1 << 62)), values, size.at)

    kernel = step.get_or_none("kernel")
    return StepCost(
        node=step.get("node").string(),
        op=step.get("op").string(),
        kernel="onnxruntime" if kernel is None else kernel.string(),
        nodes=step_nodes(step),
        read=number("read"),
        write=number("write"),
        flops=number("flops"),
        unit=cost.get("unit").one_of(*UNITS),
    )


def limits_of(target: str | Target) -> Limits:
    """What the data sheet of a GPU says.

    Args:
        target: a product, or an architecture, which stands for its usual product: MI355X for
            gfx950, MI300X for gfx942, H100 SXM for sm_90.

    Raises:
        UsageError: there is no data sheet: a CPU is measured instead.
    """
    name = target if isinstance(target, str) else target.name
    sheet = data_sheet(name)
    if sheet is None:
        raise UsageError(
            f"there is no data sheet for `{name}`",
            hint="the limits of a CPU are measured where it is: `fusec bench` does",
        )
    return Limits(sheet.bytes_per_second, sheet.flops_per_second, sheet.source)


def typical_sizes(manifest: Manifest) -> dict[str, int]:
    """A value for each symbol.

    The OPT of `--dim NAME=MIN:OPT:MAX` where it was given, else 1 for `batch` and 128 for the rest,
    or what comes nearest in the range.
    """
    given = manifest.options.get("dims")
    asked = given if isinstance(given, Mapping) else {}
    found: dict[str, int] = {}
    for name, (least, most) in manifest.symbols.items():
        ends = str(asked.get(name, "")).split(":")
        optimum = ends[1] if len(ends) == 3 else ""
        usual = 1 if name == "batch" else USUAL_SIZE
        found[name] = max(least, min(most, int(optimum) if optimum.isdecimal() else usual))
    return found
