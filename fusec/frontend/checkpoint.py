"""Weights of a transformers model, from its safetensors files, each made when it is read.

transformers renames, stacks, splits and transposes what a checkpoint holds while it loads it.  Its
rules are data (`WeightRenaming`, `WeightConverter`), so this module runs the same rules on the
header alone to learn names and shapes, and on the bytes only when a weight is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch

from fusec.diagnostics import InputError
from fusec.frontend.safetensors_index import Stored
from fusec.frontend.tensors import bits_of, dtype_of, name_of, tensor_of
from fusec.ir.types import TensorType
from fusec.ir.weights import Bits, Weight, digest

SHOWN = 8
"""Names listed in a message."""

FAILURES = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)
"""What code of transformers raises when a conversion does not fit what it is given."""


@dataclass(slots=True)
class _Conversion:
    """One group of stored tensors that a rule turns into one or more weights."""

    first: str
    rule: Any
    sources: list[tuple[str, Stored]] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)

    def run(self, model: Any, load: Callable[[Stored], torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights by name; `load` gives the stored tensors, or stand-ins on meta."""
        rule = deepcopy(self.rule)
        for (name, stored), pattern in zip(self.sources, self.patterns, strict=True):
            rule.add_tensor(self.first, name, pattern, lambda stored=stored: load(stored))
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


def read_checkpoint(model: Any, stored: Mapping[str, Stored], quantizer: Any = None) -> Checkpoint:
    """The weights of `model` as `stored` holds them.

    Args:
        model: a transformers model on meta, its parameters in the dtypes that are wanted.
        stored: the tensors in the files, by their names there.
        quantizer: of transformers, when the files are quantised; its rules are used too.

    Raises:
        InputError: a parameter has no values, or values of another shape.
    """
    wanted: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    simple, conversions, unused = _assign(model, stored, wanted, quantizer)
    weights: dict[str, Weight] = {}
    wrong: list[str] = []
    for name, source in simple.items():
        weights[name] = _cast(stored[source].weight(source), name, wanted[name])
    for conversion in conversions:
        weights |= _converted(model, conversion, wanted)
    for name, weight in weights.items():
        if name in wanted and weight.shape != tuple(wanted[name].shape):
            wrong.append(f"`{name}` is {list(weight.shape)}, not {list(wanted[name].shape)}")
    if wrong:
        hint = "`config.json` and the safetensors files are of different models"
        message = f"{len(wrong)} weights have shapes that the model does not have"
        raise InputError(message, detail=_listed(wrong), hint=hint)
    _tie(wanted, weights)
    _check_complete(model, wanted, weights)
    return Checkpoint(weights, unused)


def _assign(
    model: Any, stored: Mapping[str, Stored], wanted: Mapping[str, object], quantizer: Any
) -> tuple[dict[str, str], list[_Conversion], tuple[str, ...]]:
    """Which stored tensor becomes which weight: as they are, through a rule, not at all."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model, None, quantizer)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    prefix = model.base_model_prefix
    simple: dict[str, str] = {}
    groups: dict[str, _Conversion] = {}
    unused: list[str] = []
    for name in sorted(stored, key=dot_natural_key):
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
            group.sources.append((name, stored[name]))
            group.patterns.append(pattern)
    return simple, list(groups.values()), tuple(unused)


def _converted(
    model: Any, conversion: _Conversion, wanted: Mapping[str, torch.Tensor]
) -> dict[str, Weight]:
    """The weights of a group, their shapes found by running its rule on meta."""

    def stand_in(stored: Stored) -> torch.Tensor:
        return torch.empty(stored.shape, dtype=_source_dtype(stored), device="meta")

    def load(stored: Stored) -> torch.Tensor:
        return tensor_of(stored.read(), stored.dtype).to(_source_dtype(stored))

    def _source_dtype(stored: Stored) -> torch.dtype:
        # Cast before joining, as transformers does; quantised values stay as they are.
        first = wanted[conversion.first].dtype
        plain = stored.dtype in ("f64", "f32", "f16", "bf16") and first.is_floating_point
        return first if plain else dtype_of(stored.dtype)

    try:
        shapes = conversion.run(model, stand_in)
    except FAILURES as error:
        message = f"transformers cannot make `{conversion.first}` from this checkpoint: {error}"
        names = [
            f"`{name}` {stored.dtype}{list(stored.shape)}" for name, stored in conversion.sources
        ]
        raise InputError(message, detail=_listed(names)) from None
    kinds = [str(operation) for operation in conversion.rule.operations]
    where = [stored.weight(name).identity for name, stored in conversion.sources]
    how = digest("converted", *kinds, *conversion.patterns, *where)
    made: dict[str, Weight] = {}
    for name, shape in shapes.items():
        if name not in wanted:
            continue
        target = wanted[name]

        def read(name: str = name, kind: torch.dtype = target.dtype) -> Bits:
            return bits_of(conversion.run(model, load)[name].to(kind).contiguous())

        kind = TensorType(name_of(target.dtype), tuple(shape.shape))
        made[name] = Weight(name, kind, read, digest("part", name, str(kind), how))
    return made


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
