"""`fusec tune` on the GPU: candidates that agree, plausible times, a table that is used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fusec
from fusec.cli import main
from fusec.kernels.tuning import read_table

pytestmark = pytest.mark.gpu("sm_90")

COLUMNS, LENGTH = 1536, 2048


class Layer(nn.Module):
    """A product of bf16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(LENGTH, COLUMNS, bias=False, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x)
        return result


def test_a_table_is_measured_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = Layer().eval()
    example = (torch.zeros(2, LENGTH, dtype=torch.bfloat16),)
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=5000)}}
    archive, table = tmp_path / "layer.pt2", tmp_path / "table.json"
    torch.export.save(torch.export.export(layer, example, dynamic_shapes=shapes), archive)

    words = ("tune", str(archive), "--device", "cuda:0", "--output", str(table), "--json")
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["tier"] for each in document["products"]] == ["few", "several", "some", "many"]
    for product in document["products"]:
        for candidate in product["candidates"]:
            assert candidate["refused"] is None
            assert 1 < candidate["microseconds"] < 1e4
    assert len(read_table(table, "sm_90")) == 4
    assert int(document["made"]["driver"].split()[1]) > 12000

    compiled = fusec.compile(archive, tmp_path / "layer.fusec", target="sm_90", tuning=[table])
    with fusec.load(compiled.path, "cuda:0") as model:
        for rows in (1, 65, 600):
            x = torch.randn(rows, LENGTH, dtype=torch.bfloat16)
            wanted = (x.double() @ layer.linear.weight.double().T).detach().numpy()
            (got,) = model(x=x.float().numpy()).values()
            error = np.asarray(got, np.float64) - wanted
            assert np.sqrt(np.mean(error**2) / np.mean(wanted**2)) < 2.0**-8
