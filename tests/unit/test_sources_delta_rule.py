"""Gated delta rules are found by signature, confirmed by running, and put back afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_models import build, reference

from fusec.frontend import load_source
from fusec.frontend.callables import find, has_signature
from fusec.frontend.delta_rule import ROLES, gated_delta_rule, replaced
from fusec.ir.interpret import interpret


def loop(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A gated delta rule written as a loop over the sequence, in another way than the tests'."""
    if use_qk_l2norm_in_kernel:
        q = q / (q.pow(2).sum(-1, keepdim=True) + 1e-5).sqrt()
        k = k / (k.pow(2).sum(-1, keepdim=True) + 1e-5).sqrt()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    outputs = []
    state = torch.zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    for t in range(q.shape[1]):
        decay = g[:, t].exp()
        state = state * (decay[..., None, None] if g.ndim == 3 else decay[..., None])
        predicted = (k[:, t, :, None] @ state).squeeze(2)
        delta = (v[:, t] - predicted) * beta[:, t, :, None]
        state = state + k[:, t, :, :, None] * delta[:, :, None]
        outputs.append((q[:, t, :, None] @ state).squeeze(2) * scale)
    return torch.stack(outputs, 1), state if output_final_state else None


LOOP = loop
"""The function itself, whatever the name `loop` stands for while it is replaced."""


def wrong(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
) -> torch.Tensor:
    """Has the signature, but forgets the rate."""
    return loop(query, key, value, g, torch.ones_like(beta))[0]


class Layer(torch.nn.Module):
    """Calls a delta rule that it holds as an attribute, or names as a global."""

    def __init__(self, rule: Callable[..., Any] | None = None, **options: Any) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(12, 5 * 12)
        self.options = options
        if rule is not None:
            self.chunk_rule = rule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.mix(x).view(*x.shape[:2], 5, 2, 6).unbind(2)
        q, k, v = parts[:3]
        g, beta = -torch.nn.functional.softplus(parts[3].sum(-1)), parts[4].sum(-1).sigmoid()
        rule = getattr(self, "chunk_rule", None)
        made = rule(q, k, v, g, beta, **self.options) if rule else loop(q, k, v, g, beta)
        output = made[0] if isinstance(made, tuple) else made
        result: torch.Tensor = x + output.flatten(2)
        return result


def _load(layer: torch.nn.Module) -> Any:
    return load_source(
        layer, example_inputs=torch.randn(2, 7, 12), dims={"batch": (1, 9), "seq": (1, 300)}
    )


def _check(layer: torch.nn.Module, source: Any) -> None:
    for length in (5, 130):
        x = torch.randn(1, length, 12)
        with torch.no_grad():
            expected = layer.double()(x.double()).numpy()
        layer.float()
        found = interpret(source.graph, {source.graph.inputs[0]: x.numpy()})["output"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "norm", "scale"),
    [
        ({}, False, 6**-0.5),
        ({"use_qk_l2norm_in_kernel": True}, True, 6**-0.5),
        ({"scale": 0.25, "cu_seqlens": None}, False, 0.25),
    ],
)
def test_an_attribute_is_replaced(options: dict[str, Any], norm: bool, scale: float) -> None:
    layer = Layer(loop, **options)
    source = _load(layer)
    rules = [node for node in source.graph.nodes() if node.op == "gated_delta_rule"]
    assert len(rules) == 1
    assert rules[0].attrs["qk_l2_norm"] is norm
    assert rules[0].attrs["scale"] == pytest.approx(scale)
    if norm:
        assert rules[0].attrs["eps"] == 1e-5
    assert [(held.fusion, held.status) for held in source.decisions] == [
        ("gated_delta_rule", "fired")
    ]
    assert layer.chunk_rule is LOOP
    _check(layer, source)


def test_a_global_of_the_code_is_replaced_and_put_back() -> None:
    layer = torch.nn.Sequential(Layer(), Layer())
    source = _load(layer)
    assert loop is LOOP
    rules = [node.origin.path for node in source.graph.nodes() if node.op == "gated_delta_rule"]
    assert rules == ["0", "1"]
    assert sorted(held.site for held in source.decisions) == ["0", "1"]
    _check(layer, source)


def test_what_is_not_the_rule_is_left_alone() -> None:
    layer = Layer(wrong)
    with replaced(layer) as log:
        assert layer.chunk_rule is wrong
    (decision,) = (held for held in log if "wrong" in (held.reason or ""))
    assert decision.code == "delta_rule.not_confirmed"
    assert decision.status == "refused" and decision.hint


def test_a_call_with_a_state_is_left_alone() -> None:
    state = torch.randn(2, 2, 6, 6)
    layer = Layer(loop, initial_state=state)
    x = torch.randn(2, 4, 12)
    with torch.no_grad():
        expected = layer(x)
        with replaced(layer) as log:
            assert torch.equal(layer(x), expected)
    assert [held.code for held in log] == ["delta_rule.call_not_confirmed"]
    assert "initial_state" in (log[0].reason or "")


def test_it_is_put_back_when_the_export_fails() -> None:
    layer = Layer(loop)
    with pytest.raises(ZeroDivisionError), replaced(layer):
        assert layer.chunk_rule is not LOOP
        raise ZeroDivisionError
    assert layer.chunk_rule is LOOP


def test_signatures() -> None:
    assert has_signature(loop, ROLES) and has_signature(wrong, ROLES)
    assert not has_signature(torch.nn.functional.scaled_dot_product_attention, ROLES)
    assert not has_signature(lambda q, k, v: q, ROLES)
    assert not has_signature(lambda key, query, value, g, beta: key, ROLES)
    assert not has_signature(Layer, ROLES)


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_operation_is_the_ir_operation(per_channel: bool) -> None:
    from fusec.ir.ops import op_named
    from fusec.ir.types import TensorType

    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 2, 9, 2, 4))
    v = rng.standard_normal((2, 9, 6, 3))
    g = -np.abs(rng.standard_normal((2, 9, 6, 4) if per_channel else (2, 9, 6)))
    beta = rng.uniform(size=(2, 9, 6))
    attrs = {"scale": 0.3, "qk_l2_norm": True, "eps": 1e-6}
    arrays = [q, k, v, g, beta]
    kind = TensorType("f32", v.shape)
    (expected,) = op_named("gated_delta_rule").reference(arrays, attrs, (kind,))
    tensors = [torch.from_numpy(array).float() for array in arrays]
    found = gated_delta_rule(*tensors, 0.3, True, 1e-6).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), [("qwen3_next", 3), ("kimi_linear", 4)])
def test_models_of_transformers(name: str, layers: int, tmp_path: Path) -> None:
    folder = build(name, tmp_path / name)
    source = load_source(folder)
    operations = [node.op for node in source.graph.nodes()]
    assert operations.count("gated_delta_rule") == layers
    assert len(operations) < 800
    assert source.graph.symbols["seq"] == (1, 512)
    model = reference(folder).double()
    assert len(find(model, ROLES)) == 2
    for length in (5, 130):
        ids = torch.randint(3, 300, (1, length))
        with torch.no_grad():
            expected = model(input_ids=ids, use_cache=False).logits.numpy()
        found = interpret(source.graph, {"input_ids": ids.numpy()})["logits"]
        assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()
