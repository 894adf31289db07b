"""`fusec diff`: what differs between two artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusec.cli.console import data, data_json
from fusec.difference import difference, difference_text
from fusec.runtime.artifact import open_artifact


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(diff)


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="An artifact.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what differs from one artifact to another.

    Made for CI: the exit code is 1 where something does. Fusions lost and gained with the reasons,
    kernels and their resources, launches, what is left to onnxruntime, memory, options, and the
    operations of each layer. Other versions of tools alone make no difference.
    """
    document = difference(open_artifact(a), open_artifact(b))
    if json:
        data_json(document)
    else:
        data(difference_text(document))
    raise typer.Exit(0 if document["same"] else 1)
