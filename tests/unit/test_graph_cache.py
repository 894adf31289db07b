"""Graphs of model folders are found again, and compile to what they compiled to."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import build

import fusec.frontend.sources
from fusec.frontend.graph_cache import own_files
from fusec.frontend.sources import load_source
from fusec.ir import print_graph
from fusec.link.cache import ObjectCache
from fusec.link.gpu_sources import triton_text
from fusec.lower import lower
from fusec.lower.program import program_document
from fusec.options import selected_passes
from fusec.rewrite import DecisionLog, run_pipeline
from fusec.target import CPU_ARCHES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("kimi_linear", tmp_path_factory.mktemp("folder") / "model", "bfloat16")


def never_exported(*about: object) -> None:
    raise AssertionError("the model was exported again")


def test_a_graph_is_exported_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectCache(tmp_path)
    first = load_source(folder, store=store)
    with monkeypatch.context() as patched:
        patched.setattr(fusec.frontend.sources, "_export", never_exported)
        again = load_source(folder, store=store)
        with pytest.raises(AssertionError, match="exported again"):
            load_source(folder, store=store, dims={"seq": (1, 64)})
        with pytest.raises(AssertionError, match="exported again"):
            load_source(folder, store=store, dtype="f32")
        with pytest.raises(AssertionError, match="exported again"):
            load_source(folder)
    plain = load_source(folder)
    for source in (again, plain):
        assert print_graph(source.graph) == print_graph(first.graph)
        assert (source.decisions, source.notes) == (first.decisions, first.notes)
        for value, weight in first.graph.parameters.items():
            held = source.graph.parameters[value]
            assert (held.name, held.identity, held.type) == (
                weight.name,
                weight.identity,
                weight.type,
            )
            assert held.load().tobytes() == weight.load().tobytes()


def test_a_graph_is_found_by_all_code_that_shapes_it() -> None:
    used = triton_text("fusec.frontend.sources").split()[::2]
    known = {path.relative_to(Path(fusec.__path__[0])) for path in own_files()}
    for name in used:
        path = Path(*name.split(".")[1:])
        assert {path.with_suffix(".py"), path / "__init__.py"} & known, name


def test_what_is_found_lowers_to_the_same_program(folder: Path, tmp_path: Path) -> None:
    store, target = ObjectCache(tmp_path), CPU_ARCHES["x86-64-v3"]
    texts = []
    for _ in range(2):
        source = load_source(folder, store=store)
        run_pipeline(selected_passes(()), source.graph, target, DecisionLog(source.decisions))
        lowered = lower(source.graph, target)
        texts.append((lowered.generated_source(), program_document(lowered)))
    assert texts[0] == texts[1]


def test_a_damaged_graph_is_no_hit(folder: Path, tmp_path: Path) -> None:
    store = ObjectCache(tmp_path)
    first = load_source(folder, store=store)
    (kept,) = tmp_path.rglob("*.o")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert print_graph(load_source(folder, store=store).graph) == print_graph(first.graph)
