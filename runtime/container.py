"""The ZIP layer of an artifact: a stored ZIP64 whose bytes follow from its contents.

    fusec           marker, `fusec MAJOR.MINOR`; its text is always at offset 64
    ...             all other entries, sorted by name
    manifest.json   last, because it holds the SHA-256 of every entry before it
    directory       ZIP64 central directory; the archive comment is `sha256:` of the manifest

Nothing is compressed, times are fixed, sizes are always in the ZIP64 field and the extra field
`0xD935` (that of Android's `zipalign`) pads each header so that its data is aligned.  So every
byte outside of the entries' data can be recomputed, and `read_directory` does so: it first refuses
by name what is dangerous, then whatever differs from what `ArtifactWriter` would have written.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

from fusec.runtime.errors import (
    CompressedEntryError,
    DuplicateEntryError,
    EncryptedEntryError,
    HeaderMismatchError,
    LayoutError,
    LimitError,
    MalformedError,
    NotAnArtifactError,
    OutOfBoundsError,
    OverlapError,
    TruncatedError,
    UnsafeNameError,
    VersionError,
)

VERSION = (1, 0)
MARKER = "fusec"
MARKER_OFFSET = 64
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
PAGE = 4096

MAX_ENTRIES = 1 << 16
MAX_NAME = 255

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")

_NEEDED = 45
_UNIX_MADE = (3 << 8) | _NEEDED
_DATE = 0x0021  # 1980-01-01, the first day a ZIP can name
_MODE = 0o100644 << 16
_FULL32 = 0xFFFFFFFF
_FULL16 = 0xFFFF
_ZIP64_FIELD = 0x0001
_ALIGN_FIELD = 0xD935
_ENCRYPTED_FLAGS = 0x0001 | 0x0040 | 0x2000
_SEGMENT = re.compile(r"[A-Za-z0-9_+=@-][A-Za-z0-9._+=@-]*")
_COMMENT = re.compile(rb"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file inside the artifact.

    Attributes:
        name: its path, with `/`.
        size: bytes of data.
        crc32: of the data.
        header_offset: where its local header begins in the file.
    """

    name: str
    size: int
    crc32: int
    header_offset: int

    @property
    def data_offset(self) -> int:
        """Where its data begins in the file."""
        return _aligned(self.header_offset + _header_bytes(self.name), alignment_of(self.name))

    @property
    def end(self) -> int:
        """Where its data ends in the file."""
        return self.data_offset + self.size


def marker_text() -> bytes:
    """The data of the first entry."""
    return f"fusec {VERSION[0]}.{VERSION[1]}\n".encode()


def alignment_of(name: str) -> int:
    """The alignment of an entry's data: a page for what is mapped, else 64 bytes."""
    return PAGE if name == WEIGHTS or name.startswith("kernels/") else 64


def is_artifact(path: str | Path) -> bool:
    """Whether a file begins as an artifact does; says nothing about the rest of it."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _begins_as_artifact(file.read(35))


def unsafe_name(name: str) -> str | None:
    """Why `name` cannot name an entry, or `None`."""
    if len(name) > MAX_NAME:
        return f"is longer than {MAX_NAME} characters"
    if "\\" in name:
        return "has a backslash"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is an absolute path"
    parts = name.split("/")
    if ".." in parts:
        return "leaves its folder with `..`"
    if not all(_SEGMENT.fullmatch(part) for part in parts):
        return "has an empty part, a hidden part or odd characters"
    return None


def order_key(name: str) -> tuple[int, str]:
    """Sorts entries into the order of the file."""
    return (0 if name == MARKER else 2 if name == MANIFEST else 1, name)


def local_header(entry: Entry) -> bytes:
    """The bytes from `entry.header_offset` up to the entry's data."""
    name = entry.name.encode("ascii")
    padding = entry.data_offset - entry.header_offset - _header_bytes(entry.name)
    alignment = struct.pack("<3H", _ALIGN_FIELD, 2 + padding, alignment_of(entry.name))
    zip64 = struct.pack("<2H2Q", _ZIP64_FIELD, 16, entry.size, entry.size)
    extra = zip64 + alignment + bytes(padding)
    head = _LOCAL.pack(
        b"PK\x03\x04",
        _NEEDED,
        0,
        0,
        0,
        _DATE,
        entry.crc32,
        _FULL32,
        _FULL32,
        len(name),
        len(extra),
    )
    return head + name + extra


def tail(entries: Sequence[Entry], manifest_sha256: str) -> bytes:
    """The central directory of `entries`, which end the file, and its end records."""
    offset = entries[-1].end
    directory = b"".join(map(_central_header, entries))
    count, size = len(entries), len(directory)
    end64_size = _END64.size - 12
    end64 = _END64.pack(
        b"PK\x06\x06", end64_size, _UNIX_MADE, _NEEDED, 0, 0, count, count, size, offset
    )
    locator = _LOCATOR.pack(b"PK\x06\x07", 0, offset + size, 1)
    comment = f"sha256:{manifest_sha256}".encode("ascii")
    end = _END.pack(b"PK\x05\x06", 0, 0, _FULL16, _FULL16, _FULL32, _FULL32, len(comment))
    return directory + end64 + locator + end + comment


def read_directory(data: mmap, at: str) -> tuple[dict[str, Entry], str]:
    """Check the layout of a whole file.

    Args:
        data: the mapped file.
        at: its name, for messages.

    Returns:
        The entries by name in the order of the file, and the manifest's SHA-256.

    Raises:
        ArtifactError: one of `fusec.runtime.errors`, for anything out of place.
    """
    return _DirectoryReader(data, at).read()


def _begins_as_artifact(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04") and head[30:35] == MARKER.encode()


def _header_bytes(name: str) -> int:
    """A local header without padding: fixed part, name, ZIP64 field, alignment field."""
    return _LOCAL.size + len(name) + 20 + 6


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _central_header(entry: Entry) -> bytes:
    name = entry.name.encode("ascii")
    extra = struct.pack("<2H3Q", _ZIP64_FIELD, 24, entry.size, entry.size, entry.header_offset)
    versions = (_UNIX_MADE, _NEEDED, 0, 0, 0, _DATE)
    lengths = (len(name), len(extra), 0, 0, 0)
    head = _CENTRAL.pack(
        b"PK\x01\x02",
        *versions,
        entry.crc32,
        _FULL32,
        _FULL32,
        *lengths,
        _MODE,
        _FULL32,
    )
    return head + name + extra


@dataclass(frozen=True, slots=True)
class _Record:
    """What a central directory says of one entry, before anything is believed."""

    name: str
    crc32: int
    size: int
    header_offset: int


class _DirectoryReader:
    """Reads a central directory without trusting any number in it."""

    def __init__(self, data: mmap, at: str) -> None:
        self.data = data
        self.size = len(data)
        self.at = at

    def read(self) -> tuple[dict[str, Entry], str]:
        self._check_marker()
        end = self._find_end()
        offset, size, count = self._directory_place(end)
        records = self._records(offset, size, count)
        self._check_places(records, offset)
        return self._check_layout(records, end)

    def _check_marker(self) -> None:
        head = bytes(self.data[: MARKER_OFFSET + 24])
        if not _begins_as_artifact(head):
            hint = "give a file that `fusec compile` has written"
            raise NotAnArtifactError("this is not a fusec artifact", at=self.at, hint=hint)
        found = re.match(rb"fusec (\d{1,4})\.(\d{1,4})\n", head[MARKER_OFFSET:])
        if len(head) < MARKER_OFFSET + 24:
            raise TruncatedError("the file ends inside its first entry", at=self.at)
        if found is None:
            raise MalformedError("the first entry does not name a format version", at=self.at)
        major, minor = int(found[1]), int(found[2])
        if major != VERSION[0]:
            raise VersionError(
                f"the format is `{major}.{minor}`, but this fusec reads `{VERSION[0]}.x`",
                at=self.at,
                hint="compile the model again, or use the fusec that compiled it",
            )

    def _find_end(self) -> int:
        """Where the end record begins; it must reach exactly to the end of the file."""
        lowest = max(0, self.size - _END.size - _FULL16)
        position = self.data.rfind(b"PK\x05\x06", lowest)
        while position >= 0:
            if position + _END.size <= self.size:
                comment = _END.unpack_from(self.data, position)[-1]
                if position + _END.size + comment == self.size:
                    return position
            position = self.data.rfind(b"PK\x05\x06", lowest, position + 3)
        raise TruncatedError(
            "the end of the file is missing or damaged",
            at=self.at,
            hint="copy the file again; a partial download looks like this",
        )

    def _directory_place(self, end: int) -> tuple[int, int, int]:
        disk, start_disk, _, count, size, offset, _ = _END.unpack_from(self.data, end)[1:]
        locator = end - _LOCATOR.size
        if locator >= 0 and self.data[locator : locator + 4] == b"PK\x06\x07":
            end = _LOCATOR.unpack_from(self.data, locator)[2]
            if end > locator - _END64.size or self.data[end : end + 4] != b"PK\x06\x06":
                raise OutOfBoundsError("the ZIP64 end record is not in the file", at=self.at)
            disk, start_disk, _, count, size, offset = _END64.unpack_from(self.data, end)[4:]
        if disk or start_disk:
            raise LayoutError("the archive is split over several files", at=self.at)
        if count > MAX_ENTRIES:
            raise LimitError(f"{count} entries are more than {MAX_ENTRIES}", at=self.at)
        if offset > end or size > end - offset:
            raise OutOfBoundsError("the central directory is not in the file", at=self.at)
        return offset, size, count

    def _records(self, offset: int, size: int, count: int) -> list[_Record]:
        records: dict[str, _Record] = {}
        limit = offset + size
        for _ in range(count):
            record, offset = self._record(offset, limit)
            if record.name in records:
                raise DuplicateEntryError(
                    f"the entry `{record.name}` is there more than once", at=self.at
                )
            records[record.name] = record
        if offset != limit:
            raise LayoutError("the central directory has more than its entries", at=self.at)
        return list(records.values())

    def _record(self, offset: int, limit: int) -> tuple[_Record, int]:
        if offset + _CENTRAL.size > limit:
            raise OutOfBoundsError("the central directory ends inside an entry", at=self.at)
        fields = _CENTRAL.unpack_from(self.data, offset)
        signature, _, _, flags, method, _, _, crc32, stored, size = fields[:10]
        name_bytes, extra_bytes, comment_bytes, disk, _, _, header_offset = fields[10:]
        if signature != b"PK\x01\x02":
            raise LayoutError("the central directory has something that is no entry", at=self.at)
        name_end = offset + _CENTRAL.size + name_bytes
        following = name_end + extra_bytes + comment_bytes
        if following > limit:
            raise OutOfBoundsError("the central directory ends inside an entry", at=self.at)
        name = self._name(bytes(self.data[offset + _CENTRAL.size : name_end]))
        if flags & _ENCRYPTED_FLAGS:
            raise EncryptedEntryError(f"the entry `{name}` is encrypted", at=self.at)
        extra = bytes(self.data[name_end : name_end + extra_bytes])
        size, stored, header_offset = _zip64_values(extra, size, stored, header_offset)
        if method != 0 or stored != size:
            raise CompressedEntryError(
                f"the entry `{name}` is compressed",
                at=self.at,
                hint="keep the file as `fusec compile` wrote it; do not pack it again",
            )
        if disk:
            raise LayoutError("the archive is split over several files", at=self.at)
        return _Record(name, crc32, size, header_offset), following

    def _name(self, encoded: bytes) -> str:
        name = encoded.decode("latin-1")
        reason = unsafe_name(name)
        if reason is not None:
            raise UnsafeNameError(f"the entry name {ascii(name)[:120]} {reason}", at=self.at)
        return name

    def _check_places(self, records: list[_Record], directory_offset: int) -> None:
        """Every entry lies in front of the directory, under its own name, and alone."""
        end = 0
        previous = ""
        for record in sorted(records, key=lambda item: (item.header_offset, item.size)):
            start = record.header_offset
            if start + _LOCAL.size > directory_offset:
                raise OutOfBoundsError(
                    f"the entry `{record.name}` begins outside of the entries' part of the file",
                    at=self.at,
                )
            if start < end:
                raise OverlapError(
                    f"the entries `{previous}` and `{record.name}` overlap", at=self.at
                )
            signature, _, flags, method, *_, name_bytes, extra_bytes = _LOCAL.unpack_from(
                self.data, start
            )
            name_end = start + _LOCAL.size + name_bytes
            name = bytes(self.data[start + _LOCAL.size : name_end])
            same = signature == b"PK\x03\x04" and name == record.name.encode("ascii")
            if not same or method != 0 or flags & _ENCRYPTED_FLAGS:
                raise HeaderMismatchError(
                    f"the header of the entry `{record.name}` disagrees with the directory",
                    at=self.at,
                )
            end = name_end + extra_bytes + record.size
            previous = record.name
            if end > directory_offset:
                raise OutOfBoundsError(
                    f"the entry `{record.name}` ends outside of the entries' part of the file",
                    at=self.at,
                )

    def _check_layout(self, records: list[_Record], end: int) -> tuple[dict[str, Entry], str]:
        """Recompute every byte outside of the entries' data and compare."""
        entries = {
            record.name: Entry(record.name, record.size, record.crc32, record.header_offset)
            for record in records
        }
        ordered = list(entries.values())
        if [*entries] != sorted(entries, key=order_key) or not ordered:
            raise LayoutError("the entries are not in fusec's order", at=self.at)
        position = 0
        for entry in ordered:
            if entry.header_offset != position:
                raise LayoutError(f"there are stray bytes before `{entry.name}`", at=self.at)
            header = bytes(self.data[position : entry.data_offset])
            if header != local_header(entry):
                raise HeaderMismatchError(
                    f"the header of the entry `{entry.name}` disagrees with the directory",
                    at=self.at,
                )
            position = entry.end
        comment = _COMMENT.fullmatch(self.data[end + _END.size : self.size])
        digest = comment[1].decode() if comment is not None else "0" * 64
        if bytes(self.data[position : self.size]) != tail(ordered, digest) or comment is None:
            raise LayoutError(
                "the central directory is not as fusec writes it",
                at=self.at,
                hint="keep the file as `fusec compile` wrote it; do not pack it again",
            )
        return entries, digest


def _zip64_values(extra: bytes, size: int, stored: int, offset: int) -> tuple[int, int, int]:
    """Take those of the three numbers that are full from the ZIP64 extra field, in its order."""
    position = 0
    while position + 4 <= len(extra):
        field, length = struct.unpack_from("<2H", extra, position)
        value = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if field != _ZIP64_FIELD:
            continue
        numbers = list(struct.unpack(f"<{len(value) // 8}Q", value[: len(value) // 8 * 8]))
        size = numbers.pop(0) if size == _FULL32 and numbers else size
        stored = numbers.pop(0) if stored == _FULL32 and numbers else stored
        offset = numbers.pop(0) if offset == _FULL32 and numbers else offset
    return size, stored, offset
