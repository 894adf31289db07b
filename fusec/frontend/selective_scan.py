"""Selective scans: loops over a sequence are replaced by one operation before a model is exported.

The loop of `mamba_selective_scan` and its like would be unrolled, and fix the length of the
sequence.  What to replace is found by its signature alone (`fusec.frontend.callables`), and
replaced only where it was run and found to compute, for each channel d and state n,

    h = exp(dt_t A) h + dt_t u_t B_t;  y_t = sum over n of C_t h

and what may be around it: a bias and softplus for dt, D u added to y, and a gate.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fusec.frontend.callables import Candidate, find, holding, run

ROLES = (
    frozenset({"u", "x", "hidden_states"}),
    frozenset({"delta", "dt"}),
    frozenset({"a"}),
    frozenset({"b"}),
    frozenset({"c"}),
)
"""What the first five parameters are called: inputs, steps of time, decays, and what the state
takes in and gives out."""

AROUND = ("D", "z", "delta_bias", "delta_softplus")
"""The parameters that say what is around the scan."""

FREE = frozenset({"use_mambapy", "use_associative_scan"})
"""Parameters that do not change the result."""

LENGTHS = (5, 33)
TOLERANCE = 1e-4


@torch.library.custom_op("fusec::selective_scan", mutates_args=())
def selective_scan(
    u: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    """The scan of the module's docstring, step by step in f32 or wider.

    Args:
        u: inputs [B, D, S].
        dt: steps of time [B, D, S].
        a: decays [D, N].
        b: what the state takes in [B, N, S].
        c: what it gives out [B, N, S].

    Returns:
        [B, D, S] in the dtype of `u`.
    """
    kind, (u, dt, a, b, c) = u.dtype, map(_wide, (u, dt, a, b, c))
    state = u.new_zeros((*u.shape[:2], a.shape[1]))
    steps = []
    for step in range(u.shape[2]):
        taken = (dt * u)[:, :, step, None] * b[:, None, :, step]
        state = torch.exp(dt[:, :, step, None] * a) * state + taken
        steps.append((state * c[:, None, :, step]).sum(-1))
    return torch.stack(steps, -1).to(kind)


@selective_scan.register_fake
def _(
    u: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    return u.new_empty(u.shape)


@contextmanager
def replaced(module: nn.Module) -> Iterator[None]:
    """`module` with its selective scans replaced by one operation each; as before afterwards.

    A callable that looks like one and is not confirmed to be one, or is called in a form that was
    not confirmed, is left as it is.
    """
    with holding(
        (candidate, _stand_in(candidate))
        for candidate in find(module, ROLES)
        if _confirmed(candidate.function)
    ):
        yield


def _confirmed(function: Callable[..., Any]) -> bool:
    """Whether the callable computes the scan, whatever is around it."""
    known = inspect.signature(function).parameters
    if any(name not in known for name in AROUND):
        return False
    for length, flags in itertools.product(LENGTHS, itertools.product((False, True), repeat=4)):
        inputs, around = _inputs(length, dict(zip(AROUND, flags, strict=True)))
        expected = _around([part.double() for part in inputs], **_double(around))
        found = run(function, inputs, around)
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            return False
        error, size = (found.double() - expected).abs().max(), expected.abs().max()
        if not bool(error <= TOLERANCE * size):
            return False
    return True


def _inputs(
    length: int, flags: Mapping[str, bool]
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Random operands, and what is around the scan where `flags` say so."""
    random = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    batch, channels, states = 2, 6, 4
    sequence, state = (batch, channels, length), (batch, states, length)
    inputs = (
        normal(*sequence),
        functional.softplus(normal(*sequence)),
        -normal(channels, states).exp(),
        normal(*state),
        normal(*state),
    )
    around = {"D": normal(channels), "z": normal(*sequence), "delta_bias": normal(channels)}
    given: dict[str, Any] = {name: part for name, part in around.items() if flags[name]}
    return inputs, {**given, "delta_softplus": flags["delta_softplus"]}


def _double(around: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: part.double() if isinstance(part, torch.Tensor) else part
        for name, part in around.items()
    }


def _around(
    operands: Sequence[torch.Tensor],
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
) -> torch.Tensor:
    """The scan with what is around it."""
    u, dt, a, b, c = operands
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[:, None]
    if delta_softplus:
        dt = functional.softplus(dt)
    y: torch.Tensor = selective_scan(u, _wide(dt), _wide(a), b.to(u.dtype), c.to(u.dtype))
    if D is not None:
        y = y + u * D[:, None]
    return y if z is None else y * functional.silu(z)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _stand_in(candidate: Candidate) -> Callable[..., Any]:
    signature = inspect.signature(candidate.function)
    names = list(signature.parameters)

    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        operands = [given.arguments[name] for name in names[: len(ROLES)]]
        around = {name: given.arguments[name] for name in AROUND}
        rest = [given.arguments[name] for name in names if name not in {*AROUND, *FREE}]
        plain = all(value is None or value is False or value == {} for value in rest[len(ROLES) :])
        if plain and [part.ndim for part in operands] == [3, 3, 2, 3, 3]:
            return _around(operands, **around)
        return candidate.function(*args, **kwargs)

    return call
