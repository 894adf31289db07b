"""Selective scans: loops over a sequence are replaced by one operation before a model is exported.

The loop of `mamba_selective_scan` and its like would be unrolled, and fix the length of the
sequence; the chunks of `mamba2_chunk_scan` would be padded, and bound it.  What to replace is found
by its signature alone (`fusec.frontend.callables`), and replaced only where it was run and found to
compute, for each channel d and state n,

    h = exp(dt_t A) h + dt_t u_t B_t;  y_t = sum over n of C_t h

and what may be around it: a bias, softplus and limits for dt, D u added to y, and a gate.  In the
form of Mamba each state of a channel has its A; in that of Mamba-2 a head of channels shares one.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fusec.frontend.callables import Candidate, extra_given, find, holding, refuse, run
from fusec.rewrite.decisions import Decision

FUSION = "selective_scan"
ROLES = (
    frozenset({"u", "x", "hidden_states"}),
    frozenset({"delta", "dt"}),
    frozenset({"a"}),
    frozenset({"b"}),
    frozenset({"c"}),
)
"""What the first five parameters are called: inputs, steps of time, decays, and what the state
takes in and gives out."""

FREE = frozenset({"use_mambapy", "use_associative_scan", "chunk_size"})
"""Parameters that do not change the result."""

LENGTHS = (5, 33)
CHUNK = 4
"""What is run: sequences of these lengths, in chunks of which none divides them."""

TOLERANCE = 1e-4


@torch.library.custom_op("fusec::selective_scan", mutates_args=())
def selective_scan(
    u: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    """The scan of the module's docstring, step by step in f32 or wider.

    Args:
        u: inputs [B, S, D].
        dt: steps of time [B, S, H] in f32 or wider: D / H channels side by side share one.
        a: decays, [D, N] where H is D, or [H, 1].
        b: what the state takes in [B, S, G, N]: H / G heads side by side share it.
        c: what it gives out [B, S, G, N].

    Returns:
        [B, S, D] in the dtype of `dt`.
    """
    channels = u.shape[2]
    a = a.repeat_interleave(channels // a.shape[0], 0)
    state = dt.new_zeros((u.shape[0], channels, b.shape[3]))
    steps = []
    for step in range(u.shape[1]):
        time, takes, gives = (
            part[:, step].to(dt.dtype).repeat_interleave(channels // part.shape[2], 1)
            for part in (dt, b, c)
        )
        state = torch.exp(time[..., None] * a) * state + (time * u[:, step])[..., None] * takes
        steps.append((state * gives).sum(-1))
    return torch.stack(steps, 1)


@selective_scan.register_fake
def _(
    u: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    return dt.new_empty(u.shape)


# --- the forms of a scan --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Form:
    """How a scan is called.

    Attributes:
        around: the parameters that say what is around it.
        ranks: of the first five arguments.
        compute: the scan of those, with what is around it.
        inputs: random operands of a length, and a value for each parameter of `around`.
    """

    around: tuple[str, ...]
    ranks: tuple[int, ...]
    compute: Callable[..., torch.Tensor]
    inputs: Callable[[int], tuple[tuple[torch.Tensor, ...], dict[str, Any]]]


def _by_channel(
    operands: Sequence[torch.Tensor],
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
) -> torch.Tensor:
    """u and dt [B, D, S], a [D, N], b and c [B, N, S]."""
    u, dt, a, b, c = operands
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[:, None]
    if delta_softplus:
        dt = functional.softplus(dt)
    b, c = (part.to(u.dtype).transpose(1, 2).unsqueeze(2) for part in (b, c))
    rows = selective_scan(u.transpose(1, 2), _wide(dt).transpose(1, 2), _wide(a), b, c)
    y: torch.Tensor = rows.transpose(1, 2).to(u.dtype)
    if D is not None:
        y = y + u * D[:, None]
    return y if z is None else y * functional.silu(z)


def _by_head(
    operands: Sequence[torch.Tensor],
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> torch.Tensor:
    """u [B, S, H, P], dt [B, S, H], a [H], b and c [B, S, G, N]; the result is f32 or wider."""
    u, dt, a, b, c = operands
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if dt_softplus:
        dt = functional.softplus(dt)
    dt = torch.clamp(dt, *dt_limit)
    rows = selective_scan(u.flatten(2), _wide(dt), _wide(a)[:, None], b.to(u.dtype), c.to(u.dtype))
    y: torch.Tensor = rows.unflatten(2, u.shape[2:])
    return y if D is None else y + _wide(u) * D[..., None]


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _inputs_by_channel(length: int) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    batch, channels, states = 2, 6, 4
    sequence, state = (batch, channels, length), (batch, states, length)
    normal = _generator(length)
    inputs = (
        normal(*sequence),
        functional.softplus(normal(*sequence)),
        -normal(channels, states).exp(),
        normal(*state),
        normal(*state),
    )
    return inputs, {
        "D": normal(channels),
        "z": normal(*sequence),
        "delta_bias": normal(channels),
        "delta_softplus": True,
    }


def _inputs_by_head(length: int) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    batch, heads, width, groups, states = 2, 6, 3, 2, 4
    sequence, state = (batch, length, heads), (batch, length, groups, states)
    normal = _generator(length)
    inputs = (
        normal(*sequence, width),
        functional.softplus(normal(*sequence)),
        -normal(heads).exp(),
        normal(*state),
        normal(*state),
    )
    return inputs, {
        "D": normal(heads),
        "dt_bias": normal(heads),
        "dt_softplus": True,
        "dt_limit": (0.3, 1.1),
    }


def _generator(seed: int) -> Callable[..., torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=random)


FORMS = (
    _Form(
        ("D", "z", "delta_bias", "delta_softplus"),
        (3, 3, 2, 3, 3),
        _by_channel,
        _inputs_by_channel,
    ),
    _Form(
        ("D", "dt_bias", "dt_softplus", "dt_limit"),
        (4, 3, 1, 4, 4),
        _by_head,
        _inputs_by_head,
    ),
)
"""Those of Mamba and of Mamba-2."""


# --- confirming and replacing ---------------------------------------------------------------


@contextmanager
def replaced(module: nn.Module) -> Iterator[list[Decision]]:
    """`module` with its selective scans replaced by one operation each; as before afterwards.

    Gives a list to which refusals are added: a callable that looks like one and is not confirmed to
    be one, or is called in a form that was not confirmed, is left as it is.
    """
    log: list[Decision] = []
    stand_ins: list[tuple[Candidate, object]] = []
    for candidate in find(module, ROLES):
        form = next((form for form in FORMS if _confirmed(candidate.function, form)), None)
        if form is not None:
            stand_ins.append((candidate, _stand_in(candidate, form, log)))
        else:
            why = "does not compute a selective scan"
            refuse(log, FUSION, "selective_scan.not_confirmed", candidate, why)
    with holding(stand_ins):
        yield log


def _confirmed(function: Callable[..., Any], form: _Form) -> bool:
    """Whether the callable computes the scan in this form, whatever is around it."""
    known = inspect.signature(function).parameters
    if any(name not in known for name in form.around):
        return False
    chunks = {"chunk_size": CHUNK} if "chunk_size" in known else {}
    for length, flags in itertools.product(LENGTHS, itertools.product((False, True), repeat=4)):
        inputs, parts = form.inputs(length)
        around = {name: parts[name] for name, flag in zip(form.around, flags, strict=True) if flag}
        expected = form.compute([part.double() for part in inputs], **_double(around))
        found = run(function, inputs, {**chunks, **around})
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            return False
        error, size = (found.double() - expected).abs().max(), expected.abs().max()
        if not bool(error <= TOLERANCE * size):
            return False
    return True


def _double(around: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: part.double() if isinstance(part, torch.Tensor) else part
        for name, part in around.items()
    }


def _stand_in(candidate: Candidate, form: _Form, log: list[Decision]) -> Callable[..., Any]:
    signature = inspect.signature(candidate.function)
    names = list(signature.parameters)

    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        operands = [given.arguments[name] for name in names[: len(ROLES)]]
        why = _unfit(candidate.function, signature, form, given.arguments)
        if why is not None:
            refuse(log, FUSION, "selective_scan.call_not_confirmed", candidate, why)
            return candidate.function(*args, **kwargs)
        return form.compute(operands, **{name: given.arguments[name] for name in form.around})

    return call


def _unfit(
    function: Callable[..., Any],
    signature: inspect.Signature,
    form: _Form,
    arguments: Mapping[str, Any],
) -> str | None:
    """Why a call with these arguments is not the plain scan; `None` if it is."""
    names = list(signature.parameters)
    ranks = tuple(arguments[name].ndim for name in names[: len(ROLES)])
    if ranks != form.ranks:
        return f"is given operands of ranks {ranks}, not {form.ranks}"
    for name in names[len(ROLES) :]:
        value = arguments[name]
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            if (key := extra_given(function, value)) is not None:
                return f"is given `{key}`"
        elif name not in form.around and name not in FREE:
            if value is not None and value is not False:
                return f"is given `{name}`"
    return None
