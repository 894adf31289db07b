"""Norms, activations and rows brought into fp8 on the CPU beside PyTorch: times and errors.

    PYTHONPATH=. python tests/benchmarks/cpu_rows.py [--threads 1 2] [--only TEXT ...] [--rows N]

Every program goes through `fusec compile`, and its artifact runs on arrays as they are stored.
PyTorch runs the same tensors, eagerly and through `torch.compile`.  The contestants take turns;
times are the least of all rounds, of the process where there is one thread, of the clock where
there are more.  An error, in brackets, is the root of the mean square against the same operands in
f64, relative to that of the result; codes count with their scales.
"""

from __future__ import annotations

import argparse
import copy
import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import peer_modules
import torch
from peer_modules import (
    AddRmsFp8,
    DualRmsNorm,
    GatedRmsNorm,
    RmsNorm,
    SiluMul,
    SiluMulFp8,
    Softmax,
    ones,
    rms_norm,
)
from torch import Tensor, nn

import fusec

Tensors = tuple[Tensor, ...]
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
CALLS_PER_ROUND = 3


class AddRmsNorm(nn.Module):
    """The join of a residual stream and its norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = ones(width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensors:
        total = x + residual
        return rms_norm(total, self.weight), total


@dataclass(frozen=True, slots=True)
class Workload:
    """A program, the shapes of its operands, and the dtypes that it is timed in."""

    name: str
    program: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...] = ("bf16", "f32")


def workloads(rows: int) -> tuple[Workload, ...]:
    """Programs of `rows` rows of 4096 elements, or as many heads of 128."""
    wide, heads = (rows, 4096), (16 * rows, 128)
    return (
        Workload(
            "e1 add, rms_norm, fp8 by token", lambda: AddRmsFp8(4096), (wide, wide), ("bf16",)
        ),
        Workload("e2 silu_mul, fp8 by 128", SiluMulFp8, ((rows, 8192),), ("bf16",)),
        Workload("e3 gated rms_norm of 128", lambda: GatedRmsNorm(128), (heads, heads)),
        Workload("e4 two rms_norms", lambda: DualRmsNorm(1536, 512), ((rows, 1536), (rows, 512))),
        Workload("rms_norm", lambda: RmsNorm(4096), (wide,)),
        Workload("add_rms_norm", lambda: AddRmsNorm(4096), (wide, wide)),
        Workload("silu_mul", SiluMul, (wide, wide)),
        Workload("layer_norm", lambda: nn.LayerNorm(4096), (wide,)),
        Workload("softmax", Softmax, ((rows // 4, 4096),)),
    )


# ---- contestants ----


def compiled(
    module: nn.Module, inputs: Tensors, folder: Path, threads: int
) -> Callable[[], Tensors]:
    """Runs the artifact of `module` on `inputs`."""
    path = folder / "rows.fusec"
    fusec.compile(module, path, target="cpu", example_inputs=inputs)
    model = fusec.load(path, threads=threads)
    stored = {
        spec.name: (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
        for spec, x in zip(model.inputs, inputs, strict=True)
    }
    kinds = {"bf16": torch.bfloat16, "f8e4m3fn": torch.float8_e4m3fn}

    def run() -> Tensors:
        results = model.run_stored(stored)
        return tuple(
            torch.from_numpy(results[spec.name]).view(kinds.get(spec.dtype, torch.float32))
            for spec in model.outputs
        )

    return run


def contestants(
    module: nn.Module, inputs: Tensors, folder: Path, threads: int, *, with_compile: bool
) -> dict[str, Callable[[], Tensors]]:
    """What computes `module(*inputs)`, by name."""
    found: dict[str, Callable[[], Tensors]] = {
        "fusec": compiled(module, inputs, folder, threads),
        "eager": functools.partial(module, *inputs),
    }
    if with_compile:
        torch._dynamo.reset()
        found["compile"] = functools.partial(torch.compile(module, dynamic=False), *inputs)
    return found


def as_tuple(results: Tensor | Tensors) -> Tensors:
    return results if isinstance(results, tuple) else (results,)


def error(results: Tensors, exact: Tensors) -> float:
    """Root mean square of the error of the first result, codes times their scales."""
    got, wanted = values(results), values(exact)
    return float(((got - wanted).square().mean() / wanted.square().mean()).sqrt())


def values(results: Tensors) -> Tensor:
    first = results[0].double().flatten(1)
    if results[0].dtype != torch.float8_e4m3fn:
        return first
    scale = results[1].double()
    return first * scale.repeat_interleave(first.shape[-1] // scale.shape[-1], -1)


def exact_results(module: nn.Module, inputs: Tensors) -> Tensors:
    """Those of the program on the same operands in f64, without codes: what codes stand for."""
    with (
        mock.patch.object(peer_modules, "to_fp8", lambda x: (x, torch.ones(1))),
        mock.patch.object(Tensor, "float", Tensor.double),
    ):
        return as_tuple(copy.deepcopy(module).double()(*(x.double() for x in inputs)))


# ---- time ----


def least_times(
    functions: dict[str, Callable[[], Tensors]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Milliseconds of one call of each, the least of all rounds."""
    times = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            begin = clock()
            for _ in range(CALLS_PER_ROUND):
                function()
            times[name] = min(times[name], (clock() - begin) / CALLS_PER_ROUND * 1e3)
    return times


def measured(work: Workload, dtype: str, threads: int, asked: argparse.Namespace) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    module = work.program().to(DTYPES[dtype]).eval()
    inputs = tuple(torch.randn(shape).to(DTYPES[dtype]) for shape in work.shapes)
    clock = time.process_time if threads == 1 else time.perf_counter
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        functions = contestants(
            module, inputs, Path(folder), threads, with_compile=not asked.no_compile
        )
        times = least_times(functions, asked.rounds, clock)
        results = {name: as_tuple(function()) for name, function in functions.items()}
        exact = exact_results(module, inputs)
    errors = {name: error(each, exact) for name, each in results.items()}
    peers = [each for name, each in times.items() if name != "fusec"]
    cells = [work.name, dtype, str(threads)]
    for name in ("fusec", "eager", "compile"):
        cells.append(f"{times[name]:.2f} ({errors[name]:.1e})" if name in times else "-")
    cells.append(f"{min(peers) / times['fusec']:.2f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of programs")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="PyTorch eagerly only")
    asked = parser.parse_args()
    print("| program | dtype | threads | fusec ms | eager ms | compile ms | best peer / fusec |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for work in workloads(asked.rows):
        if asked.only and not any(text in work.name for text in asked.only):
            continue
        for dtype in work.dtypes:
            for threads in asked.threads if dtype in asked.dtypes else ():
                print(measured(work, dtype, threads, asked), flush=True)


if __name__ == "__main__":
    main()
