"""What is in an artifact, and the reader that checks it before anything else looks at it.

An artifact is one file (`fusec.runtime.container` has the bytes):

    manifest.json            what it is, for whom, and the SHA-256 of every other entry
    source.fir               the graph as text, as it was read
    graph.fir                the graph after the passes for the first target
    graph/<target>.fir       that of another target, where it differs
    origins/<target>.json    which nodes as read each node after the passes took the place of
    program/<target>.json    the steps of one target
    kernels/<arch>/<sha256>  code, one file a module (`.so`, `.hsaco`, `.cubin`)
    weights.safetensors      packed weights, mapped; or a file beside it, or none
    decisions.jsonl          one fusion that fired or was refused a line
    residual/<target>/<n>.onnx  parts that onnxruntime runs
    tokenizer.json           of the model, if it has one

Opening maps the file, checks all of the layout and the digest of every entry but the weights, and
executes nothing.  Weights are checked by `Artifact.verify_weights`, which `fusec.runtime.load`
calls before a model runs.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusec.diagnostics import InputError, UsageError, read_error
from fusec.dtypes import DTYPES
from fusec.runtime.container import (
    MANIFEST,
    MARKER,
    VERSION,
    WEIGHTS,
    Entry,
    marker_text,
    read_directory,
)
from fusec.runtime.cpu import available_cpus
from fusec.runtime.documents import MAX_RANK, Field, parse_json
from fusec.runtime.errors import (
    ChecksumError,
    LimitError,
    MalformedError,
    MissingEntryError,
    NotAnArtifactError,
    OutOfBoundsError,
    TargetError,
    UnexpectedEntryError,
    VersionError,
    WeightsError,
)
from fusec.runtime.pages import prefer_huge_pages, read_ahead
from fusec.runtime.tensor_file import (
    PADDING,
    TensorPlace,
    header_bytes,
    read_header,
    tensor_bytes,
)
from fusec.symbolic import Dim, symbols_of
from fusec.target import PRODUCTS

SCHEMA = f"fusec.artifact/{VERSION[0]}"
ORIGINS_SCHEMA = "fusec.origins/1"
GRAPH = "graph.fir"
SOURCE_GRAPH = "source.fir"
DECISIONS = "decisions.jsonl"
TOKENIZER = "tokenizer.json"

MAX_MANIFEST = 64 << 20
MAX_DOCUMENT = 512 << 20
MAX_BINARY = 4 << 30
MAX_NAME = 4096

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

Checksum = Callable[[memoryview], int]
"""Computes a CRC-32."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: what callers call it.
        dtype: fusec's name of the element type.
        shape: integers, or expressions over the symbols of the manifest.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Source:
    """What an artifact was compiled from: the frontend's kind, a name and a digest."""

    kind: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """One packed weight.

    Attributes:
        name: as programs call it.
        dtype: fusec's name of the element type.
        shape: as stored, after packing.
        bytes: its size.
        offset: from the end of the safetensors header; `None` where weights are given at load.
        sha256: of its bytes; `None` where weights are given at load.
        crc32: of its bytes; `None` where weights are given at load, or by an older fusec.
        packing: identifies the layout; `plain` for the source's own bytes.
        sources: names of the tensors of the source that it was made from.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    offset: int | None
    sha256: str | None
    crc32: int | None
    packing: str
    sources: tuple[str, ...]

    @property
    def known_as(self) -> tuple[str, ...]:
        """The names it may be given by: its own, and its source's if it is only that."""
        plain = self.packing == "plain" and len(self.sources) == 1
        return (self.name, *self.sources) if plain else (self.name,)


@dataclass(frozen=True, slots=True)
class WeightsTable:
    """All weights of an artifact.

    Attributes:
        storage: `embed` in the artifact, `external` in a file beside it, `none` given at load.
        file: the name of the file or entry; `None` for storage `none`.
        bytes: of the whole file or entry; 0 for storage `none`.
        sha256: of the whole file or entry; `None` for storage `none`.
        header_sha256: of the safetensors header with its length; `None` for storage `none`.
        tensors: in the order of the file.
    """

    storage: str
    file: str | None
    bytes: int
    sha256: str | None
    header_sha256: str | None
    tensors: tuple[WeightSpec, ...]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without what pads them."""
        return sum(tensor.bytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """What an artifact holds for one target.

    Attributes:
        target: as asked for: `cpu`, `x86-64-v4`, `gfx950`.
        family: `cpu`, `amdgpu` or `nvidia`.
        arch: the instruction set.
        features: what the processor must have, as in /proc/cpuinfo.
        program: the entry of its program.
        modules: the entries of its code.
        report: kernels, launches, residual nodes and memory, as `fusec inspect` shows them.
    """

    target: str
    family: str
    arch: str
    features: tuple[str, ...]
    program: str
    modules: tuple[str, ...]
    report: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Manifest:
    """`manifest.json`, checked.

    Attributes:
        name: of the model.
        source: what it was compiled from.
        tools: versions by name.
        options: of the compilation, as recorded.
        symbols: inclusive range of each symbolic size.
        inputs: in order.
        outputs: in order.
        targets: in the order asked for.
        entries: `(bytes, sha256)` of every other entry.
        weights: the weights table.
        tokenizer: the entry of the tokenizer, if any.
    """

    name: str
    source: Source
    tools: Mapping[str, str]
    options: Mapping[str, object]
    symbols: Mapping[str, tuple[int, int]]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    targets: tuple[TargetSpec, ...]
    entries: Mapping[str, tuple[int, str]]
    weights: WeightsTable
    tokenizer: str | None


class WeightsFile:
    """The mapped bytes of packed weights, by name."""

    def __init__(
        self,
        data: memoryview,
        places: Mapping[str, TensorPlace],
        padding: Sequence[TensorPlace],
        header: int,
    ) -> None:
        self._data = data
        self._places = places
        self._padding = padding
        self._header = header

    def __getitem__(self, name: str) -> memoryview:
        """The bytes of one tensor; shares the mapping."""
        return self._bytes(self._places[name])

    def padding(self) -> Iterator[memoryview]:
        """The bytes that only align what follows."""
        return map(self._bytes, self._padding)

    def _bytes(self, place: TensorPlace) -> memoryview:
        begin = self._header + place.offset
        return self._data[begin : begin + place.bytes]


class Artifact:
    """An open artifact: everything but its weights has been checked, nothing has been run."""

    def __init__(
        self,
        path: Path,
        data: mmap.mmap,
        entries: Mapping[str, Entry],
        manifest: Manifest,
        id: str,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.id = id
        self._view = memoryview(data)
        self._entries = entries

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return len(self._view)

    @property
    def weights_path(self) -> Path | None:
        """Of external weights: beside the artifact or, if that is a link, the file it leads to."""
        name = self.manifest.weights.file
        if self.manifest.weights.storage != "external" or name is None:
            return None
        path = self.path.parent / name
        return path if path.exists() else Path(os.path.realpath(self.path)).parent / name

    def entry(self, name: str) -> memoryview:
        """The bytes of an entry, mapped and read-only.

        Raises:
            MissingEntryError: there is no such entry.
        """
        found = self._entries.get(name)
        if found is None:
            raise MissingEntryError(f"the entry `{name}` is missing", at=str(self.path))
        return self._view[found.data_offset : found.end]

    def target(self, name: str) -> TargetSpec:
        """The section for target `name`; a product stands for its architecture.

        Raises:
            TargetError: the artifact was not compiled for it.
        """
        wanted = PRODUCTS.get(name.lower(), name.lower())
        for section in self.manifest.targets:
            if section.target == wanted:
                return section
        known = ", ".join(f"`{section.target}`" for section in self.manifest.targets)
        raise TargetError(
            f"the artifact has no target `{name}`",
            at=str(self.path),
            hint=f"it was compiled for {known}",
        )

    def program(self, target: str) -> Field:
        """The program of `target`, as unchecked JSON."""
        name = self.target(target).program
        at = f"{self.path}: {name}"
        return Field(parse_json(self.entry(name), at), at)

    def graph_text(self, target: str | None = None) -> str:
        """The graph after the passes for `target`, by default the first, as text."""
        own = None if target is None else target_graph_entry(target)
        name = GRAPH if own is None or own not in self._entries else own
        return _text(self.entry(name), f"{self.path}: {name}")

    def source_graph_text(self) -> str | None:
        """The graph as it was read, as text; `None` in an artifact of an older fusec."""
        if SOURCE_GRAPH not in self._entries:
            return None
        return _text(self.entry(SOURCE_GRAPH), f"{self.path}: {SOURCE_GRAPH}")

    def origins(self, target: str) -> Mapping[str, tuple[str, ...]] | None:
        """By node after the passes for `target`: the nodes as read that it took the place of.

        `None` in an artifact of an older fusec.

        Raises:
            MalformedError: the document is not what its schema says.
        """
        name = origins_entry(target)
        if name not in self._entries:
            return None
        at = f"{self.path}: {name}"
        document = Field(parse_json(self.entry(name), at), at)
        document.get("schema").one_of(ORIGINS_SCHEMA)
        return {
            node: sources.tuple_of(Field.string)
            for node, sources in document.get("nodes").members()
        }

    def decisions(self) -> Iterator[Mapping[str, object]]:
        """The fusions that fired or were refused, in order."""
        at = f"{self.path}: {DECISIONS}"
        for number, line in enumerate(bytes(self.entry(DECISIONS)).splitlines(), 1):
            yield Field(parse_json(line, f"{at}:{number}"), f"{at}:{number}").mapping()

    def weights(self, file: Path | None = None) -> WeightsFile:
        """Map the weights and check that they are laid out as the manifest says.

        Args:
            file: the safetensors file for storage `none`, or another place of an external one.

        Raises:
            InputError: there is no such file.
            UsageError: a file is given, but the weights are in the artifact.
            WeightsError: they are not given, or differ from what was compiled.
            MissingEntryError: the file beside the artifact is not there.
        """
        table, given = self.manifest.weights, file is not None
        if table.storage == "embed":
            if given:
                raise UsageError(
                    f"weights are given, but `{self.path}` holds its own",
                    hint="leave them out, or compile it with `--weights none`",
                )
            return _weights_file(self.entry(WEIGHTS), table, f"{self.path}: {WEIGHTS}")
        file = self.weights_path if file is None else file
        if file is None:
            raise WeightsError(
                f"the artifact was compiled with `--weights none`: its {len(table.tensors)} "
                "weights have to be given",
                at=str(self.path),
            )
        if not file.exists():
            if given:
                hint = "check the path"
                raise InputError(f"there is no file `{file}` with weights", hint=hint)
            raise MissingEntryError(
                f"the weights file `{file.name}` is missing",
                at=str(self.path),
                hint="keep it in the folder of the artifact",
            )
        return _weights_file(memoryview(_map_file(file)), table, str(file))

    def verify_weights(
        self,
        weights: WeightsFile,
        progress: Progress | None = None,
        *,
        checksum: Checksum | None = None,
    ) -> None:
        """Compare the digest of every weight; reads all of their bytes, on several threads.

        Args:
            weights: of this artifact.
            progress: is told of bytes.
            checksum: computes a CRC-32, which finds damage at the speed of memory; without it
                the SHA-256 is compared.

        Raises:
            ChecksumError: a bit differs.
        """
        from concurrent.futures import ThreadPoolExecutor  # not needed to open an artifact

        table = self.manifest.weights

        def intact(tensor: WeightSpec, data: memoryview) -> bool:
            if checksum is not None and tensor.crc32 is not None:
                return checksum(data) == tensor.crc32
            return tensor.sha256 is None or _sha256(data) == tensor.sha256

        def check(tensor: WeightSpec) -> int:
            data = weights[tensor.name]
            read_ahead(data)
            if not intact(tensor, data):
                raise ChecksumError(
                    f"the weight `{tensor.name}` is not the one that was written",
                    at=str(self.path),
                    hint="copy the file again",
                )
            return tensor.bytes

        for filler in weights.padding():
            if any(filler):
                raise ChecksumError("the space between weights is not empty", at=str(self.path))
        done = 0
        largest_first = sorted(table.tensors, key=lambda tensor: -tensor.bytes)
        with ThreadPoolExecutor(min(8, available_cpus())) as pool:
            for size in pool.map(check, largest_first):
                done += size
                if progress is not None:
                    progress(done, table.tensor_bytes)


def target_graph_entry(target: str) -> str:
    """The entry with the graph of a target whose graph is not that of the first."""
    return f"graph/{target}.fir"


def origins_entry(target: str) -> str:
    """The entry that says what the nodes of a target's graph took the place of."""
    return f"origins/{target}.json"


def open_artifact(path: str | Path) -> Artifact:
    """Map an artifact and check everything in it but the digests of its weights.

    Raises:
        InputError: there is no such file.
        ArtifactError: one of `fusec.runtime.errors`, for anything out of place.
    """
    path = Path(path)
    data = _map_file(path)
    entries, digest = read_directory(data, str(path))
    view = memoryview(data)
    _check_limits(entries, path)
    for name in (MARKER, MANIFEST, GRAPH, DECISIONS):
        if name not in entries:
            raise MissingEntryError(f"the entry `{name}` is missing", at=str(path))

    def content(name: str) -> memoryview:
        return view[entries[name].data_offset : entries[name].end]

    if content(MARKER) != marker_text():
        _check_minor_version(bytes(content(MARKER)), path)
    if hashlib.sha256(content(MANIFEST)).hexdigest() != digest:
        raise _changed(MANIFEST, path)
    at = f"{path}: {MANIFEST}"
    manifest = read_manifest(Field(parse_json(content(MANIFEST), at), at))
    _check_entries(entries, manifest, path)
    for name, entry in entries.items():
        if name == WEIGHTS:
            continue
        if zlib.crc32(content(name)) != entry.crc32:
            raise _changed(name, path)
        if name != MANIFEST and _sha256(content(name)) != manifest.entries[name][1]:
            raise _changed(name, path)
    return Artifact(path, data, entries, manifest, digest)


def read_manifest(document: Field) -> Manifest:
    """Check `manifest.json`.

    Raises:
        MalformedError: a member is missing or not what it should be.
        VersionError: the schema is another one.
    """
    schema = document.get("schema").string()
    if schema != SCHEMA:
        raise VersionError(
            f"the schema is `{schema[:80]}`, but this fusec reads `{SCHEMA}`",
            at=document.at,
            hint="compile the model again, or use the fusec that compiled it",
        )
    source = document.get("source")
    symbols = {name: read_range(field) for name, field in document.get("symbols").members()}
    manifest = Manifest(
        name=_name(document.get("name")),
        source=Source(
            source.get("kind").string(),
            source.get("name").string(),
            source.get("sha256").string(),
        ),
        tools={name: field.string() for name, field in document.get("tools").members()},
        options=document.get("options").mapping(),
        symbols=symbols,
        inputs=document.get("inputs").tuple_of(read_tensor_spec),
        outputs=document.get("outputs").tuple_of(read_tensor_spec),
        targets=document.get("targets").tuple_of(_target, 64),
        entries={name: _entry(field) for name, field in document.get("entries").members()},
        weights=_weights_table(document.get("weights")),
        tokenizer=_optional_name(document.get_or_none("tokenizer")),
    )
    _check_unique([spec.name for spec in manifest.inputs], "inputs", document)
    _check_unique([spec.name for spec in manifest.outputs], "outputs", document)
    _check_unique([section.target for section in manifest.targets], "targets", document)
    for spec in (*manifest.inputs, *manifest.outputs):
        unknown = frozenset().union(*map(symbols_of, spec.shape)) - symbols.keys()
        if unknown:
            raise MalformedError(
                f"`{spec.name}` has the size `{min(unknown)}`, which has no range",
                at=document.at,
            )
    return manifest


def read_tensor_spec(field: Field) -> TensorSpec:
    """Check `{"name", "dtype", "shape"}`."""
    dtype = field.get("dtype").one_of(*DTYPES)
    shape = field.get("shape").tuple_of(lambda item: item.dim(), MAX_RANK)
    return TensorSpec(_name(field.get("name")), dtype, shape)


def read_range(field: Field) -> tuple[int, int]:
    """Check `[min, max]`."""
    ends = field.items(2)
    if len(ends) != 2:
        raise field.error("a range of two integers")
    low = ends[0].integer()
    return low, ends[1].integer(low)


def _name(field: Field) -> str:
    name = field.string()
    if not 0 < len(name) <= MAX_NAME:
        raise field.error("a name")
    return name


def _optional_name(field: Field | None) -> str | None:
    return None if field is None else _name(field)


def _entry(field: Field) -> tuple[int, str]:
    return field.get("bytes").integer(), field.get("sha256").sha256()


def _target(field: Field) -> TargetSpec:
    return TargetSpec(
        target=_name(field.get("target")),
        family=field.get("family").one_of("cpu", "amdgpu", "nvidia"),
        arch=_name(field.get("arch")),
        features=field.get("features").tuple_of(_name, 256),
        program=_name(field.get("program")),
        modules=field.get("modules").tuple_of(_name),
        report=_report(field.get("report")),
    )


def _report(field: Field) -> Mapping[str, object]:
    """Check what `fusec inspect` shows of a target; more members are welcome."""
    for kernel in field.get("kernels").items():
        for key in ("name", "op", "provider", "symbol", "sha256"):
            kernel.get(key).string()
        kernel.get("bytes").integer()
        for _, value in kernel.get("resources").members():
            value.integer()
    field.get("launches").integer()
    for node in field.get("residual").items():
        for key in ("op", "node", "reason"):
            node.get(key).string()
    for key in ("weights_bytes", "arena_bytes"):
        field.get("memory").get(key).integer()
    sizes = field.get_or_none("arena_sizes")  # older versions do not write it
    for _, size in () if sizes is None else sizes.members():
        size.integer()
    return field.mapping()


def _weights_table(field: Field) -> WeightsTable:
    storage = field.get("storage").one_of("embed", "external", "none")
    stored = storage != "none"
    tensors = field.get("tensors").tuple_of(lambda item: _weight(item, stored))
    _check_unique([tensor.name for tensor in tensors], "weights.tensors", field)
    if not stored:
        return WeightsTable(storage, None, 0, None, None, tensors)
    file = field.get("file").string()
    if storage == "embed" and file != WEIGHTS:
        raise field.get("file").error(f"`{WEIGHTS}`")
    if not re.fullmatch(r"[^/\\\0]{1,255}", file) or file in (".", ".."):
        raise field.get("file").error("a file name without a folder")
    return WeightsTable(
        storage,
        file,
        field.get("bytes").integer(),
        field.get("sha256").sha256(),
        field.get("header_sha256").sha256(),
        tensors,
    )


def _weight(field: Field, stored: bool) -> WeightSpec:
    dtype = field.get("dtype").one_of(*DTYPES)
    shape = field.get("shape").tuple_of(lambda item: item.integer(), MAX_RANK)
    size = field.get("bytes").integer()
    if size != tensor_bytes(dtype, shape):
        raise field.get("bytes").error("what the shape and dtype take")
    return WeightSpec(
        name=_name(field.get("name")),
        dtype=dtype,
        shape=shape,
        bytes=size,
        offset=field.get("offset").integer() if stored else None,
        sha256=field.get("sha256").sha256() if stored else None,
        crc32=_crc32(field.get_or_none("crc32")) if stored else None,
        packing=field.get("packing").string(),
        sources=field.get("sources").tuple_of(Field.string),
    )


def _crc32(field: Field | None) -> int | None:
    return None if field is None else field.integer(0, 0xFFFFFFFF)


def _check_unique(names: list[str], path: str, field: Field) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise MalformedError(f"`{path}` has `{name}` more than once", at=field.at)
        seen.add(name)


def _check_minor_version(marker: bytes, path: Path) -> None:
    """A newer minor version adds what an older reader may ignore; its marker must still be one."""
    found = re.fullmatch(rb"fusec (\d{1,4})\.(\d{1,4})\n", marker)
    if found is None or int(found[1]) != VERSION[0] or int(found[2]) < VERSION[1]:
        raise _changed(MARKER, path)


def _check_limits(entries: Mapping[str, Entry], path: Path) -> None:
    for name, entry in entries.items():
        limit = MAX_DOCUMENT
        if name == WEIGHTS:
            continue
        if name == MANIFEST:
            limit = MAX_MANIFEST
        elif name.startswith(("kernels/", "residual/")):
            limit = MAX_BINARY
        if entry.size > limit:
            raise LimitError(
                f"the entry `{name}` has {entry.size} bytes; no real one has more than {limit}",
                at=str(path),
            )


def _check_entries(entries: Mapping[str, Entry], manifest: Manifest, path: Path) -> None:
    """The file and its manifest name the same entries with the same sizes."""
    for name, entry in entries.items():
        if name == MANIFEST:
            continue
        if name not in manifest.entries:
            raise UnexpectedEntryError(f"the entry `{name}` is not in the manifest", at=str(path))
        if entry.size != manifest.entries[name][0]:
            raise _changed(name, path)
    table = manifest.weights
    needed = [*manifest.entries]
    for section in manifest.targets:
        needed += [section.program, *section.modules]
    if manifest.tokenizer is not None:
        needed.append(manifest.tokenizer)
    if table.storage == "embed":
        needed.append(WEIGHTS)
        if WEIGHTS in manifest.entries and manifest.entries[WEIGHTS] != (
            table.bytes,
            table.sha256,
        ):
            raise MalformedError("the weights table disagrees with the entries", at=str(path))
    for name in needed:
        if name not in entries:
            raise MissingEntryError(f"the entry `{name}` is missing", at=str(path))


def _weights_file(data: memoryview, table: WeightsTable, at: str) -> WeightsFile:
    if table.storage != "none" and len(data) != table.bytes:
        raise WeightsError(
            f"the weights are {len(data)} bytes, but {table.bytes} were written",
            at=at,
            hint="copy the file again, or compile again",
        )
    header = header_bytes(data, at)
    if table.storage != "none" and _sha256(data[:header]) != table.header_sha256:
        raise ChecksumError("the header of the weights is not the one that was written", at=at)
    places, _ = read_header(data, at)
    chosen: dict[str, TensorPlace] = {}
    for tensor in table.tensors:
        names = (tensor.name,) if tensor.offset is not None else tensor.known_as
        place = next((places[name] for name in names if name in places), None)
        if place is None:
            raise WeightsError(f"the weight `{tensor.name}` is missing", at=at)
        if (place.dtype, place.shape) != (tensor.dtype, tensor.shape):
            raise WeightsError(
                f"the weight `{tensor.name}` is {place.dtype}{list(place.shape)}, but the artifact "
                f"was compiled for {tensor.dtype}{list(tensor.shape)}",
                at=at,
            )
        if tensor.offset is not None and tensor.offset != place.offset:
            raise OutOfBoundsError(f"the weight `{tensor.name}` is at another place", at=at)
        chosen[tensor.name] = place
    padding = [place for name, place in places.items() if PADDING.fullmatch(name)]
    if table.storage != "none" and len(chosen) + len(padding) != len(places):
        raise WeightsError("the file has weights that are not in the manifest", at=at)
    prefer_huge_pages(data)
    return WeightsFile(data, chosen, padding, header)


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                hint = "compile it again, or copy it again"
                raise NotAnArtifactError("the file is empty", at=str(path), hint=hint)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise read_error(path, error) from None


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _text(data: memoryview, at: str) -> str:
    try:
        return bytes(data).decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedError("this is not UTF-8 text", at=at) from None


def _changed(name: str, path: Path) -> ChecksumError:
    return ChecksumError(f"the entry `{name}` is not the one that was written", at=str(path))
