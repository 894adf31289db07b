"""Runs the launches of HIP kernels on the host, lane by lane."""

from __future__ import annotations

import numpy as np
import torch

from fusec.emulator.host import run
from fusec.kernels.launch import HipSource, Launch
from fusec.symbolic import evaluate


def run_launch(launch: Launch, memory: dict[int, np.ndarray | torch.Tensor], fnuz: bool) -> None:
    """Run a launch of known sizes on `memory`, the buffers by number.

    Args:
        launch: of a HIP kernel.
        memory: arrays or tensors on the CPU, which the kernel reads and writes in place.
        fnuz: whether fp8 is that of gfx942.
    """
    assert isinstance(launch.code, HipSource)
    pointers = [
        _address(memory[storage.buffer]) + evaluate(storage.byte_offset, {})
        for storage in launch.operands
    ]
    params = [param if isinstance(param, float) else evaluate(param, {}) for param in launch.params]
    grid = [evaluate(size, {}) for size in launch.grid]
    run(launch.code, [*pointers, *params], grid, fnuz=fnuz)


def _address(memory: np.ndarray | torch.Tensor) -> int:
    if isinstance(memory, torch.Tensor):
        return memory.data_ptr()
    return int(memory.ctypes.data)
