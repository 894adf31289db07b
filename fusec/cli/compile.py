"""`fusec compile`: from a model to an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusec.cli.console import Stages, data, data_json
from fusec.diagnostics import UsageError

if TYPE_CHECKING:
    from fusec.ir import Graph

MODEL = "What is compiled"
REWRITE = "How it is rewritten"
WRITE = "What is written"
LOOK = "Looking inside"
BUILD = "How it is built"
"""Headings of options in the help."""


class WeightsChoice(StrEnum):
    """Where weights go."""

    embed = "embed"
    external = "external"
    none = "none"


class AlignChoice(StrEnum):
    """What happens to sizes that the native mxfp4 kernels do not take."""

    pad = "pad"
    reject = "reject"


class DtypeChoice(StrEnum):
    """Element types that a model folder can be compiled in."""

    f32 = "f32"
    bf16 = "bf16"
    f16 = "f16"


class PrecisionChoice(StrEnum):
    """How precise products of f32 are."""

    highest = "highest"
    high = "high"
    medium = "medium"


Dim = Annotated[
    list[str] | None,
    typer.Option(
        "--dim",
        metavar="NAME=MIN:OPT:MAX",
        help="The sizes a named dimension may have, such as `seq=1:512:4096`; repeatable.",
        rich_help_panel=MODEL,
    ),
]
Disable = Annotated[
    list[str] | None,
    typer.Option(
        "--disable",
        metavar="PASS",
        help="Leave a pass out; repeatable. `fusec list passes` names them.",
        rich_help_panel=REWRITE,
    ),
]
NoExtensions = Annotated[
    bool,
    typer.Option(
        "--no-extensions",
        help="Leave out the operations, passes and kernels that installed distributions add.",
        rich_help_panel=REWRITE,
    ),
]
Quantize = Annotated[
    list[str] | None,
    typer.Option(
        "--quantize",
        metavar="FORMAT[:experts|:PATTERN]",
        help="Bring weights into `fp8-tensor`, `fp8-token`, `fp8-block`, `mxfp4` or `mxfp8`: "
        "linears and experts, experts alone, or what a pattern over names fits; repeatable, the "
        "first that fits a weight counts.",
        rich_help_panel=REWRITE,
    ),
]
Mxfp4Align = Annotated[
    AlignChoice,
    typer.Option(
        metavar="pad|reject",
        help="Pad sizes that the native mxfp4 kernels do not take, or reject those kernels.",
        rich_help_panel=REWRITE,
    ),
]
Tp = Annotated[
    int,
    typer.Option(
        "--tp",
        min=1,
        metavar="N",
        help="Ranks that heads are divided among.",
        rich_help_panel=REWRITE,
    ),
]
Dtype = Annotated[
    DtypeChoice | None,
    typer.Option(
        metavar="f32|bf16|f16",
        help="Compile a model folder or module in this dtype; by default its own.",
        rich_help_panel=MODEL,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(compile)


def compile(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A torch.export archive (.pt2, .pt), an ONNX file, a Hugging Face model folder, "
            "or `package.module:factory`.",
            show_default=False,
        ),
    ],
    target: Annotated[
        list[str],
        typer.Option(
            "--target",
            metavar="TARGET",
            help="An architecture or product: `cpu`, `gfx950`, `mi300x`; repeatable. "
            "`fusec list targets` names them all.",
            rich_help_panel=MODEL,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The artifact to write; by default the source's name with `.fusec`.",
            rich_help_panel=WRITE,
        ),
    ] = None,
    dim: Dim = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            metavar="FUSION[>=N]",
            help="Exit 3 unless the fusion fires at N places (1) on every target; repeatable.",
            rich_help_panel=REWRITE,
        ),
    ] = None,
    disable: Disable = None,
    no_extensions: NoExtensions = False,
    quantize: Quantize = None,
    mxfp4_align: Mxfp4Align = AlignChoice.pad,
    tp: Tp = 1,
    dtype: Dtype = None,
    fp32_precision: Annotated[
        PrecisionChoice,
        typer.Option(
            metavar="highest|high|medium",
            help="Products of f32 on a CPU with AMX: as accurate as f32, or with 16 or 8 bits of "
            "each factor, which is faster. Other CPUs multiply f32 exactly.",
            rich_help_panel=REWRITE,
        ),
    ] = PrecisionChoice.highest,
    weights: Annotated[
        WeightsChoice,
        typer.Option(
            metavar="embed|external|none",
            help="Put weights into the artifact, into a file beside it, or nowhere: then `run` "
            "is given them.",
            rich_help_panel=WRITE,
        ),
    ] = WeightsChoice.embed,
    attention_mask: Annotated[
        bool,
        typer.Option(
            "--attention-mask",
            help="Let a model folder also take `attention_mask`.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    allow_host_fallback: Annotated[
        bool,
        typer.Option(
            "--allow-host-fallback",
            help="Write the artifact although a GPU target leaves operations to the host.",
            rich_help_panel=WRITE,
        ),
    ] = False,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            "--provider",
            metavar="LIB==VERSION",
            help="Prefer the kernels of a library, in the form that this release of it has, to "
            "fusec's own: `aiter==0.1.14`; repeatable. It is checked again where it is loaded.",
            rich_help_panel=BUILD,
        ),
    ] = None,
    tuning: Annotated[
        list[Path] | None,
        typer.Option(
            "--tuning",
            metavar="TABLE",
            help="Take tiles from a table of `fusec tune`; repeatable, one a target. What it has "
            "no row for comes from the table that ships with fusec.",
            rich_help_panel=BUILD,
        ),
    ] = None,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle",
            help="Load pickled modules and TorchScript, which runs the code in them.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run code that comes with a model folder.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A LoRA adapter of PEFT to add to a model folder; an adapter that names its "
            "model's folder can be SOURCE itself.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    dump_ir: Annotated[
        Path | None,
        typer.Option(
            "--dump-ir",
            metavar="DIR",
            help="Write the graph as text after each pass that changed it, what changed, and an "
            "index; `-` for standard output.",
            rich_help_panel=LOOK,
        ),
    ] = None,
    dump_ir_after: Annotated[
        list[str] | None,
        typer.Option(
            "--dump-ir-after",
            metavar="PASS",
            help="Write it after this pass only; repeatable.",
            rich_help_panel=LOOK,
        ),
    ] = None,
    stop_after: Annotated[
        str | None,
        typer.Option(
            "--stop-after",
            metavar="PASS",
            help="Run the passes up to this one, print the graph unless it is dumped, and write no "
            "artifact. Of a pass that runs more than once the first counts, or name the one you "
            "mean as its file in a dump is called: `25-canonicalise`.",
            rich_help_panel=LOOK,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            metavar="N",
            help="Compilers to run at once; by default one a processor.",
            rich_help_panel=BUILD,
        ),
    ] = None,
    toolchain: Annotated[
        str | None,
        typer.Option(
            metavar="COMPILER",
            help="The C++ compiler for CPU targets: `clang++`, `g++`, `zig` or a path.",
            rich_help_panel=BUILD,
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print what `fusec inspect --json` prints.", rich_help_panel=WRITE
        ),
    ] = False,
) -> None:
    """Compile a model for one or more targets; needs no GPU.

    Writes one artifact with code for every target. What a target cannot run is an error that lists
    it, never a silent fallback.
    """
    # The compiler is heavy: not for `fusec run`.
    from fusec.api import compile as compile_source
    from fusec.api import rewrite

    shaping: dict[str, Any] = {
        "target": target,
        "dims": dim or (),
        "disable": disable or (),
        "extensions": not no_extensions,
        "quantize": quantize or (),
        "mxfp4_align": mxfp4_align.value,
        "tp": tp,
        "dtype": None if dtype is None else dtype.value,
        "fp32_precision": fp32_precision.value,
        "attention_mask": attention_mask,
        "trust_pickle": trust_pickle,
        "trust_remote_code": trust_remote_code,
        "adapter": adapter,
        "dump_ir": dump_ir,
        "dump_ir_after": dump_ir_after or (),
    }
    if json and str(dump_ir) == "-":
        raise UsageError("`--json` and `--dump-ir -` exclude each other", hint="name a folder")
    if stop_after is not None:
        refuse_artifact_options(
            output=output,
            require=require,
            weights=weights is not WeightsChoice.embed,
            allow_host_fallback=allow_host_fallback,
            provider=provider,
            tuning=tuning,
            jobs=jobs,
            toolchain=toolchain,
            json=json,
        )
        graphs = rewrite(source, reporter=Stages(), stop_after=stop_after, **shaping)
        if dump_ir is None:
            print_graphs({name: graph for name, (graph, _) in graphs.items()})
        return
    result = compile_source(
        source,
        output,
        require=require or (),
        weights=weights.value,
        allow_host_fallback=allow_host_fallback,
        provider=provider or (),
        tuning=tuning or (),
        jobs=jobs,
        toolchain=toolchain,
        reporter=Stages(quiet=json),
        **shaping,
    )
    if json:
        data_json(result.document)


def refuse_artifact_options(**given: object) -> None:
    """Refuse what has no meaning where no artifact is written.

    Raises:
        UsageError: one of the options is given.
    """
    for name, value in given.items():
        if value:
            raise UsageError(
                f"`--{name.replace('_', '-')}` and `--stop-after` exclude each other",
                hint="with `--stop-after` no artifact is written",
            )


def print_graphs(graphs: Mapping[str, Graph]) -> None:
    """Print the graph of each target, with its name above it where there are several."""
    from fusec.ir import print_graph

    for name, graph in graphs.items():
        if len(graphs) > 1:
            data(f"// {name}")
        data(print_graph(graph).rstrip())
