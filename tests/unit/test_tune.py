"""Products found, compiled and measured on the emulated device, by a clock that is made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fusec
import fusec.kernels
import fusec.tune
from fusec.cli import main, tune
from fusec.cli.console import Stages
from fusec.diagnostics import InputError, InternalError, UsageError
from fusec.emulator import Emulator
from fusec.ir import Graph, TensorType
from fusec.ir.text import named_weight
from fusec.kernels import tuning
from fusec.kernels.tuning import Row, candidates, estimated_tile, read_table, table_text
from fusec.link.cache import ObjectCache, default_cache_directory
from fusec.link.gpu_compile import CompiledSources, CompileError, compile_sources
from fusec.runtime.artifact import open_artifact
from fusec.runtime.driver import DeviceInfo, KernelLaunch
from fusec.runtime.errors import CodeError, TargetError
from fusec.target import target_named
from fusec.tune import (
    TUNED,
    Candidate,
    Measured,
    Product,
    Settings,
    compile_candidates,
    measure,
    products_of,
    table_rows,
)
from fusec.tune import candidates as candidates_module

SM_90 = target_named("sm_90")
QUICK = Settings(warm_up=1, runs=3, flushed_bytes=1 << 10)


def graph_of(rows: tuple[int, int | None], columns: int = 32, length: int = 64) -> Graph:
    """A product of `rows` (from, to) with two layers of the same form, and a third."""
    graph = Graph("products", {"batch": rows})
    x = graph.add_input("x", TensorType("bf16", (fusec.symbolic.symbol("batch"), length)))
    results = []
    for name, size in (("a", columns), ("b", columns), ("c", 2 * columns)):
        weight = named_weight(name, name, TensorType("bf16", (size, length)))
        graph.add_parameter(name, weight)
        results.append(graph.add("linear", [x, name], {"has_bias": False}).output)
    graph.outputs = results
    return graph


@pytest.fixture(scope="module")
def product() -> Product:
    first, _ = products_of(graph_of((1, 3)), SM_90)
    return first


def compiled(*products: Product) -> list[list[Candidate]]:
    return compile_candidates(products, SM_90, ObjectCache(default_cache_directory()), jobs=2)


@pytest.fixture(scope="module")
def built(product: Product) -> list[Candidate]:
    (found,) = compiled(product)
    return found


class Device(Emulator):
    """An emulated GPU that learns of code as it is compiled, and can be made to answer wrongly."""

    wrong: str | None = None
    launched = False

    def learn(self, candidates: Sequence[Sequence[Candidate]]) -> None:
        for candidate in (each for some in candidates for each in some):
            for launch, kernel in zip(candidate.variant.launches, candidate.kernels, strict=False):
                self._sources[kernel.sha256] = candidates_module.source_of(launch)

    def load_module(self, code: memoryview, entry: str) -> int:
        module = super().load_module(code, entry)
        self.entries = {**getattr(self, "entries", {}), module: entry}
        return module

    def function(self, module: int, symbol: str, shared_bytes: int) -> int:
        found = super().function(module, symbol, shared_bytes)
        self.names = {**getattr(self, "names", {}), found: self.entries[module]}
        return found

    def launch(self, launch: KernelLaunch, stream: int) -> None:
        super().launch(launch, stream)
        self.launched = True
        if self.wrong is not None and self.names[launch.function].startswith(self.wrong):
            begin, end = launch.spans[-1]
            self.fill(begin, 0, (end - begin) // 2, stream)


def device_for(*found: Sequence[Candidate]) -> Device:
    device = Device("sm_90", {})
    device.learn(found)
    return device


def groups(launches: Sequence[KernelLaunch]) -> float:
    """A clock that says nothing but how many groups there are, so small grids are fast."""
    return float(sum(launch.grid[0] * launch.grid[1] for launch in launches))


# --- products -------------------------------------------------------------------------------


def test_one_product_for_each_form_and_tier() -> None:
    found = products_of(graph_of((1, None)), SM_90)
    keys = [(each.key.columns, each.key.tier, each.rows) for each in found]
    assert keys == [
        (columns, tier, rows)
        for columns in (32, 64)
        for tier, rows in (("few", 1), ("several", 64), ("some", 256), ("many", 4096))
    ]
    assert {(each.key.kernel, each.key.dtype, each.key.length) for each in found} == {
        ("linear.triton", "bf16", 64)
    }
    assert all(each.tiles[0] == estimated_tile(SM_90, each.key) for each in found)
    assert all(set(each.tiles) == set(candidates(SM_90, each.key)) for each in found)


@pytest.mark.parametrize(
    ("rows", "measured"),
    [
        ((1, 3), [("few", 1)]),
        ((7, 16), [("few", 7)]),
        ((7, 70), [("few", 7), ("several", 64), ("some", 70)]),
        ((300, 600), [("some", 300), ("many", 600)]),
        ((9000, 9000), [("many", 9000)]),
    ],
)
def test_rows_that_a_product_can_have(
    rows: tuple[int, int], measured: list[tuple[str, int]]
) -> None:
    found = products_of(graph_of(rows), SM_90)
    assert [(each.key.tier, each.rows) for each in found if each.key.columns == 32] == measured


def test_a_variant_runs_with_its_tile_alone(product: Product) -> None:
    for tile in product.tiles:
        (launch,) = product.variant(tile).launches
        constants = dict(launch.code.constants)  # type: ignore[union-attr]
        assert (constants["BLOCK_N"], constants["BLOCK_K"]) == (tile.columns, tile.depth)
    assert tuning.tuned_tile(SM_90, product.key) is None


def test_every_kernel_that_asks_for_tiles_is_known() -> None:
    root = Path(fusec.kernels.__path__[0])
    asking = {
        path.parent.name
        for path in root.glob("*/*.py")
        if "fusec.kernels.tuning import" in path.read_text(encoding="utf-8")
    }
    assert asking == {name.partition("_")[0].partition(".")[0] for name in TUNED}


# --- candidates -----------------------------------------------------------------------------


def test_candidates_are_compiled_and_the_first_is_static(
    product: Product, built: list[Candidate]
) -> None:
    assert [candidate.tile for candidate in built] == [*product.tiles]
    assert all(candidate.refused is None and candidate.kernels for candidate in built)


def test_tiles_that_come_to_the_same_are_measured_once() -> None:
    ragged = products_of(graph_of((20, 60), columns=33, length=65), SM_90)[0]
    assert len(ragged.tiles) == 3
    assert len(candidates_module._different(ragged)) < 3


def test_what_does_not_compile_is_refused(
    product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = product.tiles
    (launch,) = product.variant(tiles[1]).launches
    broken = candidates_module.source_of(launch)

    def refuse(sources: Sequence[Any], *rest: Any, **more: Any) -> CompiledSources:
        if broken in sources:
            raise CompileError(broken, "no", (), None)
        return compile_sources(sources, *rest, **more)

    monkeypatch.setattr(candidates_module, "compile_sources", refuse)
    (found,) = compiled(product)
    assert [each.refused for each in found] == [None, "it does not compile: no", None]


def test_what_does_not_fit_the_device_is_refused(
    product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    (launch,) = product.variant(product.tiles[1]).launches
    large = candidates_module.source_of(launch)

    def unfit(code: object, source: object, *rest: object) -> Iterator[str]:
        if source == large:
            yield "a work group needs too much"

    monkeypatch.setattr(candidates_module, "unfit", unfit)
    (found,) = compiled(product)
    refused = [None, "a work group needs too much", None]
    assert [each.refused for each in found] == refused
    (results,) = measure([found], device_for(found), QUICK, groups)
    assert [each.refused for each in results] == refused
    assert results[1].microseconds is None


# --- measuring ------------------------------------------------------------------------------


def test_the_least_time_wins(product: Product, built: list[Candidate]) -> None:
    times = iter((30.0, 10.0, 20.0))
    (results,) = measure([built], device_for(built), QUICK, lambda launches: next(times))
    assert [each.microseconds for each in results] == [30, 10, 20]
    (row,) = table_rows([product], [results], "a GPU")
    assert row == Row(product.key, built[1].tile, "a GPU", 10)


def test_a_wrong_candidate_is_refused_and_never_timed(
    product: Product, built: list[Candidate]
) -> None:
    device = device_for(built)
    device.wrong = built[1].kernels[0].sha256
    timed: list[int] = []

    def clock(launches: Sequence[KernelLaunch]) -> float:
        timed.append(launches[0].function)
        return 100.0 - len(timed)

    (results,) = measure([built], device, QUICK, clock)
    assert results[1].microseconds is None
    assert results[1].refused is not None and "its result is off by 0." in results[1].refused
    assert len(timed) == 2
    (row,) = table_rows([product], [results], "a GPU")
    assert row.tile == built[2].tile


def test_a_first_candidate_that_cannot_run_is_a_bug(built: list[Candidate]) -> None:
    broken = [replace(built[0], refused="it has no code"), *built[1:]]
    with pytest.raises(InternalError, match="it has no code"):
        next(measure([broken], device_for(built), QUICK, groups))


def test_sums_that_are_split_are_measured_with_what_adds_them() -> None:
    split = products_of(graph_of((1, 3), length=4096), SM_90)[0]
    (found,) = compiled(split)
    assert all(len(each.kernels) == len(each.variant.scratch) + 1 == 2 for each in found)
    (results,) = measure([found], device_for(found), QUICK, groups)
    assert all(each.refused is None for each in results)


def test_a_failing_candidate_is_named(built: list[Candidate]) -> None:
    device = device_for(built)

    def fail(stream: int) -> None:
        if device.launched:
            raise CodeError("an illegal address")

    device.synchronize = fail  # type: ignore[method-assign]
    with pytest.raises(CodeError, match="an illegal address") as caught:
        next(measure([built], device, QUICK, groups))
    (detail,) = caught.value.detail
    assert "n = 32, k = 64, few rows" in detail and "Tile(rows=16" in detail


def test_events_take_the_median_and_memory_is_given_back(built: list[Candidate]) -> None:
    device = device_for(built)
    held: list[int] = []
    allocate, free = device.allocate, device.free

    def counted(size: int, purpose: str) -> int:
        held.append(allocate(size, purpose))
        return held[-1]

    def freed(address: int) -> None:
        held.remove(address)
        free(address)

    device.allocate, device.free = counted, freed  # type: ignore[method-assign]
    (results,) = measure([built[:1]], device, QUICK)
    assert results[0].microseconds is not None and results[0].microseconds > 0
    assert len(held) == 1, "what clears the caches is kept, and nothing else"


# --- the command ----------------------------------------------------------------------------


class Layer(nn.Module):
    """A product of bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 32, bias=False, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x)
        return result


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layer, exported."""
    path = tmp_path_factory.mktemp("tune") / "layer.pt2"
    example = (torch.zeros(2, 64, dtype=torch.bfloat16),)
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=3)}}
    program = torch.export.export(Layer().eval(), example, dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command; gives its exit code and what it printed to stdout and stderr."""

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(tuple(map(str, arguments)))
        printed = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, printed.out, printed.err

    return command


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """What `cuda:0` is, with a clock that counts groups."""
    emulated = Device("sm_90", {})
    emulated.close = lambda: None  # type: ignore[method-assign]

    def learning(*arguments: Any, **more: Any) -> list[list[Candidate]]:
        found = compile_candidates(*arguments, **more)
        emulated.learn(found)
        return found

    def counting(found: Any, driver: Any, settings: Settings) -> Iterator[tuple[Measured, ...]]:
        return measure(found, driver, QUICK, groups)

    monkeypatch.setattr(tune, "open_driver", lambda kind, index: emulated)
    monkeypatch.setattr(fusec.tune, "compile_candidates", learning)
    monkeypatch.setattr(fusec.tune, "measure", counting)
    return emulated


Run = Callable[..., tuple[int, str, str]]


def test_the_command_writes_a_table_that_compile_takes(
    archive: Path, tmp_path: Path, run: Run, device: Device
) -> None:
    path = tmp_path / "table.json"
    code, out, _ = run("tune", archive, "--device", "cuda:0", "--output", path)
    assert code == 0
    (row,) = read_table(path, "sm_90").values()
    assert (row.key.columns, row.key.length, row.key.tier) == (32, 64, "few")
    assert row.device == "emulated sm_90"
    made = json.loads(path.read_text(encoding="utf-8"))["made"]
    assert {*made} == {"date", "device", "fusec", "triton"}
    header, *lines = out.splitlines()
    assert header.split()[:4] == ["product", "rows", "tile", "us"]
    assert len(lines) == 3 and sum("fastest" in line for line in lines) == 1
    assert " 1.00" in lines[0]

    odd = Row(row.key, replace(row.tile, rows=16, columns=16, depth=32), "a GPU", 1.0)
    path.write_text(table_text("sm_90", [odd]), encoding="utf-8")
    artifact = tmp_path / "layer.fusec"
    code, _, _ = run("compile", archive, "--target", "sm_90", "-o", artifact, "--tuning", path)
    assert code == 0
    opened = open_artifact(artifact)
    assert set(opened.manifest.options["tuning"]) == {"sm_90"}  # type: ignore[call-overload]
    program = json.loads(bytes(opened.entry("program/sm_90.json")))
    (source,) = program["sources"].values()
    assert {("BLOCK_M", 16), ("BLOCK_N", 16), ("BLOCK_K", 32)} <= set(
        map(tuple, source["constants"])
    )


def test_the_command_prints_json_of_an_artifact(
    archive: Path, tmp_path: Path, run: Run, device: Device
) -> None:
    artifact = tmp_path / "layer.fusec"
    fusec.compile(archive, artifact, target="sm_90")
    words = ("tune", artifact, "--device", "cuda:0", "--kernel", "linear.triton", "--json")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["schema"] == "fusec.tune/1"
    assert (document["device"], document["arch"]) == ("emulated sm_90", "sm_90")
    (product,) = document["products"]
    assert (product["n"], product["k"], product["tier"], product["rows"]) == (32, 64, "few", 1)
    times = [each["microseconds"] for each in product["candidates"]]
    assert times.index(min(times)) == product["fastest"]
    assert product["candidates"][0]["tile"]["options"] == {}

    code, _, err = run(*words, "--dim", "batch=1:2")
    assert code == 2 and "is compiled already" in err
    code, _, err = run("tune", artifact, "--device", "cuda:0", "--kernel", "linear_epilogue.triton")
    assert code == 1 and "there is nothing to measure" in err


def test_an_artifact_of_another_target(archive: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "layer.fusec"
    fusec.compile(archive, artifact, target="x86-64-v3")
    asked = {"dims": (), "mxfp4_align": "pad", "dtype": None}
    with pytest.raises(TargetError, match="the graph that was made for `x86-64-v3`"):
        tune.graph_of(str(artifact), SM_90, Stages(quiet=True), asked)


def test_what_the_command_refuses(archive: Path, tmp_path: Path, run: Run) -> None:
    code, _, err = run("tune", archive, "--device", "cuda:99")
    assert code == 6 and "error: " in err
    code, _, err = run("tune", archive, "--device", "cpu")
    assert code == 2 and "nothing is tuned on a CPU" in err
    code, _, err = run("tune", archive, "--device", "cuda:0", "--kernel", "rope.triton")
    assert code == 2 and "`rope.triton` has no tiles to choose" in err
    missing = tmp_path / "missing" / "table.json"
    code, _, err = run("tune", archive, "--device", "cuda:0", "--output", missing)
    assert code == 1 and f"cannot write `{missing}`: no such file or directory" in err
    kept = archive.read_bytes()
    code, _, err = run("tune", archive, "--device", "cuda:0", "--output", archive)
    assert code == 2 and "is what is read" in err and archive.read_bytes() == kept


def test_a_device_that_nothing_is_compiled_for() -> None:
    with pytest.raises(TargetError, match="does not compile for this device, `sm_75`"):
        tune.target_of(DeviceInfo("old", "sm_75", 1))
    assert tune.target_of(DeviceInfo("new", "gfx950:sramecc+:xnack-", 1)).name == "gfx950"


def test_tables_that_compile_refuses(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(table_text("gfx950", []), encoding="utf-8")
    with pytest.raises(UsageError, match="is a table for `gfx950`, not for `sm_90`"):
        fusec.compile(archive, tmp_path / "no.fusec", target="sm_90", tuning=[path])
    with pytest.raises(UsageError, match="is a second table for `gfx950`"):
        fusec.compile(archive, tmp_path / "no.fusec", target="gfx950", tuning=[path, path])
    path.write_text('{"schema": "fusec.tuning/1"}', encoding="utf-8")
    with pytest.raises(InputError, match="a tuning table is not sound"):
        fusec.compile(archive, tmp_path / "no.fusec", target="sm_90", tuning=[path])
    with pytest.raises(InputError, match="no tuning table can be read"):
        fusec.compile(archive, tmp_path / "no.fusec", target="sm_90", tuning=[tmp_path / "none"])


def test_what_a_table_was_made_with_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(table_text("sm_90", [], {"date": "2000-01-01"}), encoding="utf-8")
    assert read_table(path, "sm_90") == {}
    path.write_text(path.read_text(encoding="utf-8").replace('"2000-01-01"', "1"), encoding="utf-8")
    with pytest.raises(InputError, match="`date` of `made` is not a text"):
        read_table(path, "sm_90")
