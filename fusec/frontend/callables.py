"""Callables of a module that are to be replaced while it is exported.

They are found by their signature alone, on a module's own attributes and among the functions that
its code names, never by import path or class name.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any, TypeAlias

import torch
from torch import nn

from fusec.frontend.live import EXPORT_FAILURES, quiet
from fusec.rewrite.decisions import Decision

Roles: TypeAlias = tuple[frozenset[str], ...]
"""What the first parameters of a callable may be called, in lower case."""

MAX_FUNCTIONS = 200


@dataclass(frozen=True, slots=True)
class Place:
    """Where a callable is held: an instance attribute, or a global of the module's code."""

    owner: Any
    name: str

    def set(self, value: object) -> None:
        """Hold `value` instead."""
        if isinstance(self.owner, dict):
            self.owner[self.name] = value
        else:
            self.owner.__dict__[self.name] = value


@dataclass(slots=True)
class Candidate:
    """A callable, where it is held, and by which modules."""

    function: Callable[..., Any]
    places: list[Place] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)


def find(module: nn.Module, roles: Roles) -> list[Candidate]:
    """The callables of `module` and its parts whose first parameters have these roles."""
    found: dict[int, Candidate] = {}
    globals_seen: dict[type, list[tuple[dict[str, Any], str]]] = {}
    for path, part in module.named_modules():
        held: list[tuple[Any, str, Any]] = []
        for name, value in vars(part).items():
            if callable(value) and not isinstance(value, nn.Module):
                held.append((part, name, value))
        kind = type(part)
        if kind not in globals_seen:
            globals_seen[kind] = list(_named_globals(kind))
        held += [(space, name, space[name]) for space, name in globals_seen[kind]]
        for owner, name, value in held:
            if not has_signature(value, roles):
                continue
            candidate = found.setdefault(id(value), Candidate(value))
            if all(place.owner is not owner or place.name != name for place in candidate.places):
                candidate.places.append(Place(owner, name))
            if path not in candidate.sites:
                candidate.sites.append(path)
    return list(found.values())


def has_signature(value: object, roles: Roles) -> bool:
    """Whether the first parameters of `value` have these roles."""
    if not callable(value) or isinstance(value, type | nn.Module):
        return False
    try:
        names = list(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        return False
    pairs = zip(names, roles, strict=False)
    return len(names) >= len(roles) and all(name.lower() in role for name, role in pairs)


def _named_globals(kind: type) -> Iterator[tuple[dict[str, Any], str]]:
    """The globals that the methods of a class, and the functions they call, refer to."""
    pending: list[FunctionType] = []
    for base in kind.__mro__:
        if base is nn.Module:
            break
        pending += [
            function
            for value in vars(base).values()
            if isinstance(function := innermost(value), FunctionType)
        ]
    seen: set[int] = set()
    given: set[tuple[int, str]] = set()
    while pending and len(seen) < MAX_FUNCTIONS:
        function = pending.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        space = function.__globals__
        for name in _names_in(function.__code__):
            value = space.get(name)
            if value is None or (id(space), name) in given:
                continue
            given.add((id(space), name))
            yield space, name
            inner = innermost(value)
            if isinstance(inner, FunctionType) and inner.__globals__ is space:
                pending.append(inner)


def innermost(value: object) -> object:
    """What decorators wrap."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    return inspect.unwrap(value) if callable(value) else value


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def run(function: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the callable gives, or what it wraps where a kernel for a GPU refuses the CPU."""
    given = tuple(args)
    for each in dict.fromkeys((function, inspect.unwrap(function))):
        try:
            with torch.no_grad(), quiet():
                return each(*given, **kwargs)
        except EXPORT_FAILURES:
            continue
    return None


def extra_given(function: Callable[..., Any], extra: Mapping[str, Any]) -> str | None:
    """The first of the arguments in `**kwargs` that may change the result; `None` if none does."""
    for key, value in extra.items():
        packed = key.startswith(("cu_seq", "seq_idx", "initial_state"))
        if value is not None and value is not False and (packed or not _ignores_rest(function)):
            return key
    return None


def _ignores_rest(function: Callable[..., Any]) -> bool:
    """Whether the code of `function` never reads the `**kwargs` it takes."""
    inner = innermost(function)
    if not isinstance(inner, FunctionType):
        return False
    rest = [
        name
        for name, parameter in inspect.signature(inner).parameters.items()
        if parameter.kind is parameter.VAR_KEYWORD
    ]
    used: set[object] = set()
    for step in dis.get_instructions(inner):
        if "LOAD" in step.opname:  # from Python 3.13 one instruction may load two variables
            used |= set(step.argval) if isinstance(step.argval, tuple) else {step.argval}
    return used.isdisjoint(rest)


def refuse(log: list[Decision], fusion: str, code: str, candidate: Candidate, reason: str) -> None:
    """Record once for each site that a callable is left alone; `reason` follows its name."""
    name = getattr(candidate.function, "__qualname__", type(candidate.function).__name__)
    hint = "it is exported as it is written, for the lengths that this allows"
    known = {(held.fusion, held.site, held.code) for held in log}
    for site in candidate.sites:
        if (fusion, site, code) not in known:
            log.append(Decision(fusion, site, "refused", code, f"`{name}` {reason}", hint, node=""))


@contextmanager
def holding(stand_ins: Iterable[tuple[Candidate, object]]) -> Iterator[None]:
    """Each stand-in is held where its candidate was; as before afterwards."""
    pairs = [(place, each, other) for each, other in stand_ins for place in each.places]
    try:
        for place, _, other in pairs:
            place.set(other)
        yield
    finally:
        for place, each, _ in reversed(pairs):
            place.set(each.function)
