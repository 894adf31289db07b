"""Signatures of Python functions as text, such as `(x: Tensor, eps: float = 1e-06) -> Tensor`.

Two signatures are one when a call that fits the first fits the second: the same parameters in the
same order, each of the same kind and with the same default.  Annotations are kept to be read by
people and never compared: libraries respell them from one release to the next.

Standard library only: the runtime uses it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Literal

from fusec.diagnostics import ParseError

Kind = Literal["positional", "keyword", "variadic"]
"""How an argument is given: by position or name, by name alone, or `*args` and `**kwargs`."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    Attributes:
        name: with its stars, where it is variadic.
        kind: how an argument is given.
        default: the expression after `=`, or `None` where an argument must be given.
        annotation: the type, as written; "" where there is none.
    """

    name: str
    kind: Kind = "positional"
    default: str | None = None
    annotation: str = field(default="", compare=False)

    def __str__(self) -> str:
        typed = f"{self.name}: {self.annotation}" if self.annotation else self.name
        if self.default is None:
            return typed
        return f"{typed} = {self.default}" if self.annotation else f"{typed}={self.default}"


@dataclass(frozen=True, slots=True)
class Signature:
    """The parameters of a function, in order.

    Attributes:
        parameters: in order.
        returns: the type of the result, as written; "" where it is not said.
    """

    parameters: tuple[Parameter, ...]
    returns: str = field(default="", compare=False)

    def __str__(self) -> str:
        shown: list[str] = []
        for parameter in self.parameters:
            if parameter.kind == "keyword" and not any(each.startswith("*") for each in shown):
                shown.append("*")
            shown.append(str(parameter))
        arrow = f" -> {self.returns}" if self.returns else ""
        return f"({', '.join(shown)}){arrow}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters, in order."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def is_opaque(self) -> bool:
        """Whether it says nothing: a wrapper that takes whatever it is given."""
        return any(parameter.kind == "variadic" for parameter in self.parameters)


def parse_signature(text: str) -> Signature:
    """Read `(a: int, *, b=None) -> None`; nothing in it is evaluated.

    Raises:
        ParseError: it is not the signature of a function.
    """
    try:
        body = ast.parse(f"def function{text}: ...").body
    except (SyntaxError, ValueError, RecursionError):
        body = []
    match body:
        case [ast.FunctionDef() as function] if text.startswith("("):
            signature = signature_of(function)
            if len(set(signature.names)) == len(signature.names):
                return signature
    raise ParseError(f"`{text}` is not a signature")


def signature_of(function: ast.FunctionDef) -> Signature:
    """The signature that the source of a function states."""
    args = function.args
    positional = [*args.posonlyargs, *args.args]
    required = len(positional) - len(args.defaults)
    defaults: list[ast.expr | None] = [*[None] * required, *args.defaults]
    parameters = [
        _parameter(arg, "positional", default)
        for arg, default in zip(positional, defaults, strict=True)
    ]
    if args.vararg is not None:
        parameters.append(Parameter(f"*{args.vararg.arg}", "variadic"))
    parameters += [
        _parameter(arg, "keyword", default)
        for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    if args.kwarg is not None:
        parameters.append(Parameter(f"**{args.kwarg.arg}", "variadic"))
    return Signature(tuple(parameters), _text(function.returns))


def _parameter(arg: ast.arg, kind: Kind, default: ast.expr | None) -> Parameter:
    value = None if default is None else ast.unparse(default)
    return Parameter(arg.arg, kind, value, _text(arg.annotation))


def _text(annotation: ast.expr | None) -> str:
    return "" if annotation is None else ast.unparse(annotation)
