"""`fusec list`: what this fusec knows."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from fusec.cli.console import data, data_json, table, terminal_width

if TYPE_CHECKING:
    from fusec.extensions import Extensions


class Subject(StrEnum):
    """What can be listed."""

    targets = "targets"
    passes = "passes"
    kernels = "kernels"


Rows = tuple[list[str], list[list[str]]]
"""Names of columns, and lines."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="list")(list_)


def list_(
    subject: Annotated[
        Subject,
        typer.Argument(metavar="targets|passes|kernels", help="What to list."),
    ],
    no_extensions: Annotated[
        bool, typer.Option("--no-extensions", help="Leave out what other distributions add.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the targets, the passes in order, or the kernels.

    What another distribution adds has its name behind it.
    """
    if subject is Subject.targets:
        header, rows = _targets()
    else:
        from fusec.extensions import NONE, installed

        added = NONE if no_extensions else installed()
        header, rows = (_passes if subject is Subject.passes else _kernels)(added)
    if json:
        document = [dict(zip(header, row, strict=True)) for row in rows]
        data_json({"schema": "fusec.list/1", subject.value: document})
        return
    if subject is Subject.passes:
        header, rows = _without_repeated_names(rows)
    if subject is Subject.kernels:
        header, rows = header[:-2], _without_repeated_operations(rows)
    data(table(header, rows, terminal_width()))


def _targets() -> Rows:
    from fusec.target import CPU_ARCHES, GPU_TARGETS, PRODUCTS

    rows = [["cpu", "cpu", "this host", ""]]
    for target in (*CPU_ARCHES.values(), *GPU_TARGETS.values()):
        products = ", ".join(name for name, arch in PRODUCTS.items() if arch == target.name)
        rows.append([target.name, target.family, products or target.arch, target.fp8 or ""])
    return ["target", "family", "products", "fp8"], rows


def _passes(added: Extensions) -> Rows:
    rows = []
    for number, each in enumerate(added.pipeline, start=1):
        about = sys.modules[each.__module__].__doc__ or ""
        summary = " ".join(about.strip().split("\n\n")[0].split()).rstrip(".")
        fusion = getattr(each, "fusion", None) or ""
        rows.append([str(number), each.name, fusion, summary, added.source_of(each)])
    return ["order", "pass", "fusion", "summary", "distribution"], rows


def _without_repeated_names(rows: list[list[str]]) -> Rows:
    """Passes for people: most are called as their fusion, which is named where it is not so."""
    short = [
        [
            order,
            _with_source(name, source),
            summary + (f" (fusion `{fusion}`)" if fusion not in ("", name) else ""),
        ]
        for order, name, fusion, summary, source in rows
    ]
    return ["order", "pass", "summary"], short


def _with_source(name: str, source: str) -> str:
    """A name, with the distribution that it is from if that is not fusec."""
    return name if source == "fusec" else f"{name} ({source})"


def _kernels(added: Extensions) -> Rows:
    from fusec.kernels.launch import OWN_PACKAGE
    from fusec.kernels.registry import kernels

    own = [kernel for _, records in sorted(kernels().items()) for kernel in records]
    rows = [
        [
            kernel.op,
            kernel.name,
            kernel.provider,
            ", ".join(kernel.families),
            kernel.source if kernel.package == OWN_PACKAGE else f"{kernel.package}/{kernel.source}",
            added.source_of(kernel),
        ]
        for kernel in (*own, *added.kernels)
    ]
    return ["op", "kernel", "provider", "families", "source", "distribution"], rows


def _without_repeated_operations(rows: list[list[str]]) -> list[list[str]]:
    """Kernels for people: each operation is named once, and sources are left to `--json`."""
    above = [[], *rows[:-1]]
    return [
        [
            "" if before and before[0] == row[0] else row[0],
            _with_source(row[1], row[-1]),
            *row[2:-2],
        ]
        for before, row in zip(above, rows, strict=True)
    ]
