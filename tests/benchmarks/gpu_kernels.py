"""Each fused kernel on an NVIDIA GPU, beside PyTorch eager, `torch.compile` and a plain copy.

    python tests/benchmarks/gpu_kernels.py [--only NAME] [--markdown FILE] [--no-compile]

The kernels are those that `fusec compile --target sm_90` builds: the records choose the launch.
Every row is checked against eager before it is timed, with fresh random inputs.  A time is the
median over many runs of the time between two events, with the cache cleared before each run.

*GB/s* counts the bytes that have to move: every input and every result once.  *of copy* is the time
of a device-to-device copy that reads and writes as many bytes together, over the kernel's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "device"))

from launcher import SM_90, Scratch, prepared

from fusec.formats import Scaling, fp8_scaling
from fusec.ir import Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Call, Storage, dense_strides
from fusec.kernels.registry import choose
from fusec.symbolic import evaluate

Tensors: TypeAlias = list[torch.Tensor]
Eager: TypeAlias = Callable[..., Any]

ROWS = 4096
LENGTHS = (4096, 5120, 8192)
NORM: dict[str, Attr] = {"eps": 1e-6, "weight_offset": 0}
FP8 = torch.float8_e4m3fn
TORCH = {"bf16": torch.bfloat16, "f32": torch.float32}
GROUP = fp8_scaling("f8e4m3fn", "group", group=128)
TOKEN = fp8_scaling("f8e4m3fn", "token")


@dataclass(frozen=True)
class Operand:
    """Rows of `shape`; given a `width`, the columns from `begin` by `step` of rows that long."""

    shape: tuple[int, ...]
    dtype: str = "bf16"
    width: int | None = None
    begin: int = 0
    step: int = 1


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: what is computed.
        op: the operation.
        operands: operands, in order; those with a `width` share one buffer.
        attrs: of the operation.
        eager: the same on tensors of the operands' shapes, as a model in PyTorch has it.
        tolerance: of the first result, relative to its largest value, in the codes' own values.
    """

    name: str
    op: str
    operands: tuple[Operand, ...]
    attrs: dict[str, Attr]
    eager: Eager
    tolerance: float = 0.02


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, weight.shape, weight, 1e-6)


def add_norm(x: torch.Tensor, r: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    total = x + r
    return norm(total, w), total


def to_fp8(x: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    grouped = x.float().reshape(*x.shape[:-1], -1, group or x.shape[-1])
    scale = (grouped.abs().amax(-1, keepdim=True) / 448).clamp_min(1 / (448 * 512))
    codes = (grouped / scale).clamp(-448, 448).to(FP8).reshape(x.shape)
    return codes, scale.squeeze(-1)


def gated_norm(x: torch.Tensor, w: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    normed = norm(x, w).float() * F.silu(gate.float())
    return normed.to(x.dtype)


def swiglu_oai(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return gate * torch.sigmoid(gate * 1.702) * (up + 1)


def quantising(scaling: Scaling, **more: Attr) -> dict[str, Attr]:
    return {**scaling.attrs(), **more}


def cases() -> Iterator[Case]:
    """Every case, smallest rows first."""
    weighted: dict[str, Attr] = {**NORM, "has_weight": True}
    for n in LENGTHS:
        x, w = Operand((ROWS, n)), Operand((n,))
        yield Case(f"rms_norm {n}", "rms_norm", (x, w), weighted, norm)
        yield Case(f"add_rms_norm {n}", "add_rms_norm", (x, x, w), NORM, add_norm)
        for label, scaling, group in (("token", TOKEN, 0), ("group 128", GROUP, 128)):

            def norm_fp8(x: torch.Tensor, w: torch.Tensor, group: int = group) -> Any:
                return to_fp8(norm(x, w), group)

            def add_norm_fp8(
                x: torch.Tensor, r: torch.Tensor, w: torch.Tensor, group: int = group
            ) -> Any:
                y, total = add_norm(x, r, w)
                return *to_fp8(y, group), total

            def silu_fp8(g: torch.Tensor, u: torch.Tensor, group: int = group) -> Any:
                return to_fp8(F.silu(g) * u, group)

            def plain_fp8(x: torch.Tensor, group: int = group) -> Any:
                return to_fp8(x, group)

            more = quantising(scaling)
            name = f"rms_norm_quant {label} {n}"
            yield Case(name, "rms_norm_quant", (x, w), {**weighted, **more}, norm_fp8, 0.08)
            name = f"add_rms_norm_quant {label} {n}"
            yield Case(name, "add_rms_norm_quant", (x, x, w), {**NORM, **more}, add_norm_fp8, 0.08)
            halves = (Operand((ROWS, n), width=2 * n), Operand((ROWS, n), width=2 * n, begin=n))
            name = f"silu_mul_quant {label} {n}"
            yield Case(name, "silu_mul_quant", halves, more, silu_fp8, 0.08)
            yield Case(f"quantize {label} {n}", "quantize", (x,), more, plain_fp8, 0.08)
        halves = (Operand((ROWS, n), width=2 * n), Operand((ROWS, n), width=2 * n, begin=n))
        yield Case(f"silu_mul {n}", "silu_mul", halves, {}, lambda g, u: F.silu(g) * u)
        yield Case(
            f"gelu_mul {n}",
            "gelu_mul",
            halves,
            {"approximate": "tanh"},
            lambda g, u: F.gelu(g, approximate="tanh") * u,
        )
        turns = (
            Operand((ROWS, n), width=2 * n, step=2),
            Operand((ROWS, n), width=2 * n, begin=1, step=2),
        )
        limits: dict[str, Attr] = {"alpha": 1.702, "limit": 7.0}
        yield Case(f"swiglu_oai {n}", "swiglu_oai", turns, limits, swiglu_oai)
        rows = Operand((ROWS * n // 128, 128))
        gated: dict[str, Attr] = {**NORM, "activation": "silu", "norm_before_gate": True}
        operands = (rows, Operand((128,)), rows)
        yield Case(
            f"gated_rms_norm {n // 128} heads", "gated_rms_norm", operands, gated, gated_norm
        )

        def gated_fp8(x: torch.Tensor, w: torch.Tensor, g: torch.Tensor, n: int = n) -> Any:
            return to_fp8(gated_norm(x, w, g).reshape(ROWS, n), 128)

        attrs = {**gated, **quantising(GROUP, shape=(ROWS, n))}
        name = f"gated_rms_norm_quant {n // 128} heads"
        yield Case(name, "gated_rms_norm_quant", operands, attrs, gated_fp8, 0.08)
    yield from latent()


def latent() -> Iterator[Case]:
    """DeepSeek's two norms over one projection of 1536 + 512 + 64 columns, for 16384 tokens."""
    tokens, width = 4 * ROWS, 2112
    operands = (
        Operand((tokens, 1536), width=width),
        Operand((1536,)),
        Operand((tokens, 512), width=width, begin=1536),
        Operand((512,)),
    )
    attrs: dict[str, Attr] = {"eps1": 1e-6, "eps2": 1e-6, "weight_offset": 0}

    def plain(x1: torch.Tensor, w1: torch.Tensor, x2: torch.Tensor, w2: torch.Tensor) -> Any:
        return norm(x1, w1), norm(x2, w2)

    def both(x1: torch.Tensor, w1: torch.Tensor, x2: torch.Tensor, w2: torch.Tensor) -> Any:
        return *to_fp8(norm(x1, w1), 128), *to_fp8(norm(x2, w2), 128)

    yield Case("dual_rms_norm 1536+512", "dual_rms_norm", operands, attrs, plain)
    name = "dual_rms_norm_quant 1536+512 group 128"
    more = {**attrs, **quantising(GROUP, quantises="both")}
    yield Case(name, "dual_rms_norm_quant", operands, more, both, 0.08)


# --- running --------------------------------------------------------------------------------


class Prepared:
    """A case with its memory on the GPU."""

    def __init__(self, case: Case) -> None:
        self.case = case
        graph = Graph("case")
        self.memory: dict[int, torch.Tensor] = {}
        inputs, self.operands = self._operands()
        names = [
            graph.add_input(f"x{i}", TensorType(operand.dtype, operand.shape))
            for i, operand in enumerate(case.operands)
        ]
        node = graph.add(case.op, names, case.attrs)
        outputs = []
        for value in node.outputs:
            kind = graph.type(value)
            shape = tuple(evaluate(dim, {}) for dim in kind.shape)
            outputs.append(Storage(len(self.memory), kind.dtype, shape, dense_strides(shape)))
            self.memory[len(self.memory)] = torch.full(
                (evaluate(kind.nbytes, {}),), 0xFF, dtype=torch.uint8, device="cuda"
            )
        self.outputs = outputs
        choice = choose(graph, node, SM_90)
        assert choice.kernel is not None, choice.reason
        call = Call(graph, node, SM_90, tuple(inputs), tuple(outputs), Scratch(self.memory))
        self.launches = [prepared(each, self.memory) for each in choice.kernel.launches(call)]
        self.bytes = sum(
            evaluate(graph.type(value).nbytes, {}) for value in (*names, *node.outputs)
        )

    def _operands(self) -> tuple[list[Storage], Tensors]:
        storages: list[Storage] = []
        tensors: Tensors = []
        shared: dict[int, int] = {}
        for operand in self.case.operands:
            width = operand.width or operand.shape[-1]
            if operand.width is not None and width in shared:
                buffer = shared[width]
            else:
                buffer = shared[width] = len(self.memory)
                shape = (*operand.shape[:-1], width)
                self.memory[buffer] = torch.randn(shape, device="cuda").to(TORCH[operand.dtype])
            strides = (*dense_strides((*operand.shape[:-1], width))[:-1], operand.step)
            place = Storage(buffer, operand.dtype, operand.shape, strides, operand.begin)
            storages.append(place)
            end = operand.begin + operand.step * operand.shape[-1]
            last = slice(operand.begin, end, operand.step)
            tensors.append(self.memory[buffer][..., last])
        return storages, tensors

    def run(self) -> None:
        for launch in self.launches:
            launch()

    def check(self) -> None:
        """Compare the first result with eager's."""
        self.run()
        torch.cuda.synchronize()
        result = self.case.eager(*self.operands)
        want = (result[0] if isinstance(result, tuple) else result).float()
        place = self.outputs[0]
        kind = FP8 if place.dtype == "f8e4m3fn" else TORCH[place.dtype]
        got = self.memory[place.buffer].view(kind).float().reshape(want.shape)
        error = ((got - want).norm() / want.norm()).item()
        assert error < self.case.tolerance, f"{self.case.name}: error {error}"


def milliseconds(function: Callable[[], object]) -> float:
    """The median time of `function`, with a cold cache."""
    import triton

    return float(triton.testing.do_bench(function, warmup=20, rep=80, return_mode="median"))


def copy_milliseconds(moved: int) -> float:
    """The time of a device-to-device copy that reads and writes `moved` bytes together."""
    source = torch.randint(255, (moved // 2,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return milliseconds(lambda: target.copy_(source))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="cases whose names begin with this")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--no-compile", action="store_true", help="leave `torch.compile` out")
    given = parser.parse_args()
    import triton

    name = torch.cuda.get_device_name()
    lines = [
        f"{name}, torch {torch.__version__}, triton {triton.__version__}",
        "",
        "| kernel | fusec | GB/s | of copy | eager / fusec | compiled / fusec |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for case in cases():
        if not case.name.startswith(given.only):
            continue
        made = Prepared(case)
        made.check()
        ours = milliseconds(made.run)
        eager = milliseconds(partial(case.eager, *made.operands))
        compiled = float("nan")
        if not given.no_compile:
            torch._dynamo.reset()
            function = torch.compile(case.eager, dynamic=False)
            compiled = milliseconds(partial(function, *made.operands))
        rate, copy = made.bytes / ours * 1e3, copy_milliseconds(made.bytes)
        lines.append(
            f"| {case.name} | {ours * 1e3:.1f} us | {rate / 1e9:.0f} | {copy / ours:.2f} | "
            f"{eager / ours:.2f} | {compiled / ours:.2f} |"
        )
        print(lines[-1], flush=True)
        del made
    if given.markdown is not None:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
