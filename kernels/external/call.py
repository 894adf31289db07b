"""What the runtime needs in order to call a function of a library that is installed beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fusec.signatures import Signature

Given = Literal["operand", "value", "dtype"]
"""Where an argument comes from."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument, given by the name of its parameter.

    Attributes:
        name: of the parameter.
        given: `operand` is a tensor in a place of the launch, `value` a constant, `dtype` an
            element type by fusec's name.
        value: the number of the operand of the launch; the constant; the dtype.
    """

    name: str
    given: Given
    value: bool | int | float | str | None

    def document(self) -> list[object]:
        """The same as JSON."""
        return [self.name, self.given, self.value]


@dataclass(frozen=True, slots=True)
class ExternalCall:
    """One call of a library's function, with the signature it must be found to have.

    Attributes:
        library: the library's name for `--provider`, such as `aiter`.
        version: the version that was asked for.
        versions: all versions known to have the function in this form; another one must not be
            installed in its place.
        distributions: names under which the library is installed, that of `version` first.
        module: where the function is.
        function: its name there.
        signature: what it must be.
        operator: the operator of torch that states the signature where the library hides the
            function behind a wrapper, such as `aiter::rmsnorm`; "" where it does not.
        arguments: by name; a parameter that is not named keeps its default.
        returned: for each value that the call returns, in order and without their nesting, the
            number of the operand of the launch that its elements are copied to, or `None` where it
            is not wanted; empty when results are written in place.
    """

    library: str
    version: str
    versions: tuple[str, ...]
    distributions: tuple[str, ...]
    module: str
    function: str
    signature: Signature
    operator: str
    arguments: tuple[Argument, ...]
    returned: tuple[int | None, ...] = ()

    @property
    def symbol(self) -> str:
        """The name that launches and messages use."""
        return f"{self.module}:{self.function}"

    def document(self) -> dict[str, object]:
        """The same as JSON."""
        return {
            "library": self.library,
            "version": self.version,
            "versions": list(self.versions),
            "distributions": list(self.distributions),
            "module": self.module,
            "function": self.function,
            "signature": str(self.signature),
            "operator": self.operator,
            "arguments": [argument.document() for argument in self.arguments],
            "returned": list(self.returned),
        }
