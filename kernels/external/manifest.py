"""Which functions a version of a library has, and with which signature.

A function is found by its signature.  Its name only says where to look: one library removed
`fused_qk_rmsnorm` with six parameters and brought the name back, two weeks later, for another
function with sixteen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fusec.diagnostics import InternalError
from fusec.kernels.external.versions import Version, parse_version
from fusec.signatures import Signature, parse_signature

Backend = Literal["hip", "triton"]
"""What a library's function runs: kernels of its own C++ sources, or Triton kernels."""


@dataclass(frozen=True, slots=True)
class Form:
    """A function with one signature, and the versions that have it.

    Attributes:
        library: the library it is in.
        module: where it is imported from.
        function: its name there, with the class in front for a method.
        signature: its parameters.
        backend: what it runs.
        is_operator: whether it hides behind an operator of torch that has its name.
        is_exported: whether the library's top level gives it too.
        versions: those that have it, in order.
    """

    library: str
    module: str
    function: str
    signature: Signature
    backend: Backend
    is_operator: bool
    is_exported: bool
    versions: tuple[Version, ...]

    @property
    def first(self) -> Version:
        """The first version that has it."""
        return self.versions[0]

    @property
    def last(self) -> Version:
        """The last version that has it."""
        return self.versions[-1]

    @property
    def stem(self) -> str:
        """The name without what marks it as private."""
        return self.function.lstrip("_")

    @property
    def symbol(self) -> str:
        """Where it is, as `module:function`."""
        return f"{self.module}:{self.function}"

    @property
    def symbols(self) -> tuple[str, ...]:
        """Every place it is imported from."""
        exported = (f"{self.library}:{self.function}",) if self.is_exported else ()
        return (self.symbol, *exported)

    def __str__(self) -> str:
        return f"`{self.symbol}` with {len(self.signature.parameters)} parameters"


@dataclass(frozen=True, slots=True)
class Need:
    """A function that a call was written for.

    Attributes:
        function: its name without `_` in front.
        backend: what it has to run.
        signatures: those that the call fits.
    """

    function: str
    backend: Backend
    signatures: tuple[Signature, ...]

    def accepts(self, form: Form) -> bool:
        """Whether `form` is what is needed: by its signature; a name alone says nothing."""
        named = form.stem == self.function and form.backend == self.backend
        return named and form.signature in self.signatures


def needs(function: str, backend: Backend, *signatures: str) -> Need:
    """A `Need` with signatures as text."""
    return Need(function, backend, tuple(map(parse_signature, signatures)))


@dataclass(frozen=True, slots=True)
class Refusal:
    """No form of a version is what is needed; each reason is one line."""

    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.reasons)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a library.

    Attributes:
        library: its name for `--provider`, which is also what one imports.
        distributions: names under which it is installed, the newest first, each with the first
            version that has it.
        versions: its releases, in order.
        forms: every function that was written down.
    """

    library: str
    distributions: tuple[tuple[str, Version], ...]
    versions: tuple[Version, ...]
    forms: tuple[Form, ...]

    def distributions_of(self, version: Version) -> tuple[str, ...]:
        """Names under which it is installed, that of `version` first."""
        names = [name for name, first in self.distributions if first <= version]
        return tuple(dict.fromkeys((*names, *(name for name, _ in self.distributions))))

    def forms_of(self, version: Version) -> tuple[Form, ...]:
        """What `version` has."""
        return tuple(form for form in self.forms if version in form.versions)

    def lookup(self, version: Version, need: Need) -> Form | Refusal:
        """The form of `version` that is what is needed, or why there is none."""
        held = self.forms_of(version)
        for form in held:
            if need.accepts(form):
                return form
        name = f"{self.library} {version}"
        reasons = [
            f"{name} has {form}, which is another kernel: {_wanted(form, need)}"
            for form in held
            if form.stem == need.function
        ]
        return Refusal((*(reasons or [f"{name} has no `{need.function}`"]), *self._others(need)))

    def _others(self, need: Need) -> Iterator[str]:
        """The versions that have what is needed, in a few words."""
        accepted = [form for form in self.forms if need.accepts(form)]
        if accepted:
            first = min(form.first for form in accepted)
            last = max(form.last for form in accepted)
            yield f"{first} to {last} have the one that is needed"


def _wanted(form: Form, need: Need) -> str:
    """How the function that is needed differs from `form`."""
    if form.backend != need.backend:
        return f"it runs {form.backend} and not {need.backend} kernels"
    counts = sorted({len(signature.parameters) for signature in need.signatures})
    if len(form.signature.parameters) in counts:
        return "its parameters are not those of the one that is needed"
    return f"the one that is needed has {' or '.join(map(str, counts))}"


def read_manifest(
    library: str,
    distributions: Mapping[str, str],
    backend_of: Callable[[str], Backend],
    file: Path,
) -> Manifest:
    """Read what a reader of sources, such as `read_aiter`, wrote to `file`.

    Args:
        library: the library's name.
        distributions: names under which it is installed, the newest first, and the first version
            of each.
        backend_of: what the functions of a module run.
        file: JSON: `versions` in order, and `forms` with the spans of versions that have them.
    """
    document = json.loads(file.read_text(encoding="ascii"))
    versions = tuple(_version(text) for text in document["versions"])
    forms: list[Form] = []
    for each in document["forms"]:
        spans = [(_version(first), _version(last)) for first, last in each["spans"]]
        forms.append(
            Form(
                library=library,
                module=each["module"],
                function=each["function"],
                signature=parse_signature(each["signature"]),
                backend=backend_of(each["module"]),
                is_operator=each["operator"],
                is_exported=each["exported"],
                versions=tuple(
                    version
                    for version in versions
                    if any(first <= version <= last for first, last in spans)
                ),
            )
        )
    names = tuple((name, _version(first)) for name, first in distributions.items())
    return Manifest(library, names, versions, tuple(forms))


def _version(text: str) -> Version:
    version = parse_version(text)
    if version is None:
        raise InternalError(f"the manifest has `{text}` for a version")
    return version
