"""What `quantization_config` in a `config.json` says: which weights are quantised, and how.

Sources: transformers' `FineGrainedFP8Config`, `Mxfp4Config` and `CompressedTensorsConfig`; the
documentation of compressed-tensors and of AMD Quark; vLLM's loaders of those formats.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fusec.diagnostics import InputError, UnsupportedError

HINT = (
    "fusec reads fp8 (DeepSeek, compressed-tensors, Quark) and mxfp4 (gpt-oss, compressed-tensors, "
    "Quark); give such a checkpoint or an unquantised one"
)

WEIGHTS_ONLY = (
    "the checkpoint quantises weights only; products of 8-bit floats on a GPU also quantise what "
    "goes into them"
)

ALL = 0
"""A size of a block that goes over the whole weight."""

EXPRESSION = "re:"
"""What begins a pattern that is a regular expression."""

MX_BLOCK = (1, 32)

Kind = Literal["linear", "experts"]


@dataclass(frozen=True, slots=True)
class Format:
    """How a weight is quantised.

    Attributes:
        codes: `f8e4m3fn`, or `f4e2m1x2` with two elements a byte.
        block: rows and columns that share a scale; `ALL` for the whole size.
        scale: `f32`, or `e8m0` for the MX formats.
        static: whether the checkpoint says how activations are scaled.
    """

    codes: str
    block: tuple[int, int]
    scale: Literal["f32", "e8m0"] = "f32"
    static: bool = False


MXFP4 = Format("f4e2m1x2", MX_BLOCK, "e8m0")


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a configuration says about quantised weights.

    Attributes:
        method: `quant_method`.
        formats: patterns over the paths of modules, or `Linear` for all, each with the format of
            what it matches; the first that matches counts; `None`: not quantised.
        excluded: paths of modules that are not quantised, as names or patterns; `None`: the model's
            output projection.
        inside: whether a name in `excluded` stands for all modules in that one, too.
        experts_only: whether only experts are quantised.
        notes: what a person should know.
    """

    method: str
    formats: tuple[tuple[tuple[str, ...], Format | None], ...]
    excluded: tuple[str, ...] | None = ()
    inside: bool = True
    experts_only: bool = False
    notes: tuple[str, ...] = ()

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """The blocks of all formats, each once."""
        return tuple(dict.fromkeys(held.block for _, held in self.formats if held is not None))

    @property
    def expressions(self) -> Iterator[str]:
        """The regular expressions among its patterns."""
        names = [name for targets, _ in self.formats for name in targets]
        for name in (*names, *(self.excluded or ())):
            if name.startswith(EXPRESSION):
                yield name.removeprefix(EXPRESSION)

    def format_of(self, paths: Iterable[str], kind: Kind) -> Format | None:
        """How a weight is quantised; `None` if it is not.

        Args:
            paths: the paths that its module has in the model and in checkpoints.
            kind: what the weight is of.
        """
        if kind == "linear" and self.experts_only:
            return None
        known = tuple(paths)
        if any(_matches(name, path, self.inside) for name in self.excluded or () for path in known):
            return None
        for targets, held in self.formats:
            for target in targets:
                if target == "Linear" or any(_matches(target, path, False) for path in known):
                    return held
        return None


def _matches(pattern: str, path: str, inside: bool) -> bool:
    """Whether a name or pattern of a configuration means the module at `path`.

    `re:` begins a regular expression; `*` stands for anything; a plain name is a whole path.  With
    `inside` it also stands for the modules in it, and may leave out the beginning of the path.
    """
    if pattern.startswith(EXPRESSION):
        return re.match(pattern.removeprefix(EXPRESSION), path) is not None
    if "*" in pattern:
        return fnmatch.fnmatchcase(path, pattern) or (
            inside and fnmatch.fnmatchcase(path, f"{pattern}.*")
        )
    if path == pattern:
        return True
    return inside and (path.startswith(f"{pattern}.") or path.endswith(f".{pattern}"))


def read_scheme(raw: Mapping[str, Any], at: str) -> Scheme | None:
    """What the `config.json` with the contents `raw` says; `None` for a model not quantised.

    Raises:
        UnsupportedError: it is a method or a layout that fusec does not read.
        InputError: it is not sound.
    """
    config = raw.get("quantization_config")
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise InputError("`quantization_config` is not a JSON object", at=at)
    method = config.get("quant_method")
    if method is None:
        raise InputError("`quantization_config` has no `quant_method`", at=at, hint=HINT)
    readers = {
        "fp8": _fp8,
        "mxfp4": _mxfp4,
        "compressed-tensors": _compressed_tensors,
        "quark": _quark,
    }
    reader = readers.get(str(method))
    if reader is None:
        raise _unsupported(f"the checkpoint is quantised by `{method}`", at)
    try:
        scheme = reader(config, at)
        for pattern in scheme.expressions:
            re.compile(pattern)
        return scheme
    except (re.error, TypeError, ValueError, AttributeError, LookupError) as error:
        message = f"`quantization_config` of `{method}` is not sound"
        raise InputError(message, at=at, detail=(f"{type(error).__name__}: {error}",)) from None


def _unsupported(what: str, at: str) -> UnsupportedError:
    return UnsupportedError(f"{what}, which fusec does not read", at=at, hint=HINT)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in value or ())


def _fp8(config: Mapping[str, Any], at: str) -> Scheme:
    """DeepSeek's layout, `weight_scale_inv` a block; or one scale a weight, where no block is."""
    if config.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise _unsupported(f"the checkpoint is quantised by `fp8` in `{config['fmt']}`", at)
    if config.get("expert_dtype", "fp8") != "fp8":
        what = f"the checkpoint is quantised by `fp8` with `{config['expert_dtype']}` experts"
        raise _unsupported(what, at)
    block = config.get("weight_block_size")
    rows, columns = (ALL, ALL) if block is None else map(int, block)
    if block is not None and (isinstance(block, str) or min(rows, columns) < 1):
        raise ValueError(f"weight_block_size {block!r}")
    static = config.get("activation_scheme") == "static"
    held = Format("f8e4m3fn", (rows, columns), static=static)
    skipped = config.get("modules_to_not_convert", config.get("ignored_layers"))
    excluded = None if skipped is None else _names(skipped)
    return Scheme("fp8", ((("Linear",), held),), excluded)


def _mxfp4(config: Mapping[str, Any], at: str) -> Scheme:
    """gpt-oss: experts only."""
    excluded = _names(config.get("modules_to_not_convert"))
    return Scheme("mxfp4", ((("Linear",), MXFP4),), excluded, experts_only=True)


# --- compressed-tensors ---------------------------------------------------------------------

_COMPRESSED = {
    "float-quantized",
    "naive-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
    "dense",
}
"""Formats that say nothing beyond what each group of weights says."""


def _compressed_tensors(config: Mapping[str, Any], at: str) -> Scheme:
    sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise _unsupported(f"the checkpoint is sparse, in the layout `{sparsity}`", at)
    if (config.get("transform_config") or {}).get("config_groups"):
        raise _unsupported("the checkpoint has `transform_config`, rotated activations", at)
    formats, notes = [], []
    for group in config["config_groups"].values():
        layout = group.get("format") or config.get("format") or "float-quantized"
        weights = group.get("weights")
        held = None
        if weights is not None:
            held = _compressed_format(weights, group.get("input_activations"))
            if held is None or layout not in _COMPRESSED:
                said = f"{weights.get('type')}{weights.get('num_bits')}"
                what = f"`compressed-tensors`, layout `{layout}` ({said}"
                what += f", a scale for each {weights.get('strategy')})"
                raise _unsupported(f"the checkpoint is quantised by {what}", at)
            notes += [] if group.get("input_activations") else [WEIGHTS_ONLY]
        formats.append((_names(group["targets"]), held))
    excluded = _names(config.get("ignore"))
    return Scheme(
        "compressed-tensors", tuple(formats), excluded, inside=False, notes=tuple(notes[:1])
    )


def _compressed_format(
    weights: Mapping[str, Any], activations: Mapping[str, Any] | None
) -> Format | None:
    bits, strategy, group = weights["num_bits"], weights.get("strategy"), weights.get("group_size")
    plain = weights.get("type") == "float" and weights.get("symmetric", True)
    if not plain or weights.get("dynamic"):
        return None
    static = activations is not None and activations.get("dynamic") is False
    if bits == 4:
        return MXFP4 if group == MX_BLOCK[1] else None
    if bits != 8:
        return None
    if strategy == "group" and group == MX_BLOCK[1]:
        return Format("f8e4m3fn", MX_BLOCK, "e8m0")
    if strategy == "block":
        said = weights.get("block_structure") or (128, 128)
        rows, columns = said.split("x") if isinstance(said, str) else said
        return Format("f8e4m3fn", (int(rows), int(columns)), static=static)
    blocks = {"tensor": (ALL, ALL), "channel": (1, ALL)}
    return Format("f8e4m3fn", blocks[strategy], static=static) if strategy in blocks else None


# --- AMD Quark ------------------------------------------------------------------------------


def _quark(config: Mapping[str, Any], at: str) -> Scheme:
    if _rotates(config.get("algo_config")):
        raise _unsupported("the checkpoint is rotated by `quark` while it runs", at)
    formats = list(_quark_groups(config, at))
    return Scheme("quark", tuple(formats), _names(config.get("exclude")))


def _rotates(algorithms: Any) -> bool:
    held = algorithms if isinstance(algorithms, list) else [algorithms or {}]
    online = [entry.get("online_config") or {} for entry in held]
    return any(bool(entry.get("online_rotation_layers")) for entry in online)


def _quark_groups(
    config: Mapping[str, Any], at: str
) -> Iterator[tuple[tuple[str, ...], Format | None]]:
    for pattern, group in (config.get("layer_quant_config") or {}).items():
        yield (pattern,), _quark_format(group, at)
    by_type = config.get("layer_type_quant_config") or {}
    everywhere = by_type.get("Linear", config.get("global_quant_config") or {})
    yield ("Linear",), _quark_format(everywhere, at)


def _quark_format(group: Mapping[str, Any], at: str) -> Format | None:
    weight = group.get("weight")
    if weight is None:
        return None
    if isinstance(weight, list):
        steps = " of ".join(str(step.get("dtype")) for step in weight)
        raise _unsupported(f"the checkpoint is quantised by `quark` in steps ({steps})", at)
    activations = group.get("input_tensors")
    static = isinstance(activations, Mapping) and not activations.get("is_dynamic", False)
    kind, scheme = weight.get("dtype"), weight.get("qscheme")
    mx = scheme == "per_group" and weight.get("group_size") == MX_BLOCK[1]
    mx = mx and weight.get("scale_format") == "e8m0"
    if kind == "fp4" and mx:
        return Format("f4e2m1x2", MX_BLOCK, "e8m0", static)
    if kind == "fp8_e4m3" and mx:
        return Format("f8e4m3fn", MX_BLOCK, "e8m0", static)
    if kind == "fp8_e4m3" and scheme == "per_block":
        rows, columns = weight.get("block_size") or (128, 128)
        return Format("f8e4m3fn", (int(rows), int(columns)), static=static)
    blocks = {"per_tensor": (ALL, ALL), "per_channel": (1, ALL)}
    if kind == "fp8_e4m3" and scheme in blocks:
        return Format("f8e4m3fn", blocks[scheme], static=static)
    raise _unsupported(f"the checkpoint is quantised by `quark`, layout `{kind}` {scheme}", at)
