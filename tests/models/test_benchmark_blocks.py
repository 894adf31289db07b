"""The parts of `tests/benchmarks/gpu_models.py` that need no GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from fake_driver import FakeDriver
from quantised_models import LAYOUTS

from fusec.formats import unpack_e2m1


def loaded() -> ModuleType:
    """The benchmark as a module."""
    path = Path(__file__).parents[1] / "benchmarks" / "gpu_models.py"
    spec = importlib.util.spec_from_file_location("gpu_models_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


benchmark = loaded()


def test_every_block_in_bf16_and_as_published() -> None:
    names = [str(case) for case in benchmark.cases("", None, smoke=False)]
    assert len(names) == 8 and "gpt_oss mxfp4" in names and "llama bf16" in names
    (only,) = benchmark.cases("deepseek_v3 fp8", 32, smoke=False)
    assert only.config["n_routed_experts"] == 32
    assert only.config["hidden_size"] == 7168


def test_narrow_blocks_keep_what_kernels_need() -> None:
    for case in benchmark.cases("", None, smoke=True):
        config = case.config
        assert config["hidden_size"] % 64 == 0 and config["hidden_size"] <= 512
        assert config["num_attention_heads"] % config["num_key_value_heads"] == 0


@pytest.mark.parametrize("layout", ["fp8-token", "fp8-block"])
def test_fp8_is_stored_as_the_samples_store_it(layout: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(192, 320).bfloat16().float()
    parts, values = benchmark.QUANTISERS[layout](weight)
    wanted = LAYOUTS[layout].parts(weight)
    assert set(parts) == set(wanted)
    for name, part in wanted.items():
        assert torch.equal(parts[name].float(), part.float())
    assert float((values - weight).norm() / weight.norm()) < 0.04


def test_mxfp4_is_stored_as_the_samples_store_it() -> None:
    torch.manual_seed(0)
    weight = torch.randn(2, 64, 48).bfloat16().float()
    parts, values = benchmark.QUANTISERS["mxfp4"](weight)
    wanted = LAYOUTS["mxfp4"].parts(weight)
    assert {name: part.shape for name, part in parts.items()} == {
        name: part.shape for name, part in wanted.items()
    }
    scale = 2.0 ** (parts["_scales"].double() - 127)
    held = torch.from_numpy(unpack_e2m1(parts["_blocks"].numpy())) * scale[..., None]
    assert torch.equal(held.reshape(2, 48, 64).transpose(1, 2).float(), values)
    assert float((values - weight).norm() / weight.norm()) < 0.2


def test_what_a_run_has_to_do() -> None:
    (case,) = benchmark.cases("llama bf16", None, smoke=False)
    elements = {"model.embed_tokens.weight": 1000, "a": 10, "lm_head.weight": 5}
    built = benchmark.Built(Path(), Path(), {name: 2 * each for name, each in elements.items()})
    one = benchmark.work(case, built, elements, (1, 1))
    attention = 2 * 2 * 32 * 1 * 2 * 128
    assert one.operations == 2 * 15 + attention
    assert one.bytes == 2 * 15 + 2 * (4096 + 2048)
    assert one.seconds(1, 1e9) == one.operations
    assert one.seconds(1e9, 1) == one.bytes


def test_experts_count_as_often_as_they_are_chosen() -> None:
    (case,) = benchmark.cases("gpt_oss mxfp4", 4 * 8, smoke=False)
    built = benchmark.Built(Path(), Path(), {"mlp.experts.down_proj_blocks": 3200})
    one, many = (
        benchmark.work(case, built, {"mlp.experts.down_proj": 6400}, shape)
        for shape in ((1, 1), (4, 2048))
    )
    row = 2 * (2880 + 2048)
    assert one.bytes == pytest.approx(3200 * 4 / 32 + row)
    assert many.bytes == pytest.approx(3200 + 8192 * row)


def test_windows_shorten_attention() -> None:
    (case,) = benchmark.cases("gpt_oss bf16", None, smoke=False)
    pairs = 128 * 2048 - 128 * 127 / 2 + 2048 * 2049 / 2
    wanted = 2 * 64 * pairs * 2 * 64
    assert benchmark.attention_operations(case.config, 1, 2048) == wanted


def test_one_token_that_is_far_off_says_nothing() -> None:
    wanted = torch.randn(1, 9, 32)
    got = wanted.numpy().copy()
    got[0, 0] *= -1
    assert benchmark.token_error(got, wanted) == 0
    assert benchmark.token_error(2 * wanted.numpy(), wanted) == pytest.approx(1)
    got[0, 0] = np.nan
    with pytest.raises(AssertionError, match="not all numbers"):
        benchmark.token_error(got, wanted)


def test_replays_are_what_is_timed() -> None:
    driver = FakeDriver({}, memory_bytes=1 << 30)
    watched = benchmark.Watched(driver)
    stream = watched.stream()
    watched.begin_capture(stream)
    graph = watched.end_capture(stream)
    timer = benchmark.FusecTimer(watched)
    with pytest.raises(AssertionError, match="replayed no graph"):
        timer.milliseconds(4)
    watched.replay(graph, stream)
    before = driver.calls.count("replay")
    assert timer.milliseconds(4) >= 0
    assert driver.calls.count("replay") == before + 4
    assert watched.replays == [(graph, stream)]


def test_what_the_command_line_takes() -> None:
    given = benchmark.arguments().parse_args(["--only", "llama", "--no-compile", "--peak", "800"])
    assert (given.only, given.no_compile, given.peak, given.runs) == ("llama", True, 800, 40)
    plain = benchmark.arguments().parse_args([])
    assert (plain.only, plain.no_compile, plain.profile, plain.smoke) == ("", False, False, False)


@pytest.mark.slow
def test_a_narrow_block_compiles(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--smoke", "--only", "llama fp8"])
    assert "| llama | fp8-token |" in capsys.readouterr().out
