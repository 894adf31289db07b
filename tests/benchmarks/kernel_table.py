"""Writes `docs/kernels.md`: what the machine code of every GPU kernel shows, with no GPU.

    python tests/benchmarks/kernel_table.py [--check]

Each record of the registry that is written in Triton or HIP is compiled for the cases of
`tests/kernels/gpu_cases.py` and every GPU target.  With `--check` nothing is written, and the exit
status says whether the page is up to date.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))

from gpu_cases import GpuCase, gpu_cases

from fusec.dtypes import DTYPES
from fusec.kernels.launch import Call, HipSource, Launch, Storage, TritonSource
from fusec.kernels.registry import Kernel, kernels
from fusec.link.cache import ObjectCache, default_cache_directory
from fusec.link.gpu_checks import GpuSource, fitted, unfit
from fusec.link.gpu_compile import compile_sources
from fusec.link.gpu_kernel import GpuKernel
from fusec.link.hip_build import find_hip_compiler
from fusec.link.triton_build import triton_version
from fusec.symbolic import evaluate, product
from fusec.target import GPU_TARGETS, Target

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
PROVIDERS = ("triton", "hip")
TOKENS = 4096

INTRODUCTION = f"""# Kernels

What the machine code of every GPU kernel shows, found without a GPU; no figure here is a time.
Written by `python tests/benchmarks/kernel_table.py`; `fusec inspect --kernels` shows the same of
the kernels in an artifact.

* **registers**: vector registers, accumulation registers among them, and scalar registers; on
  `sm_90` the registers of a thread.
* **LDS**: bytes of shared memory of a work group.
* **waves**: that a compute unit holds at once, of 32, as registers, LDS and the size of a work
  group allow.
* **load, store**: bytes that a lane moves between memory and its registers or LDS with one
  instruction, at most.
* **MFMA**: the matrix instructions; those of `sm_90` are called `mma` and `wgmma`.
* **moved**: MB that the launch reads and writes for {TOKENS} tokens, each operand of the launch
  once; and that over the minimum, which is every operand and every result of the whole operation
  once. What a cache serves again is not counted: an operation of one launch moves the minimum, one
  of several also what lies between them. Some launches are for few tokens only, or for more.

Nothing is spilled and nothing lies in scratch memory. The linker refuses code that uses memory
for it; at sizes that are not whole vectors, products may keep scalar registers in vector registers.

Compiled by Triton {triton_version()} and {find_hip_compiler().version}.
"""


@dataclass(frozen=True)
class Row:
    """One launch of a kernel for a case."""

    record: Kernel
    case: GpuCase
    target: Target
    call: Call
    launch: Launch
    source: GpuSource


@dataclass(frozen=True)
class Refusal:
    """A kernel that cannot compute a case on a target, and why."""

    record: Kernel
    case: GpuCase
    target: Target
    reason: str


def gpu_records() -> tuple[Kernel, ...]:
    """Every record that has code of its own for a GPU, by operation."""
    return tuple(
        record
        for _, records in sorted(kernels().items())
        for record in records
        if record.provider in PROVIDERS
    )


def collected(target: Target) -> Iterator[Row | Refusal]:
    """Every launch of every record for every case, or why there is none."""
    for case in gpu_cases(target):
        for record in gpu_records():
            if record.op != case.op or target.family not in record.families:
                continue
            graph, node = case.node()
            why_not = record.supports(graph, node, target)
            if why_not is not None:
                yield Refusal(record, case, target, why_not)
                continue
            call = case.call(graph, node, target)
            for launch in record.launches(call):
                assert isinstance(launch.code, TritonSource | HipSource)
                yield Row(record, case, target, call, launch, launch.code)


def compiled(rows: Sequence[Row], target: Target) -> dict[GpuSource, GpuKernel]:
    """The code of every launch, checked as the linker checks it."""
    sources = list(dict.fromkeys(row.source for row in rows))
    cache = ObjectCache(default_cache_directory())

    def progress(done: int, total: int) -> None:
        print(f"\r{target.name}: {done} of {total}", end="", file=sys.stderr, flush=True)

    made = compile_sources(sources, target, cache, jobs=os.cpu_count() or 1, progress=progress)
    print(file=sys.stderr)
    unfit_rows = [
        f"{row.record.name} for {row.case.label} on {target.name}: {reason}"
        for row in rows
        for reason in unfit(made.code[row.source], row.source, row.launch, target, row.record)
    ]
    if unfit_rows:
        sys.exit("\n".join(unfit_rows))
    return {source: fitted(code, source, target) for source, code in made.code.items()}


def sizes_of(tokens: int) -> dict[str, int]:
    """One sequence of so many tokens."""
    return {"rows": tokens, "batch": 1}


def tokens_of(launch: Launch) -> int:
    """`TOKENS`, or fewer or more where the launch has no work groups for so many."""
    fewer = (TOKENS >> step for step in range(TOKENS.bit_length()))
    counts = (*fewer, *(TOKENS << step for step in range(1, 8)))
    return next(
        count for count in counts if all(evaluate(size, sizes_of(count)) for size in launch.grid)
    )


def bytes_of(storages: Iterable[Storage], tokens: int) -> int:
    """Bytes of the elements of `storages`, each place once."""
    places = {(each.buffer, each.offset, each.dtype, each.shape) for each in storages}
    return sum(
        evaluate(product(shape), sizes_of(tokens)) * DTYPES[dtype].itemsize
        for _, _, dtype, shape in places
    )


def page() -> str:
    """The whole page."""
    found: list[Row | Refusal] = []
    code: dict[tuple[Target, GpuSource], GpuKernel] = {}
    for target in GPU_TARGETS.values():
        entries = list(collected(target))
        found += entries
        rows = [entry for entry in entries if isinstance(entry, Row)]
        for source, kernel in compiled(rows, target).items():
            code[target, source] = kernel
    parts = [INTRODUCTION]
    for op in sorted({record.op for record in gpu_records()}):
        rows = [entry for entry in found if isinstance(entry, Row) and entry.record.op == op]
        parts.append(f"## {op}\n")
        parts.append(_table(rows, code))
        computed = {(row.case.label, row.target) for row in rows}
        refusals = [
            entry
            for entry in found
            if isinstance(entry, Refusal)
            and entry.record.op == op
            and (entry.case.label, entry.target) not in computed
        ]
        if refusals:
            parts.append(_refusals(refusals))
    return "\n".join(parts)


def _table(rows: Sequence[Row], code: dict[tuple[Target, GpuSource], GpuKernel]) -> str:
    lines = [
        "| kernel | case | target | registers | LDS | waves | load | store | MFMA | moved |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = {target: index for index, target in enumerate(GPU_TARGETS.values())}
    ordered = sorted(rows, key=lambda row: (row.record.name, row.case.label, order[row.target]))
    for row in ordered:
        cells = [f"`{_name(row)}`", row.case.label, row.target.name]
        cells += _figures(row, code[row.target, row.source])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _name(row: Row) -> str:
    """The record, and which of its launches."""
    several = len(row.record.launches(row.call)) > 1
    return f"{row.record.name}` `{row.launch.symbol}" if several else row.record.name


def _figures(row: Row, kernel: GpuKernel) -> list[str]:
    resources, machine = kernel.resources, kernel.machine
    tokens = tokens_of(row.launch)
    moved = bytes_of(row.launch.operands, tokens)
    least = bytes_of((*row.call.inputs, *row.call.outputs), tokens)
    traffic = f"{moved / 1e6:.1f}, {moved / least:.2f}"
    if tokens != TOKENS:
        traffic += f" for {tokens} tokens"
    registers = str(resources["vgpr"])
    if resources["agpr"]:
        registers += f" ({resources['agpr']} acc)"
    if row.target.family == "amdgpu":
        registers += f", {resources['sgpr']}"
    return [
        registers,
        str(resources["lds_bytes"]),
        str(kernel.waves or ""),
        str(machine.widest_load),
        str(machine.widest_store),
        "<br>".join(f"`{_short(name)}`" for name in machine.mfma),
        traffic,
    ]


def _short(instruction: str) -> str:
    """A matrix instruction without the words that all of them have."""
    words = ("v_mfma_", "mma_async.", "sync.aligned.", ".row.col")
    for word in words:
        instruction = instruction.replace(word, "")
    return instruction


def _refusals(refusals: Sequence[Refusal]) -> str:
    lines = ["What no kernel computes:", ""]
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for each in refusals:
        key = (each.record.name, each.case.label, each.reason)
        grouped.setdefault(key, []).append(each.target.name)
    for (name, label, reason), targets in sorted(grouped.items()):
        lines.append(f"* `{name}`, {label}, {', '.join(targets)}: {reason}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; compare")
    given = parser.parse_args()
    text = page()
    if given.check:
        sys.exit(0 if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text else 1)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
