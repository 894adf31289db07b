"""Tells what a file is from its listing and its first bytes; nothing is unpickled or run.

A pickle is read as a list of instructions (`pickletools.genops`), of which only the names of the
classes that it would make are looked at.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from fusec.diagnostics import InputError, read_error
from fusec.frontend.zips import ZipMembers, open_zip

MAX_PICKLE = 256 << 20
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46")
ONNX_FIELDS = (b"\x08", b"\x12", b"\x1a", b"\x3a", b"\x42")

HUB_NAME = re.compile(r"[\w-]+/[\w.-]+")
"""A model of the Hugging Face Hub; some paths look like one."""

HOW_TO_EXPORT = (
    "export it where its code is: `torch.export.save(torch.export.export(model.eval(), args, "
    'dynamic_shapes=...), "model.pt2")`'
)


class Kind(Enum):
    """What a source is, told by content."""

    PT2 = "a `torch.export` archive"
    ONNX = "an ONNX model"
    FOLDER = "a Hugging Face model folder"
    ADAPTER = "an adapter of PEFT"
    PICKLED_MODULE = "a pickled `torch.nn.Module`"
    PICKLED_PROGRAM = "a pickled `ExportedProgram`"
    PICKLED_FX = "a pickled `torch.fx.GraphModule`"
    STATE_DICT = "a state dict: weights without a model"
    PICKLED = "a pickle written by `torch.save`"
    LEGACY = "a file of `torch.save` from before torch 1.6"
    TORCHSCRIPT = "a TorchScript archive"
    OLD_EXPORT = "a `torch.export` archive of an old layout"
    AOTINDUCTOR = "an AOTInductor package: compiled code without a graph"
    SAFETENSORS = "a safetensors file: weights without a model"
    GGUF = "a GGUF file"
    HDF5 = "an HDF5 file"
    ARTIFACT = "a fusec artifact"
    ZIP = "a ZIP file of no known kind"
    UNKNOWN = "a file of no known kind"


UNPICKLED_UNDER_TRUST = frozenset(
    {Kind.PICKLED_MODULE, Kind.PICKLED_PROGRAM, Kind.PICKLED_FX, Kind.LEGACY, Kind.TORCHSCRIPT}
)
"""Kinds that `--trust-pickle` loads."""


def sniff(path: Path) -> Kind:
    """What the file or folder at `path` is.

    Raises:
        InputError: it does not exist, is empty, cannot be read, or is cut off.
    """
    if path.is_dir():
        if (path / "config.json").is_file():
            return Kind.FOLDER
        if (path / "adapter_config.json").is_file():
            return Kind.ADAPTER
        held = sorted(entry.name for entry in path.iterdir())[:4]
        listed = ", ".join(f"`{name}`" for name in held) or "nothing"
        hint = "name the folder that `save_pretrained` wrote, or the file inside it"
        message = f"the folder has no `config.json`; it holds {listed}"
        raise InputError(message, at=str(path), hint=hint)
    if not path.exists():
        hint = "a source is a path, or `package.module:factory`"
        is_file = path.suffix in (".onnx", ".pt", ".pt2")
        if HUB_NAME.fullmatch(str(path)) and not is_file and not path.parent.exists():
            hint = f"fusec downloads nothing; `hf download {path} --local-dir {path.name}` does"
        raise InputError(f"no such file or folder: `{path}`", hint=hint)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise read_error(path, error) from None
    if not start:
        raise InputError(f"`{path}` is empty", hint="the file was not written to its end")
    if start.startswith(b"PK"):
        return _sniff_zip(open_zip(path))
    return _sniff_start(start, path)


def _sniff_start(start: bytes, path: Path) -> Kind:
    if start.startswith(LEGACY_MAGIC):
        return Kind.LEGACY
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return Kind.PICKLED
    if start.startswith(b"GGUF"):
        return Kind.GGUF
    if start.startswith(b"\x89HDF\r\n"):
        return Kind.HDF5
    if len(start) > 8:
        (length,) = struct.unpack("<Q", start[:8])
        if start[8:9] == b"{" and length <= path.stat().st_size:
            return Kind.SAFETENSORS
    if path.suffix == ".onnx" or _looks_like_onnx(start):
        return Kind.ONNX
    return Kind.UNKNOWN


def _looks_like_onnx(start: bytes) -> bool:
    """A protobuf whose first field is the version of the format, and the second a text."""
    return start[:1] == b"\x08" and 1 <= start[1] <= 20 and start[2:3] in ONNX_FIELDS


def _sniff_zip(members: ZipMembers) -> Kind:
    names = set(members)
    if "manifest.json" in names and any(name.startswith("program/") for name in names):
        return Kind.ARTIFACT
    if "archive_format" in names:
        if any(name.startswith("models/") and name.endswith(".json") for name in names):
            return Kind.PT2
        if any(name.startswith("data/aotinductor/") for name in names):
            return Kind.AOTINDUCTOR
        return Kind.ZIP
    if "serialized_exported_program.json" in names:
        return Kind.OLD_EXPORT
    if any(name.startswith("code/") for name in names) or "constants.pkl" in names:
        return Kind.TORCHSCRIPT
    if "data.pkl" in names:
        return _sniff_pickle(members)
    return Kind.ZIP


def _sniff_pickle(members: ZipMembers) -> Kind:
    classes = set(pickled_classes(members.read("data.pkl", MAX_PICKLE)))
    if any(name.startswith("torch.export.exported_program.") for name in classes):
        return Kind.PICKLED_PROGRAM
    if any(name.startswith("torch.fx.") for name in classes):
        return Kind.PICKLED_FX
    harmless = ("torch._utils._rebuild", "collections.", "torch.", "builtins.", "numpy.")
    if any(name.startswith("torch.nn.modules.") for name in classes):
        return Kind.PICKLED_MODULE
    if all(name.startswith(harmless) for name in classes):
        return Kind.STATE_DICT
    return Kind.PICKLED_MODULE


def pickled_classes(data: bytes) -> Iterator[str]:
    """The classes and functions that a pickle names, such as `collections.OrderedDict`."""
    strings: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(data):
            if operation.name == "GLOBAL":
                yield str(argument).replace(" ", ".")
            elif operation.name == "STACK_GLOBAL" and len(strings) >= 2:
                yield ".".join(strings[-2:])
            elif isinstance(argument, str) and operation.name.endswith(("UNICODE", "STRING")):
                strings = [*strings[-1:], argument]
            elif isinstance(argument, str) and operation.name.startswith(
                ("SHORT_BINUNICODE", "BINUNICODE")
            ):
                strings = [*strings[-1:], argument]
    except (ValueError, IndexError, struct.error, UnicodeError):
        return


def refusal(kind: Kind, path: Path) -> InputError:
    """Why a file of this kind is not read, and what to do."""
    message = f"`{path}` is {kind.value}"
    hint = HOW_TO_EXPORT
    if kind in UNPICKLED_UNDER_TRUST:
        message += ", which runs the code that is in it when it is loaded"
        hint += "; or pass `--trust-pickle` if you trust whoever made it"
    elif kind is Kind.PICKLED:
        message += ", which runs the code that is in it when it is loaded, and holds no model"
    elif kind in (Kind.STATE_DICT, Kind.SAFETENSORS):
        hint = "load it into its model and " + HOW_TO_EXPORT
        if kind is Kind.SAFETENSORS:
            hint = "name the folder that holds it, with its `config.json`; or " + hint
    elif kind is Kind.OLD_EXPORT:
        hint = "load it where you trust it, and save it again with torch 2.11 or newer"
    elif kind is Kind.AOTINDUCTOR:
        message += " to read, bound to the machine it was made for"
    elif kind is Kind.GGUF:
        hint = "name the Hugging Face folder that it was made from"
    elif kind is Kind.ARTIFACT:
        hint = "`fusec inspect` and `fusec run` take it; `compile` takes what it was made from"
    elif kind is Kind.UNKNOWN and (path.parent / "config.json").is_file():
        hint = f"name the folder that holds it: `{path.parent}`"
    else:
        hint = (
            "a source is a `.pt2` archive, an `.onnx` model, a Hugging Face folder, or "
            "`package.module:factory`"
        )
    return InputError(message, hint=hint)
