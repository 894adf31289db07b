"""Linking for a GPU: what is compiled, what is kept, and what is refused before it is written."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from unfit_code import hand_written

import fusec
import fusec.kernels.registry
import fusec.link.build
from fusec.formats import fp8_scaling
from fusec.ir import Graph, TensorType
from fusec.ir.weights import from_array
from fusec.kernels.external.call import Argument, ExternalCall
from fusec.kernels.launch import Call, HipSource, Launch, TritonSource
from fusec.kernels.registry import Kernel, Refused
from fusec.link import gpu_sources
from fusec.link.build import build_target
from fusec.link.cache import ObjectCache
from fusec.link.gpu_kernel import CompiledCode, MachineCode, pack, unpack
from fusec.link.gpu_link import LinkedGpu, link_gpu
from fusec.link.gpu_sources import source_digest, source_from_json, source_json
from fusec.link.hip_build import build_hip
from fusec.link.linker import LinkError
from fusec.lower import Lowered, lower
from fusec.lower.program import GpuCode, program_document
from fusec.signatures import Signature
from fusec.symbolic import symbol
from fusec.target import Target, target_named

HIP_FILE = str(Path(__file__).with_name("scale_rows.hip"))
ROWS = symbol("rows")
GFX950 = target_named("gfx950")
POINTERS = ("ptr", "ptr")


def norm_graph(nodes: int = 1) -> Graph:
    """Rows that are normalised, again and again."""
    graph = Graph("case", {"rows": (1, None)})
    value = graph.add_input("x", TensorType("bf16", (ROWS, 256)))
    weight = graph.add_input("w", TensorType("bf16", (256,)))
    attrs = {"eps": 1e-6, "weight_offset": 0, "has_weight": True}
    for _ in range(nodes):
        value = graph.add("rms_norm", [value, weight], attrs).output
    graph.outputs, graph.output_names = [value], ["y"]
    return graph


def sum_graph(columns: int) -> Graph:
    """Rows of two operands that are added and normalised."""
    graph = Graph("case", {"rows": (1, None)})
    kind = TensorType("f32", (ROWS, columns))
    operands = [graph.add_input("x", kind), graph.add_input("residual", kind)]
    weight = graph.add_input("w", TensorType("f32", (columns,)))
    attrs = {"eps": 1e-6, "weight_offset": 0}
    graph.outputs = list(graph.add("add_rms_norm", [*operands, weight], attrs).outputs)
    graph.output_names = ["y", "sum"]
    return graph


def hip_source(
    function: str = "exchanges", kinds: tuple[str, ...] = POINTERS, threads: int = 64
) -> HipSource:
    signature = tuple((f"a{i}", kind) for i, kind in enumerate(kinds))
    return HipSource(HIP_FILE, function, signature, (("FUSEC_DTYPE", 1),), threads)


def planted(
    source: HipSource | TritonSource,
    *params: int | float,
    scratch_bytes: int = 0,
    scalar_spills: int = 0,
) -> Kernel:
    """A record that claims `rms_norm`, and launches `source` with its input and its output."""

    def launch(call: Call) -> Launch:
        operands = (call.inputs[0], call.outputs[0])
        return Launch(source.function, operands, params, grid=(ROWS, 1, 1), code=source)

    return Kernel(
        op="rms_norm",
        name="rms_norm.planted",
        provider="hip",
        families=("amdgpu",),
        source="planted.hip",
        supports=lambda graph, node, target: None,
        launch=launch,
        scratch_bytes=scratch_bytes,
        scalar_spills=scalar_spills,
    )


def link_planted(record: Kernel, folder: Path, target: Target = GFX950, jobs: int = 1) -> LinkedGpu:
    providers = (record,)
    program = lower(norm_graph(), target, providers=providers)
    return link_gpu(program, ObjectCache(folder), jobs=jobs, providers=providers)


def link_built(record: Kernel, folder: Path, target: Target = GFX950) -> LinkedGpu:
    """As `link_planted`, with the code compiled in this process, which is faster."""
    program = lower(norm_graph(), target, providers=(record,))
    source = program.kernel_steps[0].source
    assert isinstance(source, HipSource)
    in_cache(folder, source, pack(build_hip(source, target)), target)
    return link_planted(record, folder, target)


def refusal(
    record: Kernel,
    folder: Path,
    target: Target = GFX950,
    link: Callable[[Kernel, Path, Target], LinkedGpu] = link_planted,
) -> LinkError:
    """The error of linking a planted record; it names all that a person has to know."""
    with pytest.raises(LinkError) as caught:
        link(record, folder, target)
    for word in ("rms_norm.planted", "rms_norm", target.name):
        assert f"`{word}`" in str(caught.value)
    assert any("`rms_norm.triton` can compute it" in line for line in caught.value.detail)
    assert any("`rms_norm.cpp` is not for" in line for line in caught.value.detail)
    return caught.value


def in_cache(folder: Path, source: HipSource, packed: bytes, target: Target = GFX950) -> None:
    ObjectCache(folder).keep_bytes(source_digest(source, target), packed)


@pytest.mark.parametrize("name", ["gfx950", "gfx942"])
def test_a_sound_record_links(name: str, tmp_path: Path) -> None:
    linked = link_built(planted(hip_source()), tmp_path, target_named(name))
    (kernel,) = linked.kernels.values()
    assert kernel.arguments == ((0, 8), (8, 8)) and kernel.kernarg_bytes == 16
    assert kernel.threads == 64 and kernel.shared_bytes == 0
    assert kernel.resources["vgpr"] > 0 and kernel.waves == 32


@pytest.mark.parametrize("name", ["gfx950", "gfx942"])
def test_a_symbol_that_is_not_there(name: str, tmp_path: Path) -> None:
    error = refusal(planted(hip_source("silu_and_mul")), tmp_path, target_named(name), link_built)
    assert "`silu_and_mul`" in str(error)
    assert "`scale_rows`" in str(error) and "`exchanges`" in str(error)


def test_arguments_of_other_sizes(tmp_path: Path) -> None:
    kinds = ("ptr", "ptr", "ptr", "ptr", "i32", "i64", "f32")
    source = hip_source("scale_rows", kinds)
    record = replace(
        planted(source),
        launch=lambda call: Launch(
            "scale_rows", (*call.inputs, *call.inputs), (256, 256, 1.0), code=source
        ),
    )
    error = refusal(record, tmp_path, link=link_built)
    assert "value of 8 at 32" in str(error) and "value of 4 at 32" in str(error)


def test_too_few_arguments(tmp_path: Path) -> None:
    assert "its arguments are" not in str(
        refusal(planted(hip_source("conversions")), tmp_path, link=link_built)
    )
    error = refusal(
        planted(hip_source("exchanges", ("ptr", "ptr", "i64")), 4), tmp_path, link=link_built
    )
    assert "pointer of 8 at 8); its launch gives" in str(error)


def test_a_launch_against_its_own_signature(tmp_path: Path) -> None:
    error = refusal(
        planted(hip_source("exchanges", ("ptr", "ptr", "f32")), 4), tmp_path, link=link_built
    )
    assert "its launch gives (ptr, ptr, integer); its signature is (ptr, ptr, float)" in str(error)


def test_code_for_another_architecture(tmp_path: Path) -> None:
    source = hip_source()
    in_cache(tmp_path, source, pack(build_hip(source, target_named("gfx942"))))
    assert "it is for `gfx942`" in str(refusal(planted(source), tmp_path))


def test_code_that_needs_a_mode(tmp_path: Path) -> None:
    source = hip_source()
    made = build_hip(source, GFX950)
    code = bytearray(made.code)
    code[49] |= 0x3  # the flags of the ELF header, second byte: xnack must be on
    in_cache(tmp_path, source, pack(replace(made, code=bytes(code))))
    assert "runs only with xnack+" in str(refusal(planted(source), tmp_path))


def test_an_instruction_that_goes_wrong(tmp_path: Path) -> None:
    source = hip_source()
    body = "v_pk_fma_f32 v[0:1], v[2:3], v[4:5], v[0:1] op_sel:[0,1,0]"
    in_cache(tmp_path, source, pack(hand_written("exchanges", body, (8, 8))))
    error = refusal(planted(source), tmp_path)
    assert "v_pk_fma_f32" in str(error) and "op_sel:[0,1,0]" in str(error)
    sound = body.replace("[0,1,0]", "[0,1,0] op_sel_hi:[1,0,1]")
    in_cache(tmp_path, source, pack(hand_written("exchanges", sound, (8, 8))))
    assert link_planted(planted(source), tmp_path).cached == 1


def test_scalar_registers_are_spilled_as_the_record_allows(tmp_path: Path) -> None:
    source = hip_source()
    in_cache(tmp_path, source, pack(hand_written("exchanges", "s_nop 0", (8, 8), spills=11)))
    assert "sgpr_spills 11" in str(refusal(planted(source), tmp_path))
    assert "8 scalar registers" in str(refusal(planted(source, scalar_spills=8), tmp_path))
    assert link_planted(planted(source, scalar_spills=11), tmp_path).cached == 1


@pytest.mark.parametrize("columns", [72, 136])
def test_rows_of_ragged_sizes_fit_their_records(tmp_path: Path, columns: int) -> None:
    program = lower(sum_graph(columns), GFX950, allow_host_fallback=False)
    (kernel,) = link_gpu(program, ObjectCache(tmp_path)).kernels.values()
    assert kernel.resources["scratch_bytes"] == kernel.resources["vgpr_spills"] == 0


def test_scratch_is_allowed_by_the_record_alone(tmp_path: Path) -> None:
    source = hip_source("keeps_an_array")
    error = refusal(planted(source), tmp_path, link=link_built)
    assert "scratch_bytes" in str(error) and "none of it" in str(error)
    assert "512 bytes of it" in str(refusal(planted(source, scratch_bytes=512), tmp_path))
    assert link_planted(planted(source, scratch_bytes=8192), tmp_path).cached == 1


def test_a_work_group_that_is_too_large(tmp_path: Path) -> None:
    source = hip_source()
    made = replace(build_hip(source, GFX950), threads=128, shared_bytes=1 << 20)
    in_cache(tmp_path, source, pack(made))
    error = str(refusal(planted(source), tmp_path))
    assert "128 lanes" in error and f"{1 << 20} bytes of shared memory" in error


def test_a_source_that_does_not_compile(tmp_path: Path) -> None:
    broken = replace(hip_source(), defines=(("FUSEC_DTYPE", 7),))
    error = refusal(planted(broken), tmp_path)
    assert "does not compile" in str(error)
    assert any("error" in line for line in error.detail)


def test_a_compiler_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    source = TritonSource("crashing_kernel", "f", (("a", "*bf16"), ("b", "*bf16")), (), (), 1)
    assert "its compiler ended by signal 6" in str(refusal(planted(source), tmp_path))
    assert list(scratch.iterdir()) == []


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    record = planted(hip_source("not_there"))
    monkeypatch.setattr(fusec.kernels.registry, "kernels", lambda: {"rms_norm": (record,)})
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(LinkError, match="`not_there`"):
        fusec.compile(
            torch.nn.RMSNorm(256),
            out / "model.fusec",
            target=["gfx942", "gfx950"],
            example_inputs=[torch.randn(4, 256)],
        )
    assert list(out.iterdir()) == []


# --- what is kept ---------------------------------------------------------------------------


def program_of(graph: Graph, target: Target = GFX950) -> Lowered:
    return lower(graph, target)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for objects that several tests may use."""
    return tmp_path_factory.mktemp("kept")


def test_a_second_run_starts_no_compiler(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ObjectCache(kept)
    program = program_of(norm_graph(2))
    seen: list[tuple[int, int]] = []
    first = link_gpu(program, cache, jobs=2, progress=lambda *counts: seen.append(counts))
    assert first.compiled + first.cached == 1 and seen[-1] == (1, 1)

    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("a compiler was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    again = link_gpu(program, cache)
    assert (again.compiled, again.cached) == (0, 1)
    assert again.kernels == first.kernels


def test_a_damaged_object_is_compiled_anew(tmp_path: Path) -> None:
    record, source = planted(hip_source()), hip_source()
    first = link_built(record, tmp_path)
    path = ObjectCache(tmp_path).path(source_digest(source, GFX950))
    path.write_bytes(path.read_bytes()[:-1])
    again = link_planted(record, tmp_path)
    assert again.compiled == 1 and again.kernels == first.kernels


@given(st.data())
def test_damaged_objects_are_no_hit(data: st.DataObject) -> None:
    code = CompiledCode("f", b"code", "hsaco", 64, 0, MachineCode(16, 8, ("v_mfma",), ()))
    packed = bytearray(pack(code))
    assert unpack(bytes(packed)) == code
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    found = unpack(bytes(packed[: data.draw(st.integers(0, len(packed)))]))
    assert found is None or found.code == code.code


def test_what_a_digest_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, triton = hip_source(), program_of(norm_graph()).kernel_steps[0].source
    assert isinstance(triton, TritonSource)
    digests = {
        source_digest(each, target)
        for target in (GFX950, target_named("gfx942"))
        for each in (
            source,
            replace(source, defines=(("FUSEC_DTYPE", 2),)),
            replace(source, threads=128),
            triton,
            replace(triton, constants=(*triton.constants[:-1], ("WEIGHT_OFFSET", 1))),
        )
    }
    assert len(digests) == 10
    copied = tmp_path / "copied.hip"
    copied.write_text(Path(HIP_FILE).read_text() + "// changed\n")
    first = source_digest(replace(source, file=str(copied)), GFX950)
    copied.write_text(Path(HIP_FILE).read_text() + "// changed again\n")
    assert source_digest(replace(source, file=str(copied)), GFX950) != first


def test_the_digest_of_a_triton_source_covers_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"fusec.kernels.a": "from fusec.kernels import b\n", "fusec.kernels.b": "x = 1\n"}

    def path(name: str) -> Path | None:
        if name not in files:
            return None
        made = tmp_path / name
        made.write_text(files[name])
        return made

    monkeypatch.setattr(gpu_sources, "_module_file", path)
    source = TritonSource("fusec.kernels.a", "f", (), (), (), 1)
    gpu_sources.triton_text.cache_clear()
    first = source_digest(source, GFX950)
    files["fusec.kernels.b"] = "x = 2\n"
    gpu_sources.triton_text.cache_clear()
    assert source_digest(source, GFX950) != first


@pytest.mark.parametrize(
    "source", [hip_source(), TritonSource("m", "f", (("a", "*bf16"),), (("N", 4),), ("a",), 4)]
)
def test_sources_travel_as_json(source: HipSource | TritonSource) -> None:
    assert source_from_json(source_json(source)) == source


# --- what the artifact holds ----------------------------------------------------------------


def test_identical_code_is_stored_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusec.link.build, "default_cache_directory", lambda: kept)
    built = build_target(norm_graph(3), GFX950, allow_host_fallback=False, jobs=2)
    assert built.contents.launches == 3
    assert len(built.contents.modules) == len(built.contents.kernels) == 1
    ((entry, code),) = built.contents.modules.items()
    assert hashlib.sha256(code).hexdigest() in entry
    steps = built.contents.program["steps"]
    assert isinstance(steps, list) and [step["module"] for step in steps] == [entry] * 3
    (kernel,) = built.contents.kernels
    assert kernel.machine["widest_load"] == kernel.machine["widest_store"]
    assert kernel.machine["waves_per_unit"] == 32


def test_the_program_says_where_weights_and_outputs_are() -> None:
    graph = Graph("case", {"rows": (1, None)})
    x = graph.add_input("x", TensorType("bf16", (ROWS, 512)))
    weight = from_array("norm.weight", "bf16", np.ones(512, np.uint16))
    attrs = {"eps": 1e-6, "weight_offset": 0, "has_weight": True}
    normed = graph.add("rms_norm", [x, graph.add_parameter("w", weight)], attrs).output
    graph.outputs, graph.output_names = [normed], ["y"]
    providers = (external_record(),)
    program = lower(graph, GFX950, providers=providers)
    document = program_document(program, code=GpuCode())
    assert document["buffers"] == [
        {"kind": "input", "bytes": "1024*rows"},
        {"kind": "output", "bytes": "1024*rows"},
    ]
    assert document["outputs"] == [
        {"name": "y", "dtype": "bf16", "shape": ["rows", 512], "buffer": 1}
    ]


@pytest.mark.parametrize(
    ("most", "recorded", "launched"),
    [(8, 2, 2), (300, 4, 2), (None, 5, 1)],
    ids=["few rows", "some rows", "any rows"],
)
def test_launches_are_counted_at_the_largest_sizes(
    most: int | None, recorded: int, launched: int
) -> None:
    """Sums of few rows and of some are split, and added by a second launch."""
    graph = Graph("case", {"rows": (1, most)})
    operands = {
        "x": TensorType("f8e4m3fn", (ROWS, 4096)),
        "x_scale": TensorType("f32", (ROWS, 1)),
        "weight": TensorType("f8e4m3fn", (4096, 4096)),
        "weight_scale": TensorType("f32", (4096, 1)),
    }
    inputs = [graph.add_input(name, kind) for name, kind in operands.items()]
    attrs = fp8_scaling("f8e4m3fn", "token").attrs()
    attrs |= {"weight_block": (1, 4096), "has_bias": False, "dtype": "bf16"}
    graph.outputs = [graph.add("fp8_linear", inputs, attrs).output]
    graph.output_names = ["y"]
    program = program_of(graph)
    assert (len(program.kernel_steps), program.launches) == (recorded, launched)


def test_registers_of_an_nvidia_gpu(tmp_path: Path) -> None:
    program = program_of(norm_graph(), target_named("sm_90"))
    (kernel,) = link_gpu(program, ObjectCache(tmp_path)).kernels.values()
    assert kernel.suffix == "cubin"
    assert 0 < kernel.resources["vgpr"] < 256
    assert kernel.resources["scratch_bytes"] == 0
    (source,) = {step.source for step in program.kernel_steps}
    assert source is not None and len(kernel.arguments) == len(source.signature)
    assert all(size in (4, 8) for _, size in kernel.arguments)


def test_every_choice_is_known() -> None:
    refusing = replace(planted(hip_source()), supports=lambda *about: "it is not the day for it")
    program = lower(norm_graph(), GFX950, providers=(refusing,))
    (choice,) = program.choices.values()
    assert choice.kernel is not None and choice.kernel.name == "rms_norm.triton"
    assert Refused("rms_norm.planted", "it is not the day for it") in choice.refused


def external_record() -> Kernel:
    call = ExternalCall(
        library="aiter",
        version="0.1.5",
        versions=("0.1.5",),
        distributions=("aiter",),
        module="aiter.ops.rmsnorm",
        function="rms_norm",
        signature=Signature(()),
        operator="",
        arguments=(Argument("input", "operand", 0),),
        returned=(1,),
    )
    return replace(
        planted(hip_source()),
        name="rms_norm.aiter",
        provider="external",
        launch=lambda each: Launch(call.symbol, (each.inputs[0], each.outputs[0]), (), code=call),
    )


def test_calls_of_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = build_target(
        norm_graph(), GFX950, allow_host_fallback=False, jobs=1, providers=(external_record(),)
    )
    steps = built.contents.program["steps"]
    assert isinstance(steps, list)
    (step,) = steps
    assert step["kind"] == "external" and step["call"]["function"] == "rms_norm"
    assert [operand["dtype"] for operand in step["operands"]] == ["bf16", "bf16"]
    assert step["operands"][0]["shape"] == ["rows", 256]
    (kernel,) = built.contents.kernels
    assert (kernel.provider, kernel.symbol, kernel.bytes) == (
        "external",
        "aiter.ops.rmsnorm:rms_norm",
        0,
    )
    assert built.contents.modules == {}


def test_a_layout_that_one_kernel_cannot_read_is_left_to_the_next() -> None:
    graph = Graph("case", {"rows": (1, None)})
    x = graph.add_input("x", TensorType("bf16", (ROWS, 512)))
    half = graph.add("slice", [x], {"axis": 1, "start": 0, "stop": 256, "step": 1}).output
    weight = graph.add_input("w", TensorType("bf16", (256,)))
    attrs = {"eps": 1e-6, "weight_offset": 0, "has_weight": True}
    graph.outputs = [graph.add("rms_norm", [half, weight], attrs).output]
    graph.output_names = ["y"]
    providers = (planted(hip_source()),)
    program = lower(graph, GFX950, providers=providers)
    assert [step.kernel.name for step in program.kernel_steps] == ["rms_norm.triton"]
    refused = next(iter(program.choices.values())).refused
    assert refused[0].kernel == "rms_norm.planted" and "not laid out" in refused[0].reason
