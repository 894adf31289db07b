"""Whole artifacts on the GPU: the driver of CUDA, the executor and its graphs, for real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fusec
from fusec.cli import main
from fusec.diagnostics import InputError
from fusec.runtime import Model, load
from fusec.runtime.devices import list_devices

pytestmark = pytest.mark.gpu("sm_90")

ROWS, WIDTH, HIDDEN = 41, 64, 96
SIZES = ((2, 5), (1, 1), (3, 33), (2, 5), (7, 64))


class Block(torch.nn.Module):
    """An embedding, a norm, a gated product and a softmax: kernels of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(ROWS, WIDTH)
        self.norm = torch.nn.RMSNorm(WIDTH, eps=1e-6)
        self.gate = torch.nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = torch.nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = torch.nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        y = self.norm(x)
        x = x + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))
        return torch.softmax(x, -1)


@pytest.fixture(scope="module")
def block() -> Block:
    torch.manual_seed(0)
    return Block().eval()


@pytest.fixture(scope="module")
def path(block: Block, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("device") / "block.fusec"
    compiled = fusec.compile(
        block,
        file,
        target="sm_90",
        example_inputs=(torch.zeros(2, 5, dtype=torch.long),),
        dynamic_shapes={"ids": {0: "batch", 1: "seq"}},
    )
    return compiled.path


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with load(path, "cuda:0") as model:
        yield model


def ids_of(shape: tuple[int, int], seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, ROWS, shape)


def output(model: Model, ids: Any) -> Any:
    (result,) = model(ids=ids).values()
    return result


def test_the_driver_describes_the_gpu() -> None:
    found = list_devices("cuda")
    assert len(found) == torch.cuda.device_count()
    properties = torch.cuda.get_device_properties(0)
    assert found[0].name == properties.name
    assert found[0].arch == "sm_90"
    assert abs(found[0].memory_bytes - properties.total_memory) < 1 << 30


def test_agrees_with_eager_at_every_size(model: Model, block: Block) -> None:
    for seed, shape in enumerate(SIZES):
        ids = ids_of(shape, seed)
        with torch.no_grad():
            expected = block(torch.from_numpy(ids)).numpy()
        np.testing.assert_allclose(output(model, ids), expected, rtol=1e-4, atol=1e-6)
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(2 * output(model, ids), expected, rtol=1e-4, atol=1e-6)


def test_replays_equal_the_first_run(path: Path) -> None:
    with load(path, "cuda:0") as model, load(path, "cuda:0", graphs=False) as plain:
        for shape in SIZES:
            for seed in range(4):
                ids = ids_of(shape, seed)
                np.testing.assert_array_equal(output(model, ids), output(plain, ids))


def test_an_index_out_of_range_leaves_the_device_usable(model: Model) -> None:
    good = ids_of((2, 5), 0)
    expected = output(model, good)
    for bad in (ROWS, -ROWS - 1, 1 << 30):
        with pytest.raises(InputError, match=f"the index {bad} is out of range"):
            output(model, np.array([[1, bad]]))
        np.testing.assert_array_equal(output(model, good), expected)


def test_every_launch_has_a_time(model: Model) -> None:
    outputs, times = model.profile({"ids": ids_of((7, 64), 0)})
    assert times and all(0 < time.seconds < 1 for time in times)
    (profiled,) = outputs.values()
    np.testing.assert_array_equal(profiled, output(model, ids_of((7, 64), 0)))


def test_memory_is_given_back(path: Path) -> None:
    free: list[int] = []
    for _ in range(4):
        with load(path, "cuda:0") as model:
            for seed in range(3):
                output(model, ids_of((7, 64), seed))
        free.append(torch.cuda.mem_get_info()[0])
    # The first load leaves the context and what the driver keeps of code.
    assert free[-1] == free[1]


def test_the_command_runs_batches(
    path: Path, tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = ids_of((9, 12), 0)
    np.savez(tmp_path / "rows.npz", ids=ids)
    files = ("--input", str(tmp_path / "rows.npz"), "--output", str(tmp_path / "out.npz"))
    with pytest.raises(SystemExit) as caught:
        main(("run", str(path), *files, "--device", "cuda:0", "--batch-size", "4", "--json"))
    assert caught.value.code == 0
    assert '"records": 9' in capsys.readouterr().out
    (name,) = (spec.name for spec in model.outputs)
    expected = np.concatenate([output(model, ids[begin : begin + 4]) for begin in (0, 4, 8)])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")[name], expected)
