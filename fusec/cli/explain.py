"""`fusec explain`: why each fusion fired or was refused, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fusec.cli.compile import (
    AlignChoice,
    Dim,
    Disable,
    Dtype,
    Mxfp4Align,
    NoExtensions,
    Quantize,
    Tp,
)
from fusec.cli.console import Stages, data, data_json, text_width
from fusec.diagnostics import UsageError
from fusec.explanation import Filter, explain_text
from fusec.report import EXPLAIN_SCHEMA, Row, fusion_counts
from fusec.runtime.artifact import open_artifact
from fusec.runtime.container import is_artifact

SHOW = "What is told"
"""A heading of options in the help."""

_UNASKED = {"mxfp4_align": AlignChoice.pad.value, "tp": 1}
"""What options are that were not given; others are empty."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(explain)


def explain(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="An artifact, or what `compile` takes.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="TARGET",
            help="Only this target, repeatable; needed unless SOURCE is an artifact.",
        ),
    ] = None,
    fusion: Annotated[
        str | None,
        typer.Option(
            "--fusion",
            metavar="FUSION",
            help="Only this fusion, with all its sites.",
            rich_help_panel=SHOW,
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            "--site",
            metavar="PATTERN",
            help="Only what was decided in modules whose path fits, such as `*.layers.3.mlp`: why "
            "did nothing fuse here?",
            rich_help_panel=SHOW,
        ),
    ] = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="Only what was refused.", rich_help_panel=SHOW)
    ] = False,
    dim: Dim = None,
    disable: Disable = None,
    no_extensions: NoExtensions = False,
    quantize: Quantize = None,
    mxfp4_align: Mxfp4Align = AlignChoice.pad,
    tp: Tp = 1,
    dtype: Dtype = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=SHOW)
    ] = False,
) -> None:
    """Tell why each fusion fired or was refused.

    First how often each fusion fired, then what was refused, with the reason, the layers and what
    to change, then how the rest fired. Several targets stand side by side. What is not an artifact
    is read and rewritten, but not compiled, with the options of `compile` that decide what fuses.
    """
    wanted = Filter(fusion, site, refused)
    asked = {
        "dims": dim or (),
        "disable": disable or (),
        "no_extensions": no_extensions,
        "quantize": quantize or (),
        "mxfp4_align": mxfp4_align.value,
        "tp": tp,
        "dtype": None if dtype is None else dtype.value,
    }
    if is_artifact(source):
        decisions = _of_artifact(Path(source), target, asked)
        if fusion is not None:
            _check_fusion(fusion, decisions)
    else:
        decisions = _of_source(source, target, json, asked, fusion)
    if json:
        document = {
            name: {
                "counts": {
                    key: {"fired": fired, "refused": refused}
                    for key, (fired, refused) in fusion_counts(rows).items()
                },
                "decisions": [row for row in rows if wanted(row)],
            }
            for name, rows in decisions.items()
        }
        data_json({"schema": EXPLAIN_SCHEMA, "targets": document})
        return
    data(explain_text(decisions, wanted, text_width()))


def _of_artifact(
    path: Path, wanted: list[str] | None, asked: Mapping[str, Any]
) -> dict[str, list[Row]]:
    for name, value in asked.items():
        if value and value != _UNASKED.get(name):
            option = f"--{name.replace('_', '-').replace('dims', 'dim')}"
            message = f"`{option}` needs a source: `{path.name}` is compiled already"
            raise UsageError(message, hint="name what it was compiled from")
    artifact = open_artifact(path)
    names = [section.target for section in artifact.manifest.targets]
    if wanted:
        names = [artifact.target(name).target for name in wanted]
    rows: dict[str, list[Row]] = {name: [] for name in names}
    for row in artifact.decisions():
        if row.get("target") in rows:
            rows[str(row["target"])].append(row)
    return rows


def _check_fusion(name: str, decisions: Mapping[str, list[Row]]) -> None:
    """Refuse a fusion that is neither of fusec nor one that this artifact was compiled with."""
    from fusec.options import known_fusion  # needs all passes
    from fusec.passes import FUSIONS

    decided = (row["fusion"] for rows in decisions.values() for row in rows)
    known_fusion(name, tuple(dict.fromkeys((*FUSIONS, *decided))))


def _of_source(
    source: str,
    wanted: list[str] | None,
    quiet: bool,
    asked: Mapping[str, Any],
    fusion: str | None,
) -> dict[str, list[Row]]:
    from fusec.api import decide  # the compiler is heavy, and an artifact does not need it
    from fusec.extensions import NONE, installed
    from fusec.frontend.sniff import sniff
    from fusec.frontend.sources import is_factory
    from fusec.options import known_fusion

    if not wanted:
        if not is_factory(source):
            sniff(Path(source))  # a file that is not there is the greater mistake
        raise UsageError("a source needs a target", hint="add `--target gfx950`, for example")
    added = NONE if asked["no_extensions"] else installed()
    if fusion is not None:
        known_fusion(fusion, added.fusions)
    options = {name: value for name, value in asked.items() if name != "no_extensions"}
    reporter, extensions = Stages(quiet), not asked["no_extensions"]
    logs = decide(source, wanted, reporter=reporter, extensions=extensions, **options)
    return {name: [decision.as_json() for decision in log] for name, log in logs.items()}
