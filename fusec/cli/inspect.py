"""`fusec inspect`: what is in an artifact."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from fusec.cli.console import data, data_json, say, table, terminal_width
from fusec.diagnostics import UsageError
from fusec.explanation import explain_text
from fusec.report import counts_text, inspect_document, layers_text, size_text
from fusec.runtime.artifact import Artifact, open_artifact
from fusec.runtime.files import check_place, write_file

VERIFIED_BYTES = 256 << 20
"""Weights inside an artifact up to this size are always compared with their digests."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(inspect)


def inspect(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="A file that `fusec compile` wrote.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    graph: Annotated[
        bool,
        typer.Option(
            "--graph",
            help="Print the rewritten graph as text, one for each target whose graph differs.",
        ),
    ] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="List every kernel with its resources.")
    ] = False,
    decisions: Annotated[
        bool, typer.Option("--decisions", help="List every fusion that fired or was refused.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a page with all of it, and the graphs before and after fusion.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every bit of large weights, too.")
    ] = False,
) -> None:
    """Show what is in an artifact; nothing of it is executed.

    Inputs, outputs, weights, kernels, memory, what is left to onnxruntime, and what was fused.
    """
    if json and graph:
        raise UsageError("`--json` and `--graph` exclude each other", hint="give one of them")
    if html is not None:
        if graph:
            raise UsageError("`--html` and `--graph` exclude each other", hint="give one of them")
        check_place(html, artifact)
    opened = open_artifact(artifact)
    if html is not None:
        check_place(html, opened.weights_path)
    table = opened.manifest.weights
    if verify or (table.storage == "embed" and table.bytes <= VERIFIED_BYTES):
        opened.verify_weights(opened.weights())
    if graph:
        data(_graphs(opened))
        return
    if html is not None:
        _write_page(opened, html)
    document = inspect_document(opened)
    if json:
        data_json(document)
        return
    parts = [_wrapped(_overview(document))]
    for target in document["targets"]:
        parts.append(_wrapped(_target(target)))
        if kernels:
            parts.append(kernels_text(target))
        if decisions:
            parts.append(_decisions(target))
        elif any(row["status"] == "refused" for row in target["decisions"]):
            parts.append("`--decisions` lists the sites")
    data("\n\n".join(parts))


def _graphs(opened: Artifact) -> str:
    """The rewritten graph; where targets have different ones each, below the names of those."""
    targets: dict[str, list[str]] = {}
    for section in opened.manifest.targets:
        targets.setdefault(opened.graph_text(section.target), []).append(section.target)
    if len(targets) == 1:
        return next(iter(targets)).rstrip()
    return "\n\n".join(f"// {', '.join(names)}\n{text.rstrip()}" for text, names in targets.items())


def _write_page(opened: Artifact, path: Path) -> None:
    """Write the page about an artifact to `path`."""
    from fusec.page import page_document, page_html  # nothing else here reads graphs

    text = page_html(page_document(opened))
    page = text.encode("utf-8", "replace")  # names of files may have odd bytes
    write_file(path, page)
    say(f"wrote {path}, {size_text(len(page))}: open it in a browser")


def _overview(document: dict[str, Any]) -> list[str]:
    weights, source = document["weights"], document["source"]
    rows = [
        ("name", document["name"]),
        ("source", f"{source['kind']} {source['name']} (sha256 {source['sha256'][:16]})"),
        *(("input", _tensor(spec)) for spec in document["inputs"]),
        *(("output", _tensor(spec)) for spec in document["outputs"]),
        *(("symbol", f"{n} in [{low}, {high}]") for n, (low, high) in document["symbols"].items()),
        (
            "weights",
            f"{weights['count']}, {size_text(weights['bytes'])}, {weights['storage']}",
        ),
        *([("made by", command)] if (command := document["options"].get("command")) else []),
        ("file", f"{document['file']['name']}, {size_text(document['file']['bytes'])}"),
    ]
    return [f"{key:<9} {value}" for key, value in rows]


def _tensor(spec: dict[str, Any]) -> str:
    return f"{spec['name']}: {spec['dtype']}[{', '.join(map(str, spec['shape']))}]"


def _wrapped(lines: list[str]) -> str:
    """Lines of a word and what is said of it, wrapped below that on a terminal."""
    width = terminal_width()
    if width is None:
        return "\n".join(lines)
    return "\n".join(
        textwrap.fill(
            line,
            width,
            subsequent_indent=" " * 10,
            break_on_hyphens=False,
            break_long_words=False,
        )
        for line in lines
    )


def _target(target: dict[str, Any]) -> list[str]:
    counts: dict[str, dict[str, int]] = {"fired": {}, "refused": {}}
    for row in target["decisions"]:
        group = counts[row["status"]]
        group[row["fusion"]] = group.get(row["fusion"], 0) + 1
    memory, sizes = target["memory"], target.get("arena_sizes", {})
    at = ", ".join(f"{name} {size}" for name, size in sizes.items())
    residual = target["residual"]
    return [
        f"target    {target['target']} ({target['arch']})",
        f"fused     {counts_text(counts['fired']) or 'nothing'}",
        f"refused   {counts_text(counts['refused']) or 'nothing'}",
        f"launches  {target['launches']}, of {len(target['kernels'])} kernels",
        *([f"          {layers}"] if (layers := layers_text(target)) else []),
        f"residual  {len(residual) or 'nothing'}",
        *(f"          {line}" for line in _residual(residual)),
        f"memory    {size_text(memory['weights_bytes'])} of weights, "
        f"{size_text(memory['arena_bytes'])} of intermediate values{f' at {at}' if at else ''}",
    ]


def _residual(residual: list[dict[str, Any]]) -> list[str]:
    """One line for each operation and reason, with the first node."""
    groups: dict[tuple[str, str], list[str]] = {}
    for item in residual:
        groups.setdefault((item["op"], item["reason"]), []).append(item["node"])
    return [
        f"{len(nodes)} x {op}, first at {nodes[0]}: {reason}"
        for (op, reason), nodes in groups.items()
    ]


_RESOURCES = {
    "vgpr": "VGPR",
    "agpr": "AGPR",
    "sgpr": "SGPR",
    "lds_bytes": "LDS",
    "scratch_bytes": "scratch",
    "vgpr_spills": "VGPR spills",
    "sgpr_spills": "SGPR spills",
}
_MACHINE = {
    "threads": "threads",
    "waves_per_unit": "waves",
    "widest_load": "load",
    "widest_store": "store",
    "mfma": "MFMA",
}


def kernels_text(target: dict[str, Any]) -> str:
    """The kernels; of one on a GPU also registers, memory and what its instructions show."""
    on_gpu = target["family"] != "cpu"
    header = ["kernel", "op", "provider", "bytes"]
    header += [*_RESOURCES.values(), *_MACHINE.values()] if on_gpu else []
    rows = []
    for kernel in target["kernels"]:
        row = [kernel["name"], kernel["op"], kernel["provider"], kernel["bytes"]]
        if on_gpu:
            machine = dict(kernel.get("machine", {}))
            machine["mfma"] = " ".join(machine.get("mfma", ()))
            row += [kernel["resources"].get(name, "-") for name in _RESOURCES]
            row += [machine.get(name, "-") or "-" for name in _MACHINE]
        rows.append([*row, kernel["symbol"]])
    listed = table([*header, "symbol"], rows, terminal_width())
    return f"{listed}\n\n{_LEGEND}" if on_gpu else listed


_LEGEND = (
    "waves: on a compute unit at once, of 32\nload, store: bytes that a lane moves at once, at most"
)


def _decisions(target: dict[str, Any]) -> str:
    rows = [
        [row["fusion"], row["status"], row["site"], row["code"] or "", row["reason"] or ""]
        for row in target["decisions"]
    ]
    listed = table(["fusion", "status", "site", "code", "reason"], rows, terminal_width())
    return f"{listed}\n\n{explain_text({target['target']: target['decisions']})}"
