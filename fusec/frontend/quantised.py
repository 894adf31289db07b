"""Quantised weights of a checkpoint: its codes with their scales, found by names and shapes.

| layout | codes | scales |
|---|---|---|
| DeepSeek, and transformers' `fp8` | `X` fp8 [N, K] | `X_scale_inv`, one a block |
| compressed-tensors, Quark, `fp8` | `X.weight` fp8 [N, K] | `X.weight_scale`: one, [N] or blocks |
| the same in MX | `X.weight` or `X.weight_packed` [N, K/2] | `X.weight_scale` e8m0 [N, K/32] |
| gpt-oss | `X_blocks` u8 [E, N, K/32, 16] | `X_scales` e8m0 [E, N, K/32]; the model has [E, K, N] |

A byte of codes holds two 4-bit floats, the one with the even column in its low bits.  Sources:
transformers' `integrations/mxfp4.py` and `finegrained_fp8.py`; compressed-tensors' compressors;
vLLM's loaders of Quark checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any

import numpy as np

from fusec.diagnostics import InputError, UnsupportedError
from fusec.dtypes import DTYPES, bf16_to_f32
from fusec.formats import FP8
from fusec.frontend.quantisation_config import ALL, EXPRESSION, HINT, MX_BLOCK, Format, Scheme
from fusec.frontend.safetensors_index import Stored
from fusec.ir.types import TensorType
from fusec.ir.weights import Bits, Quantised, Weight, dequantised, digest

SCALES = ("_scale_inv", "_scale")
INPUT_SCALES = ("input_scale", "activation_scale")
PACKED = "_packed"
BLOCKS, BLOCK_SCALES = "_blocks", "_scales"
SCALES_OF = {".weight_scale": ".weight", "_scale_inv": "", BLOCK_SCALES: BLOCKS}
"""Ends of the names of scales, with those of their weights."""

SCALE_DTYPES = ("f32", "bf16", "f16", "u8", "e8m0")
"""Bytes are e8m0."""

CACHE_SCALE = re.compile(
    r"\.(?:[kvq]|kv|prob)_scale$|\.[kvq]_proj\.output_scale$|prob_output_scale$"
)
"""Scales of a quantised cache of keys and values, or of the products of attention."""

DEEPSEEK_BLOCK = (128, 128)
"""What Quark leaves as it is when it quantises only a part of such a checkpoint."""

PLAIN_PARTS = ("weight", "bias")
"""Tensors of a layer that mean the same beside quantised weights."""

EXPERTS = ("gate_up_proj", "down_proj")
"""What experts call their stacked weights."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint holds.

    Attributes:
        plain: tensors that are weights as they are, by name.
        quantised: weights that are quantised, by the name that they would have if they were not.
        notes: what a person should know.
    """

    plain: Mapping[str, Stored]
    quantised: Mapping[str, Quantised]
    notes: tuple[str, ...] = ()


def contents(stored: Mapping[str, Stored], scheme: Scheme | None) -> Contents:
    """Tell the tensors of a checkpoint apart.

    Args:
        stored: the tensors in the files, by name.
        scheme: what the configuration says about quantised weights.

    Raises:
        InputError: a scale has no weight, a weight no scale, or they do not fit.
        UnsupportedError: a layout that fusec does not read.
    """
    left = dict(stored)
    cached = [name for name in left if CACHE_SCALE.search(name)] if scheme else []
    for name in cached:
        del left[name]
    found = {name: held for name, held in _pairs(left, scheme)}
    _check_rest(left, found, scheme)
    notes: tuple[str, ...] = ()
    if cached:
        said = f"{len(cached)} scales of a quantised cache, such as `{cached[0]}`"
        notes = (f"{said}, are left out: the model is compiled without a cache",)
    return Contents(left, found, notes)


def _pairs(left: dict[str, Stored], scheme: Scheme | None) -> Iterator[tuple[str, Quantised]]:
    """Takes codes, with what belongs to them, out of `left`."""
    for name in list(left):
        if name not in left:
            continue
        held = left[name]
        if name.endswith(BLOCKS) and held.dtype == "u8" and len(held.shape) == 4:
            yield _expert_blocks(left, name)
        elif _is_codes(name, held, scheme):
            yield _codes(left, name, scheme)


def _is_codes(name: str, held: Stored, scheme: Scheme | None) -> bool:
    if name.endswith(SCALES) or len(held.shape) < 2:
        return False
    if name.endswith(f".weight{PACKED}"):
        return True
    if held.dtype in FP8:
        return scheme is not None
    return held.dtype == "f4e2m1x2" or (
        scheme is not None and held.dtype in ("u8", "i8") and name.endswith(".weight")
    )


def _expert_blocks(left: dict[str, Stored], name: str) -> tuple[str, Quantised]:
    """gpt-oss: [E, N, K/32, 16] bytes, of weights that the model holds as [E, K, N]."""
    plain = name.removesuffix(BLOCKS)
    codes, scale_name = left.pop(name), plain + BLOCK_SCALES
    scale = left.pop(scale_name, None)
    if scale is None:
        raise _lacks_scale(name, codes, (scale_name,))
    experts, rows, groups, width = codes.shape
    if width * 2 != MX_BLOCK[1] or scale.shape != (experts, rows, groups) or not _is_e8m0(scale):
        wanted = f"u8[{experts}, {rows}, {groups}] for groups of {MX_BLOCK[1]}"
        raise _wrong_scale(name, codes, scale_name, scale, wanted)
    return plain, Quantised(
        _weight(plain, "codes", name, codes, "f4e2m1x2", (experts, rows, groups * width)),
        _weight(plain, "scale", scale_name, scale, "e8m0", scale.shape),
        MX_BLOCK,
        turned=True,
    )


def _codes(left: dict[str, Stored], name: str, scheme: Scheme | None) -> tuple[str, Quantised]:
    plain, codes = name.removesuffix(PACKED), left.pop(name)
    scale_name = next((plain + end for end in SCALES if plain + end in left), None)
    if scale_name is None:
        raise _lacks_scale(name, codes, tuple(plain + end for end in SCALES))
    scale = left.pop(scale_name)
    kind = "f4e2m1x2" if codes.dtype == "u8" else codes.dtype
    if kind not in (*FP8, "f4e2m1x2") or scale.dtype not in SCALE_DTYPES:
        what = f"`{name}` {_said(codes)} with `{scale_name}` {_said(scale)}"
        method = f"`{scheme.method}`" if scheme else "no `quantization_config`"
        raise UnsupportedError(f"{what} ({method}) is a layout that fusec does not read", hint=HINT)
    shape = codes.shape
    if kind == "f4e2m1x2":
        shape = (*shape[:-1], shape[-1] * 2)
    block, sizes = _block(name, codes, shape, scale_name, scale, scheme)
    scale_kind = "e8m0" if _is_e8m0(scale) else "f32"
    return plain, Quantised(
        _weight(plain, "codes", name, codes, kind, codes.shape),
        _weight(plain, "scale", scale_name, scale, scale_kind, sizes),
        block,
        input_scale=_input_scale(left, plain),
    )


def _block(
    name: str,
    codes: Stored,
    shape: tuple[int, ...],
    scale_name: str,
    scale: Stored,
    scheme: Scheme | None,
) -> tuple[tuple[int, int], tuple[int, ...]]:
    """The block that scales of this shape are for, and the sizes that they are seen in.

    Several blocks may fit a shape: those of the configuration come first, and where that names
    blocks of many rows and columns, no others are guessed.
    """
    *outer, rows, columns = shape
    blocks = [] if scheme is None else list(scheme.blocks)
    said = any(min(block) > 1 for block in blocks)
    blocks += [MX_BLOCK] if _is_e8m0(scale) else [(1, ALL), (ALL, ALL)]
    blocks += [] if said or _is_e8m0(scale) else [DEEPSEEK_BLOCK]
    for block in dict.fromkeys(blocks):
        held = _whole(block, (rows, columns))
        sizes = (*outer, -(-rows // held[0]), -(-columns // held[1]))
        forms = {sizes}
        if held[1] == columns:
            forms |= {sizes[:-1]}
        if held == (rows, columns):
            forms |= {tuple(outer), (*outer, 1)}
        if scale.shape in forms:
            return held, sizes
    known = [b for b in dict.fromkeys(blocks) if ALL not in b]
    wanted = " or ".join(
        str([*outer, -(-rows // high), -(-columns // wide)]) + f" for blocks of {high}x{wide}"
        for high, wide in known
    )
    raise _wrong_scale(name, codes, scale_name, scale, wanted or f"{[rows, 1]} or {[1]}")


def _whole(block: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """`block` in numbers."""
    return (block[0] or shape[0], block[1] or shape[1])


def _is_e8m0(scale: Stored) -> bool:
    return scale.dtype in ("u8", "e8m0")


def _input_scale(left: dict[str, Stored], plain: str) -> Weight | None:
    """How what goes into the layer of the weight `plain` is scaled, if that is said."""
    layer, _, part = plain.rpartition(".")
    names = [f"{layer}.{end}" for end in INPUT_SCALES if f"{layer}.{end}" in left]
    if part != "weight" or not names:
        return None
    held = left.pop(names[0])
    if prod(held.shape) != 1:
        what = f"`{names[0]}` {_said(held)}: more than one scale for what goes into a layer"
        raise UnsupportedError(f"{what} is not read", hint=HINT)
    return _weight(plain, "input_scale", names[0], held, "f32", (1,))


def _weight(
    plain: str, part: str, name: str, held: Stored, dtype: str, shape: tuple[int, ...]
) -> Weight:
    """A part of the weight `plain`: the tensor `name` in another dtype and shape."""
    kind = TensorType(dtype, shape)

    def read() -> Bits:
        bits = held.read()
        if held.dtype == "bf16":
            bits = bf16_to_f32(np.asarray(bits))
        if DTYPES[dtype].numpy != bits.dtype:
            bits = bits.astype(DTYPES[dtype].numpy)
        return bits.reshape(shape)

    identity = digest("part of a quantised weight", str(kind), held.weight(name).identity)
    return Weight(f"{plain}_{part}", kind, read, identity, sources=(name,))


def _check_rest(
    left: Mapping[str, Stored], found: Mapping[str, Quantised], scheme: Scheme | None
) -> None:
    """Refuse what is left over of a quantised weight."""
    layers = {name.removesuffix(".weight") for name in found}
    for name, held in left.items():
        layer, _, part = name.rpartition(".")
        if layer in layers and part not in PLAIN_PARTS:
            message = f"`{name}` {_said(held)} belongs to a quantised weight"
            raise UnsupportedError(f"{message}, and fusec does not read it", hint=HINT)
        for end, of in SCALES_OF.items():
            if not name.endswith(end) or (end == BLOCK_SCALES and held.dtype != "u8"):
                continue
            weight = name.removesuffix(end) + of
            message = f"`{name}` is a scale, but its weight `{weight}` "
            message += f"{_said(left[weight])} is not quantised" if weight in left else "is missing"
            if scheme is None:
                message += ", and `config.json` has no `quantization_config`"
            raise InputError(message, hint="the checkpoint is not complete")


def _said(held: Stored) -> str:
    return f"{held.dtype}{list(held.shape)}"


def _lacks_scale(name: str, codes: Stored, looked: tuple[str, ...]) -> InputError:
    listed = " or ".join(f"`{scale}`" for scale in looked)
    message = f"`{name}` {_said(codes)} is quantised, but its scale {listed} is missing"
    return InputError(message, hint="the checkpoint is not complete")


def _wrong_scale(
    name: str, codes: Stored, scale_name: str, scale: Stored, wanted: str
) -> InputError:
    message = f"`{scale_name}` {_said(scale)} is no scale for `{name}` {_said(codes)}"
    hint = (
        "`quantization_config` in `config.json` and the safetensors files are of different models"
    )
    return InputError(message, detail=(f"it has to be {wanted}",), hint=hint)


# --- other names, other layouts -------------------------------------------------------------


def renamed(held: Quantised, name: str) -> Quantised:
    """The parts of the weight `name`."""

    def called(part: Weight, end: str) -> Weight:
        return replace(part, name=f"{name}_{end}", sources=part.made_from)

    given = None if held.input_scale is None else called(held.input_scale, "input_scale")
    return replace(
        held, codes=called(held.codes, "codes"), scale=called(held.scale, "scale"),
        input_scale=given,
    )  # fmt: skip


def common_block(
    block: tuple[int, int], shape: tuple[int, ...], rows: Iterable[int]
) -> tuple[int, int]:
    """The largest block into which `block` divides, and that ends where parts end.

    Args:
        block: of each part.
        shape: [..., N, K] of each part.
        rows: of what is joined and of what is made of it.

    A scale for a whole part becomes one for each row, the form that products take.
    """
    sizes = set(rows)
    if len(sizes) == 1:
        return block
    if block[0] >= shape[-2]:
        return (1 if block[1] >= shape[-1] else gcd(block[0], *sizes), block[1])
    return (gcd(block[0], *sizes), block[1])


# --- a configuration without weights --------------------------------------------------------


def declared(model: Any, scheme: Scheme) -> dict[str, Weight]:
    """The weights that are quantised by `scheme`, without values.

    Args:
        model: of transformers, on meta.
        scheme: what its configuration says.
    """
    import torch

    excluded = _model_names(model, scheme)
    scheme = replace(scheme, excluded=excluded)
    made: dict[str, Weight] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            held = scheme.format_of((path,), "linear")
            if held is not None:
                name = f"{path}.weight"
                made[name] = _declared(name, held, module.weight)
            continue
        for key, parameter in module._parameters.items():
            if parameter is None or parameter.ndim != 3 or key not in EXPERTS:
                continue
            held = scheme.format_of(_expert_paths(path, key), "experts")
            if held is None:
                continue
            name, turned = f"{path}.{key}", bool(getattr(module, "is_transposed", False))
            parts = 2 if key == "gate_up_proj" and scheme.method != "mxfp4" else 1
            made[name] = _declared(name, held, parameter, parts, turned)
    return made


def _expert_paths(path: str, key: str) -> tuple[str, ...]:
    """What a configuration may call the experts at `path`."""
    projections = (
        ("gate_proj", "up_proj", "w1", "w3") if key == "gate_up_proj" else ("down_proj", "w2")
    )
    return (path, f"{path}.{key}", *(f"{path}.0.{name}" for name in projections))


def _model_names(model: Any, scheme: Scheme) -> tuple[str, ...]:
    """The modules that are not quantised, by the names that the model has for them."""
    if scheme.excluded is None:
        head = model.get_output_embeddings()
        return tuple(path for path, module in model.named_modules() if module is head)
    from transformers.conversion_mapping import get_model_conversion_mapping

    rules = get_model_conversion_mapping(model, None, None)
    names: list[str] = []
    for name in scheme.excluded:
        other = f"{name}."
        if "*" not in name and not name.startswith(EXPRESSION):
            for rule in rules:
                other, _ = rule.rename_source_key(other)
        names += dict.fromkeys((name, other.removesuffix(".")))
    return tuple(names)


def _declared(
    name: str, held: Format, parameter: Any, parts: int = 1, turned: bool = False
) -> Weight:
    """The weight `name` of a model, its rows joined from `parts` that were quantised apart."""
    from fusec.frontend.tensors import name_of

    shape = tuple(parameter.shape)
    if turned:
        shape = (*shape[:-2], shape[-1], shape[-2])
    *outer, rows, columns = shape
    part = (*outer, rows // parts, columns)
    block = _whole(held.block, (rows // parts, columns))
    block = common_block(block, part, {rows // parts, rows})
    width = columns
    if held.codes == "f4e2m1x2":
        width = columns // 2
    if columns % 32 and held.scale == "e8m0":
        message = f"`{name}` has rows of {columns}, which are not whole groups of {MX_BLOCK[1]}"
        raise InputError(message, hint="`quantization_config` does not fit the model")

    def without_values(end: str, dtype: str, sizes: tuple[int, ...]) -> Weight:
        kind = TensorType(dtype, sizes)
        return Weight(f"{name}_{end}", kind, None, digest("declared", name, end, str(kind)))

    scales = (*outer, -(-rows // block[0]), -(-columns // block[1]))
    return dequantised(
        name,
        name_of(parameter.dtype),
        Quantised(
            without_values("codes", held.codes, (*outer, rows, width)),
            without_values("scale", held.scale, scales),
            block,
            turned,
            without_values("input_scale", "f32", (1,)) if held.static else None,
        ),
    )
