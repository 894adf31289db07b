"""Functions of libraries that are installed beside an artifact, checked once when they are loaded.

An artifact states the signature that a function had when the model was compiled.  A library that
has renamed the function, or given its name to another, is found out here, before anything runs.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fusec.diagnostics import ParseError
from fusec.runtime.documents import Field
from fusec.runtime.errors import LibraryError, MalformedError
from fusec.signatures import Kind, Parameter, Signature, parse_signature

LIBRARIES = ("aiter",)
"""What an artifact may call: modules of these, and no others."""

_KINDS: dict[Any, tuple[str, Kind]] = {
    inspect.Parameter.POSITIONAL_ONLY: ("", "positional"),
    inspect.Parameter.POSITIONAL_OR_KEYWORD: ("", "positional"),
    inspect.Parameter.KEYWORD_ONLY: ("", "keyword"),
    inspect.Parameter.VAR_POSITIONAL: ("*", "variadic"),
    inspect.Parameter.VAR_KEYWORD: ("**", "variadic"),
}


@dataclass(frozen=True, slots=True)
class ExternalSpec:
    """A call of a library's function, as `fusec.kernels.external.call.ExternalCall` has it.

    Attributes:
        library: what is imported.
        version: the version the model was compiled for.
        versions: all that are known to have the function in this form.
        distributions: names under which the library is installed.
        module: where the function is.
        function: its name there.
        signature: what it must be.
        operator: the operator of torch that states it where a wrapper hides it, or "".
        arguments: name, where the argument comes from, and the operand, constant or dtype.
        returned: the operand that each returned value is copied to, or `None`.
        at: where the artifact says so.
    """

    library: str
    version: str
    versions: tuple[str, ...]
    distributions: tuple[str, ...]
    module: str
    function: str
    signature: Signature
    operator: str
    arguments: tuple[tuple[str, str, Any], ...]
    returned: tuple[int | None, ...]
    at: str

    @property
    def symbol(self) -> str:
        """Where the function is, as `module:function`."""
        return f"{self.module}:{self.function}"

    @property
    def remedy(self) -> str:
        """What to do about a library that is not the one the model was compiled for."""
        return (
            f"install it: `pip install {self.distributions[0]}=={self.version}`; or compile again "
            f"with `--provider {self.library}==VERSION`, or without it for fusec's own kernels"
        )


@dataclass(frozen=True, slots=True)
class ExternalFunction:
    """A function that was found to be what the artifact was compiled for."""

    spec: ExternalSpec
    function: Callable[..., Any]

    def run(self, operands: Sequence[Any], dtype: Callable[[str], Any]) -> None:
        """Call it.

        Args:
            operands: tensors over the memory of operands and results, in the order of the launch.
            dtype: gives the library's element type by fusec's name.

        Raises:
            LibraryError: it returned another number of values than it was known to.
        """
        find = {"operand": operands.__getitem__, "value": lambda value: value, "dtype": dtype}
        arguments = {name: find[given](value) for name, given, value in self.spec.arguments}
        result = self.function(**arguments)
        if not self.spec.returned:
            return
        values = _flat(result)
        if len(values) != len(self.spec.returned):
            raise LibraryError(
                f"`{self.spec.symbol}` returned {len(values)} values, not "
                f"{len(self.spec.returned)}",
                at=self.spec.at,
                hint=self.spec.remedy,
            )
        for value, index in zip(values, self.spec.returned, strict=True):
            if index is not None:
                place = operands[index]
                place.copy_(value.view(place.dtype).reshape(place.shape))


def read_external(field: Field) -> ExternalSpec:
    """Read the document of an `ExternalCall`; nothing is imported.

    Raises:
        MalformedError: it is not one, or names what an artifact may not call.
    """
    library = field.get("library").one_of(*LIBRARIES)
    module = field.get("module").string()
    function = field.get("function").string()
    parts = module.split(".")
    if parts[0] != library or not all(part.isidentifier() for part in (*parts, function)):
        raise field.get("module").error(f"a module of `{library}`, with a function by its name")
    signature = field.get("signature").string()
    try:
        expected = parse_signature(signature)
    except ParseError as error:
        raise MalformedError(f"`{field.path}.signature`: {error}", at=field.at) from None
    distributions = field.get("distributions").tuple_of(Field.string)
    if not distributions:
        raise field.get("distributions").error("a name or more")
    return ExternalSpec(
        library=library,
        version=field.get("version").string(),
        versions=field.get("versions").tuple_of(Field.string),
        distributions=distributions,
        module=module,
        function=function,
        signature=expected,
        operator=field.get("operator").string(),
        arguments=tuple(_argument(item, expected) for item in field.get("arguments").items()),
        returned=field.get("returned").tuple_of(_index_or_none),
        at=field.at,
    )


def load_external(spec: ExternalSpec) -> ExternalFunction:
    """Import the function and check that it is the one the model was compiled for.

    Raises:
        LibraryError: the library, the module or the function is not there or cannot be imported;
            the version is not one that is known to have it; or the signature is another.
    """
    _check_version(spec)
    function = getattr(_import(spec), spec.function, None)
    if not callable(function):
        raise LibraryError(f"{spec.library} has no `{spec.symbol}`", at=spec.at, hint=spec.remedy)
    found = live_signature(function, spec.operator)
    if not _is_same(spec.signature, found):
        raise LibraryError(
            f"`{spec.symbol}` is not the function this was compiled for",
            at=spec.at,
            detail=(f"{spec.library} {spec.version}: {spec.signature}", f"installed: {found}"),
            hint=spec.remedy,
        )
    return ExternalFunction(spec, function)


def live_signature(function: Callable[..., Any], operator: str) -> Signature:
    """The signature of a function that is loaded.

    Wrappers that say what they wrap are looked through.  Of one that does not, the signature is
    that of `operator`, if torch is loaded and has it; else it stays `(*args, **kwargs)`.
    """
    found = _python_signature(function)
    if not found.is_opaque or not operator:
        return found
    return _operator_signature(operator) or found


def _python_signature(function: Callable[..., Any]) -> Signature:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # native code that states none
        return parse_signature("(*args, **kwargs)")
    return Signature(tuple(map(_parameter, parameters)))


def _operator_signature(operator: str) -> Signature | None:
    torch = sys.modules.get("torch")
    namespace, _, name = operator.partition("::")
    packet = None if torch is None else getattr(getattr(torch.ops, namespace), name, None)
    if packet is None:
        return None
    arguments = [each for each in packet.default._schema.arguments if each.name != "dummy"]
    return Signature(
        tuple(
            Parameter(
                each.name,
                "keyword" if each.kwarg_only else "positional",
                repr(each.default_value) if each.has_default_value() else None,
                str(each.type),
            )
            for each in arguments
        )
    )


def _parameter(parameter: inspect.Parameter) -> Parameter:
    stars, kind = _KINDS[parameter.kind]
    default = None if parameter.default is parameter.empty else repr(parameter.default)
    annotation = "" if parameter.annotation is parameter.empty else _name(parameter.annotation)
    return Parameter(stars + parameter.name, kind, default, annotation)


def _name(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _is_same(expected: Signature, found: Signature) -> bool:
    if len(expected.parameters) != len(found.parameters):
        return False
    pairs = zip(expected.parameters, found.parameters, strict=True)
    return all(a.name == b.name and a.kind == b.kind and _same_default(a, b) for a, b in pairs)


def _same_default(expected: Parameter, found: Parameter) -> bool:
    """Whether defaults agree; one that the source calls by a name is not known here."""
    if expected.default is None or found.default is None:
        return expected.default == found.default
    node = ast.parse(expected.default, mode="eval").body
    if isinstance(node, ast.Name | ast.Attribute):
        return True
    return ast.unparse(node) == found.default


def _import(spec: ExternalSpec) -> object:
    """The module of the function; whatever a library does wrong while it is imported is told."""
    try:
        return importlib.import_module(spec.module)
    except Exception as error:
        raise LibraryError(
            f"`{spec.module}` cannot be imported",
            at=spec.at,
            detail=(f"{type(error).__name__}: {error}",),
            hint=spec.remedy,
        ) from error


def _check_version(spec: ExternalSpec) -> None:
    installed = {
        name: version for name in spec.distributions if (version := _installed(name)) is not None
    }
    if not installed:
        raise LibraryError(
            f"a part of this model runs on {spec.library} {spec.version}, which is not installed",
            at=spec.at,
            hint=spec.remedy,
        )
    if not set(installed.values()) & set(spec.versions):
        name, version = next(iter(installed.items()))
        raise LibraryError(
            f"`{spec.symbol}` is not known in {name} {version}, which is installed",
            at=spec.at,
            detail=(f"known in {', '.join(spec.versions)}",),
            hint=spec.remedy,
        )


def _installed(distribution: str) -> str | None:
    """The release that is installed, without what says how it was built, or `None`."""
    import importlib.metadata  # takes longer to import than the rest of the runtime

    found = next(iter(importlib.metadata.distributions(name=distribution)), None)
    return None if found is None else found.version.partition("+")[0]


def _argument(field: Field, signature: Signature) -> tuple[str, str, Any]:
    items = field.items(3)
    if len(items) != 3:
        raise field.error("a name, where it comes from, and what")
    name = items[0].one_of(*signature.names)
    given = items[1].one_of("operand", "value", "dtype")
    if given == "operand":
        return name, given, items[2].integer()
    if given == "dtype":
        return name, given, items[2].string()
    if not isinstance(items[2].value, bool | int | float | str | None):
        raise items[2].error("a constant")
    return name, given, items[2].value


def _index_or_none(field: Field) -> int | None:
    return None if field.value is None else field.integer()


def _flat(values: object) -> list[Any]:
    if not isinstance(values, tuple | list):
        return [values]
    return [item for value in values for item in _flat(value)]
