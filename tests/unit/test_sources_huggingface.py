"""Model folders: built on meta, weights by transformers' own rules, numbers as eager PyTorch."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sample_models import NAMES, build, reference

from fusec.diagnostics import InputError, UnsupportedError, UsageError
from fusec.dtypes import DTYPES
from fusec.frontend import load_source
from fusec.frontend.huggingface import computed_buffers, prepare_folder
from fusec.frontend.tensors import tensor_of
from fusec.ir.interpret import interpret

TINY: dict[str, Any] = {"num_hidden_layers": 2}


pytestmark = pytest.mark.usefixtures("quiet_progress")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("models") / "llama", **TINY)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen3_moe", tmp_path_factory.mktemp("models") / "qwen3_moe", **TINY)


def _copy(folder: Path, to: Path, **changes: object) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    config.update(changes)
    (to / "config.json").write_text(json.dumps(config))
    return to


def _prepare(folder: Path, dtype: str | None = None) -> Any:
    return prepare_folder(
        folder, dims=None, dtype=dtype, attention_mask=False, trust_remote_code=False
    )


def _check_weights(folder: Path, dtype: str = "float32", option: str | None = None) -> None:
    """Every parameter and buffer has the very bits that `from_pretrained` gives it."""
    prepared = _prepare(folder, option)
    expected = reference(folder, dtype)
    for name, tensor in expected.state_dict().items():
        weight = prepared.checkpoint[name]
        found = tensor_of(weight.load(), weight.type.dtype)
        assert found.dtype == tensor.dtype, name
        assert torch.equal(found, tensor), name
    held = dict(expected.named_buffers())
    names = [name for name in held if name not in prepared.checkpoint]
    for name, value in computed_buffers(prepared.model, names).items():
        assert value.dtype == held[name].dtype
        assert torch.equal(value, held[name]), name


def _check_numbers(folder: Path, mask: bool, shapes: tuple[tuple[int, int], ...]) -> None:
    """The graph in exact arithmetic against eager float64."""
    source = load_source(folder, attention_mask=mask)
    assert not [node.op for node in source.graph.nodes() if "." in node.op]
    model = reference(folder).double()
    for batch, length in shapes:
        given = _given(model, batch, length, mask)
        with torch.no_grad():
            expected = model(**given)
        single = {name: _narrow(value) for name, value in given.items()}
        for name, found in interpret(source.graph, single).items():
            wanted = getattr(expected, name).numpy()
            error = np.abs(found - wanted).max() / np.abs(wanted).max()
            # transformers computes delta rules and routers in float32 in any model.
            assert error < 1e-4, f"{name} at {batch}x{length}: {error:.1e}"


def _given(model: Any, batch: int, length: int, mask: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(batch * 1000 + length)
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        return {"pixel_values": torch.randn(batch, 3, size, size).double()}
    given = {"input_ids": torch.randint(3, model.config.vocab_size, (batch, length))}
    if mask:
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        given["attention_mask"][0, : length // 3] = 0
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return given


def _narrow(value: torch.Tensor) -> Any:
    return value.float().numpy() if value.is_floating_point() else value.numpy()


def test_llama_with_a_mask(llama: Path) -> None:
    source = load_source(llama, attention_mask=True)
    assert source.kind == "huggingface" and source.name == "llama"
    assert source.tokenizer_path == llama / "tokenizer.json"
    graph = source.graph
    assert graph.inputs == ["input_ids", "attention_mask"]
    assert {str(graph.type(value)) for value in graph.inputs} == {"i64[batch, seq]"}
    assert graph.output_names == ["logits"]
    assert str(graph.type(graph.outputs[0])) == "f32[batch, seq, 311]"
    assert graph.symbols == {"batch": (1, None), "seq": (1, 512)}
    _check_numbers(llama, True, ((1, 1), (2, 9)))


def test_sites_are_module_paths(llama: Path) -> None:
    paths = {node.origin.path for node in load_source(llama).graph.nodes()}
    assert "model.layers.1.self_attn" in paths


def test_weights_are_those_of_transformers(llama: Path) -> None:
    _check_weights(llama)


def test_experts_are_stacked_as_transformers_stacks_them(mixture: Path) -> None:
    stored = load_file(mixture / "model.safetensors")
    assert any(".experts.3.gate_proj." in name for name in stored)  # one tensor an expert
    _check_weights(mixture)
    names = _prepare(mixture).checkpoint
    assert names["model.layers.1.mlp.experts.gate_up_proj"].shape == (8, 80, 96)


def test_the_dtype_asked_for(mixture: Path, tmp_path: Path) -> None:
    _check_weights(mixture, "bfloat16", "bf16")
    halves = build("llama", tmp_path / "llama", "bfloat16", **TINY)
    _check_weights(halves, "bfloat16")
    graph = load_source(halves, dims={"seq": 16}).graph
    assert str(graph.type(graph.outputs[0])) == "bf16[batch, 16, 311]"


def test_shards_with_an_index(llama: Path, tmp_path: Path) -> None:
    folder = _copy(llama, tmp_path / "sharded")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    places = {name: file for file, held in parts.items() for name in held}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    found = _prepare(folder).checkpoint
    for name, tensor in tensors.items():
        assert torch.equal(tensor_of(found[name].load(), "f32"), tensor)
    (folder / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"names `b\.safetensors`, which is missing"):
        _prepare(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(InputError, match="outside the folder"):
        _prepare(folder)


def test_tied_weights_are_one(tmp_path: Path) -> None:
    folder = build("qwen3", tmp_path / "qwen3", **TINY)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    weights = _prepare(folder).checkpoint
    assert weights["lm_head.weight"].identity == weights["model.embed_tokens.weight"].identity


def test_a_folder_without_weights(llama: Path, tmp_path: Path) -> None:
    folder = _copy(llama, tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    source = load_source(folder, dims={"batch": 2, "seq": 8})
    assert any("no safetensors files" in note for note in source.notes)
    weights = {weight.name: weight for weight in source.graph.parameters.values()}
    assert weights["model.embed_tokens.weight"].read is None
    with pytest.raises(InputError, match="no values for `model"):
        weights["model.embed_tokens.weight"].load()


def test_missing_and_wrong_weights_are_named(llama: Path, tmp_path: Path) -> None:
    folder = _copy(llama, tmp_path / "wrong")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match="lack 1 of") as caught:
        _prepare(folder)
    assert caught.value.detail == ("`model.layers.1.mlp.up_proj.weight`",)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match="1 weights have shapes") as caught:
        _prepare(folder)
    assert "`model.layers.1.mlp.up_proj.weight` is [3, 3], not [160, 96]" in caught.value.detail


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not sound JSON"),
        ("[]", "not a JSON object"),
        ('{"model_type": "no_such"}', "does not know the model type `no_such`"),
        ("{}", "the configuration has no `model_type`"),
        (
            '{"model_type": "llama", "hidden_size": 96, "num_attention_heads": 7}',
            r"does not accept the configuration: .*\(96\) is not a multiple of .*\(7\)",
        ),
        (
            '{"model_type": "x", "auto_map": {"AutoConfig": "configuration_x.X"}}',
            "needs Python code that comes with the folder",
        ),
        ('{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}', "takes"),
        (
            '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": "x"}',
            "does not accept the configuration",
        ),
    ],
)
def test_configurations_that_cannot_be_built(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_source(tmp_path)
    if "auto_map" in text:
        assert "--trust-remote-code" in (caught.value.hint or "")


@pytest.mark.parametrize("cut", [4, 100, -1])
def test_a_damaged_safetensors_file(cut: int, llama: Path, tmp_path: Path) -> None:
    folder = _copy(llama, tmp_path / "cut")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:cut])
    with pytest.raises(InputError, match=r"safetensors|fit"):
        _prepare(folder)


def test_rotary_embeddings_that_change_with_the_length(tmp_path: Path) -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    folder = build(
        "llama", tmp_path / "d", **TINY, rope_parameters=dynamic, max_position_embeddings=32
    )
    _check_numbers(folder, False, ((2, 32), (1, 5)))
    with pytest.raises(UsageError, match="type `dynamic` are exported for 32 positions") as caught:
        load_source(folder, dims={"seq": (1, 33)})
    assert caught.value.hint == "ask for `seq=1:32`"


def test_progress_bars_that_the_environment_forbids(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers warns where it cannot bring them back; warnings are errors here."""
    bars = importlib.import_module("huggingface_hub.utils.tqdm")
    monkeypatch.setattr(bars, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)
    _prepare(llama)


def test_a_class_that_transformers_has_not(llama: Path, tmp_path: Path) -> None:
    folder = _copy(llama, tmp_path / "reward", architectures=["LlamaForRewards"])
    (note,) = (note for note in _prepare(folder).notes if "LlamaForRewards" in note)
    assert note == "transformers has no `LlamaForRewards`: the model is a `LlamaForCausalLM`"
    assert not _prepare(llama).notes


def test_weights_that_are_no_safetensors(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (note,) = _prepare(tmp_path).notes
    assert "`pytorch_model.bin` is not read" in note


def test_models_of_texts_and_images(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "clip", "architectures": ["CLIPModel"]})
    )
    with pytest.raises(UnsupportedError, match="`CLIPModel` takes `input_ids` and `pixel_values`"):
        load_source(tmp_path)


def test_a_model_of_texts_and_images_is_read_for_texts(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    texts = LlamaConfig(**size, **heads, vocab_size=111, max_position_embeddings=64)
    images = CLIPVisionConfig(**size, num_attention_heads=2, image_size=16, patch_size=8)
    kind = "LlavaForConditionalGeneration"
    config = LlavaConfig(vision_config=images, text_config=texts, architectures=[kind])
    config.save_pretrained(tmp_path)
    source = load_source(tmp_path)
    assert (source.graph.inputs, source.graph.output_names) == (["input_ids"], ["logits"])
    assert source.graph.symbols["seq"] == (1, 64)
    assert f"`{kind}` is compiled for text alone, without image" in source.notes


def test_an_image_classifier_of_no_size(tmp_path: Path) -> None:
    settings = {"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}
    small = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    (tmp_path / "config.json").write_text(json.dumps({**settings, **small}))
    with pytest.raises(InputError, match="has no `image_size`"):
        load_source(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**settings, **small, "image_size": 32}))
    graph = load_source(tmp_path).graph
    assert str(graph.type("pixel_values")) == "f32[batch, 3, 32, 32]"


def test_masks_that_transformers_maps_over_positions(tmp_path: Path) -> None:
    """As of EmbeddingGemma, whose windows look both ways."""
    layers = ["sliding_attention", "full_attention"]
    settings = {"use_bidirectional_attention": True, "layer_types": layers, **TINY}
    _check_numbers(build("gemma3", tmp_path / "gemma", **settings), False, ((2, 29),))


def test_sizes_are_those_asked_for(llama: Path) -> None:
    graph = load_source(llama, dims={"batch": 4, "seq": "1:32:64"}).graph
    assert str(graph.type("input_ids")) == "i64[4, seq]"
    assert graph.symbols == {"seq": (1, 64)}
    with pytest.raises(UsageError, match="no dynamic size called `time`"):
        load_source(llama, dims={"time": 4})


def test_buffers_that_only_the_constructor_computes() -> None:
    """Code that comes with a folder knows nothing of models on meta."""
    from transformers import PreTrainedConfig, PreTrainedModel

    class Waves(PreTrainedModel):  # type: ignore[misc]
        config_class = PreTrainedConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.table = torch.nn.Embedding(11, 6)
            waves = 1 / 10 ** (torch.arange(6).float() / 6)
            self.register_buffer("waves", waves, persistent=False)
            self.post_init()

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.table(input_ids) * self.waves
            return result

    with torch.device("meta"):
        model = Waves(PreTrainedConfig())
    found = computed_buffers(model, ["waves"])["waves"]
    assert torch.equal(found, Waves(PreTrainedConfig()).waves)
    with pytest.raises(UnsupportedError, match="`lost`"):
        computed_buffers(model, ["lost"])


def test_no_more_positions_than_the_table_has(tmp_path: Path) -> None:
    folder = build("bert", tmp_path / "bert", num_hidden_layers=1)
    with pytest.raises(UsageError, match="table of 512 positions"):
        load_source(folder, dims={"seq": (1, 600)})
    graph = load_source(folder).graph
    assert graph.symbols["seq"] == (1, 512)
    assert graph.output_names == ["last_hidden_state", "pooler_output"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_weights_of_each_model(name: str, tmp_path: Path) -> None:
    _check_weights(build(name, tmp_path / name))
    _check_weights(build(name, tmp_path / "bf16", "bfloat16"), "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_each_model(name: str, mask: bool, tmp_path: Path) -> None:
    if name == "vit" and mask:
        with pytest.raises(UsageError, match="takes no attention mask"):
            load_source(build(name, tmp_path / name), attention_mask=True)
        return
    _check_numbers(build(name, tmp_path / name), mask, ((1, 1), (2, 5), (1, 130)))


def test_weight_types_are_storable(llama: Path) -> None:
    for weight in _prepare(llama).checkpoint.values():
        assert weight.load().dtype == DTYPES[weight.type.dtype].numpy
