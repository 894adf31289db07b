"""Hugging Face model folders, and live models of transformers.

A folder is built on the meta device, so that memory grows with the graph and not with the weights.
Buffers that a model computes when it is made (rotary frequencies, positions) are computed on the
CPU by the same code that `from_pretrained` runs for them.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusec.diagnostics import InputError, UnsupportedError, UsageError
from fusec.frontend.dims import DimRequest, DimSpec, dim_specs, narrowed
from fusec.frontend.quantisation_config import read_scheme
from fusec.frontend.quantised import contents, declared
from fusec.frontend.safetensors_index import json_object, read_folder

if TYPE_CHECKING:
    import torch

    from fusec.frontend.live import Call
    from fusec.ir.weights import Weight

BUILD_FAILURES = (
    OSError,
    ImportError,
    TypeError,
    ValueError,
    RuntimeError,
    KeyError,
    AttributeError,
    AssertionError,
    ZeroDivisionError,
    IndexError,
)
"""What a configuration that does not fit makes transformers raise."""

POSITION_LIMITS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "n_positions")
"""Where a configuration says how long a sequence may be."""

POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")
"""What models call a table with an entry for each position."""

LONGEST = 1 << 20
"""The longest sequence where it does not say."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model of transformers, ready to export.

    Attributes:
        model: on meta when it comes from a folder.
        call: its inputs.
        checkpoint: weights by name; those that are quantised or of an adapter when the folder has
            none.
        complete: whether the folder has weights.
        notes: what a person should know.
    """

    model: Any
    call: Call
    checkpoint: Mapping[str, Weight]
    complete: bool = True
    notes: tuple[str, ...] = ()


def require(module: str, extra: str) -> None:
    """Check that `module` can be imported.

    Raises:
        InputError: it is not installed; the hint has the command.
    """
    if importlib.util.find_spec(module) is None:
        hint = f"`pip install 'fusec[{extra}]'`"
        raise InputError(f"this source needs `{module}`, which is not installed", hint=hint)


def prepare_folder(
    folder: Path,
    *,
    dims: Mapping[str, DimRequest] | None,
    dtype: str | None,
    attention_mask: bool,
    trust_remote_code: bool,
    adapter: Path | None = None,
) -> Prepared:
    """Build the model in `folder` on meta and find its weights.

    Args:
        folder: of the model.
        dims: the sizes to keep dynamic, by name.
        dtype: fusec's name; `None` for the configuration's.
        attention_mask: whether the model takes a mask.
        trust_remote_code: whether code that comes with the folder may be run.
        adapter: a folder of PEFT, to be added to the model.

    Raises:
        InputError: transformers does not know the model, or its files are unsound.
        UnsupportedError: the model is of a kind that fusec cannot export.
    """
    require("torch", "torch")
    require("transformers", "huggingface")
    raw = read_config(folder)
    notes: list[str] = []
    config = _load_config(folder, raw, trust_remote_code)
    at = str(folder / "config.json")
    scheme = read_scheme(raw, at)
    if scheme is not None:
        config.quantization_config = None  # the model is built as if it were not quantised
        del config.quantization_config
        notes += scheme.notes
    stored = read_folder(folder)
    model_class = _model_class(config, raw, folder, trust_remote_code)
    named = [str(name) for name in raw.get("architectures") or ()]
    if named and model_class.__name__ not in named:
        made = model_class.__name__
        notes.append(f"transformers has no `{named[0]}`: the model is a `{made}`")
    model = build_on_meta(config, model_class, dtype)
    weights: Mapping[str, Weight] = {}
    if stored:
        from fusec.frontend.checkpoint import read_checkpoint

        checkpoint = read_checkpoint(model, contents(stored, scheme))
        weights = checkpoint.weights
        notes += checkpoint.notes
        unused = [name for name in checkpoint.unused if not _expected_unused(model, name)]
        if unused:
            more = ", ..." if len(unused) > 4 else ""
            listed = ", ".join(f"`{name}`" for name in unused[:4]) + more
            notes.append(f"the model has no use for {len(unused)} stored tensors: {listed}")
    else:
        others = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        unread = f" (`{others[0]}` is not read: save it as safetensors)" if others else ""
        notes.append(f"the folder has no safetensors files{unread}: weights are given at load")
        if scheme is not None:
            weights = declared(model, scheme)
    if adapter is None and (folder / "adapter_config.json").is_file():
        notes.append("the adapter in the folder is left out; add it with `--adapter`")
    if adapter is not None:
        from fusec.frontend.adapter import adapt

        added = adapt(model, adapter)
        weights = {**weights, **added}
        notes.append(f"the adapter `{adapter.name}` is beside {len(added) // 2} linear layers")
    call = model_call(model, dims, attention_mask)
    notes += _left_out(model, call)
    return Prepared(model, call, weights, bool(stored), tuple(notes))


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of `config.json`.

    Raises:
        InputError: it is not a JSON object.
    """
    path = folder / "config.json"
    return json_object(path.read_bytes(), path)


def _load_config(folder: Path, raw: Mapping[str, Any], trust_remote_code: bool) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = raw.get("model_type")
    if kind is None and not raw.get("auto_map"):
        hint = "name the folder of a model of transformers, or export the model with `torch.export`"
        at = str(folder / "config.json")
        raise InputError("the configuration has no `model_type`", at=at, hint=hint)
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    if not known and not trust_remote_code:
        at = str(folder / "config.json")
        if raw.get("auto_map"):
            hint = "read the code in the folder, then pass `--trust-remote-code` to run it"
            message = f"the model type `{kind}` needs Python code that comes with the folder"
            raise InputError(message, at=at, hint=hint)
        hint = "update transformers, or export the model with `torch.export` and compile the `.pt2`"
        raise InputError(f"transformers does not know the model type `{kind}`", at=at, hint=hint)
    try:
        return AutoConfig.from_pretrained(
            str(folder), trust_remote_code=trust_remote_code and not known, local_files_only=True
        )
    except (StrictDataclassError, *BUILD_FAILURES) as error:
        message = f"transformers does not accept the configuration: {_first_line(error)}"
        raise InputError(message, at=str(folder / "config.json")) from error


def _model_class(config: Any, raw: Mapping[str, Any], folder: Path, trust: bool) -> Any:
    """The class that `architectures` names, else the causal language model of this type."""
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_MAPPING,
    )

    names = raw.get("architectures") or ()
    for name in names:
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and hasattr(found, "_from_config"):
            return found
    auto_map = raw.get("auto_map") or {}
    if trust and auto_map:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        for key in ("AutoModelForCausalLM", "AutoModel", *auto_map):
            if key in auto_map and key != "AutoConfig":
                return get_class_from_dynamic_module(auto_map[key], str(folder))
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    listed = ", ".join(f"`{name}`" for name in names) or "none"
    hint = "`architectures` in `config.json` has to name a class of transformers"
    message = f"transformers has no model class for this configuration (architectures: {listed})"
    raise InputError(message, at=str(folder / "config.json"), hint=hint)


def build_on_meta(config: Any, model_class: Any, dtype: str | None) -> Any:
    """A model without memory for its weights, in evaluation mode.

    Args:
        config: of transformers; what does not suit an export is changed.
        model_class: of transformers.
        dtype: fusec's name; `None` for the one in the configuration, f32 if it names none.
    """
    import torch

    from fusec.frontend.tensors import dtype_of

    config.return_dict = True
    for part in _configs(config):
        part.use_cache = False
    wanted = dtype_of(dtype) if dtype else _config_dtype(config)
    # What a class refuses is left to it: gpt-oss has no sdpa, a dense model no experts.
    options = {"attn_implementation": "sdpa", "experts_implementation": "grouped_mm"}
    model: Any = None
    while model is None:
        try:
            with torch.device("meta"), _quiet_transformers():
                # A copy, because a refusal leaves its mark on the configuration.
                model = model_class._from_config(deepcopy(config), dtype=wanted, **options)
        except (
            ImportError,
            TypeError,
            ValueError,
            RuntimeError,
            KeyError,
            AttributeError,
        ) as error:
            text = str(error)
            if "experts implementation" in text and "experts_implementation" in options:
                del options["experts_implementation"]
            elif "attention implementation" in text and options["attn_implementation"] == "sdpa":
                options["attn_implementation"] = "eager"
            else:
                message = (
                    f"transformers cannot build `{model_class.__name__}`: {_first_line(error)}"
                )
                raise InputError(message) from error
    widen(model, wanted)
    return model.eval()


def load_model(folder: Path, dtype: str | None, trust_remote_code: bool) -> Any:
    """The model in `folder` with its weights on the CPU, as transformers runs it eagerly.

    Args:
        folder: of the model.
        dtype: fusec's name; `None` for the one in the configuration, f32 if it names none.
        trust_remote_code: whether code that comes with the folder may be run.

    Raises:
        InputError: transformers does not know the model, or cannot load it.
    """
    from fusec.frontend.tensors import dtype_of

    raw = read_config(folder)
    config = _load_config(folder, raw, trust_remote_code)
    kind = _model_class(config, raw, folder, trust_remote_code)
    wanted = dtype_of(dtype) if dtype else _config_dtype(config)
    try:
        with _quiet_transformers():
            model = kind.from_pretrained(folder, dtype=wanted, attn_implementation="eager")
            if hasattr(model, "set_experts_implementation"):
                model.set_experts_implementation("eager")
    except BUILD_FAILURES as error:
        message = f"transformers cannot load the model: {_first_line(error)}"
        raise InputError(message, at=str(folder)) from error
    for part in _configs(model.config):
        part.use_cache = False
    return model.eval()


def widen(model: Any, dtype: torch.dtype) -> None:
    """Give the parameters that transformers keeps in f32 that dtype, as loading them would."""
    plan: Mapping[str, torch.dtype] = model._get_dtype_plan(dtype)
    if not plan:
        return
    for path, owner in model.named_modules():
        for held in (owner._parameters, owner._buffers):
            for key, tensor in held.items():
                name = f"{path}.{key}" if path else key
                wide = next((plan[part] for part in plan if _in_plan(part, name)), None)
                if tensor is not None and wide is not None and tensor.is_floating_point():
                    tensor.data = tensor.data.to(wide)


def _in_plan(part: str, name: str) -> bool:
    return re.search(part.replace("*", ".*"), name) is not None


def _config_dtype(config: Any) -> Any:
    import torch

    named = getattr(config, "dtype", None)
    text = getattr(config, "get_text_config", lambda: config)()
    named = named if named is not None else getattr(text, "dtype", None)
    if isinstance(named, str):
        named = getattr(torch, named, None)
    return named if isinstance(named, torch.dtype) else torch.float32


# --- inputs ---------------------------------------------------------------------------------


def model_call(model: Any, dims: Mapping[str, DimRequest] | None, attention_mask: bool) -> Call:
    """The inputs of a model of transformers: token ids (and a mask), or pixels.

    Raises:
        UnsupportedError: the model takes something else.
        UsageError: a size is asked for that it has not, or a mask for a model without one.
    """
    import torch

    from fusec.frontend.live import Call, sample_sizes, sizes_of

    config = model.config
    main = getattr(model, "main_input_name", "input_ids")
    device = next(model.parameters()).device
    kind = type(model).__name__
    if getattr(config, "is_encoder_decoder", False) or main not in ("input_ids", "pixel_values"):
        hint = "export it with `torch.export.export(model, args)` and compile the `.pt2`"
        message = f"`{kind}` takes `{main}` and more; model folders are read for causal language "
        raise UnsupportedError(message + "models, encoders and image classifiers", hint=hint)
    if main == "pixel_values":
        if attention_mask:
            raise UsageError(f"`{kind}` takes no attention mask")
        specs = _specs(dims, {"batch": DimSpec()})
        sizes = sample_sizes(specs, sizes_of(model))
        shape = (sizes["batch"], config.num_channels, *_image_size(config))
        pixels = torch.zeros(shape, dtype=_pixel_dtype(model, shape), device=device)
        return Call((), {"pixel_values": pixels}, ({0: "batch"},), specs)
    if hasattr(model, "get_text_features") and hasattr(model, "get_image_features"):
        hint = "name the class of one half, such as `CLIPVisionModel`, in `architectures`"
        message = f"`{kind}` takes `input_ids` and `pixel_values`; model folders are read for one "
        raise UnsupportedError(message + "of them", hint=hint)
    text = getattr(config, "get_text_config", lambda: config)()
    limits = (getattr(text, name, None) for name in POSITION_LIMITS)
    longest = next((most for most in limits if isinstance(most, int) and most > 1), LONGEST)
    table = _positions(model)
    specs = _specs(dims, {"batch": DimSpec(), "seq": DimSpec(maximum=min(longest, table))})
    if (specs["seq"].maximum or 0) > table:
        hint = f"ask for at most `seq={specs['seq'].minimum}:{table}`"
        raise UsageError(f"`{kind}` has a table of {table} positions, `seq` needs more", hint=hint)
    sizes = sample_sizes(specs, sizes_of(model) | set(_config_integers(config)))
    ids = torch.zeros((sizes["batch"], sizes["seq"]), dtype=torch.int64, device=device)
    kwargs = {"input_ids": ids}
    if attention_mask:
        kwargs["attention_mask"] = torch.ones_like(ids)
    axes = {0: "batch", 1: "seq"}
    return Call((), kwargs, tuple(axes for _ in kwargs), specs)


def _left_out(model: Any, call: Call) -> list[str]:
    """That a model of texts and more, such as images, is compiled for texts alone."""
    takes = model.input_modalities
    others = {takes} - {"text"} if isinstance(takes, str) else set(takes) - {"text"}
    if "input_ids" not in call.kwargs or not others:
        return []
    listed = ", ".join(sorted(others))
    return [f"`{type(model).__name__}` is compiled for text alone, without {listed}"]


@contextmanager
def without_cache(model: Any) -> Iterator[None]:
    """`model` as one that gives no cache of keys and values; as before afterwards."""
    parts = _configs(model.config)
    before = [(getattr(p, "use_cache", None), getattr(p, "return_dict", None)) for p in parts]
    for part in parts:
        part.use_cache, part.return_dict = False, True
    try:
        yield
    finally:
        for part, (cache, result) in zip(parts, before, strict=True):
            part.use_cache, part.return_dict = cache, result


def _configs(config: Any) -> list[Any]:
    """A configuration and all those in it, such as of the text model of a model of images."""
    inner = (getattr(config, name, None) for name in getattr(config, "sub_configs", ()))
    return [config, *(part for each in inner if each is not None for part in _configs(each))]


@contextmanager
def fixed_frequencies(model: Any, call: Call) -> Iterator[None]:
    """`model` with rotary embeddings of the type `dynamic` as they are up to their first length.

    Beyond that length their frequencies depend on the largest position, by a Python branch that no
    export can follow; up to it they are those that the model was made with.

    Raises:
        UsageError: `seq` goes further.
    """
    dynamic = [
        part
        for part in model.modules()
        if hasattr(part, "original_max_seq_len") and _is_dynamic(getattr(part, "rope_type", None))
    ]
    before = [part.rope_type for part in dynamic]
    longest = call.specs["seq"].range[1] if "seq" in call.specs else None
    for part in dynamic:
        limit = part.original_max_seq_len
        if longest is None or longest > limit:
            message = f"rotary embeddings of the type `dynamic` are exported for {limit} positions"
            raise UsageError(f"{message}, `seq` needs more", hint=f"ask for `seq=1:{limit}`")
    try:
        for part in dynamic:
            part.rope_type = _without_dynamic(part.rope_type)
        yield
    finally:
        for part, kind in zip(dynamic, before, strict=True):
            part.rope_type = kind


@contextmanager
def masks_by_broadcast() -> Iterator[None]:
    """Masks of transformers made of positions that broadcast, where it would map over each one.

    `torch.export` keeps no `vmap`.  What a mask function gives for one position at a time is the
    same, unless it joins positions, which the rank of its result shows.
    """
    utils = sys.modules.get("transformers.masking_utils")
    names = ("_vmap_expansion_sdpa", "_non_vmap_expansion_sdpa", "TransformGetItemToIndex")
    if utils is None or not all(hasattr(utils, name) for name in names):
        yield
        return
    mapped, spread, indexing = (getattr(utils, name) for name in names)

    def expanded(mask_function: Any) -> Any:
        def mask(*positions: torch.Tensor) -> Any:
            found = mask_function(*spread(*positions))
            if found.ndim == len(positions):
                return found.expand([each.shape[0] for each in positions])
            with indexing():
                return mapped(mask_function)(*positions)

        return mask

    vars(utils).update(_vmap_expansion_sdpa=expanded, TransformGetItemToIndex=nullcontext)
    try:
        yield
    finally:
        vars(utils).update(_vmap_expansion_sdpa=mapped, TransformGetItemToIndex=indexing)


def _is_dynamic(kind: object) -> bool:
    """Whether a type of rotary embeddings, or one of those by type of layer, is `dynamic`."""
    kinds = kind.values() if isinstance(kind, Mapping) else (kind,)
    return any(isinstance(each, str) and "dynamic" in each for each in kinds)


def _without_dynamic(kind: Any) -> Any:
    if isinstance(kind, Mapping):
        return {layer: _without_dynamic(each) for layer, each in kind.items()}
    return "default" if _is_dynamic(kind) else kind


def _specs(
    dims: Mapping[str, DimRequest] | None, known: Mapping[str, DimSpec]
) -> dict[str, DimSpec]:
    """The ranges asked for, those of the model where none is."""
    asked = dim_specs(dims, known)
    specs = {name: asked.get(name, default) for name, default in known.items()}
    for name, spec in specs.items():
        limit = known[name].maximum
        if spec.maximum is None and limit is not None:
            specs[name] = narrowed(spec, (1, limit)) or spec
    return specs


def _pixel_dtype(model: Any, shape: tuple[int, ...]) -> torch.dtype:
    """f32 where the model casts pixels itself, else its own dtype."""
    import torch

    from fusec.frontend.live import EXPORT_FAILURES, evaluating

    own: torch.dtype = next(model.parameters()).dtype
    pixels = torch.zeros(shape, device="meta")
    try:
        with evaluating(model), _quiet_transformers():
            model(pixel_values=pixels.to(next(model.parameters()).device))
    except EXPORT_FAILURES:
        return own
    return torch.float32


def _positions(model: Any) -> int:
    """How many positions the tables of positions have; some keep the first few for padding."""
    import torch

    lengths = [
        table.num_embeddings
        - (0 if table.padding_idx is None else table.padding_idx + 1)
        - (offset if isinstance(offset := getattr(table, "offset", 0), int) else 0)
        for name, table in model.named_modules()
        if isinstance(table, torch.nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES
    ]
    return min(lengths, default=LONGEST)


def _image_size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", None)
    if size is None:
        hint = 'add it, such as `"image_size": 224`: the size of the images that the model is for'
        raise InputError("`config.json` has no `image_size`", hint=hint)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _config_integers(config: Any) -> Iterator[int]:
    for value in config.to_dict().values():
        if isinstance(value, int) and not isinstance(value, bool):
            yield value


# --- what a model computes when it is made --------------------------------------------------


def computed_buffers(model: Any, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """The values of buffers that no checkpoint holds, computed on the CPU.

    Args:
        model: of transformers, on meta; afterwards those buffers are on the CPU.
        names: of the buffers.

    Raises:
        UnsupportedError: one of them cannot be computed without the weights.
    """
    import torch

    wanted = set(names)
    owners: dict[str, Any] = {}
    for path, owner in model.named_modules(remove_duplicate=False):
        for key in owner._buffers:
            name = f"{path}.{key}" if path else key
            if name in wanted:
                owners[name] = owner
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    for name, owner in owners.items():
        key = name.rpartition(".")[2]
        meta = owner._buffers[key]
        if meta.device.type == "meta":
            owner._buffers[key] = _unset_like(meta)
        owner._is_hf_initialized = False
    with torch.no_grad(), _quiet_transformers():
        model.initialize_weights()
    values: dict[str, torch.Tensor] = {}
    made: Mapping[str, torch.Tensor] | None = None
    for name in sorted(wanted):
        found = owners.get(name)
        value = None if found is None else found._buffers[name.rpartition(".")[2]]
        if value is None or _unset(value):
            made = _buffers_as_made(model) if made is None else made
            value = made.get(name)
        if value is None or value.device.type == "meta":
            hint = "save it with the weights, as a persistent buffer"
            message = f"`{type(model).__name__}` makes the tensor `{name}` where it has no values"
            raise UnsupportedError(message, hint=hint)
        values[name] = value
    return values


def _buffers_as_made(model: Any) -> dict[str, torch.Tensor]:
    """The buffers of a second model like `model`, made on the CPU with its parameters on meta.

    For models that compute a buffer in `__init__` and never again.  Each parameter has memory for
    the moment between being made and being registered.
    """
    import torch

    register = torch.nn.Module.register_parameter

    def on_meta(owner: Any, name: str, parameter: Any) -> None:
        register(owner, name, parameter)
        held = owner._parameters[name]
        if held is not None and held.device.type != "meta":
            empty = held.detach().to("meta")
            owner._parameters[name] = torch.nn.Parameter(empty, requires_grad=False)

    torch.nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        with _quiet_transformers(), torch.no_grad():
            other = type(model)._from_config(deepcopy(model.config), dtype=model.dtype)
    except BUILD_FAILURES as error:
        message = f"`{type(model).__name__}` cannot be made without its weights: "
        raise UnsupportedError(message + _first_line(error)) from error
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]
    return dict(other.named_buffers(remove_duplicate=False))


def _unset_like(meta: torch.Tensor) -> torch.Tensor:
    """A tensor that shows whether it was written."""
    import torch

    if meta.is_floating_point():
        return torch.full(meta.shape, float("nan"), dtype=meta.dtype, device="cpu")
    if meta.dtype == torch.bool:
        return torch.zeros(meta.shape, dtype=torch.bool, device="cpu")
    lowest = torch.iinfo(meta.dtype).min
    return torch.full(meta.shape, lowest, dtype=meta.dtype, device="cpu")


def _unset(value: torch.Tensor) -> bool:
    import torch

    if value.numel() == 0:
        return False
    if value.is_floating_point():
        return bool(value.isnan().any())
    if value.dtype == torch.bool:
        return not bool(value.any())
    return bool((value == torch.iinfo(value.dtype).min).any())


def _expected_unused(model: Any, name: str) -> bool:
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"]
    patterns.append(r"(^|\.)position_ids$")
    return any(re.search(pattern, name) for pattern in patterns)


def _first_line(error: BaseException) -> str:
    """What went wrong: the first line, and those that it announces by a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[:1]
    while said and said[-1].endswith(":") and len(said) < len(lines):
        said.append(lines[len(said)])
    return (" ".join(said) or type(error).__name__).rstrip(".")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without progress bars, and the advice that transformers logs to those who train."""
    from transformers.utils import logging

    from fusec.frontend.live import quiet

    level, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with quiet():  # also of the warning that a setting of the environment forbids progress bars
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if shows_progress:
                logging.enable_progress_bar()
