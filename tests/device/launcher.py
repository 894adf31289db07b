"""Launches Triton kernels on the GPU of this machine, just as their records ask.

The signature, the divisible arguments, the constants, the warps and the grid are those of the
`Launch`; so what runs here is what `fusec compile` builds.  PyTorch owns the memory.

    memory = {buffer: tensor on the GPU}
    for launch in record.launches(Call(graph, node, SM_90, inputs, outputs, Scratch(memory))):
        run(launch, memory)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, MutableMapping
from functools import cache
from typing import Any

import torch

from fusec import symbolic
from fusec.dtypes import DTYPES
from fusec.kernels.launch import Launch, Storage, TritonSource, dense_strides
from fusec.symbolic import Dim
from fusec.target import target_named

SM_90 = target_named("sm_90")
"""The target of the GPU that the tests run on."""

FILL = 0xFF
"""Every byte of a result or of scratch before a launch: NaN in each float format."""


def run(
    launch: Launch, memory: Mapping[int, torch.Tensor], sizes: Mapping[str, int] | None = None
) -> None:
    """Launch once, and return without waiting.

    Args:
        launch: of a Triton kernel.
        memory: the buffers that storages name, on the GPU and dense, of any dtype.
        sizes: values of the symbols in the launch.
    """
    prepared(launch, memory, sizes)()


def prepared(
    launch: Launch, memory: Mapping[int, torch.Tensor], sizes: Mapping[str, int] | None = None
) -> Callable[[], None]:
    """What `run` does, compiled and with its arguments in place: for measurements."""
    source = launch.code
    assert isinstance(source, TritonSource)
    values: list[Any] = [_address(storage, memory, sizes) for storage in launch.operands]
    values += [_number(param, sizes) for param in launch.params]
    names = [name for name, _ in source.signature]
    given = {**dict(zip(names, values, strict=True)), **dict(source.constants)}
    kernel = compiled(source)
    arguments = [given[name] for name in _function(source).arg_names]
    launcher = kernel[tuple(symbolic.evaluate(size, sizes or {}) for size in launch.grid)]
    return lambda: launcher(*arguments)


@cache
def compiled(source: TritonSource) -> Any:
    """The kernel that Triton makes of `source` for `SM_90`: `asm`, `metadata`, `n_regs`, ..."""
    triton = importlib.import_module("triton")
    compiler = importlib.import_module("triton.compiler")
    backends = importlib.import_module("triton.backends.compiler")
    function = _function(source)
    constants = dict(source.constants)
    signature = {**dict(source.signature), **dict.fromkeys(constants, "constexpr")}
    names = function.arg_names
    made = compiler.ASTSource(
        fn=function,
        signature={name: signature[name] for name in names},
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in source.divisible},
    )
    target = backends.GPUTarget("cuda", int(SM_90.arch.removeprefix("sm_")), SM_90.wave_size)
    options = {"num_warps": source.warps, "enable_fp_fusion": True, **dict(source.options)}
    return triton.compile(made, target=target, options=options)


class Scratch:
    """Gives buffers between the launches of a node: `Call.scratch`."""

    def __init__(self, memory: MutableMapping[int, torch.Tensor]) -> None:
        """New buffers are put into `memory`, behind those that are there."""
        self.memory = memory

    def __call__(self, dtype: str, shape: tuple[Dim, ...]) -> Storage:
        """A dense buffer, every byte of it `FILL`."""
        sizes = tuple(symbolic.evaluate(dim, {}) for dim in shape)
        elements = symbolic.evaluate(symbolic.product(sizes), {})
        buffer = max(self.memory, default=-1) + 1
        size = elements * DTYPES[dtype].itemsize
        self.memory[buffer] = torch.full((size,), FILL, dtype=torch.uint8, device="cuda")
        return Storage(buffer, dtype, sizes, dense_strides(sizes))


def _function(source: TritonSource) -> Any:
    return getattr(importlib.import_module(source.module), source.function)


def _address(
    storage: Storage, memory: Mapping[int, torch.Tensor], sizes: Mapping[str, int] | None
) -> torch.Tensor:
    offset = symbolic.evaluate(storage.byte_offset, sizes or {})
    return memory[storage.buffer].reshape(-1).view(torch.uint8)[offset:]


def _number(param: Dim | float, sizes: Mapping[str, int] | None) -> int | float:
    return param if isinstance(param, float) else symbolic.evaluate(param, sizes or {})
