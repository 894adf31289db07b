"""Selective scans are found by signature, confirmed by running, and put back afterwards."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fusec.frontend import Source, load_source
from fusec.frontend.selective_scan import replaced, selective_scan
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


def chunk_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **kwargs: Any,
) -> Any:
    """The scan of Mamba-2 as a loop over the sequence: a head shares its decay, a group B and C."""
    dt = dt if dt_bias is None else dt + dt_bias
    dt = (functional.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
    share = dt.shape[2] // B.shape[2]
    B, C = B.repeat_interleave(share, 2), C.repeat_interleave(share, 2)
    state = torch.zeros(1) if initial_states is None else initial_states
    outputs = []
    for t in range(dt.shape[1]):
        taken = torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], hidden_states[:, t], B[:, t])
        state = (dt[:, t] * A).exp()[..., None, None] * state + taken
        outputs.append(torch.einsum("bhpn,bhn->bhp", state, C[:, t]))
    y = torch.stack(outputs, 1)
    y = y if D is None else y + D[:, None] * hidden_states
    return (y, state) if return_final_states else y


def forgets_limits(*args: Any, **kwargs: Any) -> Any:
    """Has the signature of the scan of Mamba-2, but no limits."""
    return chunk_scan(*args, **{**kwargs, "dt_limit": (0.0, float("inf"))})


forgets_limits.__signature__ = inspect.signature(chunk_scan)  # type: ignore[attr-defined]


class Heads(torch.nn.Module):
    """Calls the scan of Mamba-2 for 4 heads of 3 channels in 2 groups."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(CHANNELS, 4 * 3 + 4 + 2 * 2 * STATES)
        self.a = torch.nn.Parameter(torch.randn(4))
        self.scan = function
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, dt, b, c = self.mix(x).split([12, 4, 2 * STATES, 2 * STATES], -1)
        u, b, c = (
            part.unflatten(2, (-1, size)) for part, size in ((u, 3), (b, STATES), (c, STATES))
        )
        found = self.scan(u, dt, -self.a.exp(), b, c, chunk_size=4, z=None, **self.options)
        result: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return result


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


def source_of(layer: torch.nn.Module, **dims: tuple[int, int]) -> Source:
    x = torch.randn(2, 7, CHANNELS)
    return load_source(layer, example_inputs=x, dims={"batch": (1, 9), **dims})


def layers() -> Iterator[Layer | Heads]:
    around = {"D": torch.randn(4), "dt_bias": torch.randn(4), "dt_softplus": True}
    yield Layer(scan, delta_bias=torch.randn(CHANNELS))
    yield Heads(chunk_scan)
    yield Heads(chunk_scan, **around, dt_limit=(0.1, 0.8), position_embeddings=torch.ones(1))


@pytest.mark.parametrize("layer", [*layers()], ids=["channels", "heads", "heads-around"])
def test_a_scan_is_one_operation_for_every_length(layer: Layer | Heads) -> None:
    function = layer.scan
    source = source_of(layer, seq=(1, 300))
    graph = source.graph
    assert [node.op for node in graph.nodes()].count("selective_scan") == 1
    assert [(row.fusion, row.status) for row in source.decisions] == [("selective_scan", "fired")]
    assert layer.scan is function
    for length in (1, 5, 70):
        x = torch.randn(1, length, CHANNELS)
        with torch.no_grad():
            expected = layer(x).numpy()
        found = interpret(graph, {graph.inputs[0]: x.numpy()})["output"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [without_time, loose, forgets_limits])
def test_what_is_not_confirmed_is_left_alone(function: Callable[..., Any]) -> None:
    layer = Layer(function)
    with replaced(layer) as log:
        assert layer.scan is function
    assert [row.code for row in log] == ["selective_scan.not_confirmed"]


@pytest.mark.parametrize(
    ("layer", "option", "value"),
    [
        (Layer, "return_last_state", True),
        (Layer, "initial_state", True),
        (Heads, "return_final_states", True),
        (Heads, "initial_states", torch.ones(1, 4, 3, STATES)),
    ],
)
def test_another_form_of_call_is_left_alone(layer: Any, option: str, value: object) -> None:
    source = source_of(layer(scan if layer is Layer else chunk_scan, **{option: value}))
    assert "selective_scan" not in {node.op for node in source.graph.nodes()}
    (row,) = source.decisions
    assert row.code == "selective_scan.call_not_confirmed" and f"`{option}`" in str(row.reason)


def test_the_operation_computes_what_the_loop_does() -> None:
    torch.manual_seed(0)
    u, delta = torch.randn(2, CHANNELS, 9), torch.rand(2, CHANNELS, 9)
    a, b, c = -torch.rand(CHANNELS, STATES), torch.randn(2, STATES, 9), torch.randn(2, STATES, 9)
    rows = (part.transpose(1, 2) for part in (u, delta))
    found = selective_scan(*rows, a, *(part.transpose(1, 2).unsqueeze(2) for part in (b, c)))
    torch.testing.assert_close(found.transpose(1, 2), scan(u, delta, a, b, c))
