"""The benchmark against peers: what it builds, how it counts, and that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import peers
import pytest
import torch
from peer_modules import AddRmsFp8
from peer_process import Worker
from peer_runners import PEERS, TITLES
from peer_table import Result, markdown
from peer_workloads import GROUP, in_mxfp4, reference, relative_error, seeded, workloads

from fusec.formats import unpack_e2m1
from fusec.frontend import load_source

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "peers.py"


def result(peer: str, *rounds: list[float], failed: str = "", goal: float = 1.5) -> Result:
    return Result("a/b", 2, peer, goal, failed, "", 1e-7, 1.0, list(rounds), list(rounds))


def test_every_workload_is_named_once() -> None:
    for smoke in (False, True):
        names = [each.name for each in workloads(smoke)]
        assert len(set(names)) == len(names)
        for prefix in ("llama/prefill/", "ops/add_rms_fp8/", "mxfp4/m512", "moe/", "models/bert/"):
            assert any(name.startswith(prefix) for name in names)
    assert TITLES.keys() == PEERS.keys()


def test_weights_are_exact_in_mxfp4() -> None:
    torch.manual_seed(0)
    weight = in_mxfp4(3, 64)
    groups = weight.view(3, -1, GROUP)
    largest = groups.abs().amax(-1, keepdim=True)
    held = set(np.abs(unpack_e2m1(np.arange(256, dtype=np.uint8))).tolist())
    assert set((6 * groups / largest).abs().flatten().tolist()) <= held
    assert all(float(each) == 1.5 for each in torch.frexp(largest / 2).mantissa.flatten() * 2)


def test_the_reference_is_computed_in_float64() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 256, dtype=torch.bfloat16)
    module = AddRmsFp8(256).bfloat16().requires_grad_(False)
    codes, scale, total = reference(module, {"x": x, "residual": x})
    torch.testing.assert_close(total, 2 * x.double(), rtol=0, atol=0)
    wide = 2 * x.double()
    normed = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight.double()
    torch.testing.assert_close(scale, normed.abs().amax(-1, keepdim=True) / 448, rtol=1e-12, atol=0)
    assert float((codes * scale - normed).norm() / normed.norm()) < 0.04
    wrong = [codes, scale, 1.01 * total]
    assert relative_error(wrong, [codes, scale, total]) == pytest.approx(0.01)


def test_an_error_is_never_hidden() -> None:
    right, lost = torch.ones(3).double(), torch.full((3,), float("nan"))
    assert np.isnan(relative_error([right, lost], [right, right]))
    assert np.isnan(relative_error([lost, right], [right, right]))
    with pytest.raises(ValueError, match=r"an output is \[1\], not \[3\]"):
        relative_error([right[:1]], [right])


@pytest.mark.parametrize("name", ["llama/prefill/bf16", "ops/silu_mul_fp8/bf16", "mxfp4/m8"])
def test_every_kind_of_workload_is_one_graph(name: str) -> None:
    (workload,) = (each for each in workloads(smoke=True) if each.name == name)
    module, inputs = seeded(workload)
    graph = load_source(module, example_inputs=inputs).graph
    assert list(graph.inputs) == list(inputs)


def test_times_and_ratios() -> None:
    ours, theirs = result("fusec", [2.0, 3.0, 9.0], [4.0], [1.0]), result("eager", [6.0], [8.0])
    assert (ours.least_processor, theirs.least_processor) == (1.0, 6.0)
    assert (ours.median, ours.least, theirs.median) == (3.0, 1.0, 7.0)
    failed = result("iree", failed="it died of SIGSEGV")
    text = markdown([ours, theirs, failed], {"openvino": ["openvino"]})
    assert "| a/b | 2 | 3 (1) | 1.0e-07 | PyTorch eager | 7 (6) | 1.0e-07 | **2.33** |" in text
    assert "| a/b | IREE | it died of SIGSEGV |" in text
    assert "| all | OpenVINO | not installed: openvino |" in text
    assert Result(**json.loads(json.dumps(ours.as_json()))) == ours


def test_processors_to_run_on() -> None:
    usable = os.sched_getaffinity(0)
    chosen = peers.processors(2, None)
    assert set(chosen) <= usable and len(set(chosen)) == min(2, len(usable))
    assert peers.processors(2, "5,3,1") == [5, 3]


def test_a_worker_that_dies_says_why(tmp_path: Path) -> None:
    worker = Worker("eager", 1)
    worker.start(tmp_path, ["ops/rms_norm/f32", "--smoke"], 60)
    assert worker.failed is not None and "FileNotFoundError" in worker.failed
    worker.visit(0.01)
    worker.close()


def test_a_table_of_two_peers(tmp_path: Path) -> None:
    table, found = tmp_path / "table.md", tmp_path / "found.json"
    words = ["--smoke", "--only", "ops/rms_norm/bf16", "--peers", "fusec,eager", "--threads", "1"]
    words += ["--rounds", "2", "--seconds", "0.01", "--markdown", str(table), "--json", str(found)]
    subprocess.run([sys.executable, str(BENCHMARK), *words], check=True, capture_output=True)
    assert "| ops/rms_norm/bf16 | 1 | PyTorch eager |" in table.read_text()
    both = [Result(**each) for each in json.loads(found.read_text())]
    assert [each.peer for each in both] == ["fusec", "eager"]
    for each in both:
        assert not each.failed and len(each.wall) == 2
        assert each.error is not None and each.error < 0.01
