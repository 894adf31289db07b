"""`fusec compile`: from a model to an artifact."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fusec.cli.console import Stages, data_json


class WeightsChoice(StrEnum):
    """Where weights go."""

    embed = "embed"
    external = "external"
    none = "none"


class DtypeChoice(StrEnum):
    """Element types that a model folder can be compiled in."""

    f32 = "f32"
    bf16 = "bf16"
    f16 = "f16"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(compile)


def compile(
    source: Annotated[
        str,
        typer.Argument(
            help="A torch.export archive (.pt2, .pt), an ONNX file, a Hugging Face model folder, "
            "or `package.module:factory`."
        ),
    ],
    target: Annotated[
        list[str],
        typer.Option("--target", help="An architecture or product, such as `gfx950`; repeatable."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The artifact to write.")
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option("--dim", metavar="NAME=MIN:OPT:MAX", help="Sizes of a dimension; repeatable."),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require", metavar="FUSION[>=N]", help="Exit 3 unless it fires so often; repeatable."
        ),
    ] = None,
    disable: Annotated[
        list[str] | None,
        typer.Option("--disable", metavar="PASS", help="Leave a pass out; repeatable."),
    ] = None,
    dtype: Annotated[
        DtypeChoice | None, typer.Option(help="The dtype of a model folder; default: the config's.")
    ] = None,
    weights: Annotated[
        WeightsChoice, typer.Option(help="Keep weights inside, beside, or outside the artifact.")
    ] = WeightsChoice.embed,
    attention_mask: Annotated[
        bool, typer.Option("--attention-mask", help="A model folder also takes `attention_mask`.")
    ] = False,
    allow_host_fallback: Annotated[
        bool,
        typer.Option(
            "--allow-host-fallback", help="Leave what a GPU target cannot run to the host."
        ),
    ] = False,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Load pickled modules, which run their code.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a model folder.")
    ] = False,
    dump_ir: Annotated[
        Path | None,
        typer.Option("--dump-ir", metavar="DIR", help="Write the graph after each pass."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Compilers to run at once.")
    ] = None,
    toolchain: Annotated[
        str | None,
        typer.Option(help="The C++ compiler for CPU targets: `clang++`, `g++`, `zig` or a path."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print what `inspect --json` would print.")
    ] = False,
) -> None:
    """Compile SOURCE for one or more targets into one artifact; needs no GPU."""
    from fusec.api import compile as compile_source  # heavy: not for `fusec run`

    result = compile_source(
        source,
        output,
        target=target,
        dims=dim or (),
        require=require or (),
        disable=disable or (),
        dtype=None if dtype is None else dtype.value,
        weights=weights.value,
        attention_mask=attention_mask,
        allow_host_fallback=allow_host_fallback,
        trust_pickle=trust_pickle,
        trust_remote_code=trust_remote_code,
        dump_ir=dump_ir,
        jobs=jobs,
        toolchain=toolchain,
        reporter=Stages(quiet=json),
    )
    if json:
        data_json(result.document)
