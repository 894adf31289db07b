"""ZIP files that are not trusted: what is in them and where, without unpacking anything.

PyTorch stores its members uncompressed, so that their bytes can be mapped; a compressed member, two
members of one name, or one that reaches outside the file is refused.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fusec.diagnostics import InputError

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
MAX_MEMBERS = 1_000_000


@dataclass(frozen=True, slots=True)
class ZipMembers:
    """The members of a ZIP file whose names all begin with one folder, without that folder.

    Attributes:
        path: the file.
        root: that folder, empty if there is none.
        entries: what the file says of each member.
    """

    path: Path
    root: str
    entries: Mapping[str, zipfile.ZipInfo]

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def extent(self, name: str) -> tuple[int, int]:
        """Position and number of the bytes of member `name`.

        Raises:
            InputError: there is no such member, it is compressed, or reaches outside the file.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise InputError(f"the archive has no `{name}`", at=str(self.path))
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            message = f"`{name}` is compressed or encrypted, which PyTorch never writes"
            raise InputError(message, at=str(self.path))
        with self.path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(LOCAL_HEADER.size)
            end = file.seek(0, 2)
        if len(header) != LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise InputError(f"the archive is damaged at `{name}`", at=str(self.path))
        *_, name_length, extra_length = LOCAL_HEADER.unpack(header)
        begin = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
        if entry.file_size != entry.compress_size or begin + entry.file_size > end:
            raise InputError(f"`{name}` reaches outside the archive", at=str(self.path))
        return begin, entry.file_size

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of member `name`.

        Raises:
            InputError: see `extent`; or it has more than `limit` bytes.
        """
        begin, size = self.extent(name)
        if size > limit:
            raise InputError(f"`{name}` has {size} bytes, more than {limit}", at=str(self.path))
        with self.path.open("rb") as file:
            file.seek(begin)
            return file.read(size)

    def fingerprint(self) -> str:
        """SHA-256 over the names, sizes and checksums of all members."""
        state = hashlib.sha256()
        for name in sorted(self.entries):
            entry = self.entries[name]
            state.update(f"{name}\0{entry.file_size}\0{entry.CRC}\n".encode())
        return state.hexdigest()


def open_zip(path: Path) -> ZipMembers:
    """The members of the ZIP file at `path`.

    Raises:
        InputError: it is cut off or damaged, or two members have one name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos, comment = archive.infolist(), archive.comment
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        hint = "copy or download it again"
        message = f"the file is cut off or damaged: {error}"
        raise InputError(message, at=str(path), hint=hint) from None
    # A file that is cut off may end in the listing of an archive inside it.
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 22 - len(comment)))
        ends_well = file.read(4) == b"PK\x05\x06"
    if not ends_well or min((info.header_offset for info in infos), default=1) != 0:
        hint = "copy or download it again"
        message = "the file is cut off or damaged: the archive does not fill it"
        raise InputError(message, at=str(path), hint=hint)
    if len(infos) > MAX_MEMBERS:
        raise InputError(f"the archive has {len(infos)} members", at=str(path))
    names = [info.filename for info in infos if not info.filename.endswith("/")]
    if len(set(names)) != len(names):
        raise InputError("two members of the archive have one name", at=str(path))
    roots = {name.partition("/")[0] if "/" in name else "" for name in names}
    root = f"{roots.pop()}/" if len(roots) == 1 and "" not in roots else ""
    return ZipMembers(
        path,
        root,
        {
            info.filename.removeprefix(root): info
            for info in infos
            if not info.filename.endswith("/")
        },
    )
