"""Compilers, objects, symbols: what is linked, what is checked, and that it is repeatable."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowered_runner import host_target

import fusec.link.toolchain
from fusec import symbolic
from fusec.diagnostics import InputError, InternalError, UnsupportedError
from fusec.ir import Graph, TensorType
from fusec.link.cache import ObjectCache, default_cache_directory
from fusec.link.elf import dynamic_symbols
from fusec.link.linker import LinkError, headers_digest, link
from fusec.link.toolchain import Toolchain, find_toolchain
from fusec.lower import Lowered, lower
from fusec.runtime.cpu import CORE_SYMBOLS, PROBE_SYMBOLS
from fusec.target import CPU_ARCHES


def lowered_graph(op: str = "tanh", target: str | None = None) -> Lowered:
    graph = Graph("case", {"batch": (1, 8)})
    kind = TensorType("bf16", (symbolic.symbol("batch"), 24))
    graph.add_input("x", kind)
    graph.outputs = [graph.add(op, ["x"]).output]
    graph.output_names = ["y"]
    return lower(graph, CPU_ARCHES[target] if target else host_target())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ObjectCache:
    return ObjectCache(tmp_path_factory.mktemp("objects"))


def test_the_module_has_what_is_called_and_nothing_else(cache: ObjectCache) -> None:
    lowered = lowered_graph()
    linked = link(lowered, find_toolchain(), cache, jobs=2)
    symbols = {kernel.symbol for kernel in lowered.kernels}
    assert set(linked.sizes) == symbols | {*CORE_SYMBOLS, *PROBE_SYMBOLS}
    assert all(linked.sizes[symbol] > 0 for symbol in symbols)


def test_the_same_graph_gives_the_same_bytes(cache: ObjectCache, tmp_path: Path) -> None:
    first = link(lowered_graph(), find_toolchain(), cache, jobs=2)
    again = link(lowered_graph(), find_toolchain(), ObjectCache(tmp_path), jobs=1)
    assert again.compiled > 0
    assert again.code == first.code
    assert str(Path.home()).encode() not in first.code


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot keep objects in the cache") as raised:
        ObjectCache(tmp_path / "file").keep_bytes("ab12", b"made")
    assert raised.value.at == str(tmp_path / "file")
    assert raised.value.hint is not None
    assert "XDG_CACHE_HOME" in raised.value.hint


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(InputError, match="no home") as raised:
        default_cache_directory()
    assert raised.value.hint is not None
    assert "XDG_CACHE_HOME" in raised.value.hint


def test_objects_are_compiled_once(cache: ObjectCache) -> None:
    link(lowered_graph(), find_toolchain(), cache)
    assert link(lowered_graph(), find_toolchain(), cache).compiled == 0
    other = link(lowered_graph("sigmoid"), find_toolchain(), cache)
    assert (other.compiled, other.cached) == (1, 2)


def test_an_object_depends_on_the_headers_it_includes_alone(tmp_path: Path) -> None:
    folder = tmp_path / "fusec"
    folder.mkdir()
    (folder / "a.h").write_text("#include <fusec/b.h>\n")
    (folder / "b.h").write_text("int b;\n")
    (folder / "other.h").write_text("int other;\n")
    source = b"#include <stdint.h>\n#include <fusec/a.h>\n"
    before = headers_digest(source, tmp_path)
    (folder / "other.h").write_text("int changed;\n")
    assert headers_digest(source, tmp_path) == before
    (folder / "b.h").write_text("int changed;\n")
    assert headers_digest(source, tmp_path) != before


def test_other_instruction_sets_are_other_objects(cache: ObjectCache) -> None:
    link(lowered_graph(), find_toolchain(), cache)
    linked = link(lowered_graph(target="x86-64-v3"), find_toolchain(), cache)
    assert b"\x7fELF" == linked.code[:4]


def test_a_damaged_cache_is_no_hit(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path)
    made = tmp_path / "made.o"
    made.write_bytes(b"object")
    assert cache.find_object("ab12") is None
    path = cache.keep("ab12", made)
    assert path.read_bytes().startswith(b"object")
    assert cache.find_object("ab12") == cache.path("ab12") == path
    assert [path.name for path in path.parent.iterdir()] == ["ab12.o"]
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:5], b"O" + whole[1:], bytes(len(whole)), b"object"):
        path.write_bytes(damaged)
        assert cache.find_object("ab12") is None


def test_damaged_objects_are_compiled_again(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path)
    first = link(lowered_graph(), find_toolchain(), cache, jobs=2)
    for number, path in enumerate(sorted(cache.directory.rglob("*.o"))):
        data = path.read_bytes()
        path.write_bytes(b"" if number % 2 else data[: len(data) // 2])
    again = link(lowered_graph(), find_toolchain(), cache, jobs=2)
    assert (again.compiled, again.cached) == (first.compiled, 0)
    assert again.code == first.code


def test_a_symbol_that_no_source_defines_is_an_error(cache: ObjectCache) -> None:
    lowered = lowered_graph()
    (step,) = lowered.kernel_steps
    launch = replace(step.launch, symbol="fusec_not_there")
    missing = replace(step, launch=launch, op="silu_mul_quant")
    with pytest.raises(LinkError) as caught:
        link(replace(lowered, steps=(step, missing)), find_toolchain(), cache)
    for word in ("fusec_not_there", "silu_mul_quant", lowered.target.name):
        assert f"`{word}`" in str(caught.value)


def test_a_compiler_that_refuses_is_quoted(cache: ObjectCache) -> None:
    lowered = lowered_graph()
    (function,) = lowered.functions
    broken = replace(function, text="this is not C++;\n")
    with pytest.raises(LinkError, match="does not compile") as caught:
        link(replace(lowered, functions=(broken,)), find_toolchain(), cache)
    assert any("error" in line for line in caught.value.detail)


def test_the_module_runs(cache: ObjectCache, tmp_path: Path) -> None:
    lowered = lowered_graph("neg")
    path = tmp_path / "module.so"
    path.write_bytes(link(lowered, find_toolchain(), cache).code)
    library = ctypes.CDLL(str(path))
    assert library.fusec_threads() >= 1


def test_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusec.link.toolchain, "_toolchain", lambda name: None)
    with pytest.raises(UnsupportedError, match="needs a C\\+\\+ compiler") as caught:
        find_toolchain()
    assert caught.value.hint is not None and "pip install" in caught.value.hint


def test_a_compiler_that_is_not_there() -> None:
    with pytest.raises(InputError, match="`no-such-compiler`"):
        find_toolchain("no-such-compiler")


@pytest.mark.parametrize("name", sorted(CPU_ARCHES))
def test_instruction_sets_are_spelt_for_each_compiler(name: str) -> None:
    target = CPU_ARCHES[name]
    gcc = Toolchain("gcc", ("g++",), "g++").flags(target, generated=True)
    zig = Toolchain("zig", ("zig",), "zig").flags(target, generated=True)
    level = "x86-64-v3" if name == "x86-64-v3" else "x86-64-v4"
    assert f"-march={level}" in gcc
    assert any(flag.startswith(f"-mcpu={level.replace('-', '_')}") for flag in zig)
    has_bf16 = "avx512_bf16" in target.features
    assert ("-mavx512bf16" in gcc) == has_bf16
    assert any("+avx512bf16" in flag for flag in zig) == has_bf16


def test_the_cache_is_where_xdg_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_directory() == tmp_path / "fusec"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_directory() == Path.home() / ".cache" / "fusec"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_objects_are_refused(data: st.DataObject) -> None:
    code = bytearray(_small_module())
    for _ in range(data.draw(st.integers(1, 8))):
        code[data.draw(st.integers(0, len(code) - 1))] = data.draw(st.integers(0, 255))
    kept = data.draw(st.integers(0, len(code)))
    try:
        dynamic_symbols(bytes(code[:kept]))
    except InternalError:
        pass


_modules: list[bytes] = []


def _small_module() -> bytes:
    """The ELF header, one symbol table and its names: all that the reader looks at."""
    if not _modules:
        names = b"\0fusec_one\0malloc\0"
        symbols = bytes(24)
        symbols += (1).to_bytes(4, "little") + bytes([0x12, 0]) + (1).to_bytes(2, "little")
        symbols += (64).to_bytes(8, "little") + (10).to_bytes(8, "little")
        symbols += (11).to_bytes(4, "little") + bytes([0x12, 0]) + bytes(2) + bytes(16)
        start = 64 + 3 * 64
        header = b"\x7fELF\x02\x01\x01" + bytes(9)
        header += (3).to_bytes(2, "little") + (62).to_bytes(2, "little") + (1).to_bytes(4, "little")
        header += bytes(16) + (64).to_bytes(8, "little") + bytes(4)
        for field in (64, 0, 0, 64, 3, 0):
            header += field.to_bytes(2, "little")
        sections = bytes(64)
        for kind, offset, size, other in (
            (11, start, len(symbols), 2),
            (3, start + len(symbols), len(names), 0),
        ):
            sections += bytes(4) + kind.to_bytes(4, "little") + bytes(16)
            sections += offset.to_bytes(8, "little") + size.to_bytes(8, "little")
            sections += other.to_bytes(4, "little") + bytes(20)
        _modules.append(header + sections + symbols + names)
    return _modules[0]


def test_symbols_are_read() -> None:
    found = dynamic_symbols(_small_module())
    assert found.defined == {"fusec_one": 10}
    assert found.undefined == {"malloc"}
