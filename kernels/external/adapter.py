"""From a node to a call of a library's function, or the reason why the library cannot do it.

An `Adapter` is written for functions of certain signatures.  Whether a version has one is asked of
the manifest; what the function can compute is stated as data, and checked against the node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from fusec.diagnostics import InternalError
from fusec.formats import Scaling
from fusec.ir import Attrs, Graph, Node, TensorType
from fusec.ir.types import bool_attr, int_attr
from fusec.kernels.external.call import Argument, ExternalCall
from fusec.kernels.external.manifest import Form, Manifest, Need, Refusal
from fusec.kernels.external.versions import Version
from fusec.kernels.launch import Call, Launch, Storage
from fusec.kernels.registry import Kernel, Layouts, all_contiguous
from fusec.kernels.triton_rows import row_count, row_layouts, row_length, row_stride
from fusec.target import Target

_WEIGHT_IS_OPTIONAL = ("rms_norm", "rms_norm_quant")
"""Operations whose weight is there only with `has_weight`; every function needs one."""


@dataclass(frozen=True, slots=True)
class Site:
    """A node, the target, and the form of the function that would compute it."""

    graph: Graph
    node: Node
    target: Target
    form: Form

    @property
    def attrs(self) -> Attrs:
        """The attributes of the node."""
        return self.node.attrs

    @property
    def scaling(self) -> Scaling:
        """How the node quantises."""
        return Scaling.of(self.node.attrs)

    def type(self, index: int) -> TensorType:
        """The type of an operand."""
        return self.graph.type(self.node.inputs[index])

    def result(self, index: int) -> int:
        """The number of a result among operands and results."""
        return len(self.node.inputs) + index

    def takes(self, parameter: str) -> bool:
        """Whether the form has a parameter of that name."""
        return parameter in self.form.signature.names


@dataclass(frozen=True, slots=True)
class Limits:
    """What a function takes.

    Attributes:
        archs: it runs on.
        dtypes: of its rows.
        rows: operands that are rows, by number.
        weights: operands that are weights, by number.
        same_dtype: whether weights have the dtype of the rows.
        longest: elements of a row at most, or `None`.
        multiple: what the elements of a row are a multiple of.
    """

    archs: tuple[str, ...] = ("gfx942", "gfx950")
    dtypes: tuple[str, ...] = ("bf16", "f16")
    rows: tuple[int, ...] = (0,)
    weights: tuple[int, ...] = (1,)
    same_dtype: bool = True
    longest: int | None = None
    multiple: int = 1

    def refuse(self, site: Site) -> Iterator[str]:
        """Why `site` is beyond the limits."""
        if site.target.arch not in self.archs:
            yield f"it runs on {_either(self.archs)}; this is {site.target.arch}"
        for index in self.rows:
            yield from self._refuse_row(site.node.inputs[index], site.type(index))
        rows = site.type(self.rows[0])
        for index in self.weights:
            weight = site.type(index)
            if self.same_dtype and weight.dtype != rows.dtype:
                name = site.node.inputs[index]
                yield f"weight `%{name}` is {weight.dtype} beside rows of {rows.dtype}"

    def _refuse_row(self, name: str, kind: TensorType) -> Iterator[str]:
        length = kind.shape[-1] if kind.shape else None
        if kind.dtype not in self.dtypes:
            yield f"`%{name}` is {kind.dtype}; it takes {_either(self.dtypes)}"
        if not isinstance(length, int):
            yield f"the rows of `%{name}: {kind}` have no length known at compile time"
        elif self.longest is not None and length > self.longest:
            yield f"a row has {length} elements; it takes up to {self.longest}"
        elif length % self.multiple:
            yield f"a row has {length} elements, no multiple of {self.multiple}"


@dataclass(frozen=True, slots=True)
class Quantising:
    """What a function quantises to.

    Attributes:
        maximum: what it scales the largest element to, by architecture.
        sets_maximum: whether the caller may give another maximum.
        packed: whether to 4-bit floats, two a byte, with e8m0 scales; else to the 8-bit float of
            the architecture, with f32 scales.
        granularities: of its scales.
        groups: elements that may share a scale.
        roundings: of its scales.
        column: whether it can lay out the scales of each group together.
        given_scale: whether it takes the scale rather than finding it.
        plain: whether it can also give the result that is not quantised.
    """

    maximum: Mapping[str, float]
    sets_maximum: bool = False
    packed: bool = False
    granularities: tuple[str, ...] = ("group",)
    groups: tuple[int, ...] = (64, 128)
    roundings: tuple[str, ...] = ("none",)
    column: bool = False
    given_scale: bool = False
    plain: bool = False

    def refuse(self, site: Site) -> Iterator[str]:
        """Why it does not quantise as `site` wants it."""
        scaling = site.scaling
        dtype = "f4e2m1x2" if self.packed else site.target.fp8
        maximum = self.maximum.get(site.target.arch)
        if scaling.dtype != dtype:
            yield f"it quantises to {dtype}, not {scaling.dtype}"
        if scaling.scale_dtype != ("e8m0" if self.packed else "f32"):
            yield f"its scales are not {scaling.scale_dtype}"
        if scaling.granularity not in self.granularities:
            yield f"its scales are by {_either(self.granularities)}, not by {scaling.granularity}"
        elif scaling.granularity == "group" and scaling.group not in self.groups:
            yield f"its groups have {_either(self.groups)} elements, not {scaling.group}"
        if scaling.rounding not in self.roundings:
            yield f"it rounds scales `{_either(self.roundings)}`, not `{scaling.rounding}`"
        if not self.sets_maximum and maximum is not None and scaling.maximum != maximum:
            yield (
                f"it scales the largest element to {maximum:g} on {site.target.arch}; "
                f"this operation to {scaling.maximum:g}"
            )
        if scaling.layout == "column" and not self.column:
            yield "it cannot lay out the scales of each group together"
        if scaling.upper_bound is not None:
            yield "it has no upper bound of scales"
        if scaling.least is not None:
            yield "it has a least scale of its own"
        if bool_attr(site.attrs, "has_scale") != self.given_scale:
            yield "it takes a given scale" if self.given_scale else "it finds the scale itself"
        if bool_attr(site.attrs, "with_plain") and not self.plain:
            yield "it gives no result beside the quantised one"


Arguments: TypeAlias = Callable[[Site], tuple[Argument, ...]]
Returned: TypeAlias = Callable[[Site], tuple[int | None, ...]]
Refuse: TypeAlias = Callable[[Site], Iterator[str]]
Operands: TypeAlias = Callable[[Call], tuple[Storage, ...]]


def in_place(site: Site) -> tuple[int | None, ...]:
    """A function that writes its results where it is told to."""
    return ()


def evenly_spaced(form: Form) -> Layouts:
    """A function that takes rows with any stride between them."""
    return row_layouts


def dense(form: Form) -> Layouts:
    """A function that takes dense operands only."""
    return all_contiguous


def no_more(site: Site) -> Iterator[str]:
    """A function that has no other limits."""
    return iter(())


def as_rows(storage: Storage) -> Storage:
    """Evenly spaced rows [..., N] as [rows, N]; vectors stay what they are."""
    if len(storage.shape) < 2:
        return storage
    shape = (row_count(storage), storage.shape[-1])
    return replace(storage, shape=shape, strides=(row_stride(storage), 1))


def rows_of(call: Call) -> tuple[Storage, ...]:
    """Operands and results, rows as matrices."""
    return tuple(as_rows(storage) for storage in (*call.inputs, *call.outputs))


@dataclass(frozen=True, slots=True)
class Adapter:
    """How a library's function computes an operation.

    Attributes:
        op: the operation.
        need: the function.
        limits: what it takes.
        arguments: of the call; operands are numbered as `operands` gives them.
        quantising: what it quantises to, for an operation that quantises.
        returned: which operand each tensor is that it returns.
        refuse: further reasons, each in one line.
        operands: what the call is given.
        layouts: what a form of the function needs of operands and results.
    """

    op: str
    need: Need
    limits: Limits
    arguments: Arguments
    quantising: Quantising | None = None
    returned: Returned = in_place
    refuse: Refuse = no_more
    operands: Operands = rows_of
    layouts: Callable[[Form], Layouts] = evenly_spaced

    def kernel(self, manifest: Manifest, version: Version) -> Kernel:
        """The record for one version of the library."""
        found = manifest.lookup(version, self.need)

        def supports(graph: Graph, node: Node, target: Target) -> str | None:
            if isinstance(found, Refusal):
                return str(found)
            return next(self._reasons(Site(graph, node, target, found)), None)

        def launch(call: Call) -> Launch:
            if isinstance(found, Refusal):
                raise InternalError(f"`{call.node.name}` was given to a kernel that refuses it")
            site = Site(call.graph, call.node, call.target, found)
            external = self._call(manifest, version, site)
            return Launch(external.symbol, self.operands(call), (), code=external)

        return Kernel(
            op=self.op,
            name=f"{self.op}.{manifest.library}.{self.need.function}",
            provider="external",
            families=("amdgpu",),
            source="",
            supports=supports,
            launch=launch,
            layouts=row_layouts if isinstance(found, Refusal) else self.layouts(found),
        )

    def _reasons(self, site: Site) -> Iterator[str]:
        if self.op in _WEIGHT_IS_OPTIONAL and not bool_attr(site.attrs, "has_weight"):
            yield "it needs a weight"
        yield from self.limits.refuse(site)
        if not self._takes_offset(site):
            yield "it cannot add 1 to the weight"
        if self.quantising is not None:
            yield from self.quantising.refuse(site)
        yield from self.refuse(site)

    def _takes_offset(self, site: Site) -> bool:
        if "weight_offset" not in site.attrs:
            return True
        return int_attr(site.attrs, "weight_offset") == 0 or site.takes("gemma_norm")

    def _call(self, manifest: Manifest, version: Version, site: Site) -> ExternalCall:
        form = site.form
        return ExternalCall(
            library=manifest.library,
            version=str(version),
            versions=tuple(map(str, form.versions)),
            distributions=manifest.distributions_of(version),
            module=form.module,
            function=form.function,
            signature=form.signature,
            operator=f"{manifest.library}::{form.function}" if form.is_operator else "",
            arguments=self.arguments(site),
            returned=self.returned(site),
        )


def operand(name: str, index: int) -> Argument:
    """An argument that is an operand or a result."""
    return Argument(name, "operand", index)


def value(name: str, constant: bool | int | float | str | None) -> Argument:
    """An argument that is a constant."""
    return Argument(name, "value", constant)


def gemma_norm(site: Site) -> tuple[Argument, ...]:
    """The argument that adds 1 to the weight, where there is such a parameter."""
    if not site.takes("gemma_norm"):
        return ()
    return (value("gemma_norm", int_attr(site.attrs, "weight_offset") == 1),)


def width(site: Site, index: int = 0) -> int:
    """Elements of a row of an operand."""
    return row_length(site.type(index))


def _either(words: tuple[object, ...]) -> str:
    return " or ".join(map(str, words))
