"""Operations, passes and kernels that other distributions add.

A distribution announces what it adds as entry points of three groups.  Each names one definition,
or a tuple of several:

    fusec.ops       `OpDef`s: a type rule and a meaning each
    fusec.passes    classes of passes, which say `after` or `before` which others they run
    fusec.kernels   `Kernel`s, for operations of fusec or of its own

and its package says in `FUSEC_API` which version of the interface it is written for.  What cannot
be loaded, or does not fit, is an error that names the distribution and the entry point: a fusion
that is left out in silence is the outage that fusec exists to prevent.

Artifacts hold the code of the kernels, so that running one needs no extension.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from fusec.diagnostics import FusecError, InputError
from fusec.ir.ops import OPS, OpDef
from fusec.kernels.registry import Kernel, kernels
from fusec.kernels.sources import package_folder, source_path
from fusec.passes import FUSIONS, PIPELINE
from fusec.rewrite import Pass

API_VERSION = 1
"""The version of the interface that `docs/extending.md` describes."""

OPS_GROUP, PASSES_GROUP, KERNELS_GROUP = "fusec.ops", "fusec.passes", "fusec.kernels"

_NAME = re.compile(r"[a-z][a-z0-9_]*")

T = TypeVar("T")

PassClass: TypeAlias = type[Pass]


class ExtensionError(FusecError):
    """What a distribution adds cannot be loaded, or does not fit."""


@dataclass(frozen=True, slots=True)
class Extension:
    """What one distribution adds.

    Attributes:
        name: of the distribution.
        version: of the distribution.
        digest: SHA-256 of the files of its packages.
        ops: operations.
        passes: classes of passes.
        kernels: records of kernels, asked before fusec's own.
    """

    name: str
    version: str
    digest: str
    ops: tuple[OpDef, ...] = ()
    passes: tuple[PassClass, ...] = ()
    kernels: tuple[Kernel, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Extensions:
    """What all distributions add.

    Attributes:
        all: in the order of their names.
        pipeline: every pass, those of fusec included, in the order in which they run.
    """

    all: tuple[Extension, ...] = ()
    pipeline: tuple[PassClass, ...] = PIPELINE

    @property
    def fusions(self) -> tuple[str, ...]:
        """Every name that a fusion has in decisions and requirements."""
        added = (_fusion(each) for extension in self.all for each in extension.passes)
        return (*FUSIONS, *(name for name in added if name is not None))

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Records that are asked before fusec's own."""
        return tuple(kernel for each in self.all for kernel in each.kernels)

    def document(self) -> dict[str, dict[str, str]]:
        """What an artifact says of the extensions that took part in its compilation, by name."""
        return {each.name: {"version": each.version, "sha256": each.digest} for each in self.all}

    def source_of(self, added: PassClass | Kernel) -> str:
        """The distribution that adds a pass or a kernel: `fusec`, or such as `fusec-x 0.1.0`."""
        for each in self.all:
            if any(added is known for known in (*each.passes, *each.kernels)):
                return str(each)
        return "fusec"


NONE = Extensions()
"""fusec alone."""


@cache
def installed() -> Extensions:
    """What the installed distributions add; loaded once.

    Raises:
        ExtensionError: an extension cannot be loaded, or does not fit.
    """
    points = importlib.metadata.entry_points()
    groups = (OPS_GROUP, PASSES_GROUP, KERNELS_GROUP)
    return load(point for group in groups for point in points.select(group=group))


def absent(recorded: Mapping[str, Any]) -> tuple[str, ...]:
    """What of the extensions that took part in a compilation is not installed here.

    Args:
        recorded: the option `extensions` of an artifact.

    Returns:
        A sentence for each that is missing, or is another one than it was.
    """
    found = installed().document()
    return tuple(
        sentence
        for name, wanted in sorted(recorded.items())
        if (sentence := _difference(name, wanted, found.get(name))) is not None
    )


def as_recorded(recorded: Mapping[str, Any]) -> Extensions:
    """The extensions that took part in a compilation, and no others.

    Args:
        recorded: the option `extensions` of an artifact.

    Raises:
        ExtensionError: one is missing here, or is another one.
    """
    if missing := absent(recorded):
        raise ExtensionError(
            "the compilation cannot be repeated without the extensions that took part in it",
            detail=missing,
            hint="install them, or compile again with those that are here",
        )
    here = installed()
    others = {
        each
        for extension in here.all
        if extension.name not in recorded
        for each in extension.passes
    }
    return Extensions(
        tuple(extension for extension in here.all if extension.name in recorded),
        tuple(each for each in here.pipeline if each not in others),
    )


def _difference(
    name: str, wanted: Mapping[str, str], found: Mapping[str, str] | None
) -> str | None:
    then = f"the extension `{name}` {wanted['version']}, which took part in the compilation,"
    if found is None:
        return f"{then} is not installed"
    if found["version"] != wanted["version"]:
        return f"{then} is installed as {found['version']}"
    return None if found["sha256"] == wanted["sha256"] else f"{then} has other files here"


def load(points: Iterable[importlib.metadata.EntryPoint]) -> Extensions:
    """What entry points add.

    Args:
        points: of the three groups.

    Raises:
        ExtensionError: one cannot be loaded, or what it names does not fit.
    """
    found: dict[tuple[str, str], list[_Added]] = {}
    for point in sorted(points, key=lambda each: (each.group, each.name, each.value)):
        if point.dist is None:
            raise ExtensionError(f"no distribution has the entry point `{point.name}`")
        key = point.dist.metadata["Name"], point.dist.version
        found.setdefault(key, []).append(_Added(point, key))
    parts = [each for _, added in sorted(found.items()) for each in added]
    for part in parts:
        part.load()
    _check_names(parts)
    _check_kernels(parts)
    pipeline = _ordered([(part, each) for part in parts for each in part.passes])
    OPS.update({op.name: op for part in parts for op in part.ops})
    return Extensions(tuple(_extension(found[key]) for key in sorted(found)), pipeline)


class _Added:
    """What one entry point names."""

    def __init__(self, point: importlib.metadata.EntryPoint, key: tuple[str, str]) -> None:
        self.point = point
        self.distribution = " ".join(key)
        self.package = point.module.partition(".")[0]
        self.ops: tuple[OpDef, ...] = ()
        self.passes: tuple[PassClass, ...] = ()
        self.kernels: tuple[Kernel, ...] = ()

    def error(self, message: str, hint: str | None = None) -> ExtensionError:
        """An error about this entry point."""
        name = self.distribution.partition(" ")[0]
        return ExtensionError(
            f"the extension `{self.distribution}` {message}",
            at=f'[project.entry-points."{self.point.group}"] {self.point.name} = '
            f'"{self.point.value}"',
            hint=hint or f"mend it, `pip uninstall {name}`, or leave it out with `--no-extensions`",
        )

    def load(self) -> None:
        """Import what the entry point names, and check what kind of thing it is."""
        package = self._imported(lambda: importlib.import_module(self.package))
        version = getattr(package, "FUSEC_API", None)
        if version is None:
            hint = f"write `FUSEC_API = {API_VERSION}` in the `__init__.py` of `{self.package}`"
            raise self.error("does not say which version of the interface it is written for", hint)
        if version != API_VERSION:
            raise self.error(
                f"is written for version {version} of the interface, and this fusec has version "
                f"{API_VERSION}",
                "install a release of it for this fusec, or leave it out with `--no-extensions`",
            )
        named = self._imported(self.point.load)
        several = tuple(named) if isinstance(named, tuple | list) else (named,)
        if self.point.group == OPS_GROUP:
            self.ops = self._of_kind(several, OpDef, "an `OpDef`")
        elif self.point.group == KERNELS_GROUP:
            self.kernels = self._of_kind(several, Kernel, "a `Kernel`")
        else:
            self.passes = tuple(map(self._pass, several))

    def _imported(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever an extension raises as it is imported, it is told
            raise self.error(f"cannot be loaded: {type(error).__name__}: {error}") from error

    def _of_kind(self, several: Sequence[object], kind: type[T], what: str) -> tuple[T, ...]:
        fitting = tuple(each for each in several if isinstance(each, kind))
        if len(fitting) != len(several):
            wrong = next(each for each in several if not isinstance(each, kind))
            raise self.error(f"names {_what_it_is(wrong)}, which is not {what}")
        return fitting

    def _pass(self, each: object) -> PassClass:
        if not isinstance(each, type) or not issubclass(each, Pass):
            raise self.error(f"names {_what_it_is(each)}, which is not a class of `Pass`")
        if inspect.isabstract(each):
            missing = min(each.__abstractmethods__)
            raise self.error(f"names the pass `{each.__name__}`, which has no `{missing}`")
        if not isinstance(getattr(each, "name", None), str):
            raise self.error(f"names the pass `{each.__name__}`, which has no `name`")
        return each


def _what_it_is(value: object) -> str:
    if isinstance(value, type):
        return f"the class `{value.__name__}`"
    return f"a value of the type `{type(value).__name__}`"


def _fusion(each: PassClass) -> str | None:
    name: str | None = getattr(each, "fusion", None)
    return name


def _check_names(parts: Sequence[_Added]) -> None:
    """Check names against those of fusec, and against each other.

    Raises:
        ExtensionError: a name is taken, or is none.
    """
    taken = {"operation": {*OPS}, "pass": {each.name for each in PIPELINE}, "fusion": {*FUSIONS}}
    taken["kernel"] = {each.name for records in kernels().values() for each in records}
    by: dict[tuple[str, str], str] = {}
    for part in parts:
        for kind, name in _names(part):
            if kind != "kernel" and _NAME.fullmatch(name) is None:
                hint = "use lower-case letters, digits and `_`"
                raise part.error(f"calls a{'n' * (kind == 'operation')} {kind} `{name}`", hint)
            if name in taken[kind]:
                owner = by.get((kind, name), "fusec")
                raise part.error(f"adds the {kind} `{name}`, which `{owner}` has", "rename it")
            taken[kind].add(name)
            by[kind, name] = part.distribution


def _names(part: _Added) -> Iterator[tuple[str, str]]:
    yield from (("operation", each.name) for each in part.ops)
    yield from (("pass", each.name) for each in part.passes)
    yield from (("fusion", name) for name in map(_fusion, part.passes) if name is not None)
    yield from (("kernel", each.name) for each in part.kernels)


def _check_kernels(parts: Sequence[_Added]) -> None:
    """Check what kernels compute and consist of.

    Raises:
        ExtensionError: a kernel is for no operation, or has no source.
    """
    ops = {*OPS, *(op.name for part in parts for op in part.ops)}
    for part in parts:
        for kernel in part.kernels:
            _check_kernel(part, kernel, ops)


def _check_kernel(part: _Added, kernel: Kernel, ops: set[str]) -> None:
    if kernel.op not in ops:
        raise part.error(
            f"has the kernel `{kernel.name}` for `{kernel.op}`, which is no operation",
            f"add it as an `OpDef` under `{OPS_GROUP}`",
        )
    try:
        is_there = source_path(kernel.package, kernel.source).is_file()
    except InputError:
        is_there = False
    if not is_there:
        raise part.error(
            f"has the kernel `{kernel.name}`, whose source `{kernel.source}` is not in the folder "
            f"of `{kernel.package}`",
            "give the record the `package` that holds its source, and the wheel the file",
        )


def _extension(parts: Sequence[_Added]) -> Extension:
    """What the entry points of one distribution add."""
    name, _, version = parts[0].distribution.partition(" ")
    return Extension(
        name,
        version,
        _digest(sorted({part.package for part in parts})),
        tuple(op for part in parts for op in part.ops),
        tuple(each for part in parts for each in part.passes),
        tuple(kernel for part in parts for kernel in part.kernels),
    )


def _digest(packages: Sequence[str]) -> str:
    """SHA-256 of the files of packages, by their names."""
    state = hashlib.sha256()
    for package in packages:
        folder = package_folder(package)
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                name = Path(package, path.relative_to(folder)).as_posix()
                state.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()


def _ordered(added: Sequence[tuple[_Added, PassClass]]) -> tuple[PassClass, ...]:
    """The pipeline with each pass directly behind those in `after`, else before those in `before`.

    Of several at one place, the first is that whose distribution, and then entry point, has the
    first name.

    Raises:
        ExtensionError: a pass says no place, one that does not exist, or places that exclude each
            other.
    """
    order: list[PassClass] = [*PIPELINE]
    known = {each.name for each in PIPELINE} | {each.name for _, each in added}
    pending = [*added]
    for part, each in pending:
        _check_place(part, each, known)
    while pending:
        left = {each.name for _, each in pending}
        free = [held for held in pending if not left & {*held[1].after, *held[1].before}]
        if not free:
            part, each = pending[0]
            hint = "of two passes, let one name the other"
            raise part.error(f"has the pass `{each.name}`, whose place depends on itself", hint)
        part, each = free[0]
        order.insert(_place(part, each, order), each)
        pending.remove(free[0])
    return tuple(order)


def _check_place(part: _Added, each: PassClass, known: set[str]) -> None:
    if not each.after and not each.before:
        hint = "name passes in `after` or `before`; `fusec list passes` has them in order"
        raise part.error(f"has the pass `{each.name}`, which says no place to run at", hint)
    for word, names in (("after", each.after), ("before", each.before)):
        for name in names:
            if name not in known:
                raise part.error(
                    f"has the pass `{each.name}`, which runs {word} `{name}`, and no pass has that "
                    "name",
                    "`fusec list passes --no-extensions` has the names",
                )


def _place(part: _Added, each: PassClass, order: Sequence[PassClass]) -> int:
    """Where `each` goes: the first place behind all of `after`, but behind others added there."""
    first: dict[str, int] = {}
    for position, known in enumerate(order):
        first.setdefault(known.name, position)
    high = min((first[name] for name in each.before), default=len(order))
    if not each.after:
        return high
    low = max(first[name] + 1 for name in each.after)
    if low > high:
        late, early = max(each.after, key=first.__getitem__), order[high].name
        raise part.error(
            f"has the pass `{each.name}`, which runs after `{late}` and before `{early}`, and "
            f"`{early}` comes first",
            "`fusec list passes --no-extensions` has the order",
        )
    while low < high and order[low] not in PIPELINE:
        low += 1
    return low
