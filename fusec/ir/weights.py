"""Weights: what is known of them, and a way to get their bytes when they are written.

A weight is never held by the graph.  Passes that merge or reorder weights make a new `Weight`
that refers to the old ones; its bytes are made when the artifact is written, one at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import InputError, VerifyError
from fusec.dtypes import DTYPES, f32_to_bf16
from fusec.formats import decode, expand_blocks, unpack_e2m1
from fusec.ir.types import TensorType

Bits = NDArray[np.generic]
"""An array in the storage type of its dtype: bf16 is uint16, fp8 is uint8."""


DEQUANTISED = "dequantised"
"""What `packing` begins with where values were made of codes."""


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A tensor that comes with the model.

    Attributes:
        name: its name in the source, or one that a pass gave it.
        type: all sizes are integers.
        read: gives the elements, `type.shape` in the storage type; `None` when the source has no
            values (a folder that holds only `config.json`).
        identity: equal for equal contents: names the source entry and what was done to it.
        packing: what was done to the source's own bytes; `plain` for nothing.
        sources: the names in the source that it is made from; empty for its own name alone.
        quantised: the form of fewer bits in which the source holds it, if it does.
    """

    name: str
    type: TensorType
    read: Callable[[], Bits] | None
    identity: str
    packing: str = "plain"
    sources: tuple[str, ...] = ()
    quantised: Quantised | None = None

    @property
    def made_from(self) -> tuple[str, ...]:
        """The names in the source that it is made from."""
        return self.sources or (self.name,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical sizes, all integers."""
        return integers(self.type)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """The sizes of what `load` gives: padded where the type is padded."""
        return integers(TensorType(self.type.dtype, self.type.memory_shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, padding included."""
        return int(np.prod(self.memory_shape, dtype=np.int64)) * DTYPES[self.type.dtype].itemsize

    def load(self) -> Bits:
        """The elements, `memory_shape` of them.

        Raises:
            InputError: the source has no values.
        """
        if self.read is None:
            hint = "give the folder its safetensors files, or compile with `--weights none`"
            raise InputError(f"the source has no values for `{self.name}`", hint=hint)
        array = self.read()
        storage = DTYPES[self.type.dtype].numpy
        if array.shape != self.memory_shape or array.dtype != storage:
            got = f"{array.dtype}{list(array.shape)}"
            raise VerifyError(f"weight `{self.name}` is `{self.type}`, but its values are {got}")
        return array

    def derive(
        self, name: str, type: TensorType, how: str, change: Callable[[Bits], Bits]
    ) -> Weight:
        """A weight made from this one by `change`; `how` names the change for `identity`."""
        read = None if self.read is None else lambda: change(self.load())
        packing = how if self.packing == "plain" else f"{self.packing}, {how}"
        identity = digest(how, str(type), self.identity)
        return Weight(name, type, read, identity, packing, self.made_from)


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """The codes and scales of a weight, from which its elements are exact.

    Attributes:
        codes: [..., N, K] of an 8-bit float, or [..., N, K/2] of f4e2m1x2, pairs along K.
        scale: [..., ceil(N/rows), ceil(K/columns)] of f32 or e8m0: an element is its code times
            the scale of its block.
        block: rows and columns that share a scale.
        turned: whether the weight's last two sizes are [K, N].
        input_scale: f32 [1], where the source says how activations are scaled; else they are
            scaled as they come.
    """

    codes: Weight
    scale: Weight
    block: tuple[int, int]
    turned: bool = False
    input_scale: Weight | None = None

    @property
    def values_shape(self) -> tuple[int, ...]:
        """[..., N, K]."""
        *outer, columns = self.codes.shape
        return (*outer, columns * 2 if self.codes.type.dtype == "f4e2m1x2" else columns)

    def values(self) -> NDArray[np.float64]:
        """The elements [..., N, K]."""
        codes, dtype = self.codes.load(), self.codes.type.dtype
        plain = unpack_e2m1(codes) if dtype == "f4e2m1x2" else decode(codes, dtype)
        scale = self.scale.load()
        wide = decode(scale, "e8m0") if self.scale.type.dtype == "e8m0" else scale
        return plain * expand_blocks(wide, self.block, plain.shape)


def dequantised(name: str, dtype: str, quantised: Quantised) -> Weight:
    """The weight whose exact form is `quantised`, its elements in `dtype` (f32, bf16 or f16)."""
    shape = quantised.values_shape
    if quantised.turned:
        shape = (*shape[:-2], shape[-1], shape[-2])
    kind = TensorType(dtype, shape)
    parts = (quantised.codes, quantised.scale)

    def read() -> Bits:
        values = quantised.values().astype(np.float32)
        if quantised.turned:
            values = values.swapaxes(-1, -2)
        values = np.ascontiguousarray(values)
        return f32_to_bf16(values) if dtype == "bf16" else values.astype(DTYPES[dtype].numpy)

    known = all(part.read is not None for part in parts)
    identity = digest(
        "dequantised", str(kind), str(quantised.block), *(part.identity for part in parts)
    )
    sources = tuple(source for part in parts for source in part.made_from)
    return Weight(name, kind, read if known else None, identity, DEQUANTISED, sources, quantised)


def finer(quantised: Quantised, block: tuple[int, int]) -> Quantised:
    """The same elements with smaller blocks: every scale is repeated.

    Args:
        quantised: its blocks are whole numbers of `block`, or go to the end of the weight.
        block: rows and columns that share a scale.
    """
    if block == quantised.block:
        return quantised
    shape = quantised.values_shape
    places = [
        np.arange(-(-size // new)) * new // old
        for size, new, old in zip(shape[-2:], block, quantised.block, strict=True)
    ]
    sizes = (*shape[:-2], *(len(place) for place in places))

    def change(scale: Bits) -> Bits:
        return np.ascontiguousarray(scale[..., places[0], :][..., places[1]])

    held = quantised.scale
    how = f"repeated for blocks of {block[0]}x{block[1]}"
    scale = held.derive(held.name, TensorType(held.type.dtype, sizes), how, change)
    return replace(quantised, scale=scale, block=block)


def _joined(parts: tuple[Weight, ...], axis: int) -> Quantised | None:
    """The codes of weights joined along their rows, if no scale is lost.

    Blocks that straddle two weights become a scale for each row, which whole rows allow.  Scales of
    activations become the largest, so that none saturates that did not (vLLM does the same).
    """
    found = [part.quantised for part in parts if part.quantised is not None]
    if len(found) < len(parts) or axis != 0 or len(parts[0].shape) != 2:
        return None
    first = found[0]
    kinds = {(each.codes.type.dtype, each.scale.type.dtype, each.turned) for each in found}
    inputs = [each.input_scale for each in found if each.input_scale is not None]
    if len(kinds) > 1 or first.turned or len(inputs) not in (0, len(found)):
        return None
    straddle = any(each.codes.shape[0] % first.block[0] for each in found[:-1])
    if straddle or any(each.block != first.block for each in found):
        length = first.values_shape[-1]
        if any(each.block[1] < length for each in found):
            return None
        found = [finer(each, (1, length)) for each in found]
    codes = tuple(each.codes for each in found)
    scales = tuple(each.scale for each in found)
    return Quantised(
        concatenated("+".join(code.name for code in codes), codes, 0),
        concatenated("+".join(scale.name for scale in scales), scales, 0),
        found[0].block,
        input_scale=_largest(tuple(inputs)) if inputs else None,
    )


def _largest(parts: tuple[Weight, ...]) -> Weight:
    """The elementwise largest of weights of one type."""
    name = "+".join(part.name for part in parts)
    joined = concatenated(name, parts, 0)
    rows = parts[0].shape[0]

    def largest(bits: Bits) -> Bits:
        return np.asarray(np.max(bits.reshape(len(parts), rows, *bits.shape[1:]), axis=0))

    return joined.derive(name, parts[0].type, "largest", largest)


def from_array(name: str, dtype: str, array: Bits) -> Weight:
    """A weight whose elements are at hand, such as a buffer that the source computed."""
    stored = np.ascontiguousarray(array).astype(DTYPES[dtype].numpy, copy=False)
    stored = stored.reshape(array.shape)  # ascontiguousarray makes a scalar one-dimensional
    contents = hashlib.sha256(stored.tobytes()).hexdigest()
    kind = TensorType(dtype, stored.shape)
    return Weight(name, kind, lambda: stored, digest("array", str(kind), contents))


def concatenated(name: str, parts: tuple[Weight, ...], axis: int) -> Weight:
    """The weights `parts` joined along `axis`; their other sizes and dtypes agree."""
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    kind = TensorType(parts[0].type.dtype, tuple(shape))
    how = digest("concat", str(axis), *(part.identity for part in parts))

    def read() -> Bits:
        return np.concatenate([part.load() for part in parts], axis=axis)

    known = all(part.read is not None for part in parts)
    sources = tuple(source for part in parts for source in part.made_from)
    packing, joined = f"concatenated along {axis}", _joined(parts, axis)
    if joined is None and any(_was_quantised(part) for part in parts):
        packing = f"{DEQUANTISED}, {packing}"
    return Weight(name, kind, read if known else None, how, packing, sources, joined)


def computed(
    name: str,
    type: TensorType,
    how: str,
    parts: tuple[Weight, ...],
    compute: Callable[[Sequence[Bits]], Bits],
) -> Weight:
    """The weight that `compute` makes of the elements of `parts`; `how` says what it does."""
    known = all(part.read is not None for part in parts)
    identity = digest("computed", how, str(type), *(part.identity for part in parts))
    sources = tuple(dict.fromkeys(source for part in parts for source in part.made_from))
    packing = f"computed by {how}"
    if any(_was_quantised(part) for part in parts):
        packing = f"{DEQUANTISED}, {packing}"
    read = (lambda: compute([part.load() for part in parts])) if known else None
    return Weight(name, type, read, identity, packing, sources)


def _was_quantised(weight: Weight) -> bool:
    return weight.quantised is not None or weight.packing.startswith(DEQUANTISED)


def has_lost_codes(weight: Weight) -> bool:
    """Whether the source holds codes for `weight`, but what was made of them has values only."""
    return weight.quantised is None and _was_quantised(weight)


def integers(type: TensorType) -> tuple[int, ...]:
    """The sizes of a type that has no symbols.

    Raises:
        VerifyError: a size is an expression.
    """
    sizes = tuple(dim for dim in type.shape if isinstance(dim, int))
    if len(sizes) != type.rank:
        raise VerifyError(f"a weight cannot have the type `{type}`: its sizes are not all known")
    return sizes


def digest(*parts: str) -> str:
    """A name for contents: SHA-256 over `parts`."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape")  # some are paths, of any bytes
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()
