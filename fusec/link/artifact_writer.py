"""Writes an artifact: streamed, atomic, and the same bytes for the same input.

Weights are never held in memory: their names and sizes come first, which fixes every offset, then
each one's bytes are taken chunk by chunk, hashed and written.  The file is built beside its final
place and renamed when it is complete and the runtime's own reader accepts it; on any failure
nothing is left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Literal, TypeAlias

from fusec.diagnostics import ArtifactError, InternalError, UsageError
from fusec.lower.layers import LayerLaunches
from fusec.runtime.artifact import (
    DECISIONS,
    GRAPH,
    ORIGINS_SCHEMA,
    SCHEMA,
    SOURCE_GRAPH,
    TOKENIZER,
    Progress,
    Source,
    TensorSpec,
    open_artifact,
    origins_entry,
    target_graph_entry,
)
from fusec.runtime.container import (
    MANIFEST,
    MARKER,
    VERSION,
    WEIGHTS,
    Entry,
    is_artifact,
    local_header,
    marker_text,
    order_key,
    tail,
)
from fusec.runtime.documents import canonical_json
from fusec.runtime.files import NewFile, check_place, write_errors
from fusec.runtime.program import read_program
from fusec.runtime.tensor_file import TensorFileLayout, is_laid_out, lay_out
from fusec.symbolic import Dim

Chunk: TypeAlias = bytes | bytearray | memoryview
WeightStorage: TypeAlias = Literal["embed", "external", "none"]

MAX_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class WeightData:
    """One packed weight and where its bytes come from.

    Attributes:
        name: unique among the weights.
        dtype: fusec's name of the element type.
        shape: as stored.
        chunks: called once; gives the bytes in order, each chunk used before the next is asked for.
            Not called for storage `none`.
        packing: identifies the layout; `plain` for the source's own bytes.
        sources: names of the tensors of the source that it is made from.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Chunk]]
    packing: str = "plain"
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelRecord:
    """One kernel of a target, as `fusec inspect` shows it.

    Attributes:
        name: of its record.
        op: what it computes.
        provider: the language it is written in, or `external`.
        symbol: that is called.
        sha256: of its module; of what says how it is called, if a library has it.
        bytes: of its code; 0 if a library has it.
        resources: registers, memory and spills.
        machine: what its instructions show, on a GPU.
    """

    name: str
    op: str
    provider: str
    symbol: str
    sha256: str
    bytes: int
    resources: Mapping[str, int] = field(default_factory=dict)
    machine: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResidualRecord:
    """One node that onnxruntime runs, and why."""

    op: str
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class TargetContents:
    """All that an artifact holds for one target.

    Attributes:
        target: as asked for: `cpu`, `x86-64-v4`, `gfx950`.
        family: `cpu`, `amdgpu` or `nvidia`.
        arch: the instruction set.
        features: what the processor must have, as in /proc/cpuinfo.
        program: the program document; it names modules by `module_entry`.
        modules: code by entry name.
        kernels: every kernel the program launches.
        launches: of one run.
        residual: nodes left to onnxruntime.
        weights_bytes: that a run of this target reads.
        arena_bytes: for `arena_sizes`.
        arena_sizes: the largest sizes; one without bound counts as its smallest.
        layers: launches of each layer.
    """

    target: str
    family: str
    arch: str
    features: tuple[str, ...]
    program: Mapping[str, object]
    modules: Mapping[str, bytes]
    kernels: tuple[KernelRecord, ...]
    launches: int
    residual: tuple[ResidualRecord, ...]
    weights_bytes: int
    arena_bytes: int
    arena_sizes: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[LayerLaunches, ...] = ()


@dataclass(frozen=True, slots=True)
class ArtifactContents:
    """All that goes into an artifact.

    Attributes:
        name: of the model.
        source: what it was compiled from.
        inputs: in order.
        outputs: in order.
        symbols: inclusive range of each symbolic size.
        graph: the graph as text, after the passes for the first target.
        source_graph: the graph as text, as it was read.
        target_graphs: by target, the graphs that differ from `graph`.
        origins: by target, for each node of its graph the nodes of `source_graph` that it took
            the place of.
        decisions: one row a fusion that fired or was refused.
        targets: in the order asked for.
        weights: in the order they are stored.
        tools: versions by name.
        options: of the compilation; nothing that differs between machines.
        residual: models for onnxruntime, by entry name (`residual/<target>/<n>.onnx`).
        tokenizer: the bytes of the model's `tokenizer.json`.
    """

    name: str
    source: Source
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: Mapping[str, tuple[int, int]]
    graph: str
    decisions: Sequence[Mapping[str, object]]
    targets: tuple[TargetContents, ...]
    weights: Sequence[WeightData] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    residual: Mapping[str, bytes] = field(default_factory=dict)
    tokenizer: bytes | None = None
    source_graph: str | None = None
    target_graphs: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WrittenArtifact:
    """What `write_artifact` wrote.

    Attributes:
        path: of the artifact.
        bytes: of the artifact file.
        id: SHA-256 of its manifest, which fixes everything in it.
        weights_path: of the external weights, if any.
        weights_bytes: of the embedded or external weights, padding included.
    """

    path: Path
    bytes: int
    id: str
    weights_path: Path | None
    weights_bytes: int


def module_entry(arch: str, code: bytes, suffix: str) -> str:
    """The entry name of a code module, such as `kernels/gfx950/<sha256>.hsaco`."""
    return f"kernels/{arch}/{hashlib.sha256(code).hexdigest()}.{suffix}"


def external_weights_path(artifact: Path) -> Path:
    """Of the weights that are kept beside `artifact`."""
    path = Path(os.path.realpath(artifact))
    return path.with_name(f"{path.name.removesuffix('.fusec')}.weights.safetensors")


def check_output(path: Path, storage: WeightStorage, *inputs: object) -> None:
    """Refuse places at which an artifact, and weights beside it, cannot be written.

    Args:
        path: of the artifact.
        storage: of its weights.
        inputs: as for `check_place`.

    Raises:
        InputError: as `check_place` does.
        UsageError: an input would be replaced; or, by weights, what are not those of an artifact
            at `path`: nobody named that file.
    """
    check_place(path, *inputs)
    if storage != "external":
        return
    place = external_weights_path(path)
    check_place(place, *inputs)
    if not place.exists() or not place.stat().st_size:
        return
    hint = "name the artifact differently, or remove that file"
    if not is_laid_out(place):
        message = f"`{place}` holds no weights of an artifact, but would be replaced"
        raise UsageError(message, hint=hint)
    for other in place.parent.iterdir():
        if _has_weights(other, place) and not (path.exists() and path.samefile(other)):
            message = f"`{place}` holds the weights of `{other.name}`, and would be replaced"
            raise UsageError(message, hint=hint)


def _has_weights(path: Path, place: Path) -> bool:
    """Whether a file is an artifact that has its weights in `place`; a damaged one has none."""
    if not os.access(path, os.R_OK) or not is_artifact(path):
        return False
    try:
        weights = open_artifact(path).weights_path
    except ArtifactError:
        return False
    return weights is not None and weights.exists() and weights.samefile(place)


def write_artifact(
    path: Path,
    contents: ArtifactContents,
    *,
    storage: WeightStorage = "embed",
    progress: Progress | None = None,
) -> WrittenArtifact:
    """Write `contents` to `path`, replacing what is there.

    Args:
        path: of the artifact.
        contents: everything in it.
        storage: `embed` weights, keep them `external` beside the artifact, or write `none`.
        progress: called with bytes of weights written and in all.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
        InternalError: a weight gave other bytes than its shape says, or the reader refuses the
            result.
    """
    with write_errors(path):
        return _write(Path(os.path.realpath(path)), contents, storage, progress)


def _write(
    path: Path,
    contents: ArtifactContents,
    storage: WeightStorage,
    progress: Progress | None,
) -> WrittenArtifact:
    layout = _weights_layout(contents.weights)
    entries = _small_entries(contents)
    weights: _StreamedWeights | None = None
    weights_path = external_weights_path(path) if storage == "external" else None
    with contextlib.ExitStack() as cleanup:
        if weights_path is not None:
            external = cleanup.enter_context(NewFile(weights_path))
            weights = _stream_weights(external.file, contents.weights, layout, progress)
        target = cleanup.enter_context(NewFile(path))
        archive = _Archive(target.file)
        for name in sorted([*entries, WEIGHTS], key=order_key):
            if name in entries:
                archive.add(name, entries[name])
            elif storage == "embed":
                with archive.streamed(name, layout.bytes) as file:
                    weights = _stream_weights(file, contents.weights, layout, progress)
                    archive.crc32, archive.sha256 = weights.crc32, weights.sha256
        table = _weights_table(contents.weights, layout, storage, weights, weights_path)
        manifest = canonical_json(_manifest(contents, archive.digests, table))
        archive.add(MANIFEST, manifest)
        id = hashlib.sha256(manifest).hexdigest()
        size = archive.finish(id)
        _check_readable(target.temporary)
        if weights_path is not None:
            external.keep()
        target.keep()
    return WrittenArtifact(path, size, id, weights_path, layout.bytes if weights else 0)


def _small_entries(contents: ArtifactContents) -> dict[str, bytes]:
    """Every entry but the weights and the manifest."""
    entries = {
        MARKER: marker_text(),
        GRAPH: contents.graph.encode("utf-8"),
        DECISIONS: b"".join(map(canonical_json, contents.decisions)),
        **contents.residual,
    }
    if contents.source_graph is not None:
        entries[SOURCE_GRAPH] = contents.source_graph.encode("utf-8")
    for name, text in contents.target_graphs.items():
        entries[target_graph_entry(name)] = text.encode("utf-8")
    for name, nodes in contents.origins.items():
        entries[origins_entry(name)] = canonical_json({"schema": ORIGINS_SCHEMA, "nodes": nodes})
    if contents.tokenizer is not None:
        entries[TOKENIZER] = contents.tokenizer
    for target in contents.targets:
        entries[_program_entry(target)] = canonical_json(target.program)
        entries.update(target.modules)
    return entries


def _program_entry(target: TargetContents) -> str:
    return f"program/{target.target}.json"


def _manifest(
    contents: ArtifactContents, digests: Mapping[str, tuple[int, str]], table: object
) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "version": f"{VERSION[0]}.{VERSION[1]}",
        "name": contents.name,
        "source": {
            "kind": contents.source.kind,
            "name": contents.source.name,
            "sha256": contents.source.sha256,
        },
        "tools": dict(contents.tools),
        "options": dict(contents.options),
        "symbols": {name: list(ends) for name, ends in contents.symbols.items()},
        "inputs": [_spec(spec) for spec in contents.inputs],
        "outputs": [_spec(spec) for spec in contents.outputs],
        "targets": [_target(target) for target in contents.targets],
        "entries": {
            name: {"bytes": size, "sha256": digest} for name, (size, digest) in digests.items()
        },
        "weights": table,
        "tokenizer": None if contents.tokenizer is None else TOKENIZER,
    }


def _spec(spec: TensorSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "dtype": spec.dtype,
        "shape": [_size(dim) for dim in spec.shape],
    }


def _size(dim: Dim) -> int | str:
    return dim if isinstance(dim, int) else str(dim)


def _target(target: TargetContents) -> dict[str, object]:
    kernels = [
        {
            "name": kernel.name,
            "op": kernel.op,
            "provider": kernel.provider,
            "symbol": kernel.symbol,
            "sha256": kernel.sha256,
            "bytes": kernel.bytes,
            "resources": dict(kernel.resources),
            "machine": dict(kernel.machine),
        }
        for kernel in target.kernels
    ]
    residual = [
        {"op": node.op, "node": node.node, "reason": node.reason} for node in target.residual
    ]
    memory = {"weights_bytes": target.weights_bytes, "arena_bytes": target.arena_bytes}
    return {
        "target": target.target,
        "family": target.family,
        "arch": target.arch,
        "features": list(target.features),
        "program": _program_entry(target),
        "modules": sorted(target.modules),
        "report": {
            "kernels": kernels,
            "launches": target.launches,
            "layers": [asdict(layer) for layer in target.layers],
            "residual": residual,
            "arena_sizes": dict(target.arena_sizes),
            "memory": memory,
        },
    }


# --- weights --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _StreamedWeights:
    """Digests of weights that have been written."""

    crc32: int
    sha256: str
    header_sha256: str
    tensors: Mapping[str, _Digest]


def _weights_layout(weights: Sequence[WeightData]) -> TensorFileLayout:
    names = [weight.name for weight in weights]
    if len(set(names)) != len(names):
        raise InternalError("two weights have one name")
    return lay_out([(weight.name, weight.dtype, weight.shape) for weight in weights])


def _stream_weights(
    file: IO[bytes],
    weights: Sequence[WeightData],
    layout: TensorFileLayout,
    progress: Progress | None,
) -> _StreamedWeights:
    by_name = {weight.name: weight for weight in weights}
    tensors: dict[str, _Digest] = {}
    with ThreadPoolExecutor(3) as pool:
        hashes = _Hashes(pool)
        hashes.write(file, layout.header)
        done = len(layout.header)
        for place in layout.tensors:
            weight = by_name.get(place.name)
            chunks = (bytes(place.bytes),) if weight is None else weight.chunks()
            digest = _Digest()
            written = 0
            for chunk in _bounded(chunks):
                hashes.write(file, chunk, digest)
                written += len(chunk)
                if progress is not None:
                    progress(done + written, layout.bytes)
            if written != place.bytes:
                raise InternalError(
                    f"the weight `{place.name}` gave {written} bytes, not {place.bytes}"
                )
            done += written
            if weight is not None:
                tensors[place.name] = digest
    header_sha256 = hashlib.sha256(layout.header).hexdigest()
    whole = hashes.whole
    return _StreamedWeights(whole.crc32, whole.sha256.hexdigest(), header_sha256, tensors)


class _Digest:
    """Both checks of a stream of bytes."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.crc32 = 0

    def update_sha256(self, chunk: Chunk) -> None:
        self.sha256.update(chunk)

    def update_crc32(self, chunk: Chunk) -> None:
        self.crc32 = zlib.crc32(chunk, self.crc32)


class _Hashes:
    """Updates the digests of one stream at once; each of them releases the interpreter lock."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.whole = _Digest()

    def write(self, file: IO[bytes], chunk: Chunk, digest: _Digest | None = None) -> None:
        pending: list[Future[None]] = []
        for updated in (self.whole,) if digest is None else (self.whole, digest):
            pending.append(self.pool.submit(updated.update_sha256, chunk))
            pending.append(self.pool.submit(updated.update_crc32, chunk))
        try:
            file.write(chunk)
        finally:
            # The caller may reuse the memory of `chunk` as soon as this returns or raises.
            for future in pending:
                future.result()


def _bounded(chunks: Iterable[Chunk]) -> Iterator[memoryview]:
    """`chunks` cut into pieces of at most `MAX_CHUNK` bytes."""
    for chunk in chunks:
        view = memoryview(chunk)
        view = view if view.format == "B" and view.ndim == 1 else view.cast("B")
        for begin in range(0, len(view), MAX_CHUNK):
            yield view[begin : begin + MAX_CHUNK]


def _weights_table(
    weights: Sequence[WeightData],
    layout: TensorFileLayout,
    storage: WeightStorage,
    streamed: _StreamedWeights | None,
    weights_path: Path | None,
) -> dict[str, object]:
    places = {place.name: place for place in layout.tensors}
    tensors: list[dict[str, object]] = []
    for weight in weights:
        row: dict[str, object] = {
            "name": weight.name,
            "dtype": weight.dtype,
            "shape": list(weight.shape),
            "bytes": places[weight.name].bytes,
            "packing": weight.packing,
            "sources": list(weight.sources),
        }
        if streamed is not None:
            row["offset"] = places[weight.name].offset
            digest = streamed.tensors[weight.name]
            row["sha256"], row["crc32"] = digest.sha256.hexdigest(), digest.crc32
        tensors.append(row)
    if streamed is None:
        return {"storage": storage, "file": None, "tensors": tensors}
    return {
        "storage": storage,
        "file": WEIGHTS if weights_path is None else weights_path.name,
        "bytes": layout.bytes,
        "sha256": streamed.sha256,
        "header_sha256": streamed.header_sha256,
        "tensors": tensors,
    }


# --- file -----------------------------------------------------------------------------------


class _Archive:
    """Appends stored entries to a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.entries: list[Entry] = []
        self.digests: dict[str, tuple[int, str]] = {}
        self.crc32 = 0
        self.sha256 = ""

    def add(self, name: str, data: bytes) -> None:
        """Append an entry that is in memory."""
        entry = Entry(name, len(data), zlib.crc32(data), self.file.tell())
        self.file.write(local_header(entry))
        self.file.write(data)
        self._record(entry, hashlib.sha256(data).hexdigest())

    @contextlib.contextmanager
    def streamed(self, name: str, size: int) -> Iterator[IO[bytes]]:
        """Append an entry of `size` bytes that the caller writes; it sets `crc32` and `sha256`."""
        entry = Entry(name, size, 0, self.file.tell())
        self.file.write(local_header(entry))
        yield self.file
        # The checksum stands before the data; the header keeps its length.
        entry = replace(entry, crc32=self.crc32)
        self.file.seek(entry.header_offset)
        self.file.write(local_header(entry))
        self.file.seek(entry.end)
        self._record(entry, self.sha256)

    def finish(self, manifest_sha256: str) -> int:
        """Write the directory; returns the size of the file."""
        self.file.write(tail(self.entries, manifest_sha256))
        self.file.flush()
        return self.file.tell()

    def _record(self, entry: Entry, digest: str) -> None:
        self.entries.append(entry)
        self.digests[entry.name] = (entry.size, digest)


def _check_readable(path: Path) -> None:
    """What the runtime would refuse must not be written."""
    try:
        artifact = open_artifact(path)
        for section in artifact.manifest.targets:
            read_program(artifact.program(section.target), artifact.manifest)
    except ArtifactError as error:
        raise InternalError(f"the artifact would be unreadable: {error}") from error
