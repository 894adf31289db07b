"""`linear` of the CPU kernels beside PyTorch's, for shapes, dtypes and numbers of rows.

    PYTHONPATH=. python tests/benchmarks/cpu_gemm.py --march sapphirerapids \
        --variant '' --variant FUSEC_TILE_STRETCH=128,FUSEC_TILE_BLOCK_ROWS=256

Needs torch and g++.  Builds one library for each `--variant`, a list of definitions of the
constants that `gemm.h`, `planes.h` and `cpu_gemm/kernel.cpp` let be set, and calls all of them and
PyTorch in turn; prints the least time of each, so that other load on the machine adds nothing.  On
one thread that is processor time, else wall time.  `prepacked` is PyTorch with a weight that oneDNN
reordered.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
SOURCES = ("cpu_core", "cpu_gemm", "linear")
FLAGS = (
    "-O3 -std=c++17 -fPIC -fno-exceptions -fno-rtti -fno-threadsafe-statics -fno-stack-protector "
    "-ffunction-sections -fvisibility=hidden -fno-math-errno -fno-trapping-math -shared"
).split()
PANEL = 32
TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
PRECISIONS = ("highest", "high", "medium")
ARCH_PRCTL, REQUEST_STATE, TILE_DATA = 158, 0x1023, 18


def build(definitions: Sequence[str], march: str, folder: Path) -> ctypes.CDLL:
    """The kernels with these constants."""
    path = folder / f"variant{len(list(folder.iterdir()))}.so"
    sources = [str(KERNELS / source / "kernel.cpp") for source in SOURCES]
    defined = [f"-D{definition}" for definition in definitions]
    command = ["g++", *FLAGS, f"-march={march}", *defined, "-I", str(KERNELS / "include")]
    subprocess.run([*command, *sources, "-o", str(path), "-lpthread", "-lm"], check=True)
    return ctypes.CDLL(str(path))


def packed(weight: torch.Tensor) -> torch.Tensor:
    """[N, K] in panels: the layout is in `gemm.h`."""
    n, k = weight.shape
    depth = -(-k // 32) * 32 if weight.dtype == torch.bfloat16 else k
    padded = torch.zeros(-(-n // PANEL) * PANEL, depth, dtype=weight.dtype)
    padded[:n, :k] = weight
    panels = padded.view(-1, PANEL, depth)
    if weight.dtype == torch.bfloat16:
        return panels.view(-1, PANEL, depth // 2, 2).transpose(1, 2).contiguous()
    return panels.transpose(1, 2).contiguous()


class Problem:
    """One product, and the ways to compute it.

    Args:
        m: rows of x.
        k: their length.
        n: rows of the weight.
        dtype: of all operands.
        copies: of the weight, used in turn, so that it comes from memory and not from a cache.
    """

    def __init__(self, m: int, k: int, n: int, dtype: str, copies: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.dtype = dtype
        self.x = torch.randn(m, k, generator=generator).to(TORCH[dtype])
        weight = torch.randn(n, k, generator=generator).to(TORCH[dtype])
        self.weights = [weight.clone() for _ in range(copies)]
        self.panels = [packed(weight) for weight in self.weights]
        self.out = torch.empty(m, n, dtype=TORCH[dtype])
        self.shape = (m, n, k)
        self.turn = 0

    def next(self) -> int:
        """The number of the copy whose turn it is."""
        self.turn = (self.turn + 1) % len(self.weights)
        return self.turn

    def ours(self, library: ctypes.CDLL, precision: int) -> Callable[[], torch.Tensor]:
        """One call of the kernel."""
        m, n, k = self.shape
        rows = (*(0, 0, 0, k), *(0, 0, 0, n), *(0, 0, 0, 0))
        params = (ctypes.c_int64 * 22)(1, 1, 1, m, *rows, n, k, 0, 0, 0, precision)
        address = ctypes.addressof(params)
        kernel = ctypes.cast(getattr(library, f"fusec_linear_{self.dtype}"), ctypes.c_void_p)
        steps = []
        kept = []
        for panels in self.panels:
            buffers = (ctypes.c_void_p * 3)(
                self.x.data_ptr(), panels.data_ptr(), self.out.data_ptr()
            )
            kept += [buffers, params]
            steps.append((ctypes.c_void_p * 3)(kernel.value, ctypes.addressof(buffers), address))

        def run(kept: list[object] = kept) -> torch.Tensor:
            library.fusec_execute(steps[self.next()], ctypes.c_int64(1), None)
            return self.out

        return run

    def eager(self) -> torch.Tensor:
        """PyTorch's product."""
        return functional.linear(self.x, self.weights[self.next()])

    def prepacked(self) -> Callable[[], torch.Tensor]:
        """PyTorch's product with weights that oneDNN has in the order that it likes best."""
        with torch.no_grad():
            reordered = [
                torch.ops.mkldnn._reorder_linear_weight(weight, self.shape[0])
                for weight in self.weights
            ]
        multiply = torch.ops.mkldnn._linear_pointwise

        def run() -> torch.Tensor:
            result: torch.Tensor = multiply(self.x, reordered[self.next()], None, "none", [], "")
            return result

        return run

    def error(self, result: torch.Tensor) -> float:
        """Relative root mean square error against f64, of the first rows."""
        rows = min(16, self.shape[0])
        expected = self.x[:rows].double() @ self.weights[0].double().T
        difference = result[:rows].double() - expected
        return float(difference.square().mean().sqrt() / expected.square().mean().sqrt())


def least_seconds(
    ways: Sequence[Callable[[], object]], rounds: int, seconds: float, threads: int
) -> list[float]:
    """The least time of a call of each, all called in turn."""
    clock = time.process_time if threads == 1 else time.perf_counter
    begin = time.perf_counter()
    for way in ways:
        way()
    took = (time.perf_counter() - begin) / len(ways)
    calls = max(1, int(seconds / max(took, 1e-7)))
    best = [float("inf")] * len(ways)
    for _ in range(rounds):
        for index, way in enumerate(ways):
            begin = clock()
            for _ in range(calls):
                way()
            best[index] = min(best[index], (clock() - begin) / calls)
    return best


def numbers(text: str) -> list[int]:
    """Numbers between commas."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--march", default="native")
    parser.add_argument("--shapes", default="1024x2816,2816x1024", help="KxN, ...")
    parser.add_argument("--rows", type=numbers, default=[1, 8, 64, 256, 1024])
    parser.add_argument("--dtypes", default="f32,bf16")
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--precision", default="highest", help="of f32: highest,high,medium")
    parser.add_argument("--copies", type=int, default=1, help="of a weight, used in turn")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.02, help="of a round of one way")
    parser.add_argument("--define", action="append", default=[], help="NAME=VALUE for all variants")
    parser.add_argument("--variant", action="append", default=None, help="NAME=VALUE,...")
    chosen = parser.parse_args()
    variants = chosen.variant or [""]

    ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_STATE, TILE_DATA)
    with tempfile.TemporaryDirectory() as folder:
        libraries = [
            build([*chosen.define, *filter(None, variant.split(","))], chosen.march, Path(folder))
            for variant in variants
        ]
    names = [f"ours {variant}".strip() for variant in variants]
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        for library in libraries:
            library.fusec_set_threads(threads)
        for dtype in chosen.dtypes.split(","):
            precisions = chosen.precision.split(",") if dtype == "f32" else ["highest"]
            for shape in chosen.shapes.split(","):
                k, n = (int(size) for size in shape.split("x"))
                for m in chosen.rows:
                    problem = Problem(m, k, n, dtype, chosen.copies)
                    for precision in precisions:
                        report(problem, libraries, names, precision, threads, chosen)


def report(
    problem: Problem,
    libraries: Sequence[ctypes.CDLL],
    names: Sequence[str],
    precision: str,
    threads: int,
    chosen: argparse.Namespace,
) -> None:
    """Measures and prints one problem."""
    number = PRECISIONS.index(precision)
    ways = {"torch": problem.eager, "prepacked": problem.prepacked()}
    for name, library in zip(names, libraries, strict=True):
        ways[name] = problem.ours(library, number)
    errors = [problem.error(way()) for way in ways.values()]
    least = least_seconds(list(ways.values()), chosen.rounds, chosen.seconds, threads)
    m, n, k = problem.shape
    print(f"{problem.dtype} {precision} threads={threads} M={m} K={k} N={n}")
    for name, seconds, error in zip(ways, least, errors, strict=True):
        rate, memory = 2 * m * n * k / seconds, problem.weights[0].nbytes / seconds
        print(
            f"  {seconds * 1e3:9.4f} ms {rate / 1e9:8.1f} GFLOP/s {memory / 1e9:6.1f} GB/s"
            f"  torch/this {least[0] / seconds:5.2f}  error {error:.2e}  {name}"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
