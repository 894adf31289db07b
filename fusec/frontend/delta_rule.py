"""Gated delta rules: chunked loops are replaced by one operation before a model is exported.

The loops of `torch_chunk_gated_delta_rule` and its like would be unrolled into a thousand nodes a
layer, and fix the length of the sequence.  What to replace is found by its signature alone
(`fusec.frontend.callables`), and replaced only where it was run and found to compute

    S = exp(g_t) S;  S += k_t (beta_t (v_t - k_t S));  o_t = scale q_t S

for the kind of gate, the grouping of heads and the normalisation that it is then called with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fusec.frontend.callables import Candidate, extra_given, find, holding, refuse, run
from fusec.rewrite.decisions import Decision

FUSION = "gated_delta_rule"
ROLES = (
    frozenset({"q", "query", "queries", "query_states"}),
    frozenset({"k", "key", "keys", "key_states"}),
    frozenset({"v", "value", "values", "value_states"}),
    frozenset({"g", "gk", "gate", "decay", "log_decay"}),
    frozenset({"beta", "betas"}),
)
"""What the first five parameters are called: queries, keys, values, log decays, rates."""

NORMALISES = ("use_qk_l2norm_in_kernel", "use_qk_l2norm", "qk_l2norm")
FREE = frozenset({"chunk_size", "output_final_state"})
"""Parameters that do not change the result (the state is asked for and then dropped)."""

EPSILONS = (1e-6, 1e-5, 1e-12, 1e-8, 1e-7, 1e-3, 0.0)
LENGTHS = (5, 70)
TOLERANCE = 1e-3


@torch.library.custom_op("fusec::gated_delta_rule", mutates_args=())
def gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    qk_l2_norm: bool,
    eps: float,
) -> torch.Tensor:
    """The rule of the module's docstring, step by step in f32.

    Args:
        q: queries [B, S, Hk, Dk].
        k: keys, as `q`.
        v: values [B, S, H, Dv], H a multiple of Hk.
        g: log decays [B, S, H] or [B, S, H, Dk].
        beta: rates [B, S, H].
        scale: of the queries.
        qk_l2_norm: whether q and k are divided by sqrt(sum of squares + eps) first.
        eps: see there.

    Returns:
        [B, S, H, Dv] in the dtype of `v`.
    """
    return _reference(q, k, v, g, beta, scale, eps if qk_l2_norm else None, torch.float32)


@gated_delta_rule.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    qk_l2_norm: bool,
    eps: float,
) -> torch.Tensor:
    return v.new_empty(v.shape)


def _reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    eps: float | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    kind = v.dtype
    q, k, v, g, beta = (part.to(dtype) for part in (q, k, v, g, beta))
    if eps is not None:
        q, k = (part * (part.square().sum(-1, keepdim=True) + eps).rsqrt() for part in (q, k))
    group = v.shape[2] // q.shape[2]
    q, k = (part.repeat_interleave(group, 2) for part in (q * scale, k))
    decay = g.exp() if g.ndim == 4 else g.exp().unsqueeze(-1)
    state = v.new_zeros((*k[:, 0].shape, v.shape[-1]))
    steps = []
    for step in range(v.shape[1]):
        state = state * decay[:, step].unsqueeze(-1)
        held = torch.einsum("bhk,bhkv->bhv", k[:, step], state)
        change = (v[:, step] - held) * beta[:, step].unsqueeze(-1)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, step], change)
        steps.append(torch.einsum("bhk,bhkv->bhv", q[:, step], state))
    return torch.stack(steps, 1).to(kind)


# --- confirming -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Form:
    """How a delta rule is called.

    Attributes:
        per_channel: whether a head has a gate for each channel of its keys.
        grouped: whether there are fewer key heads than value heads.
        flag: the value of its normalisation flag; `None` if it has none.
        scaled: whether a scale is given.
    """

    per_channel: bool
    grouped: bool
    flag: bool | None
    scaled: bool


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What a form computes: with `eps`, or without normalisation; a pair, or the output alone."""

    eps: float | None
    pair: bool


@dataclass(slots=True)
class _Rule:
    """A callable under test, and what was found out about it."""

    function: Callable[..., Any]
    signature: inspect.Signature
    forms: dict[_Form, _Meaning | None] = field(default_factory=dict)

    def meaning(self, form: _Form) -> _Meaning | None:
        """What the callable computes in `form`; `None` if it is not the rule."""
        return self.forms.get(form)

    def confirm(self) -> None:
        """Run the callable in every form that its signature has, against the reference."""
        flag = self.flag_name
        flags: tuple[bool | None, ...] = (None,) if flag is None else (False, True)
        scales = (False, True) if "scale" in self.signature.parameters else (False,)
        for per_channel in (False, True):
            for grouped in (False, True):
                for given in flags:
                    for scaled in scales:
                        form = _Form(per_channel, grouped, given, scaled)
                        self.forms[form] = self._confirm(form)

    @property
    def flag_name(self) -> str | None:
        """The parameter that asks for normalised queries and keys."""
        return next((name for name in NORMALISES if name in self.signature.parameters), None)

    def _confirm(self, form: _Form) -> _Meaning | None:
        agreed: _Meaning | None = None
        for seed, length in enumerate(LENGTHS):
            inputs = _inputs(form, length, seed)
            scale = 0.37 if form.scaled else inputs["q"].shape[-1] ** -0.5
            made = run(self.function, inputs.values(), self._extras(form))
            pair = isinstance(made, tuple)
            output = made[0] if pair and made else made
            if not isinstance(output, torch.Tensor) or output.shape != inputs["v"].shape:
                return None
            found = [
                _Meaning(eps, pair)
                for eps in ((None,) if form.flag is False else (None, *EPSILONS))
                if _close(output, _expected(inputs, scale, eps))
            ]
            if agreed is None and found:
                agreed = found[0]
            if agreed not in found:
                return None
        return agreed

    def _extras(self, form: _Form) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        for name, parameter in list(self.signature.parameters.items())[len(ROLES) :]:
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if name == self.flag_name:
                extras[name] = form.flag
            elif name == "scale" and form.scaled:
                extras[name] = 0.37
            elif parameter.default is parameter.empty:
                extras[name] = False if name == "output_final_state" else None
        return extras


def _inputs(form: _Form, length: int, seed: int) -> dict[str, torch.Tensor]:
    """Random inputs; some keys are so short that the eps of a norm shows."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    batch, heads, wide, deep = 2, 4, 8, 6
    key_heads = 2 if form.grouped else heads
    normed = form.flag is not False
    size = torch.tensor([1.0, 1e-3] * (key_heads // 2)).view(1, 1, key_heads, 1)
    size = size if normed else torch.full_like(size, wide**-0.5)
    gate = (batch, length, heads, wide) if form.per_channel else (batch, length, heads)
    return {
        "q": normal(batch, length, key_heads, wide) * size,
        "k": normal(batch, length, key_heads, wide) * size,
        "v": normal(batch, length, heads, deep),
        "g": -nn.functional.softplus(normal(*gate)) * 0.3,
        "beta": torch.sigmoid(normal(batch, length, heads)),
    }


def _expected(inputs: Mapping[str, torch.Tensor], scale: float, eps: float | None) -> torch.Tensor:
    q, k, v, g, beta = inputs.values()
    return _reference(q, k, v.double(), g, beta, scale, eps, torch.float64)


def _close(output: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether each head agrees, relative to the largest value of that head."""
    if not bool(output.isfinite().all()):
        return False
    error = (output.double() - expected.double()).abs().amax((0, 1, 3))
    size = expected.double().abs().amax((0, 1, 3))
    return bool((error <= TOLERANCE * size + 1e-30).all())


# --- replacing ------------------------------------------------------------------------------


@contextmanager
def replaced(module: nn.Module) -> Iterator[list[Decision]]:
    """`module` with its delta rules replaced by one operation each; as before afterwards.

    Gives a list to which refusals are added: a callable that looks like a delta rule and is not
    confirmed to be one, or is called in a form that was not confirmed, is left as it is.
    """
    log: list[Decision] = []
    stand_ins: list[tuple[Candidate, object]] = []
    for candidate in find(module, ROLES):
        rule = _Rule(candidate.function, inspect.signature(candidate.function))
        rule.confirm()
        if any(rule.forms.values()):
            stand_ins.append((candidate, _stand_in(rule, candidate, log)))
        else:
            why = "does not compute the gated delta rule"
            refuse(log, FUSION, "delta_rule.not_confirmed", candidate, why)
    with holding(stand_ins):
        yield log


def _stand_in(
    rule: _Rule, candidate: Candidate, log: list[Decision]
) -> Callable[..., torch.Tensor | tuple[torch.Tensor, None]]:
    def call(*args: Any, **kwargs: Any) -> Any:
        given = rule.signature.bind(*args, **kwargs)
        given.apply_defaults()
        names = list(rule.signature.parameters)
        q, k, v, g, beta = (given.arguments[name] for name in names[: len(ROLES)])
        rest = {name: given.arguments[name] for name in names[len(ROLES) :]}
        why = _unfit(rule, rest)
        if why is None and not (q.dtype == k.dtype == v.dtype):
            why = "queries, keys and values have different dtypes"
        scale = rest.get("scale")
        flag = None if rule.flag_name is None else bool(rest[rule.flag_name])
        form = _Form(g.ndim == 4, q.shape[2] != v.shape[2], flag, scale is not None)
        meaning = rule.meaning(form)
        if why is None and meaning is None:
            why = "it does not compute the gated delta rule for this gate and these heads"
        if why is not None or meaning is None:
            refuse(log, FUSION, "delta_rule.call_not_confirmed", candidate, f"is left alone: {why}")
            return rule.function(*args, **kwargs)
        factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
        eps = meaning.eps
        output = gated_delta_rule(
            q, k, v, g, beta, float(factor), eps is not None, 0.0 if eps is None else eps
        )
        return (output, None) if meaning.pair else output

    return call


def _unfit(rule: _Rule, rest: Mapping[str, Any]) -> str | None:
    """Why a call with these further arguments is not the plain rule; `None` if it is."""
    for name, value in rest.items():
        parameter = rule.signature.parameters[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            if (key := extra_given(rule.function, value)) is not None:
                return f"it is given `{key}`"
        elif name == "output_final_state":
            if value:
                return "its final state is asked for"
        elif name not in FREE and name not in (rule.flag_name, "scale"):
            if value is not None and value is not False and value is not parameter.default:
                return f"it is given `{name}`"
    return None
