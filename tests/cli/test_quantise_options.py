"""`--quantize`, `--mxfp4-align` and `--tp`, from the command line to decisions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import Fusec
from torch import nn


class Mlp(nn.Module):
    """A norm and a gated MLP beside a residual stream, twice, and a head."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(hidden, inner) for _ in range(2))
        self.lm_head = nn.Linear(hidden, 300, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        logits: torch.Tensor = self.lm_head(x)
        return logits


class Layer(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden)
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        added: torch.Tensor = self.down_proj(
            nn.functional.silu(self.gate_proj(y)) * self.up_proj(y)
        )
        return x + added


@pytest.fixture
def fusec(capsys: pytest.CaptureFixture[str]) -> Fusec:
    return Fusec(capsys)


@pytest.fixture(scope="session")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Mlp(256, 320).to(torch.bfloat16).eval()
    program = torch.export.export(model, (torch.randn(3, 256, dtype=torch.bfloat16),))
    path = tmp_path_factory.mktemp("mlp") / "mlp.pt2"
    torch.export.save(program, path)
    return path


def rows(fusec: Fusec, mlp: Path, *options: str) -> list[tuple[str, str | None, dict[str, object]]]:
    done = fusec("explain", mlp, "--target", "gfx950", "--fusion", "quantise", "--json", *options)
    assert done.code == 0
    found = done.json["targets"]["gfx950"]["decisions"]
    return [(row["status"], row["code"], row["details"]) for row in found]


def test_what_a_format_is_for(fusec: Fusec, mlp: Path) -> None:
    token = {"format": "fp8-token", "activations": "f8e4m3fn"}
    assert rows(fusec, mlp) == []
    assert rows(fusec, mlp, "--quantize", "fp8-token") == 4 * [("fired", None, token)]
    assert rows(fusec, mlp, "--quantize", "mxfp4:experts") == []
    head = rows(fusec, mlp, "--quantize", "fp8-token:lm_head*")
    assert head == [("fired", None, token)]
    apart = rows(fusec, mlp, "--quantize", "fp8-token:*.down_proj.*", "--quantize", "mxfp4")
    assert [details["format"] for _, _, details in apart] == 2 * ["mxfp4", "fp8-token"]
    part = rows(fusec, mlp, "--quantize", "fp8-token:*.up_proj.*")
    assert [(status, code) for status, code, _ in part] == 2 * [("refused", "request")]
    alone = ("--quantize", "fp8-token:*.up_proj.*", "--disable", "merge_gate_up")
    assert rows(fusec, mlp, *alone) == 2 * [("fired", None, token)]
    refused = rows(fusec, mlp, "--quantize", "fp8-block:*.down_proj.*")
    assert [(status, code) for status, code, _ in refused] == 2 * [("refused", "shape")]


def test_alignment(fusec: Fusec, mlp: Path) -> None:
    down = ("--quantize", "mxfp4:*.down_proj.*")
    padded = {"format": "mxfp4", "activations": "mxfp8"}
    plain = {"format": "mxfp4", "activations": "bf16"}
    assert rows(fusec, mlp, *down) == 2 * [("fired", None, padded)]
    assert rows(fusec, mlp, *down, "--mxfp4-align", "reject") == 2 * [("fired", None, plain)]


def test_explain_in_words(fusec: Fusec, mlp: Path) -> None:
    said = fusec("explain", mlp, "--target", "gfx942", "--quantize", "fp8-token", "--tp", "2").out
    assert "quantise            4 of 4 fired" in said
    assert "quantise, 4 sites: format fp8-token, activations f8e4m3fnuz" in said
    assert "merge_gate_up       2 of 2 fired" in said


def test_ranks_are_not_lowered(fusec: Fusec, mlp: Path, tmp_path: Path) -> None:
    output = tmp_path / "mlp.fusec"
    done = fusec("compile", mlp, "--target", "gfx950", "--tp", "2", "-o", output)
    assert done.code == 1
    assert "programs for one of 2 ranks are not lowered yet" in done.err
    assert "`fusec explain SOURCE --target gfx950 --tp 2` shows" in done.err
    assert "export" not in done.err
    assert not output.exists()
    required = ("--require", "quantise>=9", "--quantize", "fp8-token")
    assert fusec("compile", mlp, "--target", "gfx950", "--tp", "2", *required).code == 3


def test_a_cpu_keeps_rows_as_they_are(fusec: Fusec, mlp: Path) -> None:
    done = fusec("explain", mlp, "--target", "x86-64-v3", "--quantize", "fp8-token")
    assert "quantise       4 of 4 fired" in done.out
    assert "format fp8-token, activations bf16" in done.out
    assert "--quantize" not in done.err


def test_requests_that_fit_nothing_are_named(fusec: Fusec, mlp: Path) -> None:
    asked = ("fp8-token:*.mlp.*", "mxfp4:experts", "fp8-block:*.up_proj.*", "fp8-token")
    options = [part for request in asked for part in ("--quantize", request)]
    said = fusec("explain", mlp, "--target", "gfx950", *options).err
    assert "`--quantize fp8-token:*.mlp.*` fits no weight of this model" in said
    assert "`--quantize mxfp4:experts` fits nothing: there are no routed experts" in said
    assert said.count("fits no") == 2


def test_each_target_reads_codes_of_its_own_format(fusec: Fusec, tmp_path: Path) -> None:
    """One name, two contents: gfx950 has e4m3fn, gfx942 has e4m3fnuz, where codes mean half."""
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64)).bfloat16().eval()
    x = torch.randn(5, 128, dtype=torch.bfloat16)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "linear.pt2")
    output = tmp_path / "linear.fusec"
    targets = ("--target", "gfx950", "--target", "gfx942")
    options = (*targets, "--quantize", "fp8-block", "-o", output)
    assert fusec("compile", tmp_path / "linear.pt2", *options).code == 0
    np.savez(tmp_path / "x.npz", input=x.float().numpy())
    wanted = model(x).float().detach().numpy()
    for target in ("gfx950", "gfx942"):
        files = ("--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
        assert fusec("run", output, *files, "--device", f"emulator:{target}").code == 0
        (found,) = np.load(tmp_path / "y.npz").values()
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert 0.005 < error < 0.08, "quantised, and not half of it"
