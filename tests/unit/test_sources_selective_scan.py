"""Selective scans are found by signature, confirmed by running, and put back afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fusec.frontend import load_source
from fusec.frontend.selective_scan import replaced, selective_scan
from fusec.ir import Graph
from fusec.ir.interpret import interpret

CHANNELS, STATES = 6, 4


def scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **kwargs: Any,
) -> Any:
    """A selective scan written as a loop over the sequence, in another way than the operation."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    delta = functional.softplus(delta) if delta_softplus else delta
    state, outputs = torch.zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        state = (step * A).exp() * state + step * B[:, None, :, t] * u[:, :, t, None]
        outputs.append((state @ C[:, :, t, None])[..., 0])
    y = torch.stack(outputs, -1)
    y = y if D is None else y + D[:, None] * u
    y = y if z is None else y * functional.silu(z)
    return (y, state) if return_last_state else y


def without_time(u: Any, delta: Any, A: Any, B: Any, C: Any, **around: Any) -> Any:
    """Has the signature, but its states take in what does not depend on the step of time."""
    return scan(u / delta, delta, A, B, C, **around)


def loose(u: Any, delta: Any, A: Any, B: Any, C: Any) -> Any:
    """Computes the scan, but nothing around it."""
    return scan(u, delta, A, B, C)


class Layer(torch.nn.Module):
    """Calls a selective scan that it holds as an attribute."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(CHANNELS, 3 * CHANNELS + 2 * STATES)
        self.a = torch.nn.Parameter(torch.randn(CHANNELS, STATES))
        self.d = torch.nn.Parameter(torch.randn(CHANNELS))
        self.scan = function
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sizes = [CHANNELS] * 3 + [STATES] * 2
        u, delta, z, b, c = self.mix(x).transpose(1, 2).split(sizes, 1)
        found = self.scan(
            u, delta, -self.a.exp(), b, c, D=self.d, z=z, delta_softplus=True, **self.options
        )
        result: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return result


def graph_of(layer: Layer, **dims: tuple[int, int]) -> Graph:
    x = torch.randn(2, 7, CHANNELS)
    return load_source(layer, example_inputs=x, dims={"batch": (1, 9), **dims}).graph


def test_a_scan_is_one_operation_for_every_length() -> None:
    layer = Layer(scan, delta_bias=torch.randn(CHANNELS))
    graph = graph_of(layer, seq=(1, 300))
    assert [node.op for node in graph.nodes()].count("selective_scan") == 1
    assert layer.scan is scan
    for length in (1, 5, 70):
        x = torch.randn(1, length, CHANNELS)
        with torch.no_grad():
            expected = layer(x).numpy()
        found = interpret(graph, {graph.inputs[0]: x.numpy()})["output"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [without_time, loose])
def test_what_is_not_confirmed_is_left_alone(function: Callable[..., Any]) -> None:
    layer = Layer(function)
    with replaced(layer):
        assert layer.scan is function


@pytest.mark.parametrize("option", ["return_last_state", "initial_state"])
def test_another_form_of_call_is_left_alone(option: str) -> None:
    graph = graph_of(Layer(scan, **{option: True}))
    assert "selective_scan" not in {node.op for node in graph.nodes()}


def test_the_operation_computes_what_the_loop_does() -> None:
    torch.manual_seed(0)
    u, delta = torch.randn(2, CHANNELS, 9), torch.rand(2, CHANNELS, 9)
    a, b, c = -torch.rand(CHANNELS, STATES), torch.randn(2, STATES, 9), torch.randn(2, STATES, 9)
    torch.testing.assert_close(selective_scan(u, delta, a, b, c), scan(u, delta, a, b, c))
