"""`fusec tune`: measures tiles of matrix products on a device, and writes them into a table."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from ctypes import POINTER, byref, c_int
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusec import __version__
from fusec.cli.compile import AlignChoice, Dim, Disable, Dtype, Mxfp4Align, Quantize
from fusec.cli.console import Stages, data, data_json, table, terminal_width
from fusec.diagnostics import InputError, UsageError
from fusec.runtime.artifact import open_artifact
from fusec.runtime.container import is_artifact
from fusec.runtime.devices import open_driver
from fusec.runtime.driver import DeviceInfo, Driver
from fusec.runtime.errors import TargetError
from fusec.runtime.files import check_place, write_file
from fusec.runtime.loader import parse_device
from fusec.runtime.native import NativeDriver
from fusec.target import GPU_TARGETS, Target

if TYPE_CHECKING:
    from fusec.ir import Graph
    from fusec.kernels.triton_gemm import Tile
    from fusec.tune import Measured, Product

SCHEMA = "fusec.tune/1"

_VERSION_CALLS = {"cuda": "cuDriverGetVersion", "hip": "hipDriverGetVersion"}
"""Functions of the drivers that give a version as one number."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(tune)


def tune(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="An artifact, or what `compile` takes.")
    ],
    device: Annotated[
        str,
        typer.Option("--device", metavar="DEVICE", help="Where to measure: `hip:0` or `cuda:0`."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="TABLE",
            help="The table to write, for `compile --tuning`; by default none.",
        ),
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(
            "--kernel", metavar="NAME", help="Only products of this kernel: `linear.triton`."
        ),
    ] = None,
    dim: Dim = None,
    disable: Disable = None,
    quantize: Quantize = None,
    mxfp4_align: Mxfp4Align = AlignChoice.pad,
    dtype: Dtype = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            metavar="N",
            help="Compilers to run at once; by default one a processor.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure the tiles of a model's matrix products on a device.

    Compiles every candidate, compares its results with those of the tile that is chosen unasked,
    and takes its time.
    """
    # The compiler is heavy: not for `fusec run`.
    from fusec.link.cache import ObjectCache, default_cache_directory
    from fusec.tune import Settings, compile_candidates, measure, table_rows

    check_kernel(kernel)
    if output is not None:
        check_place(output, source)
    kind, index = parse_device(device)
    if kind == "cpu":
        raise UsageError("nothing is tuned on a CPU", hint="add `--device cuda:0`, for example")
    asked = {
        "dims": dim or (),
        "disable": disable or (),
        "quantize": quantize or (),
        "mxfp4_align": mxfp4_align.value,
        "dtype": None if dtype is None else dtype.value,
    }
    stages = Stages(quiet=json)
    driver = open_driver(kind, index)
    try:
        info = driver.info()
        target = target_of(info)
        products = chosen_products(graph_of(source, target, stages, asked), target, kernel)
        with stages.stage("compile") as said:
            cache = ObjectCache(default_cache_directory())
            candidates = compile_candidates(
                products,
                target,
                cache,
                jobs=jobs or os.cpu_count() or 1,
                progress=stages.progress,
            )
            said.append(f"{sum(map(len, candidates))} candidates of {len(products)} products")
        with stages.stage("measure") as said:
            measured = []
            for results in measure(candidates, driver, Settings()):
                measured.append(results)
                stages.progress(len(measured), len(products))
            said.append(f"on {info.name}")
        made = made_by(driver)
    finally:
        driver.close()
    if output is not None:
        from fusec.kernels.tuning import table_text

        rows = table_rows(products, measured, info.name)
        write_file(output, table_text(target.name, rows, made).encode("utf-8"))
    if json:
        data_json(document_of(info, target, made, products, measured))
    else:
        data(text_of(products, measured))


def check_kernel(name: str | None) -> None:
    """Refuse the name of a kernel that asks for no tile.

    Raises:
        UsageError: it asks for none.
    """
    from fusec.tune import TUNED

    if name is not None and name not in TUNED:
        known = ", ".join(f"`{each}`" for each in TUNED)
        raise UsageError(f"`{name}` has no tiles to choose", hint=f"these have: {known}")


def target_of(info: DeviceInfo) -> Target:
    """What has to be compiled for a device.

    Raises:
        TargetError: nothing can be.
    """
    arch = info.arch.partition(":")[0]
    if arch not in GPU_TARGETS:
        known = ", ".join(f"`{name}`" for name in GPU_TARGETS)
        raise TargetError(
            f"fusec does not compile for this device, `{info.arch}`",
            detail=(f"the device is {info.name}",),
            hint=f"fusec compiles for {known}",
        )
    return GPU_TARGETS[arch]


def graph_of(source: str, target: Target, stages: Stages, asked: Mapping[str, Any]) -> Graph:
    """The graph of an artifact, or of a source, rewritten for `target`.

    Raises:
        TargetError: an artifact keeps the graph of another target.
        UsageError: an artifact is given what only a source takes.
    """
    from fusec.ir.text import parse_graph

    if not is_artifact(source):
        from fusec.api import rewrite

        return rewrite(source, target.name, reporter=stages, **asked)[target.name][0]
    if asked != {**dict.fromkeys(asked, ()), "mxfp4_align": "pad", "dtype": None}:
        raise UsageError(
            f"`{Path(source).name}` is compiled already: it takes no options of `compile`",
            hint="name what it was compiled from",
        )
    artifact = open_artifact(Path(source))
    kept = artifact.manifest.targets[0].target
    if kept != target.name:
        raise TargetError(
            f"the artifact keeps the graph that was made for `{kept}`, and not for `{target.name}`",
            at=source,
            hint="name what it was compiled from",
        )
    return parse_graph(artifact.graph_text(), foreign=True)


def chosen_products(graph: Graph, target: Target, kernel: str | None) -> tuple[Product, ...]:
    """The products of a graph, or those of one kernel.

    Raises:
        InputError: there are none.
    """
    from fusec.tune import TUNED, products_of

    found = tuple(
        product for product in products_of(graph, target) if kernel in (None, product.key.kernel)
    )
    if not found:
        names = ", ".join(f"`{name}`" for name in ([kernel] if kernel else TUNED))
        raise InputError(
            f"there is nothing to measure: no product of this model runs on {names}",
            hint="`fusec inspect ARTIFACT --kernels` shows what runs",
        )
    return found


def made_by(driver: Driver) -> dict[str, str]:
    """When and with what a table is made."""
    found = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": driver.info().name,
        "fusec": __version__,
        "triton": importlib.metadata.version("triton"),
    }
    if isinstance(driver, NativeDriver):
        found["driver"] = f"{driver.kind} {_driver_version(driver)}"
    return found


def _driver_version(driver: NativeDriver) -> int:
    version = c_int()
    code = driver.symbol(_VERSION_CALLS[driver.kind], (POINTER(c_int),))(byref(version))
    return -1 if code else version.value


def text_of(products: Sequence[Product], measured: Sequence[Sequence[Measured]]) -> str:
    """A table of all candidates, the fastest of each product marked."""
    header = ["product", "rows", "tile", "us", "of static", ""]
    pairs = zip(products, measured, strict=True)
    rows = [row for product, results in pairs for row in _rows(product, results)]
    return table(header, rows, terminal_width())


def _rows(product: Product, results: Sequence[Measured]) -> Iterator[list[object]]:
    from fusec.tune.measure import fastest

    best, static = fastest(results), results[0].microseconds
    for result in results:
        name = [str(product.key), str(product.rows), tile_text(result.tile)]
        if result.microseconds is None or static is None:
            yield [*name, "-", "-", f"refused: {result.refused}"]
            continue
        mark = "fastest" if result is best else ""
        yield [*name, f"{result.microseconds:.1f}", f"{result.microseconds / static:.2f}", mark]


def tile_text(tile: Tile) -> str:
    """A tile in a few characters: 128x64x64, 4 warps, 3 stages."""
    options = "".join(f", {name} {value}" for name, value in (*tile.options, *tile.constants))
    sizes = f"{tile.rows}x{tile.columns}x{tile.depth}"
    return f"{sizes}, {tile.warps} warps, {tile.stages} stages{options}"


def document_of(
    info: DeviceInfo,
    target: Target,
    made: Mapping[str, str],
    products: Sequence[Product],
    measured: Sequence[Sequence[Measured]],
) -> dict[str, object]:
    """What `--json` prints."""
    from fusec.tune.measure import fastest

    return {
        "schema": SCHEMA,
        "device": info.name,
        "arch": target.name,
        "made": dict(made),
        "products": [
            {
                "kernel": product.key.kernel,
                "dtype": product.key.dtype,
                "n": product.key.columns,
                "k": product.key.length,
                "tier": product.key.tier,
                "rows": product.rows,
                "fastest": results.index(fastest(results)),
                "candidates": [
                    {
                        "tile": {
                            **asdict(result.tile),
                            "options": dict(result.tile.options),
                            "constants": dict(result.tile.constants),
                        },
                        "microseconds": result.microseconds,
                        "refused": result.refused,
                    }
                    for result in results
                ],
            }
            for product, results in zip(products, measured, strict=True)
        ],
    }
