"""`fusec list`: what this fusec knows."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from fusec.cli.console import data, data_json, table
from fusec.kernels.registry import kernels
from fusec.passes import PIPELINE
from fusec.target import CPU_ARCHES, GPU_TARGETS, PRODUCTS


class Subject(StrEnum):
    """What can be listed."""

    targets = "targets"
    passes = "passes"
    kernels = "kernels"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="list")(list_)


def list_(
    subject: Annotated[
        Subject, typer.Argument(metavar="SUBJECT", help="`targets`, `passes` or `kernels`.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the targets, the passes in order, or the kernels."""
    header, rows = {
        Subject.targets: _targets,
        Subject.passes: _passes,
        Subject.kernels: _kernels,
    }[subject]()
    if json:
        document = [dict(zip(header, row, strict=True)) for row in rows]
        data_json({"schema": "fusec.list/1", subject.value: document})
        return
    data(table(header, rows))


def _targets() -> tuple[list[str], list[list[str]]]:
    rows = [["cpu", "cpu", "this host", ""]]
    for target in (*CPU_ARCHES.values(), *GPU_TARGETS.values()):
        products = ", ".join(name for name, arch in PRODUCTS.items() if arch == target.name)
        rows.append([target.name, target.family, products or target.arch, target.fp8 or ""])
    return ["target", "family", "products", "fp8"], rows


def _passes() -> tuple[list[str], list[list[str]]]:
    rows = []
    for number, each in enumerate(PIPELINE, start=1):
        about = sys.modules[each.__module__].__doc__ or ""
        summary = " ".join(about.strip().split("\n\n")[0].split()).rstrip(".")
        rows.append([str(number), each.name, getattr(each, "fusion", None) or "", summary])
    return ["order", "pass", "fusion", "summary"], rows


def _kernels() -> tuple[list[str], list[list[str]]]:
    rows = [
        [kernel.op, kernel.name, kernel.provider, ", ".join(kernel.families), kernel.source]
        for _, records in sorted(kernels().items())
        for kernel in records
    ]
    return ["op", "kernel", "provider", "families", "source"], rows
