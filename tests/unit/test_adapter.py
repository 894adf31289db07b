"""LoRA adapters beside plain and quantised models, against PyTorch with the product added."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_folders import exact, quantised, without_weights
from quantised_models import write_adapter
from reference import eager, largest_error, tokens
from safetensors.torch import load_file, save_file
from sample_models import build
from typer.testing import CliRunner

import fusec
from fusec.api import decide
from fusec.cli import app
from fusec.diagnostics import InputError, UnsupportedError, UsageError
from fusec.frontend import load_source
from fusec.frontend.adapter import base_of
from fusec.frontend.huggingface import prepare_folder
from fusec.frontend.tensors import tensor_of

TOLERANCE = 1e-4
"""Of the largest logit, in float32; as for whole models."""

RANK = 4
WEIGHTS = "adapter_model.safetensors"
LAYERS = {
    "model.layers.0.self_attn.q_proj": (96, 96),
    "model.layers.0.mlp.down_proj": (96, 160),
}


pytestmark = pytest.mark.usefixtures("quiet_progress")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `base` with an adapter beside it."""
    root = tmp_path_factory.mktemp("adapter")
    build("llama", root / "base", num_hidden_layers=1)
    write_adapter(root / "adapter", Path("../base"), LAYERS, RANK)
    return root


def prepare(base: Path, adapter: Path, dtype: str | None = None) -> Any:
    return prepare_folder(
        base, dims=None, dtype=dtype, attention_mask=False, trust_remote_code=False, adapter=adapter
    )


def merged(plain: Path, adapter: Path, to: Path, scaling: float) -> Path:
    """The folder `plain` with the product of an adapter added to its weights."""
    shutil.copytree(plain, to)
    tensors, added = load_file(to / "model.safetensors"), load_file(adapter / WEIGHTS)
    for name, b in added.items():
        if ".lora_B." in name:
            a = added[name.replace(".lora_B.", ".lora_A.")]
            layer = name.removeprefix("base_model.model.").replace(".lora_B", "")
            tensors[layer] = tensors[layer] + scaling * (b @ a)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


def projections(folder: Path, layer: int, ends: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the attention projections of a layer, by path."""
    found = {}
    for name, held in load_file(folder / "model.safetensors").items():
        path = name.removesuffix(".weight")
        if path.startswith(f"model.layers.{layer}.self_attn.") and path.endswith(ends):
            if held.ndim == 2:
                found[path] = (held.shape[0], held.shape[1])
    return found


@pytest.mark.parametrize(
    ("name", "layout", "ends"),
    [
        ("gpt_oss", "mxfp4", ("q_proj", "k_proj", "v_proj", "o_proj")),
        pytest.param(
            "deepseek_v3",
            "fp8-block",
            ("q_a_proj", "q_b_proj", "kv_b_proj", "o_proj"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_numbers_beside_a_quantised_base(
    name: str, layout: str, ends: tuple[str, ...], tmp_path: Path
) -> None:
    base = quantised(name, tmp_path / "base", layout)
    sizes = projections(base, 1, ends)
    assert len(sizes) == len(ends)
    adapter = write_adapter(tmp_path / "adapter", base, sizes, RANK)
    compiled = fusec.compile(base, tmp_path / "m.fusec", target="x86-64-v3", adapter=adapter)
    (target,) = compiled.document["targets"]
    assert target["residual"] == []
    wanted_in = merged(exact(base, tmp_path / "plain"), adapter, tmp_path / "merged", 2.0)
    model = fusec.load(compiled.path)
    for given in (tokens(1, 1), tokens(2, 37)):
        (wanted,) = eager(wanted_in, given, torch.float32).values()
        (without,) = eager(tmp_path / "plain", given, torch.float32).values()
        (got,) = model.run(dict(given)).values()
        assert largest_error(got, wanted) <= TOLERANCE
        assert largest_error(without, wanted) > 100 * TOLERANCE


def test_the_base_stays_quantised(tmp_path: Path) -> None:
    base = quantised("deepseek_v3", tmp_path / "base", "fp8-block")
    sizes = projections(base, 0, ("o_proj",))
    adapter = write_adapter(tmp_path / "adapter", base, sizes, RANK)
    plain = prepare_folder(
        base, dims=None, dtype=None, attention_mask=False, trust_remote_code=False
    )
    found = prepare(base, adapter)
    name = "model.layers.0.self_attn.o_proj.weight"
    assert found.checkpoint[name].quantised is not None
    assert found.checkpoint[name].identity == plain.checkpoint[name].identity
    assert any("beside 1 linear layers" in note for note in found.notes)


def test_a_gpu_multiplies_by_the_codes_of_the_base(tmp_path: Path) -> None:
    base = quantised("llama", tmp_path / "base", "fp8-token")
    adapter = write_adapter(tmp_path / "adapter", base, LAYERS, RANK)
    sizes = ("batch=2", "seq=7")
    plain, adapted = (
        decide(source, "gfx950", dims=sizes)["gfx950"].fired() for source in (base, adapter)
    )
    assert adapted["quantise"] == plain["quantise"] == 4


def test_the_adapter_is_a_source(llama: Path) -> None:
    source = load_source(llama / "adapter", dims={"batch": 2, "seq": 5})
    assert source.name == "adapter" and source.tokenizer_path is not None
    weights = {weight.name: weight for weight in source.graph.parameters.values()}
    held = load_file(llama / "adapter" / WEIGHTS)
    for layer, (outputs, inputs) in LAYERS.items():
        for side, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
            weight = weights[f"{layer}.lora_{side}.weight"]
            assert weight.shape == shape
            stored = held[f"base_model.model.{layer}.lora_{side}.weight"]
            assert torch.equal(tensor_of(weight.load(), "f32"), stored)
    paths = {node.origin.path for node in source.graph.nodes()}
    assert "model.layers.0.self_attn.q_proj" in paths
    plain = load_source(llama / "base", dims={"batch": 2, "seq": 5})
    assert plain.sha256 != source.sha256


def test_it_is_in_the_dtype_of_the_model(llama: Path) -> None:
    found = prepare(llama / "base", llama / "adapter", "bf16").checkpoint
    held = load_file(llama / "adapter" / WEIGHTS)
    for layer in LAYERS:
        weight = found[f"{layer}.lora_A.weight"]
        stored = held[f"base_model.model.{layer}.lora_A.weight"]
        assert torch.equal(tensor_of(weight.load(), weight.type.dtype), stored.bfloat16())


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({}, 2.0),
        ({"lora_alpha": 6}, 1.5),
        ({"lora_alpha": 6, "use_rslora": True}, 3.0),
        ({"alpha_pattern": {"self_attn.q_proj": 20}}, 5.0),
        ({"alpha_pattern": {"proj": 20}}, 2.0),
        ({"alpha_pattern": {r".*\.q_pro.": 2}, "use_rslora": True}, 1.0),
    ],
)
def test_scaling(settings: dict[str, Any], scaling: float, llama: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", llama / "base", LAYERS, RANK, **settings)
    model = prepare(llama / "base", adapter).model
    assert model.model.layers[0].self_attn.q_proj.scaling == scaling


def test_beside_a_configuration_without_weights(llama: Path, tmp_path: Path) -> None:
    bare = without_weights(llama / "base", tmp_path / "bare")
    source = load_source(bare, adapter=llama / "adapter", dims={"batch": 2, "seq": 5})
    weights = {weight.name: weight for weight in source.graph.parameters.values()}
    assert weights["model.layers.0.self_attn.q_proj.weight"].read is None
    assert weights["model.layers.0.self_attn.q_proj.lora_A.weight"].read is not None


def test_an_adapter_in_the_folder_of_a_model(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    shutil.copytree(llama / "base", folder)
    shutil.copy(llama / "adapter" / "adapter_config.json", folder)
    source = load_source(folder, dims={"batch": 2, "seq": 5})
    assert any("`--adapter`" in note for note in source.notes)


def test_where_the_model_is(llama: Path, tmp_path: Path) -> None:
    assert base_of(llama / "adapter").samefile(llama / "base")
    adapter = write_adapter(tmp_path / "a", llama / "base", LAYERS)
    assert base_of(adapter) == llama / "base"
    for named, message in (("some/model", "`some/model`, which is no folder"), (3, "not name")):
        write_adapter(tmp_path / "a", llama / "base", LAYERS, base_model_name_or_path=named)
        with pytest.raises(InputError, match=message) as caught:
            load_source(tmp_path / "a")
        assert "--adapter" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "`use_dora`"),
        ({"modules_to_save": ["lm_head"]}, "`modules_to_save`"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "`target_parameters`"),
        ({"bias": "lora_only"}, "`bias` lora_only"),
        ({"lora_bias": True, "fan_in_fan_out": True}, "`fan_in_fan_out`, `lora_bias`"),
        ({"init_lora_weights": "pissa_niter_4"}, "`init_lora_weights` pissa"),
        ({"peft_type": "IA3"}, "kind `IA3`"),
        ({"lora_alpha": None}, "not numbers"),
        ({"alpha_pattern": {"x": "y"}}, "not numbers"),
    ],
)
def test_other_adapters_are_refused(
    settings: dict[str, Any], message: str, llama: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", llama / "base", LAYERS, RANK, **settings)
    with pytest.raises(InputError, match=message):
        prepare(llama / "base", adapter)


def _renamed(tensors: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("old", "new", "kind", "message"),
    [
        ("layers.0", "layers.7", InputError, "which the model does not have"),
        ("self_attn.q_proj", "input_layernorm", UnsupportedError, "`LlamaRMSNorm`"),
        ("q_proj.lora_A.weight", "q_proj.lora_embedding_A", UnsupportedError, "no matrix beside"),
        (
            "q_proj.lora_A.weight",
            "q_proj.lora_magnitude_vector.weight",
            UnsupportedError,
            "no matrix beside",
        ),
        ("q_proj.lora_A", "k_proj.lora_A", InputError, "lacks `.*lora_[AB].weight`"),
        ("self_attn.q_proj", "mlp.down_proj", InputError, r"is \[4, 96\], not \[4, 160\]"),
    ],
)
def test_tensors_that_do_not_fit(
    old: str, new: str, kind: type[Exception], message: str, llama: Path, tmp_path: Path
) -> None:
    only = {"model.layers.0.self_attn.q_proj": (96, 96)}
    adapter = write_adapter(tmp_path / "adapter", llama / "base", only, RANK)
    tensors = _renamed(load_file(adapter / WEIGHTS), old, new)
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(kind, match=message):
        prepare(llama / "base", adapter)


def test_experts_are_not_adapted(tmp_path: Path) -> None:
    base = build("qwen3_moe", tmp_path / "base", num_hidden_layers=2)
    expert = {"model.layers.1.mlp.experts.0.gate_proj": (40, 96)}
    with pytest.raises(UnsupportedError, match=r"one of the experts that `.*mlp\.experts` holds"):
        prepare(base, write_adapter(tmp_path / "adapter", base, expert))


def test_files_that_are_missing_or_damaged(llama: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", llama / "base", LAYERS)
    (adapter / WEIGHTS).write_bytes(b"\x07")
    with pytest.raises(InputError, match="cut off"):
        prepare(llama / "base", adapter)
    (adapter / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"has no `adapter_model\.safetensors`"):
        prepare(llama / "base", adapter)
    for text, message in (("[]", "not a JSON object"), ("{", "not sound JSON")):
        (adapter / "adapter_config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            prepare(llama / "base", adapter)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"has no `adapter_config\.json`"):
        prepare(llama / "base", adapter)


def test_only_model_folders_take_one(llama: Path) -> None:
    with pytest.raises(UsageError, match="--adapter"):
        load_source(torch.nn.Linear(2, 2), adapter=llama / "adapter")
    with pytest.raises(UsageError, match="goes with the folder of a model"):
        load_source(llama / "adapter", adapter=llama / "adapter")


def test_the_command_line_takes_one(llama: Path, tmp_path: Path) -> None:
    config = json.loads((llama / "adapter" / "adapter_config.json").read_text())
    adapter = tmp_path / "adapter"
    shutil.copytree(llama / "adapter", adapter)
    config["use_dora"] = True
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    asked = ["compile", str(llama / "base"), "--target", "cpu", "--adapter", str(adapter)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1
    assert "`use_dora`" in str(result.exception)
