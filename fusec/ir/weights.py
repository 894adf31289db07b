"""Weights: what is known of them, and a way to get their bytes when they are written.

A weight is never held by the graph.  Passes that merge or reorder weights make a new `Weight`
that refers to the old ones; its bytes are made when the artifact is written, one at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import InputError, VerifyError
from fusec.dtypes import DTYPES
from fusec.ir.types import TensorType

Bits = NDArray[np.generic]
"""An array in the storage type of its dtype: bf16 is uint16, fp8 is uint8."""


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
    """

    name: str
    type: TensorType
    read: Callable[[], Bits] | None
    identity: str
    packing: str = "plain"
    sources: tuple[str, ...] = ()

    @property
    def made_from(self) -> tuple[str, ...]:
        """The names in the source that it is made from."""
        return self.sources or (self.name,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes, all integers."""
        return integers(self.type)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * DTYPES[self.type.dtype].itemsize

    def load(self) -> Bits:
        """The elements.

        Raises:
            InputError: the source has no values.
        """
        if self.read is None:
            hint = "give the folder its safetensors files, or compile with `--weights none`"
            raise InputError(f"the source has no values for `{self.name}`", hint=hint)
        array = self.read()
        storage = DTYPES[self.type.dtype].numpy
        if array.shape != self.shape or array.dtype != storage:
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
    packing = f"concatenated along {axis}"
    return Weight(name, kind, read if known else None, how, packing, sources)


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
        data = part.encode()
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()
