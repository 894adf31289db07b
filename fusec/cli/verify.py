"""`fusec verify`: whether an artifact computes what its source does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fusec.cli.console import data, data_json, say, table, terminal_width
from fusec.diagnostics import UsageError
from fusec.runtime.files import write_errors


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(verify)


def verify(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="A file that `fusec compile` wrote.")
    ],
    against: Annotated[
        str,
        typer.Option("--against", metavar="SOURCE", help="What it was compiled from."),
    ],
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="`cpu`, `hip:0` or `cuda:0`; `emulator:TARGET` runs a GPU program on the CPU.",
        ),
    ] = "cpu",
    input: Annotated[
        list[Path] | None,
        typer.Option(
            "--input", metavar="FILE", help="`.npz` or `.safetensors`; by default made up."
        ),
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option("--dim", metavar="NAME=N[,N...]", help="Sizes to run at, repeatable."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of inputs that are made up.")
    ] = 0,
    tol: Annotated[
        list[str] | None,
        typer.Option(
            "--tol",
            metavar="[OUTPUT=]X",
            help="The largest difference allowed, relative to the largest element.",
        ),
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Find the pass or the kernel that is wrong.")
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FOLDER", help="Keep inputs and outputs of every case."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Threads of the CPU.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="If they are not in the artifact."),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter", metavar="FOLDER", help="The LoRA adapter that was compiled with it."
        ),
    ] = None,
    tuning: Annotated[
        list[Path] | None,
        typer.Option(
            "--tuning",
            metavar="TABLE",
            help="The table of tiles that it was compiled with; `--bisect` needs it.",
        ),
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Load a pickled module, which runs its code.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a model folder.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare an artifact with its source on the same inputs.

    Both run at several sizes, beside the meaning of the source in float64. An output is right if it
    is as near to that as the source itself in its own dtype, or within the tolerance of the dtype.
    """
    from fusec.verify import Request, check_folder
    from fusec.verify import verify as verified
    from fusec.verify.compilation import Given

    request = Request(
        artifact,
        against,
        device=device,
        inputs=tuple(input or ()),
        dims=dict(map(_sizes, dim or ())),
        seed=seed,
        tolerances=dict(map(_tolerance, tol or ())),
        bisect=bisect,
        threads=threads,
        weights=weights,
        given=Given(
            trust_pickle=trust_pickle,
            trust_remote_code=trust_remote_code,
            adapter=adapter,
            tuning=tuple(tuning or ()),
        ),
    )
    if save is not None:
        check_folder(save, request)  # before the cases are run, which may take long
    found = verified(request, (lambda _: None) if json else say)
    if json:
        data_json(found.document)
    else:
        data(_text(found.document))
    if save is not None:
        with write_errors(save):
            found.save(save)
    if not found.is_right:
        raise found.error()


def _sizes(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.partition("=")
    try:
        return name, tuple(int(size) for size in sizes.split(","))
    except ValueError:
        hint = "write `--dim seq=1,37,512`, for example"
        raise UsageError(f"`--dim {text}` names no sizes", hint=hint) from None


def _tolerance(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        allowed = float(value)
    except ValueError:
        allowed = math.nan
    if not 0 <= allowed < math.inf:
        hint = "write `--tol 1e-3`, or `--tol logits=1e-3`"
        raise UsageError(f"`--tol {text}` is no tolerance", hint=hint)
    return name, allowed


def _text(document: dict[str, Any]) -> str:
    """The errors of every output, case by case, and what is allowed."""
    header = ["case", "output", "max abs", "max rel", "cosine", "error", "reference"]
    rows = [
        [_sizes_text(case), name, *_numbers(found), f"{found['reference']['error']:.1e}"]
        for case in document["cases"]
        for name, found in case["outputs"].items()
    ]
    lines = [
        f"target     {document['target']} on {document['device']}",
        f"reference  {document['reference']}",
    ]
    if document["reference_missing"] is not None:
        lines.append(f"           (the source does not run here: {document['reference_missing']})")
    if document["source_changed"]:
        lines.append("source     is another one than the artifact was compiled from")
    if document["format_cost"] is not None:
        costs = ", ".join(f"{name} {cost:.1e}" for name, cost in document["format_cost"].items())
        lines.append(f"quantised  that alone moves outputs by (rms): {costs}")
    if document["median_counts"]:
        lines.append("routed     the median place counts: a router may be torn between two experts")
    lines += ["", table(header, rows, terminal_width()), ""]
    if (looked := document["looked_at"]) is not None and document["bisect"] is None:
        lines.append(
            f"each of {looked['passes']} passes and {looked['values']} values of steps is right by "
            "itself"
        )
    for output in document["outputs"]:
        checks = ", ".join(
            f"{each['measure']} {each['value']:.1e} of {each['allowed']:.1e} allowed"
            for each in output["checks"]
        )
        lines.append(f"{output['name']} is {output['verdict']}: {checks}")
    return "\n".join(lines)


def _sizes_text(case: dict[str, Any]) -> str:
    return " ".join(f"{name}={size}" for name, size in case["sizes"].items()) or case["name"]


def _numbers(found: dict[str, Any]) -> Sequence[str]:
    small = (f"{found[name]:.1e}" for name in ("max_abs", "max_relative"))
    return [*small, f"{found['cosine']:.6f}", f"{found['error']:.1e}"]
