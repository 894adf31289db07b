"""An exported PyTorch program as plain data; `fusec.frontend.translate` makes a graph of it.

Two readers make an `AtenProgram`: one from the JSON of a `.pt2` archive, one from a live
`torch.export.ExportedProgram`.  Neither this module nor the table of operations imports torch.

What a reader has to do:

* Targets are written `aten.linear.default`, `_operator.mul`, `torch.sym_float`,
  `higher_order.wrap_with_set_grad_enabled`: without a leading `torch.ops.`.
* `getitem` of an operation with several results does not appear: `AtenNode.outputs` lists the
  results one by one, a list among them flattened, `None` for one that is absent.
* An argument that is a symbolic integer whose expression can be read is given as that `Dim`.  A
  node whose outputs are all such symbols may be kept or left out.  An argument whose symbol cannot
  be read as a `Dim` (floats, flags) is a `Ref` to the node that computes it.
* dtypes are fusec's names; one that fusec has not is given PyTorch's name (`complex64`).  Devices,
  layouts and memory formats are strings such as `cpu`, `strided`, `channels_last`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from fusec.ir.weights import Weight
from fusec.symbolic import Dim, Range


@dataclass(frozen=True, slots=True)
class Ref:
    """Names a value of the graph that it appears in."""

    name: str


@dataclass(frozen=True, slots=True)
class AtenTensor:
    """A tensor that a graph takes or a node makes.

    Attributes:
        name: unique in its graph.
        dtype: fusec's name, or PyTorch's where fusec has none.
        shape: sizes.
        strides: in elements; tell whether a `reshape` shares memory.  `None` where unknown.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...] | None = None


@dataclass(frozen=True, slots=True)
class AtenSymbol:
    """A number that is not known before the program runs.

    Attributes:
        name: unique in its graph.
        dim: its value, where it is an integer whose expression can be read.
        text: the expression as written, for messages.
    """

    name: str
    dim: Dim | None = None
    text: str = ""


AtenValue: TypeAlias = "AtenTensor | AtenSymbol | None"
"""A result; `None` is one that is absent."""

Argument: TypeAlias = (
    "Ref | Dim | bool | float | complex | str | AtenGraph | tuple[Argument, ...] | None"
)
"""An argument of a node; a list is a tuple."""


@dataclass(frozen=True, slots=True)
class AtenNode:
    """One call.

    Attributes:
        target: what is called, such as `aten.add.Tensor`.
        args: positional arguments, in the order of the operation's schema.
        kwargs: the other arguments.
        outputs: what it makes.
        path: the module whose code calls it, such as `model.layers.0.self_attn`.
        source: file and line of that code.
    """

    target: str
    args: tuple[Argument, ...]
    kwargs: Mapping[str, Argument]
    outputs: tuple[AtenValue, ...]
    path: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class AtenGraph:
    """Nodes in order of execution, with what they take and give."""

    nodes: tuple[AtenNode, ...]
    inputs: tuple[AtenValue, ...]
    outputs: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class AtenInput:
    """What one input of the outermost graph stands for.

    Attributes:
        kind: `user` is given at run time; `weight` is a parameter, buffer or constant; `fixed` is
            an argument that was not a tensor at export, and is not given again.
        name: of a user input what it is called; of a weight its name in the model.
        weight: of a weight its contents; tied ones share their `identity`.
        value: of a fixed input its value.
    """

    kind: Literal["user", "weight", "fixed"]
    name: str
    weight: Weight | None = None
    value: Argument = None


@dataclass(frozen=True, slots=True)
class AtenOutput:
    """What one output of the outermost graph stands for.

    Attributes:
        kind: `user` is returned; `mutation` is the new contents of the buffer or input `name`.
        name: what it is called.
    """

    kind: Literal["user", "mutation"]
    name: str


@dataclass(frozen=True, slots=True)
class AtenProgram:
    """An exported program.

    Attributes:
        graph: the outermost graph.
        inputs: one for each of `graph.inputs`.
        outputs: one for each of `graph.outputs`.
        symbols: the range of each symbol; names as in the export, such as `s72`.
    """

    graph: AtenGraph
    inputs: tuple[AtenInput, ...]
    outputs: tuple[AtenOutput, ...]
    symbols: Mapping[str, Range] = field(default_factory=dict)


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def source_line(trace: str) -> str:
    """File and line of the innermost frame of a stack trace that is not PyTorch's own.

    The file is given from its package on, so that it does not depend on the machine.
    """
    found = ""
    for file, line in _FRAME.findall(trace):
        parts = file.replace("\\", "/").split("/")
        root = max((i for i, part in enumerate(parts) if part.endswith("-packages")), default=None)
        inside = parts[-1:] if root is None else parts[root + 1 :]
        if inside[0] != "torch":
            found = f"{'/'.join(inside)}:{line}"
    return found
