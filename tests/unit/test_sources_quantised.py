"""Quantised checkpoints: codes as they are stored, values as PyTorch has them, clear refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantised_folders import changed, exact, quantised, without_weights
from quantised_models import LAYOUTS, TRUE_SIZES, true_config
from reference import eager, largest_error, tokens
from safetensors.torch import load_file
from sample_models import reference

import fusec
from fusec.api import decide
from fusec.diagnostics import InputError, UnsupportedError
from fusec.frontend.huggingface import prepare_folder
from fusec.frontend.quantisation_config import read_scheme
from fusec.frontend.safetensors_index import read_header
from fusec.frontend.tensors import tensor_of
from fusec.ir.weights import Quantised, Weight, finer, from_array

CASES = [
    ("llama", "fp8-token"),
    ("llama", "fp8-static"),
    ("llama", "quark-fp8"),
    ("llama", "mxfp4-packed"),
    ("llama", "mxfp8"),
    ("qwen3_moe", "quark-mxfp4"),
    ("qwen3_moe", "quark-fp8"),
    ("gpt_oss", "mxfp4"),
    ("deepseek_v3", "fp8-block"),
    ("qwen3_next", "fp8-block"),
    ("kimi_linear", "fp8-block"),
]
TOLERANCE = 1e-4
"""Of the largest logit, in float32; as for whole models."""

Tensors = dict[str, torch.Tensor]


pytestmark = pytest.mark.usefixtures("quiet_progress")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Builds a quantised sample once."""
    root = tmp_path_factory.mktemp("quantised")
    held: dict[tuple[str, str], Path] = {}

    def folder(name: str, layout: str) -> Path:
        if (name, layout) not in held:
            held[name, layout] = quantised(name, root / f"{name}-{layout}", layout)
        return held[name, layout]

    return folder


def prepare(folder: Path, dtype: str | None = None) -> Any:
    return prepare_folder(
        folder, dims=None, dtype=dtype, attention_mask=False, trust_remote_code=False
    )


def check_values(folder: Path, plain: Path, dtype: str, option: str | None = None) -> None:
    """Every weight has the very bits that PyTorch gives it."""
    found = prepare(folder, option).checkpoint
    for name, tensor in reference(plain, dtype).state_dict().items():
        weight = found[name]
        assert torch.equal(tensor_of(weight.load(), weight.type.dtype), tensor), name


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_values_are_exact(
    name: str, layout: str, folders: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = folders(name, layout)
    check_values(folder, exact(folder, tmp_path / "plain"), "float32")


def test_values_are_rounded_once_to_the_dtype_of_the_model(
    folders: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = folders("llama", "fp8-token")
    plain = exact(folder, tmp_path / "plain", torch.bfloat16)
    check_values(folder, plain, "bfloat16", "bf16")


def form(weight: Weight) -> tuple[str, ...]:
    held = weight.quantised
    assert held is not None
    given = "" if held.input_scale is None else str(held.input_scale.type)
    parts = (held.codes, held.scale)
    names = [part.name for part in parts]
    return (*names, *(str(part.type) for part in parts), str(held.block), str(held.turned), given)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_a_configuration_alone_declares_the_same_codes(
    name: str, layout: str, folders: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = folders(name, layout)
    held = {
        key: form(weight)
        for key, weight in prepare(folder).checkpoint.items()
        if weight.quantised is not None
    }
    declared = prepare(without_weights(folder, tmp_path / "bare"))
    assert not declared.complete
    assert {key: form(weight) for key, weight in declared.checkpoint.items()} == held
    for weight in declared.checkpoint.values():
        assert weight.read is None
        assert weight.quantised.codes.read is None and weight.quantised.scale.read is None


def test_a_configuration_alone_fuses_alike(
    folders: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = folders("llama", "fp8-token")
    sources = (folder, without_weights(folder, tmp_path / "bare"))
    sizes = ("batch=2", "seq=7")
    held, alone = (decide(each, "gfx950", dims=sizes)["gfx950"] for each in sources)
    assert held.fired()["quantise"] == 4
    assert [row.as_json() for row in alone] == [row.as_json() for row in held]


def test_codes_are_the_bytes_of_the_files(folders: Callable[[str, str], Path]) -> None:
    folder = folders("llama", "quark-fp8")
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.gate_proj.weight"
    held = prepare(folder).checkpoint[name].quantised
    assert np.array_equal(held.codes.load(), stored[name].view(torch.uint8).numpy())
    assert held.scale.load() == stored[f"{name}_scale"].numpy()
    assert held.input_scale.load() == stored[name.replace("weight", "input_scale")].numpy()
    assert held.codes.made_from == (name,)
    assert held.block == (160, 96)


def test_experts_are_stacked_as_codes(folders: Callable[[str, str], Path]) -> None:
    folder = folders("qwen3_moe", "quark-fp8")
    stored = load_file(folder / "model.safetensors")
    experts = "model.layers.1.mlp.experts"
    held = prepare(folder).checkpoint[f"{experts}.gate_up_proj"].quantised
    assert (held.codes.shape, held.scale.shape, held.block) == ((8, 80, 96), (8, 80, 1), (1, 96))
    codes = torch.from_numpy(held.codes.load())
    for expert in (0, 7):
        up = stored[f"{experts}.{expert}.up_proj.weight"].view(torch.uint8)
        assert torch.equal(codes[expert, 40:], up)
        scale = stored[f"{experts}.{expert}.up_proj.weight_scale"]
        assert np.all(held.scale.load()[expert, 40:] == scale.numpy())
    given = [
        stored[f"{experts}.{expert}.{side}_proj.input_scale"]
        for expert in range(8)
        for side in ("gate", "up")
    ]
    assert held.input_scale.load() == max(given).numpy()


def test_blocks_do_not_straddle_what_was_joined(tmp_path: Path) -> None:
    sizes = {"hidden_size": 160, "moe_intermediate_size": 160, "intermediate_size": 288}
    folder = quantised("deepseek_v3", tmp_path / "model", "fp8-block", **sizes)
    check_values(folder, exact(folder, tmp_path / "plain"), "float32")
    found = prepare(folder).checkpoint
    held = found["model.layers.1.mlp.experts.gate_up_proj"].quantised
    assert (held.block, held.scale.shape) == ((32, 128), (8, 10, 2))
    held = found["model.layers.1.mlp.experts.down_proj"].quantised
    assert (held.block, held.scale.shape) == ((128, 128), (8, 2, 2))
    held = found["model.layers.0.mlp.gate_proj.weight"].quantised
    assert (held.block, held.scale.shape) == ((128, 128), (3, 2))


def test_what_is_reordered_is_plain(
    folders: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusec.frontend.checkpoint.BY_ROWS", {"Chunk"})
    folder = folders("qwen3_moe", "quark-fp8")
    check_values(folder, exact(folder, tmp_path / "plain"), "float32")
    found = prepare(folder)
    assert found.checkpoint["model.layers.1.mlp.experts.gate_up_proj"].quantised is None
    (note,) = found.notes
    assert note.startswith("2 quantised weights, such as `model.layers.1.mlp.experts.")


def test_smaller_blocks_change_no_value() -> None:
    rng = np.random.default_rng(0)
    codes = from_array("c", "f8e4m3fn", rng.integers(0, 127, (3, 10, 9)).astype(np.uint8))
    scale = from_array("s", "f32", rng.random((3, 3, 2), dtype=np.float32))
    held = Quantised(codes, scale, (4, 6))
    for block in ((2, 6), (1, 6), (4, 3), (1, 1), (4, 6)):
        assert np.array_equal(finer(held, block).values(), held.values())
    whole = Quantised(codes, from_array("s", "f32", rng.random((3, 1, 1), np.float32)), (10, 9))
    assert np.array_equal(finer(whole, (1, 9)).values(), whole.values())


# --- numbers --------------------------------------------------------------------------------


QUICK = {("gpt_oss", "mxfp4")}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow], id="-".join(case))
        for case in CASES
    ],
)
def test_a_cpu_computes_with_the_exact_values(
    name: str, layout: str, folders: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = folders(name, layout)
    compiled = fusec.compile(folder, tmp_path / "model.fusec", target="x86-64-v3")
    (target,) = compiled.document["targets"]
    assert target["residual"] == []
    model, plain = fusec.load(compiled.path), exact(folder, tmp_path / "plain")
    for given in (tokens(1, 1), tokens(3, 37)):
        (wanted,) = eager(plain, given, torch.float32).values()
        (got,) = model.run(dict(given)).values()
        assert largest_error(got, wanted) <= TOLERANCE


# --- refusals -------------------------------------------------------------------------------

GATE = "model.layers.0.mlp.gate_proj"


def _drop_scale(tensors: Tensors, config: dict[str, Any]) -> None:
    del tensors[f"{GATE}.weight_scale"]


def _drop_weight(tensors: Tensors, config: dict[str, Any]) -> None:
    del tensors[f"{GATE}.weight"]


def _wrong_scale(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[f"{GATE}.weight_scale"] = torch.ones(3, 2)


def _plain_weight(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[f"{GATE}.weight"] = tensors[f"{GATE}.weight"].float()


def _int8_weight(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[f"{GATE}.weight"] = tensors[f"{GATE}.weight"].to(torch.int8)


def _rotation(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[f"{GATE}.input_rotation"] = torch.ones(96, 96)


def _zero_point(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[f"{GATE}.weight_zero_point"] = torch.zeros(160, 1)


def _whole_numbers(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[f"{GATE}.weight_scale"] = torch.ones((), dtype=torch.int32)


def _many_input_scales(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[f"{GATE}.input_scale"] = torch.ones(96)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _drop_scale,
            r"`.*gate_proj\.weight` f8e4m3fn\[160, 96\] is quantised, but its scale "
            r"`.*gate_proj\.weight_scale_inv` or `.*gate_proj\.weight_scale` is missing",
        ),
        (
            _drop_weight,
            r"`.*gate_proj\.weight_scale` is a scale, but its weight `.*gate_proj\.weight` is miss",
        ),
        (
            _wrong_scale,
            r"`.*gate_proj\.weight_scale` f32\[3, 2\] is no scale for `.*gate_proj\.weight` f8",
        ),
        (_plain_weight, r"its weight `.*gate_proj\.weight` f32\[160, 96\] is not quantised"),
        (_int8_weight, r"i8\[160, 96\] with .* \(`quark`\) is a layout that fusec does not read"),
        (_rotation, r"`.*input_rotation` f32\[96, 96\] belongs to a quantised weight"),
        (_zero_point, r"`.*weight_zero_point` f32\[160, 1\] belongs to a quantised weight"),
        (
            _whole_numbers,
            r"`.*weight_scale` i32\[\] \(`quark`\) is a layout that fusec does not read",
        ),
        (_many_input_scales, r"`.*input_scale` f32\[96\]: more than one scale"),
    ],
)
def test_what_does_not_fit_is_named(
    change: Callable[[Tensors, dict[str, Any]], None],
    message: str,
    folders: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    folder = changed(folders("llama", "quark-fp8"), tmp_path / "model", change)
    with pytest.raises(InputError, match=message) as caught:
        prepare(folder)
    assert caught.value.exit_code == 1 and caught.value.hint


def test_blocks_need_their_scales(folders: Callable[[str, str], Path], tmp_path: Path) -> None:
    experts = "model.layers.0.mlp.experts.gate_up_proj"

    def drop(tensors: Tensors, config: dict[str, Any]) -> None:
        del tensors[f"{experts}_scales"]

    def cut(tensors: Tensors, config: dict[str, Any]) -> None:
        tensors[f"{experts}_scales"] = tensors[f"{experts}_scales"][:, :, :2].contiguous()

    def orphan(tensors: Tensors, config: dict[str, Any]) -> None:
        del tensors[f"{experts}_blocks"]

    folder = folders("gpt_oss", "mxfp4")
    for number, (change, message) in enumerate(
        [
            (drop, r"gate_up_proj_blocks` u8\[8, 128, 3, 16\] .* `.*gate_up_proj_scales` is miss"),
            (cut, r"gate_up_proj_scales` u8\[8, 128, 2\] is no scale for `.*gate_up_proj_blocks`"),
            (orphan, r"gate_up_proj_scales` is a scale, but its weight `.*_blocks` is missing"),
        ]
    ):
        with pytest.raises(InputError, match=message):
            prepare(changed(folder, tmp_path / str(number), change))


def test_no_other_blocks_are_guessed_than_those_that_are_said(
    folders: Callable[[str, str], Path], tmp_path: Path
) -> None:
    def say(tensors: Tensors, config: dict[str, Any]) -> None:
        config["weight_block_size"] = [64, 64]

    folder = changed(folders("llama", "fp8-block"), tmp_path / "model", say)
    with pytest.raises(InputError, match=r"f32\[1, 2\] is no scale") as caught:
        prepare(folder)
    assert caught.value.detail == ("it has to be [2, 3] for blocks of 64x64",)


def test_scales_without_a_configuration(
    folders: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = changed(folders("llama", "quark-fp8"), tmp_path / "model", lambda *_: None)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has no `quantization_config`"):
        prepare(folder)


def test_scales_of_a_cache_are_left_out(
    folders: Callable[[str, str], Path], tmp_path: Path
) -> None:
    def add(tensors: Tensors, config: dict[str, Any]) -> None:
        tensors["model.layers.0.self_attn.k_scale"] = torch.ones(())
        tensors["model.layers.0.self_attn.v_proj.output_scale"] = torch.ones(())

    found = prepare(changed(folders("llama", "quark-fp8"), tmp_path / "model", add))
    (note,) = found.notes
    assert note.startswith("2 scales of a quantised cache")


FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}


def _compressed(weights: dict[str, Any], layout: str = "float-quantized", **more: Any) -> Any:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    groups = {"group_0": group}
    method = "compressed-tensors"
    return {"quant_method": method, "format": layout, "config_groups": groups, **more}


def _quark(weight: Any, **more: Any) -> dict[str, Any]:
    return {"quant_method": "quark", "global_quant_config": {"weight": weight}, **more}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantised by `gptq`"),
        ({"quant_method": "awq"}, "quantised by `awq`"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantised by `bitsandbytes`"),
        ({"quant_method": "modelopt"}, "quantised by `modelopt`"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "`fp8` in `e5m2`"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "`fp4` experts"),
        (_compressed({**FLOAT8, "type": "int"}, "int-quantized"), "layout `int-quantized`"),
        (
            _compressed({**FLOAT8, "num_bits": 4, "group_size": 16}, "nvfp4-pack-quantized"),
            "layout `nvfp4-pack-quantized` .float4, a scale for each",
        ),
        (_compressed({**FLOAT8, "num_bits": 4, "type": "int"}, "pack-quantized"), "int4"),
        (_compressed(FLOAT8, sparsity_config={"format": "sparse-24-bitmask"}), "sparse"),
        (_compressed(FLOAT8, transform_config={"config_groups": {"r": {}}}), "rotated"),
        (_quark({"dtype": "int8", "qscheme": "per_tensor"}), "layout `int8` per_tensor"),
        (_quark([{"dtype": "fp8_e4m3"}, {"dtype": "int4"}]), "in steps .fp8_e4m3 of int4"),
        (
            _quark(
                {"dtype": "fp8_e4m3", "qscheme": "per_tensor"},
                algo_config=[
                    {"name": "rotation", "online_config": {"online_rotation_layers": [1]}}
                ],
            ),
            "rotated by `quark`",
        ),
    ],
)
def test_other_methods_are_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        read_scheme({"quantization_config": config}, "config.json")
    assert caught.value.at == "config.json" and "mxfp4" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "config",
    [
        7,
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
        {"quant_method": "fp8", "weight_block_size": "wide"},
        {"quant_method": "fp8", "weight_block_size": "64"},
        {"weight_block_size": [128, 128]},
        {},
        {"quant_method": "mxfp4", "modules_to_not_convert": ["re:("]},
        {"quant_method": "compressed-tensors", "config_groups": [1]},
        {"quant_method": "compressed-tensors"},
        _compressed({"type": "float"}),
        _quark("fp8"),
        {"quant_method": "quark", "layer_quant_config": {"*": 3}},
    ],
)
def test_configurations_that_are_not_sound(config: Any) -> None:
    with pytest.raises(InputError, match="`quantization_config`"):
        read_scheme({"quantization_config": config}, "config.json")


@pytest.mark.parametrize(
    ("config", "path", "quantised"),
    [
        ({"quant_method": "fp8", "modules_to_not_convert": ["a.b"]}, "a.b.c", False),
        ({"quant_method": "fp8", "modules_to_not_convert": ["a.b"]}, "a.bc", True),
        ({"quant_method": "fp8", "modules_to_not_convert": ["c"]}, "a.b.c", False),
        ({"quant_method": "fp8", "modules_to_not_convert": ["a.*.c"]}, "a.7.c.d", False),
        (_compressed(FLOAT8, ignore=["re:.*gate$"]), "m.gate", False),
        (_compressed(FLOAT8, ignore=["re:.*gate$"]), "m.gate_proj", True),
        (_compressed(FLOAT8, ignore=["m"]), "m.gate", True),
        (_quark({"dtype": "fp8_e4m3", "qscheme": "per_channel"}, exclude=["*head"]), "head", False),
        (
            _quark(
                {"dtype": "fp8_e4m3", "qscheme": "per_tensor"},
                layer_quant_config={"*.k_proj": {"weight": None}},
            ),
            "x.k_proj",
            False,
        ),
    ],
)
def test_names_that_stay_plain(config: dict[str, Any], path: str, quantised: bool) -> None:
    scheme = read_scheme({"quantization_config": config}, "config.json")
    assert scheme is not None
    assert (scheme.format_of((path,), "linear") is not None) == quantised


def test_blocks_and_notes_of_compressed_tensors() -> None:
    config = _compressed({**FLOAT8, "strategy": "block", "block_structure": "64x32"})
    scheme = read_scheme({"quantization_config": config}, "config.json")
    assert scheme is not None and scheme.blocks == ((64, 32),)
    assert "weights only" in scheme.notes[0]


def test_quark_leaves_blocks_of_another_vendor_as_they_are(
    folders: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """It renames their scales and says nothing of them in its configuration."""

    def rename(tensors: Tensors, config: dict[str, Any]) -> None:
        config.clear()
        config |= LAYOUTS["quark-mxfp4"].config
        for name in [name for name in tensors if name.endswith("_scale_inv")]:
            tensors[name.removesuffix("_inv")] = tensors.pop(name)

    folder = folders("deepseek_v3", "fp8-block")
    found = prepare(changed(folder, tmp_path / "model", rename)).checkpoint
    held = prepare(folder).checkpoint
    dense = "model.layers.0.mlp.down_proj.weight"
    assert found[dense].quantised.block == (128, 128)
    for name in (dense, "model.layers.1.mlp.experts.gate_up_proj"):
        assert np.array_equal(found[name].load(), held[name].load())


def test_a_power_of_two_for_each_block(folders: Callable[[str, str], Path], tmp_path: Path) -> None:
    """DeepSeek's newer checkpoints have e8m0 scales."""

    def narrow(tensors: Tensors, config: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith("_scale_inv")]:
            tensors[name] = torch.exp2(torch.log2(tensors[name]).ceil()).to(torch.float8_e8m0fnu)

    folder = changed(folders("deepseek_v3", "fp8-block"), tmp_path / "model", narrow)
    check_values(folder, exact(folder, tmp_path / "plain"), "float32")
    held = prepare(folder).checkpoint["model.layers.0.mlp.gate_proj.weight"].quantised
    assert (held.scale.type.dtype, held.block) == ("e8m0", (128, 128))


def write_safetensors(path: Path, dtype: str, shape: list[int], data: bytes) -> Path:
    entry = {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}
    header = json.dumps(entry).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@pytest.mark.parametrize(
    ("dtype", "shape", "found"),
    [
        ("F4", [2, 8], ("f4e2m1x2", (2, 4))),
        ("F8_E8M0", [2, 4], ("e8m0", (2, 4))),
        ("F8_E4M3FNUZ", [2, 4], ("f8e4m3fnuz", (2, 4))),
        ("F8_E4M3", [2, 4], ("f8e4m3fn", (2, 4))),
    ],
)
def test_narrow_dtypes_of_safetensors(
    dtype: str, shape: list[int], found: tuple[str, tuple[int, ...]], tmp_path: Path
) -> None:
    stored = read_header(write_safetensors(tmp_path / "x", dtype, shape, bytes(range(8))))["x"]
    assert (stored.dtype, stored.shape) == found
    assert np.array_equal(stored.read().reshape(-1), np.arange(8))


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        ("F4", [2, 7], "not whole bytes"),
        ("F4", [], "not whole bytes"),
        ("F4", [2, 4], "do not fit"),
        ("F6_E2M3", [8], "unknown safetensors dtype `F6_E2M3`"),
    ],
)
def test_narrow_dtypes_that_do_not_fit(
    dtype: str, shape: list[int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read_header(write_safetensors(tmp_path / "x", dtype, shape, bytes(8)))


# --- true sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRUE_SIZES)
def test_configurations_of_true_size(name: str, tmp_path: Path) -> None:
    config = true_config(name, "fp8-block" if name == "kimi_linear" else "shipped")
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = prepare(tmp_path)
    held = {key: weight.quantised for key, weight in found.checkpoint.items()}
    assert held and all(held.values())
    assert not [key for key in held if "lm_head" in key or "embed" in key]
    experts = {key.rpartition(".")[2]: each for key, each in held.items() if "experts.g" in key}
    sizes = {
        "llama": None,
        "gpt_oss": ("f4e2m1x2[128, 5760, 1440]", "e8m0[128, 5760, 90]"),
        "qwen3_next": ("f8e4m3fn[512, 1024, 2048]", "f32[512, 8, 16]"),
        "kimi_linear": ("f8e4m3fn[256, 2048, 2304]", "f32[256, 16, 18]"),
        "deepseek_v3": ("f8e4m3fn[256, 4096, 7168]", "f32[256, 32, 56]"),
    }[name]
    if sizes is not None:
        each = experts["gate_up_proj"]
        assert (str(each.codes.type), str(each.scale.type)) == sizes
