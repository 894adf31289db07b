"""Weights of a transformers model, from its safetensors files, each made when it is read.

transformers renames, stacks, splits and transposes what a checkpoint holds while it loads it.  Its
rules are data (`WeightRenaming`, `WeightConverter`), so this module runs the same rules on the
header alone to learn names and shapes, and on the bytes only when a weight is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from fusec.diagnostics import InputError
from fusec.frontend.quantised import Contents, common_block, renamed
from fusec.frontend.tensors import bits_of, dtype_of, name_of, tensor_of
from fusec.ir.types import TensorType
from fusec.ir.weights import Bits, Quantised, Weight, dequantised, digest, finer

SHOWN = 8
"""Names listed in a message."""

FAILURES = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)
"""What code of transformers raises when a conversion does not fit what it is given."""


BY_ROWS = {"MergeModulelist", "Concatenate", "Chunk"}
"""Operations of rules that move whole rows of matrices, in the dimensions that `_by_rows` takes."""

Source: TypeAlias = Weight | Quantised
"""What a checkpoint holds under one name."""


@dataclass(slots=True)
class _Conversion:
    """One group of stored tensors that a rule turns into one or more weights."""

    first: str
    rule: Any
    sources: list[tuple[str, Source]] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)

    def run(
        self, model: Any, tensors: Iterable[Callable[[], torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """The weights by name; `tensors` gives each source, or a stand-in for it on meta."""
        rule = deepcopy(self.rule)
        for (name, _), pattern, load in zip(self.sources, self.patterns, tensors, strict=True):
            rule.add_tensor(self.first, name, pattern, load)
        made = rule.convert(self.first, model=model, config=model.config)
        return {key: held[0] if isinstance(held, list) else held for key, held in made.items()}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights that a model folder holds.

    Attributes:
        weights: by the name of the parameter or buffer in the model.
        unused: names in the files that the model has no use for.
    """

    weights: Mapping[str, Weight]
    unused: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_checkpoint(model: Any, held: Contents) -> Checkpoint:
    """The weights of `model` as a checkpoint holds them.

    Args:
        model: a transformers model on meta, its parameters in the dtypes that are wanted; one
            without a quantiser, whatever the checkpoint is.
        held: what is in the files.

    Raises:
        InputError: a parameter has no values, or values of another shape.
    """
    wanted: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    sources: dict[str, Source] = {name: each.weight(name) for name, each in held.plain.items()}
    sources |= held.quantised
    simple, conversions, unused = _assign(model, sources, wanted)
    weights: dict[str, Weight] = {}
    wrong: list[str] = []
    for name, source in simple.items():
        weights[name] = _as(sources[source], name, wanted[name])
    for conversion in conversions:
        made = _converted_codes(model, conversion, wanted)
        weights |= _converted(model, conversion, wanted) if made is None else made
    for name, weight in weights.items():
        if name in wanted and weight.shape != tuple(wanted[name].shape):
            wrong.append(f"`{name}` is {list(weight.shape)}, not {list(wanted[name].shape)}")
    if wrong:
        hint = "`config.json` and the safetensors files are of different models"
        message = f"{len(wrong)} weights have shapes that the model does not have"
        raise InputError(message, detail=_listed(wrong), hint=hint)
    _tie(wanted, weights)
    _check_complete(model, wanted, weights)
    return Checkpoint(weights, unused, (*held.notes, *_lost(conversions, weights)))


def _lost(conversions: Iterable[_Conversion], weights: Mapping[str, Weight]) -> Iterator[str]:
    """Says which weights do not keep their codes."""
    plain = [
        group.first
        for group in conversions
        if any(isinstance(source, Quantised) for _, source in group.sources)
        and group.first in weights
        and weights[group.first].quantised is None
    ]
    if plain:
        said = f"{len(plain)} quantised weights, such as `{plain[0]}`, are compiled as plain ones"
        why = "they are made of parts that are not stored alike, or that transformers reorders"
        yield f"{said}: {why}"


def _assign(
    model: Any, sources: Mapping[str, Source], wanted: Mapping[str, object]
) -> tuple[dict[str, str], list[_Conversion], tuple[str, ...]]:
    """Which stored tensor becomes which weight: as they are, through a rule, not at all."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model, None, None)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    prefix = model.base_model_prefix
    simple: dict[str, str] = {}
    groups: dict[str, _Conversion] = {}
    unused: list[str] = []
    for name in sorted(sources, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if key not in wanted and name in wanted:
            key, pattern = rename_source_key(name, [], [], prefix, wanted)
        if key not in wanted:
            unused.append(name)
        elif pattern is None:
            simple[key] = name
        else:
            group = groups.get(key)
            if group is None:
                group = groups[key] = _Conversion(key, by_pattern[pattern])
            group.sources.append((name, sources[name]))
            group.patterns.append(pattern)
    return simple, list(groups.values()), tuple(unused)


def _converted(
    model: Any, conversion: _Conversion, wanted: Mapping[str, torch.Tensor]
) -> dict[str, Weight]:
    """The weights of a group, their shapes found by running its rule on meta."""
    first = wanted[conversion.first]
    sources = [
        dequantised(name, name_of(first.dtype), held) if isinstance(held, Quantised) else held
        for name, held in conversion.sources
    ]

    def source_dtype(source: Weight) -> torch.dtype:
        # Cast before joining, as transformers does; quantised values stay as they are.
        plain = source.type.dtype in ("f64", "f32", "f16", "bf16")
        plain = plain and first.dtype.is_floating_point
        return first.dtype if plain else dtype_of(source.type.dtype)

    def stand_in(source: Weight) -> torch.Tensor:
        return torch.empty(source.shape, dtype=source_dtype(source), device="meta")

    def load(source: Weight) -> torch.Tensor:
        return tensor_of(source.load(), source.type.dtype).to(source_dtype(source))

    shapes = _run_on_meta(model, conversion, sources, stand_in)
    how = _how(conversion, sources)
    made: dict[str, Weight] = {}
    for name, shape in shapes.items():
        if name not in wanted:
            continue
        target = wanted[name]

        def read(name: str = name, kind: torch.dtype = target.dtype) -> Bits:
            tensors = conversion.run(model, [partial(load, source) for source in sources])
            return bits_of(tensors[name].to(kind).contiguous())

        kind = TensorType(name_of(target.dtype), tuple(shape.shape))
        made[name] = Weight(name, kind, read, digest("part", name, str(kind), how))
    return made


def _run_on_meta(
    model: Any,
    conversion: _Conversion,
    sources: Sequence[Weight],
    stand_in: Callable[[Weight], torch.Tensor],
) -> dict[str, torch.Tensor]:
    try:
        return conversion.run(model, [partial(stand_in, source) for source in sources])
    except FAILURES as error:
        message = f"transformers cannot make `{conversion.first}` from this checkpoint: {error}"
        names = [f"`{source.name}` {source.type}" for source in sources]
        raise InputError(message, detail=_listed(names)) from None


def _how(conversion: _Conversion, sources: Sequence[Weight]) -> str:
    """Names the rule and what it is run on."""
    kinds = [str(operation) for operation in conversion.rule.operations]
    return digest(
        "converted", *kinds, *conversion.patterns, *(source.identity for source in sources)
    )


def _converted_codes(
    model: Any, conversion: _Conversion, wanted: Mapping[str, torch.Tensor]
) -> dict[str, Weight] | None:
    """The weights of a group of quantised ones: the rule is run on codes and on scales.

    `None` where the rule does more than to stack, join and split matrices by rows, or where the
    sources are not quantised alike.
    """
    sources = [held for _, held in conversion.sources if isinstance(held, Quantised)]
    first = sources[0] if sources else None
    alike = first is not None and all(
        each.codes.type.dtype == first.codes.type.dtype
        and each.scale.type.dtype == first.scale.type.dtype
        and len(each.codes.shape) == 2
        and each.codes.shape[1] == first.codes.shape[1]
        and not each.turned
        for each in sources
    )
    if first is None or not alike or len(sources) < len(conversion.sources):
        return None
    if not _by_rows(conversion.rule.operations):
        return None
    codes = _parts(model, conversion, [each.codes for each in sources], "codes", wanted)
    rows = {each.codes.shape[0] for each in sources}
    rows |= {weight.shape[-2] for weight in codes.values()}
    blocks = {common_block(each.block, each.values_shape, rows) for each in sources}
    if len(blocks) > 1:
        return None
    (block,) = blocks
    scales = [finer(each, block).scale for each in sources]
    scale = _parts(model, conversion, scales, "scale", wanted)
    given = [each.input_scale for each in sources if each.input_scale is not None]
    if given and len(given) < len(sources):
        return None
    return {
        name: dequantised(
            name,
            name_of(wanted[name].dtype),
            Quantised(
                codes[name], scale[name], block,
                input_scale=_largest(f"{name}_input_scale", given) if given else None,
            ),
        )
        for name in codes
    }  # fmt: skip


def _by_rows(operations: Iterable[Any]) -> bool:
    """Whether the operations of a rule leave the order inside of rows and blocks as it is."""
    stacked = False
    for operation in operations:
        kind, dim = type(operation).__name__, getattr(operation, "dim", None)
        if kind not in BY_ROWS or dim != (1 if stacked and kind != "MergeModulelist" else 0):
            return False
        stacked = stacked or kind == "MergeModulelist"
    return True


def _parts(
    model: Any,
    conversion: _Conversion,
    sources: Sequence[Weight],
    part: str,
    wanted: Mapping[str, torch.Tensor],
) -> dict[str, Weight]:
    """The codes, or the scales, of the weights of a group, by the names of those."""
    dtype = sources[0].type.dtype
    bits = dtype_of("f32" if dtype == "f32" else "u8")

    def stand_in(source: Weight) -> torch.Tensor:
        return torch.empty(source.shape, dtype=bits, device="meta")

    def load(source: Weight) -> torch.Tensor:
        return tensor_of(source.load(), "f32" if dtype == "f32" else "u8")

    how = _how(conversion, sources)
    used = tuple(source for weight in sources for source in weight.made_from)
    made: dict[str, Weight] = {}
    for name, shape in _run_on_meta(model, conversion, sources, stand_in).items():
        if name not in wanted:
            continue

        def read(name: str = name) -> Bits:
            tensors = conversion.run(model, [partial(load, source) for source in sources])
            return bits_of(tensors[name].contiguous())

        kind = TensorType(dtype, tuple(shape.shape))
        identity = digest("part", part, name, str(kind), how)
        made[name] = Weight(f"{name}_{part}", kind, read, identity, sources=used)
    return made


def _largest(name: str, scales: Sequence[Weight]) -> Weight:
    """One scale for what goes into several layers at once: that of the largest values."""
    kind = TensorType("f32", (1,))
    identity = digest("largest", *(scale.identity for scale in scales))
    used = tuple(source for scale in scales for source in scale.made_from)

    def read() -> Bits:
        largest: Bits = np.max([scale.load() for scale in scales], axis=0)
        return largest

    return Weight(name, kind, read, identity, "largest", used)


def _as(source: Source, name: str, target: torch.Tensor) -> Weight:
    """What a checkpoint holds, as the weight `name` in the dtype of `target`."""
    if isinstance(source, Quantised):
        return dequantised(name, name_of(target.dtype), renamed(source, name))
    return _cast(source, name, target)


def _cast(weight: Weight, name: str, target: torch.Tensor) -> Weight:
    """`weight` under another name, in the dtype of `target`."""
    dtype = name_of(target.dtype)
    if weight.type.dtype == dtype:
        return Weight(name, weight.type, weight.read, weight.identity)

    def change(bits: Bits) -> Bits:
        return bits_of(tensor_of(bits, weight.type.dtype).to(target.dtype))

    return weight.derive(name, weight.type.with_dtype(dtype), "cast", change)


def _tie(wanted: Mapping[str, torch.Tensor], weights: dict[str, Weight]) -> None:
    """Give parameters that are one object in the model one weight, unless the values differ."""
    groups: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        groups.setdefault(id(tensor), []).append(name)
    for names in groups.values():
        held = [name for name in names if name in weights]
        if len(names) == 1 or not held:
            continue
        source = weights[held[0]]
        for name in names:
            if name not in weights or _same(weights[name], source):
                weights[name] = source


def _same(left: Weight, right: Weight) -> bool:
    return left.identity == right.identity or bool((left.load() == right.load()).all())


def _check_complete(
    model: Any, wanted: Mapping[str, torch.Tensor], weights: Mapping[str, Weight]
) -> None:
    """Refuse a checkpoint that leaves out parameters; buffers are computed by the model."""
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    missing = [
        name
        for name, tensor in wanted.items()
        if isinstance(tensor, torch.nn.Parameter)
        and name not in weights
        and not any(pattern.search(name) for pattern in ignored)
    ]
    if missing:
        kind = type(model).__name__
        message = (
            f"the safetensors files lack {len(missing)} of the {len(wanted)} weights of `{kind}`"
        )
        hint = "give the folder all its files; `architectures` in `config.json` names the class"
        raise InputError(message, detail=_listed(f"`{name}`" for name in missing), hint=hint)


def _listed(lines: Iterable[str]) -> tuple[str, ...]:
    held = list(lines)
    more = len(held) - SHOWN
    return (*held[:SHOWN], f"and {more} more") if more > 0 else tuple(held)
