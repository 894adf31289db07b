"""Candidates as code objects: compiled side by side, and held against what the device takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fusec.diagnostics import InternalError
from fusec.kernels.launch import HipSource, Launch, TritonSource
from fusec.kernels.triton_gemm import Tile
from fusec.link.cache import ObjectCache
from fusec.link.gpu_checks import GpuSource, fitted, unfit
from fusec.link.gpu_compile import CompiledSources, CompileError, compile_sources
from fusec.link.gpu_kernel import GpuKernel
from fusec.target import Target
from fusec.tune.products import Product, Variant


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tile of a product.

    Attributes:
        product: that it is for.
        tile: that was chosen.
        variant: what runs with it.
        kernels: the code of each launch; empty if it was refused.
        refused: why it cannot be measured.
    """

    product: Product
    tile: Tile
    variant: Variant
    kernels: tuple[GpuKernel, ...] = ()
    refused: str | None = None


def compile_candidates(
    products: Sequence[Product],
    target: Target,
    cache: ObjectCache,
    *,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Candidate]]:
    """The candidates of each product, first what the model of cost chooses.

    Of tiles that come to the same launches, which happens where a kernel makes tiles smaller, only
    the first is kept.

    Args:
        products: for `target`.
        target: for what.
        cache: of code objects.
        jobs: how many compilers may run at a time.
        progress: is told how many sources are ready, and of how many.

    Raises:
        InputError: Triton is not installed.
    """
    variants = [_different(product) for product in products]
    sources = dict.fromkeys(
        source_of(launch)
        for tiles in variants
        for variant in tiles.values()
        for launch in variant.launches
    )
    made, refused = _compiled(list(sources), target, cache, jobs, progress)
    return [
        [_candidate(product, tile, variant, made, refused) for tile, variant in tiles.items()]
        for product, tiles in zip(products, variants, strict=True)
    ]


def source_of(launch: Launch) -> GpuSource:
    """What makes the code of a launch.

    Raises:
        InternalError: a library does.
    """
    if not isinstance(launch.code, TritonSource | HipSource):
        raise InternalError(f"`{launch.symbol}` is not compiled here")
    return launch.code


def _different(product: Product) -> dict[Tile, Variant]:
    found: dict[tuple[Launch, ...], tuple[Tile, Variant]] = {}
    for tile in product.tiles:
        variant = product.variant(tile)
        found.setdefault(variant.launches, (tile, variant))
    return dict(found.values())


def _compiled(
    sources: list[GpuSource],
    target: Target,
    cache: ObjectCache,
    jobs: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[CompiledSources, dict[GpuSource, str]]:
    """The code of all sources but those that a compiler refuses, and what it says of these."""
    refused: dict[GpuSource, str] = {}
    while True:
        left = [source for source in sources if source not in refused]
        try:
            made = compile_sources(left, target, cache, jobs=jobs, progress=progress)
        except CompileError as error:
            refused[error.source] = f"it does not compile: {error}"
        else:
            return made, refused


def _candidate(
    product: Product,
    tile: Tile,
    variant: Variant,
    made: CompiledSources,
    refused: dict[GpuSource, str],
) -> Candidate:
    kernels: list[GpuKernel] = []
    reasons: list[str] = []
    for launch in variant.launches:
        source = source_of(launch)
        if source in refused:
            reasons.append(refused[source])
            continue
        code = made.code[source]
        found = [*unfit(code, source, launch, product.target, product.kernel)]
        reasons += found
        if not found:
            kernels.append(fitted(code, source, product.target))
    if reasons:
        return Candidate(product, tile, variant, refused="; ".join(reasons))
    return Candidate(product, tile, variant, tuple(kernels))
