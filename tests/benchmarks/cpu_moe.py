"""Routed experts of the CPU kernels beside transformers' on PyTorch, whole MLP with `swiglu_oai`.

    PYTHONPATH=. python tests/benchmarks/cpu_moe.py --march sapphirerapids

Needs numpy, torch, transformers, networkx and g++.  Calls the kernels and PyTorch in turn and
prints the least time of each, so that other load on the machine adds nothing: on one thread
processor time, else wall time.  PyTorch has the values of the 4-bit weights in the dtype of the
tokens; `loop` goes through the experts one by one, `grouped` uses `torch._grouped_mm`.  `error` is
the root mean square error of the first tokens against f64, relative to the result.
"""

from __future__ import annotations

import argparse
import ctypes
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

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
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from fusec.formats import decode, expand_blocks, unpack_e2m1
from fusec.kernels.cpu import ACTIVATIONS, PRECISIONS, pack_panels
from fusec.kernels.moe.cpu import pack_gate_up, pack_gate_up_codes, pack_gate_up_scales
from fusec.kernels.quantised_panels import pack_code_panels, pack_scale_panels

SOURCES = ("cpu_core", "cpu_gemm", "moe")
PEERS = {"loop": "eager", "grouped": "grouped_mm"}
ALPHA, LIMIT = 1.702, 7.0
WOVEN = "interleaved"
CHECKED = 4
"""Tokens that are compared with f64."""

Way: TypeAlias = "Callable[[], torch.Tensor]"


def build(march: str, folder: Path) -> ctypes.CDLL:
    """The kernels for one processor."""
    path = folder / "kernels.so"
    sources = [str(KERNELS / source / "kernel.cpp") for source in SOURCES]
    command = ["g++", *FLAGS, f"-march={march}", "-I", str(KERNELS / "include"), *sources]
    subprocess.run([*command, "-o", str(path), "-lpthread", "-lm"], check=True)
    return ctypes.CDLL(str(path))


def stored(values: torch.Tensor) -> np.ndarray:
    """In storage form: bf16 as its bits."""
    held = values.view(torch.int16) if values.dtype == torch.bfloat16 else values
    array: np.ndarray = held.numpy()
    return array.view(np.uint16) if values.dtype == torch.bfloat16 else array


class Weights:
    """Random 4-bit experts, and what each way reads of them.

    Args:
        dtype: of the tokens, and of plain weights.
        count: experts.
        hidden: H.
        inner: I.
    """

    def __init__(self, dtype: str, count: int, hidden: int, inner: int) -> None:
        rng = np.random.default_rng(1)
        self.dtype, self.sizes = dtype, (count, hidden, inner)
        self.values: list[torch.Tensor] = []  # [E, 2I, H] and [E, H, I]
        plain: list[list[np.ndarray]] = [[], []]
        narrow: list[list[np.ndarray]] = [[], [], [], []]
        for part, (rows, depth) in enumerate(((2 * inner, hidden), (hidden, inner))):
            wide = torch.empty(count, rows, depth, dtype=TORCH[dtype])
            for expert in range(count):
                codes = rng.integers(0, 256, (rows, depth // 2)).astype(np.uint8)
                scale = rng.integers(118, 121, (rows, depth // 32)).astype(np.uint8)
                values = unpack_e2m1(codes) * expand_blocks(
                    decode(scale, "e8m0"), (1, 32), (rows, depth)
                )
                wide[expert] = torch.from_numpy(values)
                bits = stored(wide[expert])
                if part == 0:
                    packed = pack_gate_up(bits, dtype, layout=WOVEN, gated=True, transposed=False)
                    panels = pack_gate_up_codes(codes, 4, layout=WOVEN, gated=True)
                    scales = pack_gate_up_scales(scale, (1, 32), rows, layout=WOVEN, gated=True)
                else:
                    packed = pack_panels(bits, dtype)
                    panels = pack_code_panels(codes, 4)
                    scales = pack_scale_panels(scale, (1, 32), rows)
                plain[part].append(packed.reshape(-1))
                narrow[2 * part].append(panels.reshape(-1))
                narrow[2 * part + 1].append(scales.reshape(-1))
            self.values.append(wide)
        biases = [torch.randn(count, size).to(TORCH[dtype]) for size in (2 * inner, hidden)]
        self.biases = biases
        self.packed = {
            "moe": [np.concatenate(held) for held in plain],
            "moe_mxfp4": [np.concatenate(held) for held in narrow],
        }

    def module(self, implementation: str) -> GptOssExperts:
        """The experts of transformers, which hold [E, H, 2I] and [E, I, H]."""
        count, hidden, inner = self.sizes
        config = GptOssConfig(
            hidden_size=hidden, intermediate_size=inner, num_local_experts=count, swiglu_limit=LIMIT
        )
        config._experts_implementation = implementation
        with torch.device("meta"):
            module = GptOssExperts(config)
        names = ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias")
        turned = [value.transpose(1, 2).contiguous() for value in self.values]
        for name, held in zip(names, [*turned, *self.biases], strict=True):
            setattr(module, name, torch.nn.Parameter(held, requires_grad=False))
        return module


class Problem:
    """Tokens, their experts, and the ways to compute them."""

    def __init__(self, weights: Weights, tokens: int, top_k: int) -> None:
        count, hidden, _ = weights.sizes
        generator = torch.Generator().manual_seed(1)
        self.weights = weights
        self.x = torch.randn(tokens, hidden, generator=generator).to(TORCH[weights.dtype])
        scores = torch.randn(tokens, count, generator=generator)
        chosen, self.indices = torch.topk(scores, top_k)
        self.shares = torch.softmax(chosen, -1).to(TORCH[weights.dtype])

    def ours(self, library: ctypes.CDLL, op: str) -> Way:
        """One call of a kernel."""
        (count, hidden, inner), weights = self.weights.sizes, self.weights
        tokens, top_k = self.indices.shape
        out = torch.empty_like(self.x)
        doubles = [struct.unpack("<q", struct.pack("<d", each))[0] for each in (ALPHA, LIMIT)]
        params = [tokens, hidden, inner, count, top_k, hidden, hidden, top_k, top_k, 1, 8]
        params += [ACTIVATIONS["swiglu_oai"], *doubles, 1, 1, 1, PRECISIONS["highest"]]
        routed = [self.x, self.shares, self.indices]
        places = [tensor.data_ptr() for tensor in routed]
        places += [array.ctypes.data for array in weights.packed[op]]
        places += [tensor.data_ptr() for tensor in (*weights.biases, out)]
        held = (ctypes.c_void_p * len(places))(*places)
        passed = (ctypes.c_int64 * len(params))(*params)
        kernel = ctypes.cast(getattr(library, f"fusec_{op}_{weights.dtype}"), ctypes.c_void_p).value
        step = (ctypes.c_void_p * 3)(kernel, ctypes.addressof(held), ctypes.addressof(passed))

        def run(kept: object = (held, passed, routed)) -> torch.Tensor:
            library.fusec_execute(step, ctypes.c_int64(1), None)
            return out

        return run

    def peer(self, module: Any) -> Way:
        """One call of transformers' experts."""

        def run() -> torch.Tensor:
            with torch.no_grad():
                result: torch.Tensor = module(self.x, self.indices, self.shares)
            return result

        return run

    def error(self, result: torch.Tensor) -> float:
        """Relative root mean square error of the first tokens."""
        wanted = torch.zeros(min(CHECKED, len(self.x)), self.x.shape[1], dtype=torch.float64)
        gate_up, down = self.weights.values
        for token in range(len(wanted)):
            for share, index in zip(self.shares[token], self.indices[token], strict=True):
                row = gate_up[index].double() @ self.x[token].double()
                row += self.weights.biases[0][index].double()
                gate, up = row[::2].clamp(max=LIMIT), row[1::2].clamp(-LIMIT, LIMIT)
                row = gate * torch.sigmoid(ALPHA * gate) * (up + 1)
                row = down[index].double() @ row + self.weights.biases[1][index].double()
                wanted[token] += share.double() * row
        difference = result[: len(wanted)].double() - wanted
        return float(difference.square().mean().sqrt() / wanted.square().mean().sqrt())


def report(problem: Problem, library: ctypes.CDLL, peers: dict[str, Any], rounds: int) -> None:
    """Measures and prints one problem."""
    ways: dict[str, Way] = {name: problem.peer(module) for name, module in peers.items()}
    ways |= {op: problem.ours(library, op) for op in problem.weights.packed}
    errors = [problem.error(way()) for way in ways.values()]
    least = least_seconds(list(ways.values()), rounds, 0.0, torch.get_num_threads())
    found = dict(zip(ways, least, strict=True))
    for (name, seconds), error in zip(found.items(), errors, strict=True):
        ratios = "".join(f"  {peer}/this {found[peer] / seconds:5.2f}" for peer in peers)
        print(f"  {seconds * 1e3:9.3f} ms{ratios}  error {error:.2e}  {name}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--march", default="native")
    parser.add_argument("--shape", default="2880x2880", help="HxI")
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--tokens", type=numbers, default=[1, 8, 64, 1024])
    parser.add_argument("--dtypes", default="bf16,f32")
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--peers", default="loop,grouped")
    parser.add_argument("--rounds", type=int, default=4)
    chosen = parser.parse_args()

    ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_STATE, TILE_DATA)
    with tempfile.TemporaryDirectory() as folder:
        library = build(chosen.march, Path(folder))
    hidden, inner = (int(size) for size in chosen.shape.split("x"))
    for dtype in chosen.dtypes.split(","):
        weights = Weights(dtype, chosen.experts, hidden, inner)
        peers = {name: weights.module(PEERS[name]) for name in chosen.peers.split(",")}
        for threads in chosen.threads:
            torch.set_num_threads(threads)
            library.fusec_set_threads(threads)
            for tokens in chosen.tokens:
                print(f"{dtype} threads={threads} tokens={tokens} H={hidden} I={inner}")
                report(Problem(weights, tokens, chosen.top_k), library, peers, chosen.rounds)


if __name__ == "__main__":
    main()
