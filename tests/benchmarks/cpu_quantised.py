"""Linears in few bits of the CPU kernels beside PyTorch's on the dequantised weight.

    PYTHONPATH=. python tests/benchmarks/cpu_quantised.py --march sapphirerapids

Needs numpy, torch and g++.  Calls the kernels and PyTorch in turn and prints the least time of
each, so that other load on the machine adds nothing: on one thread processor time, else wall time.
`prepacked` is PyTorch with a bf16 weight that oneDNN reordered.  Ratios are those of PyTorch's time
to the kernel's, `error` the root mean square error against f64, relative to the result.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from cpu_gemm import (
    ARCH_PRCTL,
    FLAGS,
    KERNELS,
    REQUEST_STATE,
    TILE_DATA,
    TORCH,
    least_seconds,
    numbers,
)
from torch.nn import functional

from fusec.formats import decode, expand_blocks, unpack_e2m1
from fusec.kernels.quantised_panels import pack_code_panels, pack_scale_panels

SOURCES = ("cpu_core", "cpu_gemm", "mxfp4_linear", "fp8_linear")
BLOCKS = {"fp8-block": (128, 128), "fp8-token": (1, 1 << 30)}
DTYPES = ("bf16", "f32")
PEERS = ("torch", "prepacked")
Way: TypeAlias = "Callable[[], torch.Tensor]"
Coded: TypeAlias = "tuple[str, np.ndarray, tuple[np.ndarray, np.ndarray], tuple[int, ...]]"
"""The kernel, the values, packed codes and scales, the parameters of a weight."""


def build(definitions: Sequence[str], march: str, folder: Path) -> ctypes.CDLL:
    """The kernels with these constants."""
    path = folder / f"variant{len(list(folder.iterdir()))}.so"
    sources = [str(KERNELS / source / "kernel.cpp") for source in SOURCES]
    defined = [f"-D{definition}" for definition in definitions]
    command = ["g++", *FLAGS, f"-march={march}", *defined, "-I", str(KERNELS / "include")]
    subprocess.run([*command, *sources, "-o", str(path), "-lpthread", "-lm"], check=True)
    return ctypes.CDLL(str(path))


def _mxfp4(rng: np.random.Generator, n: int, k: int) -> Coded:
    codes = rng.integers(0, 256, (n, k // 2)).astype(np.uint8)
    scale = rng.integers(118, 124, (n, k // 32)).astype(np.uint8)
    values = unpack_e2m1(codes) * expand_blocks(decode(scale, "e8m0"), (1, 32), (n, k))
    packed = (pack_code_panels(codes, 4), pack_scale_panels(scale, (1, 32), n))
    return "mxfp4_linear", values, packed, (n, k)


def _fp8(rng: np.random.Generator, n: int, k: int, largest: tuple[int, int]) -> Coded:
    rows, columns = min(largest[0], n), min(largest[1], k)
    codes = rng.integers(0, 127, (n, k)).astype(np.uint8)
    codes |= rng.integers(0, 2, (n, k)).astype(np.uint8) << 7
    scale = rng.uniform(0.001, 0.002, (-(-n // rows), -(-k // columns))).astype(np.float32)
    wide = expand_blocks(scale.astype(np.float64), (rows, columns), (n, k))
    packed = (pack_code_panels(codes, 8), pack_scale_panels(scale, (rows, columns), n))
    values = decode(codes, "f8e4m3fn") * wide
    return "fp8_linear", values, packed, (n, k, columns if columns < k else 0)


class Weight:
    """A random weight [N, K] in few bits.

    Args:
        format: `mxfp4`, or a key of `BLOCKS`.
        n: rows.
        k: columns.
        copies: used in turn, so that the weight comes from memory and not from a cache.
    """

    def __init__(self, format: str, n: int, k: int, copies: int) -> None:
        rng = np.random.default_rng(1)
        coded = _mxfp4(rng, n, k) if format == "mxfp4" else _fp8(rng, n, k, BLOCKS[format])
        self.op, values, packed, self.params = coded
        self.values = torch.from_numpy(values)
        self.panels = [tuple(part.copy() for part in packed) for _ in range(copies)]
        self.plain = {
            dtype: [self.values.to(TORCH[dtype]) for _ in range(copies)] for dtype in DTYPES
        }
        self.nbytes = sum(part.nbytes for part in packed)


class Problem:
    """Rows times a weight, and the ways to compute it."""

    def __init__(self, weight: Weight, m: int) -> None:
        self.weight, self.m = weight, m
        generator = torch.Generator().manual_seed(1)
        wide = torch.randn(m, weight.params[1], generator=generator)
        self.x = {dtype: wide.to(TORCH[dtype]) for dtype in DTYPES}
        self.turn = 0

    def next(self) -> int:
        """The number of the copy whose turn it is."""
        self.turn = (self.turn + 1) % len(self.weight.panels)
        return self.turn

    def ours(self, library: ctypes.CDLL, dtype: str) -> Way:
        """One call of the kernel."""
        n, k = self.weight.params[:2]
        x, out = self.x[dtype], torch.empty(self.m, n, dtype=TORCH[dtype])
        numbers = (1, 1, 1, self.m, *(0, 0, 0, k), *(0, 0, 0, n), *self.weight.params, 0)
        params = (ctypes.c_int64 * len(numbers))(*numbers)
        symbol = f"fusec_{self.weight.op}_{dtype}"
        kernel = ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
        buffers = [
            (ctypes.c_void_p * 4)(
                x.data_ptr(), codes.ctypes.data, scales.ctypes.data, out.data_ptr()
            )
            for codes, scales in self.weight.panels
        ]
        steps = [
            (ctypes.c_void_p * 3)(kernel, ctypes.addressof(held), ctypes.addressof(params))
            for held in buffers
        ]

        def run(kept: object = (x, params, buffers)) -> torch.Tensor:
            library.fusec_execute(steps[self.next()], ctypes.c_int64(1), None)
            return out

        return run

    def eager(self, dtype: str) -> Way:
        """PyTorch's product."""
        x, weights = self.x[dtype], self.weight.plain[dtype]
        return lambda: functional.linear(x, weights[self.next()])

    def prepacked(self) -> Way:
        """PyTorch's product of bf16 with weights in the order that oneDNN likes best."""
        x, weights = self.x["bf16"], self.weight.plain["bf16"]
        reorder = torch.ops.mkldnn._reorder_linear_weight
        reordered = [reorder(weight, self.m) for weight in weights]
        multiply = torch.ops.mkldnn._linear_pointwise

        def run() -> torch.Tensor:
            result: torch.Tensor = multiply(x, reordered[self.next()], None, "none", [], "")
            return result

        return run

    def error(self, dtype: str, result: torch.Tensor) -> float:
        """Relative root mean square error of the first rows."""
        expected = self.x[dtype][:16].double() @ self.weight.values.T
        difference = result[:16].double() - expected
        return float(difference.square().mean().sqrt() / expected.square().mean().sqrt())


def report(
    problem: Problem, libraries: Sequence[tuple[str, ctypes.CDLL]], chosen: argparse.Namespace
) -> None:
    """Measures and prints one problem."""
    ways: dict[tuple[str, str], Way] = {
        ("bf16", "torch"): problem.eager("bf16"),
        ("bf16", "prepacked"): problem.prepacked(),
        ("f32", "torch"): problem.eager("f32"),
    }
    for dtype in DTYPES:
        for name, library in libraries:
            ways[dtype, name] = problem.ours(library, dtype)
    errors = [problem.error(dtype, way()) for (dtype, _), way in ways.items()]
    threads = torch.get_num_threads()
    least = least_seconds(list(ways.values()), chosen.rounds, chosen.seconds, threads)
    found = dict(zip(ways, zip(least, errors, strict=True), strict=True))
    for (dtype, name), (seconds, error) in found.items():
        peers = [peer for peer in ways if peer[0] == dtype and peer[1] in PEERS]
        ratios = "".join(f"  {peer[1]}/this {found[peer][0] / seconds:5.2f}" for peer in peers)
        rate = problem.weight.nbytes / seconds / 1e9
        print(
            f"  {seconds * 1e3:9.4f} ms {rate:6.1f} GB/s{ratios}  error {error:.2e}  {dtype} {name}"
        )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--march", default="native")
    parser.add_argument("--shape", default="2880x2880", help="KxN")
    parser.add_argument("--rows", type=numbers, default=[1, 8, 64, 512])
    parser.add_argument("--formats", default="mxfp4,fp8-block,fp8-token")
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--copies", type=int, default=1, help="of the weight, used in turn")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.02, help="of a round of one way")
    parser.add_argument("--variant", action="append", default=None, help="NAME=VALUE,...")
    chosen = parser.parse_args()
    variants = chosen.variant or [""]

    ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_STATE, TILE_DATA)
    with tempfile.TemporaryDirectory() as folder:
        libraries = [
            (
                f"ours {variant}".strip(),
                build([*filter(None, variant.split(","))], chosen.march, Path(folder)),
            )
            for variant in variants
        ]
    k, n = (int(size) for size in chosen.shape.split("x"))
    for format in chosen.formats.split(","):
        weight = Weight(format, n, k, chosen.copies)
        for threads in chosen.threads:
            torch.set_num_threads(threads)
            for _, library in libraries:
                library.fusec_set_threads(threads)
            for m in chosen.rows:
                print(f"{format} threads={threads} M={m} K={k} N={n}")
                report(Problem(weight, m), libraries, chosen)


if __name__ == "__main__":
    main()
