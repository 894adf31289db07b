"""Attention, rotations and recurrences on the CPU beside PyTorch: times, and errors against f64.

    PYTHONPATH=. python tests/benchmarks/cpu_attention.py [--threads 1 2] [--only TEXT ...]

Each operation goes the way of a compiled model, but for one node: the record of the registry says
how it is called, and the kernels are compiled for this machine with the flags of an artifact.
PyTorch runs the same tensors, eagerly and through `torch.compile`.  The contestants take turns;
times are the least of all rounds, of the process where there is one thread, of the clock where
there are more.  Errors are relative to the largest value of the result in f64.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import itertools
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional

import fusec.kernels
from fusec.ir import Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.cpu import CORE_SOURCES
from fusec.kernels.launch import Call, Storage
from fusec.kernels.registry import choose
from fusec.link.toolchain import find_toolchain
from fusec.runtime.cpu import host_features, why_not
from fusec.target import CPU_ARCHES, Target, best_cpu_arch

Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., torch.Tensor | Tensors]

NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}
DTYPES = {name: dtype for dtype, name in NAMES.items()}
OPERATIONS = ("attention", "rope", "qk_norm_rope", "causal_conv1d", "gated_delta_rule")
CALLS_PER_ROUND = 3


@dataclass(frozen=True, slots=True)
class Workload:
    """One node, and what computes the same in PyTorch.

    Attributes:
        name: as the table calls it.
        op: the operation.
        inputs: makes its operands in a dtype; those that never change dtype are f32.
        attrs: its attributes.
        eager: the same in PyTorch.
        exact: what gives the result in f64 when operands are; `eager` unless that is too narrow.
    """

    name: str
    op: str
    inputs: Callable[[torch.dtype], Tensors]
    attrs: Mapping[str, Attr]
    eager: Function
    exact: Function | None = None


# ---- operands ----


def heads_of_rows(
    batch: int, heads: int, length: int, depth: int, dtype: torch.dtype
) -> torch.Tensor:
    """Random [B, H, S, D] that lies in memory as projections leave it, [B, S, H, D]."""
    return torch.randn(batch, length, heads, depth).to(dtype).transpose(1, 2)


def attention_operands(
    sizes: tuple[int, int, int, int, int, int, int], sinks: bool, dtype: torch.dtype
) -> Tensors:
    """q, k, v and sinks for B, H, Hkv, S, T, D, Dv."""
    batch, heads, kv_heads, queries, keys, depth, value_depth = sizes
    found = (
        heads_of_rows(batch, heads, queries, depth, dtype),
        heads_of_rows(batch, kv_heads, keys, depth, dtype),
        heads_of_rows(batch, kv_heads, keys, value_depth, dtype),
    )
    return (*found, torch.randn(heads).to(dtype)) if sinks else found


def table(length: int, rotary: int) -> Tensors:
    """Cosines and sines [1, 1, S, rotary] in f32."""
    steps = torch.arange(length, dtype=torch.float32)[:, None]
    angles = steps * 10000.0 ** (-torch.arange(0, rotary, 2) / rotary)
    twice = torch.cat((angles, angles), dim=-1)[None, None]
    return twice.cos(), twice.sin()


# ---- PyTorch ----


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    grouped = q.shape[1] != k.shape[1]
    causal = q.shape[2] > 1
    return functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)


def attention_with_sinks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor, *, window: int
) -> torch.Tensor:
    """As models of gpt-oss compute it eagerly: a column of sinks beside the scores."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    query = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
    distance = query - torch.arange(k.shape[2])[None]
    scores = scores.masked_fill((distance < 0) | (distance >= window), -torch.inf)
    column = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
    return torch.cat((scores, column), dim=-1).softmax(-1)[..., :-1] @ v


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


def both_rotated(q: torch.Tensor, k: torch.Tensor, *tables: torch.Tensor) -> Tensors:
    return rotated(q, *tables), rotated(k, *tables)


def both_normed_and_rotated(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    *tables: torch.Tensor,
) -> Tensors:
    pairs = ((q, q_weight), (k, k_weight))
    return both_rotated(
        *(functional.rms_norm(x, x.shape[-1:], weight, 1e-6) for x, weight in pairs), *tables
    )


def filtered(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    taps = weight.shape[1]
    whole = functional.conv1d(x, weight[:, None], padding=taps - 1, groups=len(weight))
    return functional.silu(whole[..., : x.shape[-1]])


def delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor,
    beta: torch.Tensor,
    chunk: int = 64,
) -> torch.Tensor:
    """The gated delta rule in chunks, [B, S, H, D] in and out, in f32 as models compute it."""
    wide = torch.promote_types(v.dtype, torch.float32)
    group = v.shape[2] // q.shape[2]
    q, k = (functional.normalize(x.to(wide), dim=-1).repeat_interleave(group, 2) for x in (q, k))
    q, k, value, gate, beta = (
        x.to(wide).unflatten(1, (-1, min(chunk, x.shape[1]))).transpose(2, 3)
        for x in (q * q.shape[-1] ** -0.5, k, v, gate, beta)
    )
    total = gate.cumsum(-1)
    decay = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
    lower = (k * beta[..., None] @ k.mT * decay).tril(-1)
    right = torch.cat((value, k * total.exp()[..., None]), dim=-1) * beta[..., None]
    solved = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
    values, keys = solved.split((value.shape[-1], k.shape[-1]), dim=-1)
    inner = q @ k.mT * decay
    state = value.new_zeros(len(v), v.shape[2], k.shape[-1], value.shape[-1])
    results = []
    for i in range(q.shape[1]):
        change = values[:, i] - keys[:, i] @ state
        last = total[:, i, :, -1:, None]
        results.append((q[:, i] * total[:, i].exp()[..., None]) @ state + inner[:, i] @ change)
        kept = k[:, i] * (last - total[:, i][..., None]).exp()
        state = state * last.exp() + kept.mT @ change
    return torch.stack(results, dim=1).transpose(2, 3).flatten(1, 2).to(v.dtype)


# ---- workloads ----


def attention(name: str, *sizes: int, window: int | None = None, sinks: bool = False) -> Workload:
    """B, H, Hkv, S, T, D, Dv; with sinks a model computes eagerly, else `sdpa`."""
    batch, heads, kv_heads, queries, keys, depth, value_depth = sizes
    whole = (batch, heads, kv_heads, queries, keys, depth, value_depth)
    attrs: dict[str, Attr] = {"scale": depth**-0.5, "causal": True, "window": window}
    attrs |= {"softcap": None, "has_mask": False, "has_sinks": sinks, "has_key_padding": False}
    eager = functools.partial(attention_with_sinks, window=window or keys) if sinks else sdpa
    return Workload(
        name, "attention", functools.partial(attention_operands, whole, sinks), attrs, eager
    )


def rotation(
    name: str, q_heads: int, k_heads: int, length: int, depth: int, norm: bool
) -> Workload:
    """Queries and keys [4, heads, S, D], normed first with `norm`."""

    def inputs(dtype: torch.dtype) -> Tensors:
        rows = tuple(heads_of_rows(4, heads, length, depth, dtype) for heads in (q_heads, k_heads))
        weights = tuple(torch.randn(depth).to(dtype) for _ in range(2)) if norm else ()
        return (*rows, *weights, *table(length, depth))

    attrs: dict[str, Attr] = {"style": "half", "rotary_dim": depth, "deinterleave": False}
    attrs |= {"has_norm": norm, "has_weight": norm, "eps": 1e-6, "weight_offset": 0}
    return Workload(
        name, "qk_norm_rope", inputs, attrs, both_normed_and_rotated if norm else both_rotated
    )


def convolution(name: str, batch: int, channels: int, length: int) -> Workload:
    """Four taps and SiLU over [B, C, S], channels innermost in memory."""

    def inputs(dtype: torch.dtype) -> Tensors:
        x = torch.randn(batch, length, channels).to(dtype).mT
        return x, torch.randn(channels, 4).to(dtype)

    attrs: dict[str, Attr] = {"activation": "silu", "has_bias": False}
    return Workload(name, "causal_conv1d", inputs, attrs, filtered)


def recurrence(name: str, batch: int, length: int, key_heads: int, heads: int) -> Workload:
    """Gated delta rule of Qwen3-Next's depths."""

    def inputs(dtype: torch.dtype) -> Tensors:
        q, k = (torch.randn(batch, length, key_heads, 128).to(dtype) for _ in range(2))
        v = torch.randn(batch, length, heads, 128).to(dtype)
        gate = -torch.rand(batch, length, heads)
        return q, k, v, gate, torch.rand(batch, length, heads).to(dtype)

    attrs: dict[str, Attr] = {"scale": 128**-0.5, "qk_l2_norm": True, "eps": 1e-6}
    return Workload(name, "gated_delta_rule", inputs, attrs, delta_rule)


WORKLOADS = (
    attention("prefill 4 x 256, 16/4 heads of 64", 4, 16, 4, 256, 256, 64, 64),
    attention("prefill 1 x 2048, 32/8 heads of 128", 1, 32, 8, 2048, 2048, 128, 128),
    attention("MLA 1 x 1024, 128 heads of 192/128", 1, 128, 128, 1024, 1024, 192, 128),
    attention("decode 8 x 1024 keys, 32/8 heads of 128", 8, 32, 8, 1, 1024, 128, 128),
    attention("decode 1 x 4096 keys, 32/8 heads of 128", 1, 32, 8, 1, 4096, 128, 128),
    attention(
        "gpt-oss 1 x 1024, 64/8 heads of 64, window 128, sinks",
        *(1, 64, 8, 1024, 1024, 64, 64),
        window=128,
        sinks=True,
    ),
    rotation("rotation of 16/4 heads of 64, 4 x 256", 16, 4, 256, 64, norm=False),
    rotation("norm and rotation of 32/8 heads of 128, 4 x 256", 32, 8, 256, 128, norm=True),
    convolution("filter of 4 taps, 4 x 256, 8192 channels", 4, 8192, 256),
    recurrence("delta rule 1 x 2048, 16/32 heads of 128", 1, 2048, 16, 32),
    recurrence("delta rule 8 x 1, 16/32 heads of 128", 8, 1, 16, 32),
)


# ---- kernels ----


def built(target: Target, folder: Path) -> ctypes.CDLL:
    """The core and the kernels of `OPERATIONS` as a library."""
    toolchain = find_toolchain()
    kernels = Path(next(iter(fusec.kernels.__path__)))
    sources = [kernels / name for name in CORE_SOURCES]
    sources += [kernels / op / "kernel.cpp" for op in OPERATIONS]
    objects = [folder / f"{source.parent.name}.o" for source in sources]
    include = kernels / "include"
    commands = [
        toolchain.compile_command(source, made, target, include, generated=False)
        for source, made in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(functools.partial(subprocess.run, check=True), commands):
            pass
    exports, library = folder / "exports", folder / "kernels.so"
    exports.write_text("{ global: fusec_*; local: *; };\n")
    subprocess.run(toolchain.link_command(objects, exports, library), check=True)
    if (reason := why_not(target.features)) is not None:
        raise SystemExit(f"error: {target.name}: {reason}")
    return ctypes.CDLL(str(library))


def bound(library: ctypes.CDLL, target: Target, work: Workload, inputs: Tensors) -> Function:
    """A function without arguments that runs the kernel of the node on `inputs`."""
    graph = Graph()
    kinds = [TensorType(NAMES[x.dtype], tuple(x.shape)) for x in inputs]
    values = [graph.add_input(f"x{i}", kind) for i, kind in enumerate(kinds)]
    node = graph.add(work.op, values, work.attrs)
    kernel = choose(graph, node, target).kernel
    assert kernel is not None, work.op
    results = []
    for position, value in enumerate(node.outputs):
        kind = graph.type(value)
        order = kernel.output_order(graph, node) if position == 0 else None
        axes = order or tuple(range(kind.rank))
        shape = [int(str(kind.shape[axis])) for axis in axes]
        results.append(torch.empty(shape, dtype=DTYPES[kind.dtype]).permute(inverse(axes)))
    tensors = (*inputs, *results)
    storages = tuple(
        Storage(i, NAMES[x.dtype], tuple(x.shape), x.stride()) for i, x in enumerate(tensors)
    )
    split = len(inputs)
    (launch,) = kernel.launches(Call(graph, node, target, storages[:split], storages[split:]))
    assert all(storage.offset == 0 for storage in launch.operands)
    addresses = [tensors[storage.buffer].data_ptr() for storage in launch.operands]
    buffers = (ctypes.c_void_p * len(addresses))(*addresses)
    params = (ctypes.c_int64 * len(launch.params))(*map(number, launch.params))
    function = getattr(library, launch.symbol)

    def run() -> torch.Tensor | Tensors:
        function(buffers, params)
        return tuple(results) if len(results) > 1 else results[0]

    run.keeps = tensors  # type: ignore[attr-defined]
    return run


def inverse(axes: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes `axes`."""
    return tuple(sorted(range(len(axes)), key=lambda axis: axes[axis]))


def number(param: object) -> int:
    """A launch parameter as its 64 bits."""
    if isinstance(param, float):
        (bits,) = struct.unpack("<q", struct.pack("<d", param))
        return int(bits)
    return int(str(param))


# ---- measuring ----


def error(found: torch.Tensor | Tensors, exact: torch.Tensor | Tensors) -> float:
    """The largest error of a result, relative to its largest value."""
    if isinstance(found, torch.Tensor):
        found = (found,)
    if isinstance(exact, torch.Tensor):
        exact = (exact,)
    pairs = zip(found, exact, strict=True)
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs)


def least_times(
    contestants: Mapping[str, Function], threads: int, seconds: float
) -> dict[str, float]:
    """The least time of each contestant, in milliseconds; they take turns for `seconds` each."""
    clock = time.process_time if threads == 1 else time.perf_counter
    least = dict.fromkeys(contestants, float("inf"))
    end = time.perf_counter() + seconds * len(contestants)
    while True:
        for name, run in contestants.items():
            for _ in range(CALLS_PER_ROUND):
                begin = clock()
                run()
                least[name] = min(least[name], clock() - begin)
        if time.perf_counter() > end:
            return {name: 1e3 * value for name, value in least.items()}


def rows(
    library: ctypes.CDLL, target: Target, options: argparse.Namespace
) -> Iterator[tuple[str, ...]]:
    """A row of the table for each workload, dtype and number of threads."""
    for work, dtype in itertools.product(WORKLOADS, NAMES):
        name = f"{work.name}, {NAMES[dtype]}"
        if options.only and not any(text in name for text in options.only):
            continue
        torch.manual_seed(0)
        inputs = work.inputs(dtype)
        exact = (work.exact or work.eager)(*(x.double() for x in inputs))
        contestants: dict[str, Function] = {
            "fusec": bound(library, target, work, inputs),
            "eager": functools.partial(work.eager, *inputs),
        }
        if not options.eager_only:
            torch.compiler.reset()
            contestants["compile"] = functools.partial(torch.compile(work.eager), *inputs)
        for threads in options.threads:
            torch.set_num_threads(threads)
            library.fusec_set_threads(threads)
            with torch.no_grad():
                errors = {key: error(run(), exact) for key, run in contestants.items()}
                times = least_times(contestants, threads, options.seconds)
            best = min(value for key, value in times.items() if key != "fusec")
            cells = [f"{times[key]:.3f} ({errors[key]:.1e})" for key in contestants]
            yield name, str(threads), *cells, f"{best / times['fusec']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", default=[], help="rows whose name has one of these")
    parser.add_argument("--target", help="instead of the best that this machine can run")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each contestant of a row")
    parser.add_argument("--eager-only", action="store_true", help="leave out torch.compile")
    options = parser.parse_args()
    target = CPU_ARCHES[options.target] if options.target else best_cpu_arch(host_features())
    assert target is not None
    peers = ["eager"] if options.eager_only else ["eager", "compile"]
    print(
        f"{target.name}, PyTorch {torch.__version__}; ms (error); ratio of the best peer to fusec"
    )
    print()
    print("| workload | threads |", " | ".join(["fusec", *peers, "ratio"]), "|")
    print("|---|" + "---|" * (3 + len(peers)))
    with tempfile.TemporaryDirectory() as folder:
        library = built(target, Path(folder))
        for row in rows(library, target, options):
            print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
