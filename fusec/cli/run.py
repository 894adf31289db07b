"""`fusec run`: batches through an artifact."""

from __future__ import annotations

import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from fusec.cli.console import data_json, progress_bar, say
from fusec.diagnostics import ArtifactError, DeviceError, InputError, UsageError, counted
from fusec.emulation import emulated
from fusec.runtime import Model, load
from fusec.runtime.artifact import open_artifact
from fusec.runtime.batches import BadRecord
from fusec.runtime.files import check_place
from fusec.runtime.io import (
    STANDARD,
    Batches,
    RunSummary,
    check_format,
    open_writer,
    read_batches,
    run_batches,
    tokenizer_of,
)
from fusec.runtime.loader import open_device

HugePages = Annotated[
    bool,
    typer.Option(
        "--huge-pages",
        help="On a CPU, copy weights into pages of 2 MiB; they are mapped from the file otherwise.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(run)


def run(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="A file that `fusec compile` wrote.")
    ],
    input: Annotated[
        Path,
        typer.Option(
            "--input",
            "-i",
            metavar="FILE",
            help="`.npz`, `.safetensors` or `.jsonl`; `-` is `.jsonl` on standard input.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The same kinds; by default `.jsonl` on standard output.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", metavar="N", min=1, help="Records that are run at once, at most."
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="`cpu`, `hip:0` or `cuda:0`; `emulator:TARGET` checks a GPU program on the CPU.",
        ),
    ] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Threads to use; by default all that this process may."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The weights, if they are not in the artifact."),
    ] = None,
    huge_pages: HugePages = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document about the run.")
    ] = False,
) -> None:
    """Run batches of inputs through an artifact, in order.

    A bad record is reported with its line and the rest is still done; the exit code is then 1.
    """
    if json and output in (None, STANDARD):
        raise UsageError(
            "`--json` needs `--output`", hint="without it the outputs go to standard output"
        )
    if output is not None and output != STANDARD:
        check_format(output)
        check_place(output, "/dev/stdin" if input == STANDARD else input, artifact, weights)
    # The device and the inputs come before the weights, which may take long to read.
    opened = open_artifact(artifact)
    if output is not None and output != STANDARD:
        check_place(output, opened.weights_path)
    held = opened.manifest
    driver = emulated(opened, device) or open_device(opened, device, huge_pages=huge_pages)
    with closing(driver) if driver else nullcontext():
        tokenizer = tokenizer_of(opened)
        batches = read_batches(
            input, held.inputs, held.outputs, held.symbols, batch_size, tokenizer
        )
        with progress_bar(json, counts="bytes") as bar:
            task = bar.add_task("checking weights", total=None)
            model = load(
                opened,
                threads=threads,
                weights=weights,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
                driver=driver,
                huge_pages=huge_pages,
            )
        with model:
            summary, seconds = _run(model, batches, output, quiet=json)
            threads = model.threads
    if json:
        data_json(
            {
                "schema": "fusec.run/1",
                "records": summary.records,
                "failed": summary.failed,
                "seconds": round(seconds, 6),
                "target": model.target,
                "target_reason": model.reason,
                "threads": threads,
            }
        )
    else:
        rate = summary.records / seconds if seconds else 0.0
        say(f"ran {counted(summary.records, 'record')} in {seconds:.1f} s ({rate:.1f}/s)")
    if summary.failed:
        total = summary.failed + summary.records
        raise InputError(
            f"{summary.failed} of {total} records are at fault",
            hint="the outputs of the others are complete",
        )


def _run(
    model: Model, batches: Batches, output: Path | None, *, quiet: bool
) -> tuple[RunSummary, float]:
    """Run all batches; gives what became of them, and the seconds it took.

    Where the device fails, what was computed before that is kept.
    """
    writer = open_writer(output, model.outputs)
    begin = time.monotonic()
    records = 0

    def count(done: int) -> None:
        nonlocal records
        records += done
        bar.advance(task, done)

    try:
        with progress_bar(quiet, counts="records") as bar:
            task = bar.add_task("records", total=batches.records)
            summary = run_batches(model, batches, writer, on_error=_report, on_records=count)
        writer.close()
    except (ArtifactError, DeviceError) as error:
        if not records:
            writer.discard()
            raise
        writer.close()
        kept = f"the outputs of {records} records before that are in `{output or '-'}`"
        raise type(error)(
            str(error), at=error.at, detail=(*error.detail, kept), hint=error.hint
        ) from None
    except BaseException:
        writer.discard()
        raise
    return summary, time.monotonic() - begin


def _report(record: BadRecord) -> None:
    say(record.error.render())
