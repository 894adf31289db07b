"""`fusec bench`: where the time goes, and how far it is from what the machine gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fusec.bench import Request, bench_text, measure, predict
from fusec.bench.measured import PROFILED
from fusec.bench.peers import Source
from fusec.cli.console import data, data_json, progress_bar, table, terminal_width
from fusec.cli.run import HugePages
from fusec.costs import typical_sizes
from fusec.diagnostics import ArtifactError, DeviceError, UsageError
from fusec.runtime import Model, load
from fusec.runtime.artifact import Artifact, Manifest, open_artifact
from fusec.runtime.devices import open_driver
from fusec.runtime.io import read_arrays
from fusec.runtime.loader import choose_cpu_target
from fusec.runtime.model import bind_symbols, check_inputs

DEVICES = {"amdgpu": "hip", "nvidia": "cuda"}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(bench)


def bench(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="A file that `fusec compile` wrote.")
    ],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="SOURCE",
            help="The source, to be run eagerly and with `torch.compile` in turns with it.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="`cpu`, `hip:0` or `cuda:0`; by default one that is here.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="T",
            help="Predict for a target or product, such as `mi325x`, and run nothing.",
        ),
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option("--dim", metavar="NAME=VALUE", help="A size of the inputs; may be repeated."),
    ] = None,
    input: Annotated[
        Path | None,
        typer.Option(
            "--input", "-i", metavar="FILE", help="`.npz` or `.safetensors`; by default made up."
        ),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            "--iterations",
            metavar="N",
            min=1,
            help="Timed runs; by default at least 20, and for a second.",
        ),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            "--warmup",
            metavar="N",
            min=0,
            help="Runs before; by default until two medians agree.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Threads to use; by default all that this process may."
        ),
    ] = None,
    steps: Annotated[
        int,
        typer.Option("--steps", metavar="N", min=1, help="Runs in which each step is timed."),
    ] = PROFILED,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The weights, if they are not in the artifact."),
    ] = None,
    huge_pages: HugePages = False,
    all: Annotated[
        bool, typer.Option("--all", help="Show every step, not one row for equal ones.")
    ] = False,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter", metavar="FOLDER", help="The LoRA adapter that was compiled with it."
        ),
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Load a pickled source, which runs its code.")
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that comes with a model folder."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Time an artifact and each of its steps beside the limits of the machine.

    What a machine gives at most is measured on a CPU and read from a data sheet on a GPU. For a
    target that is not here, bytes, flops and the least time are predicted from its data sheet.
    """
    if device is not None and target is not None:
        raise UsageError(
            "`--device` runs the artifact and `--target` predicts", hint="give one of them"
        )
    opened = open_artifact(artifact)
    device, named, reason = _chosen(opened, device, target)
    sizes = _sizes(opened.manifest, dim or ())
    if device is None:
        if against is not None:
            raise UsageError(
                "nothing runs that `--against` could be compared with",
                detail=(reason,),
                hint="leave it out, or measure where the device is",
            )
        _print(predict(opened, named, sizes, reason), json=json, all_steps=all)
        return
    options = {
        "adapter": None if adapter is None else str(adapter),
        "trust_pickle": trust_pickle,
        "trust_remote_code": trust_remote_code,
    }
    with _reporting(quiet=json) as report:
        with load(opened, device, threads, weights=weights, huge_pages=huge_pages) as model:
            inputs, sizes = _inputs(model, input, sizes)
            request = Request(
                model=model,
                inputs=inputs,
                sizes=sizes,
                device=device,
                iterations=iterations,
                warm_up=warmup,
                profiled=steps,
                against=None if against is None else Source(against, options),
                report=report,
            )
            document = measure(request)
    _print(document, json=json, all_steps=all)


def _print(document: Mapping[str, Any], *, json: bool, all_steps: bool) -> None:
    if json:
        data_json(document)
    else:
        data(bench_text(document, partial(table, width=terminal_width()), all_steps=all_steps))


@contextmanager
def _reporting(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A spinner on a terminal with what is being done; nothing elsewhere."""
    with progress_bar(quiet) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda text: bar.update(task, description=text)


def _chosen(
    artifact: Artifact, device: str | None, target: str | None
) -> tuple[str | None, str, str]:
    """The device to run on, or `None` and the target to predict for, and why.

    Raises:
        ArtifactError: the artifact has no such target.
    """
    if target is not None:
        artifact.target(target)
        return None, target.lower(), "`--target` asks for a prediction"
    if device is not None:
        return device, "", "`--device` asks for it"
    refused: list[str] = []
    for family in sorted({section.family for section in artifact.manifest.targets}):
        found = DEVICES.get(family, "cpu")
        try:
            if found == "cpu":
                choose_cpu_target(artifact)
            else:
                open_driver(found, 0).close()
                found += ":0"
        except (ArtifactError, DeviceError) as error:
            refused.append(str(error))
        else:
            return found, "", "it is here"
    return None, artifact.manifest.targets[0].target, "; ".join(refused)


def _sizes(manifest: Manifest, given: Sequence[str]) -> dict[str, int]:
    """The value of each symbol, those that were asked for among them.

    Raises:
        UsageError: there is no such symbol, or the value is outside of its range.
    """
    sizes = typical_sizes(manifest)
    for text in given:
        name, _, value = text.partition("=")
        if name not in sizes:
            known = ", ".join(f"`{each}`" for each in sizes) or "none"
            raise UsageError(f"there is no size `{name}`", hint=f"sizes that vary are {known}")
        least, most = manifest.symbols[name]
        if not value.isdecimal() or not least <= int(value) <= most:
            hint = "for other sizes compile it with another range"
            message = f"`--dim {text}`: `{name}` is an integer from {least} to {most}"
            raise UsageError(message, hint=hint)
        sizes[name] = int(value)
    return sizes


def _inputs(
    model: Model, file: Path | None, sizes: Mapping[str, int]
) -> tuple[Mapping[str, Any], dict[str, int]]:
    """Inputs from `file`, or made up for `sizes`, and the sizes that they have."""
    if file is None:
        from fusec.generate import artifact_graph, generate_inputs

        graph = artifact_graph(model.artifact)
        inputs: Mapping[str, Any] = generate_inputs(model.inputs, sizes, 0, graph)
    else:
        inputs = read_arrays(file, [spec.name for spec in model.inputs])
    arrays = check_inputs(model.inputs, model.symbols, inputs)
    return inputs, bind_symbols(model.inputs, model.symbols, arrays)
