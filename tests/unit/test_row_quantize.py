"""Programs that quantise their own rows: what the pass makes of them, by numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import fusec
from fusec.formats import decode, magnitudes, rounded
from fusec.ir import parse_graph
from fusec.ir.interpret import interpret

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))
from test_golden import CASES, Case, sample

FP8 = torch.float8_e4m3fn
CHANGED = [case for case in CASES if case.file.stem == "row_quantize" and case.after]


@pytest.mark.parametrize("case", CHANGED, ids=lambda case: case.title)
def test_quotients_become_the_nearest_codes(case: Case) -> None:
    """The interpreter does not round a cast, but gives the numbers of codes."""
    assert case.after is not None
    before, after = parse_graph(case.before), parse_graph(case.after)
    inputs, weights = sample(before, 0)
    inputs = {name: np.abs(x) + 0.01 if name == "s" else x for name, x in inputs.items()}
    wanted, got = interpret(before, inputs, weights), interpret(after, inputs, weights)
    np.testing.assert_array_equal(got["c"], rounded(np.clip(wanted["c"], -448, 448), "f8e4m3fn"))
    if "s" in wanted:
        np.testing.assert_allclose(got["s"], wanted["s"], rtol=1e-6)


def scaled(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and a scale for each row."""
    scale = (rows.abs().amax(-1, keepdim=True) / 448.0).clamp(min=1e-10)
    return (rows / scale).clamp(-448.0, 448.0).to(FP8), scale


class NormOfSum(nn.Module):
    """The join of a residual stream, its norm, and fp8 by token."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(300, dtype=torch.bfloat16) + 0.5)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, ...]:
        total = x + residual
        wide = total.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (*scaled(wide * inverse * self.weight.float()), total)


class GatedByGroup(nn.Module):
    """A gated activation, and fp8 by 128."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gate, up = x.chunk(2, -1)
        product = functional.silu(gate.float()) * up.float()
        codes, scale = scaled(product.view(-1, product.shape[-1] // 128, 128))
        return codes.flatten(-2), scale.squeeze(-1)


@pytest.mark.parametrize(
    ("model", "shapes", "fusion"),
    [
        (NormOfSum(), [(7, 300), (7, 300)], "add_rms_norm_quant"),
        (GatedByGroup(), [(5, 768)], "silu_mul_quant"),
    ],
    ids=["e1", "e2"],
)
def test_a_program_that_asks_for_fp8_is_one_kernel(
    tmp_path: Path, model: nn.Module, shapes: list[tuple[int, ...]], fusion: str
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape).bfloat16() for shape in shapes]
    path = tmp_path / "rows.fusec"
    made = fusec.compile(model.eval(), path, target="cpu", example_inputs=tuple(inputs))
    (target,) = made.document["targets"]
    fired = [row["fusion"] for row in target["decisions"] if row["status"] == "fired"]
    assert fired == [fusion]
    assert target["launches"] == 1
    with torch.no_grad():
        wanted = [each.float().numpy() for each in model(*inputs)]
    loaded = fusec.load(path)
    given = zip(loaded.inputs, inputs, strict=True)
    results = [*loaded(**{spec.name: each.float().numpy() for spec, each in given}).values()]
    codes = decode(results[0], "f8e4m3fn")
    held = np.sort(np.concatenate((magnitudes("f8e4m3fn"), -magnitudes("f8e4m3fn"))))
    steps = np.searchsorted(held, codes) - np.searchsorted(held, wanted[0])
    # The sum is not rounded to bf16 before it is normed.
    assert np.abs(steps).max() <= 1 and np.count_nonzero(steps) <= 0.03 * steps.size
    np.testing.assert_allclose(np.asarray(results[1], np.float32), wanted[1], rtol=4e-3)
