"""Reads the manifest of AITER's functions from a clone of its public repository.

`python -m fusec.kernels.external.read_aiter CLONE > kernels/external/aiter_manifest.json` writes
down, for every release that has a tag, where each function of `FUNCTIONS` is and what signature it
has.  Sources are parsed, never run, and nothing but names and signatures is taken from them.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fusec.kernels.external.versions import Version, parse_version
from fusec.signatures import Parameter, Signature, signature_of

FUNCTIONS = frozenset(
    {
        "CustomAllreduce.fused_ar_rms",
        "CustomAllreduce.fused_ar_rms_per_group_quant",
        "_fused_qk_rmsnorm",
        "act_mul_and_fp8_group_quant",
        "act_mul_and_mxfp4_quant",
        "add_rmsnorm",
        "add_rmsnorm_quant",
        "causal_conv1d_update_single_token",
        "chunk_gated_delta_rule",
        "dynamic_mxfp4_quant",
        "dynamic_per_token_scaled_quant",
        "fused_add_rmsnorm_pad",
        "fused_moe",
        "fused_qk_norm_rope_cache_pts_quant_shuffle",
        "fused_qk_rmsnorm",
        "fused_qk_rmsnorm_group_quant",
        "fused_qk_rmsnorm_per_token_quant",
        "fused_qkv_split_qk_norm_rope_cache",
        "fused_recurrent_gated_delta_rule",
        "fused_rms_fp8_group_quant",
        "fused_rms_fp8_per_tensor_static_quant",
        "fused_rms_gated_fp8_group_quant",
        "fused_rms_mxfp4_quant",
        "fused_rms_mxfp8_quant",
        "fused_silu_mul",
        "gated_rmsnorm_fp8_group_quant",
        "gated_rmsnorm_fp8_per_token_quant",
        "rms_norm",
        "rmsnorm",
        "rmsnorm2d_fwd",
        "rmsnorm2d_fwd_with_add",
        "rmsnorm2d_fwd_with_add_dynamicquant",
        "rmsnorm2d_fwd_with_dynamicquant",
        "rmsnorm_quant",
        "scaled_silu_and_mul",
        "silu_and_mul",
        "silu_and_mul_quant",
    }
)
"""What is written down: functions by name, methods by class and name."""

_RELEASE = re.compile(r"v\d+\.\d+\.\d+(\.post\d+)?")
_INNER = re.compile(r"/_triton_kernels/|/_gluon_kernels/|/flydsl/|/test")
_OPAQUE_DECORATORS = {"compile_ops", "torch_compile_guard"}
"""Decorators that leave a function `(*args, **kwargs)` and register an operator of torch."""


@dataclass(frozen=True, slots=True)
class Found:
    """A function in one release."""

    module: str
    function: str
    signature: Signature
    is_operator: bool
    is_exported: bool


def main(clone: Path) -> None:
    """Print the manifest that the tags of `clone` give."""
    tags = [tag for tag in _git(clone, "tag").split() if _RELEASE.fullmatch(tag)]
    releases = sorted((version, tag) for tag in tags if (version := parse_version(tag)))
    forms: dict[tuple[str, str, Signature], dict[Version, Found]] = {}
    for version, tag in releases:
        for found in _functions(clone, tag):
            form = (found.module, found.function, found.signature)
            forms.setdefault(form, {})[version] = found
    versions = [version for version, _ in releases]
    documents = [_document(versions, held) for held in forms.values()]
    documents.sort(key=lambda each: (str(each["function"]), str(each["module"])))
    document = {"versions": [str(version) for version in versions], "forms": documents}
    print(json.dumps(document, indent=1))


def _document(versions: list[Version], held: dict[Version, Found]) -> dict[str, object]:
    latest = held[max(held)]
    return {
        "function": latest.function,
        "module": latest.module,
        "signature": str(latest.signature),
        "operator": any(each.is_operator for each in held.values()),
        "exported": latest.is_exported,
        "spans": _spans(versions, held),
    }


def _spans(versions: list[Version], held: Mapping[Version, object]) -> list[list[str]]:
    """First and last of each unbroken run; branches for releases make forms come and go."""
    runs = itertools.groupby(versions, key=held.__contains__)
    spans = [list(run) for is_held, run in runs if is_held]
    return [[str(span[0]), str(span[-1])] for span in spans]


def _functions(clone: Path, tag: str) -> Iterator[Found]:
    names = {name.rpartition(".")[2] for name in FUNCTIONS}
    pattern = rf"^ *def ({'|'.join(sorted(names))})\("
    files = _git(clone, "grep", "-lE", pattern, tag, "--", "aiter/*.py").split()
    exports = _exports(clone, tag)
    for file in files:
        path = file.partition(":")[2]
        if _INNER.search(path):
            continue
        module = path.removesuffix(".py").replace("/", ".")
        for name, function in _definitions(ast.parse(_git(clone, "show", file))):
            if name in FUNCTIONS:
                yield Found(
                    module,
                    name,
                    _plain(signature_of(function)),
                    any(_decorator(each) in _OPAQUE_DECORATORS for each in function.decorator_list),
                    module in exports and not name.startswith("_"),
                )


def _definitions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner


def _exports(clone: Path, tag: str) -> set[str]:
    """Modules all of whose public names `import aiter` gives."""
    tree = ast.parse(_git(clone, "show", f"{tag}:aiter/__init__.py"))
    return {
        f"aiter.{node.module}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    }


def _decorator(node: ast.expr) -> str:
    called = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(called).rpartition(".")[2]


def _plain(signature: Signature) -> Signature:
    """The same with annotations in one spelling, whatever the release is written in."""
    parameters = tuple(
        Parameter(each.name, each.kind, each.default, _annotation(each.annotation))
        for each in signature.parameters
    )
    return Signature(parameters, _annotation(signature.returns))


def _annotation(text: str) -> str:
    if not text:
        return ""
    return ast.unparse(_Spelling().visit(ast.parse(text, mode="eval")))


class _Spelling(ast.NodeTransformer):
    """`Optional[torch.Tensor]` becomes `Tensor | None`, `List[int]` becomes `list[int]`."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        name = "Tensor" if node.attr == "tensor" else node.attr
        return ast.Name(name, ast.Load())

    def visit_Name(self, node: ast.Name) -> ast.expr:
        plain = {"List": "list", "Tuple": "tuple", "Dict": "dict"}
        return ast.Name(plain.get(node.id, node.id), ast.Load())

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        value, inner = self.visit(node.value), self.visit(node.slice)
        if isinstance(value, ast.Name) and value.id == "Optional":
            return ast.BinOp(inner, ast.BitOr(), ast.Constant(None))
        return ast.Subscript(value, inner, ast.Load())


def _git(clone: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(clone), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
