"""What pages are made of: the tables of `decisions.md` and the guide to every fusion.

Everything comes from where it is true: docstrings of passes, `passes/hints.py`, golden cases, the
records of kernels, and the counts that tests of whole models hold the compiler to.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import fusec
from fusec.kernels.registry import kernels
from fusec.passes import FUSIONS, PIPELINE
from fusec.passes.hints import HINTS
from fusec.rewrite import Pass

ROOT = Path(fusec.__file__).resolve().parent.parent
DOCS = ROOT / "docs"
DECISIONS = DOCS / "decisions.md"
GUIDE = DOCS / "fusions"
GOLDEN = ROOT / "tests" / "golden"

BEFORE_EXPORT = ("selective_scan",)
"""Fusions that the frontend makes, and no pass."""

LEAVES = re.compile(r"^Leaves it alone when\n((?:  .*\n?)+)", re.MULTILINE)
FORMULA = re.compile(r" |Fuses\b|into\b")
CASE = re.compile(r"^## (.+)$", re.MULTILINE)
GRAPH = re.compile(r"^```(fir after|fir|refused)\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"^(?:tp|target|quantize|mxfp4-align|held): .+$", re.MULTILINE)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "norms": (
        "add_rms_norm",
        "gated_rms_norm",
        "dual_rms_norm",
        "rms_norm_quant",
        "add_rms_norm_quant",
        "gated_rms_norm_quant",
        "dual_rms_norm_quant",
    ),
    "activations": (
        "silu_mul",
        "gelu_mul",
        "swiglu_oai",
        "silu_mul_quant",
        "gelu_mul_quant",
        "swiglu_oai_quant",
    ),
    "attention": (
        "rope",
        "attention",
        "attention_mask",
        "qk_norm_rope",
        "qk_rope",
        "gated_delta_rule",
    ),
    "experts": ("moe", "moe_fp8", "moe_mxfp4_native", "moe_mxfp4_dequant"),
    "products": (
        "merge_qkv",
        "merge_gate_up",
        "quantise",
        "linear_glu",
        "linear_epilogue",
        "conv_epilogue",
    ),
}
"""The fusions in the order in which the guide has them."""

OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "attention_mask": ("attention",),
    "merge_gate_up": ("linear", "linear_glu", "fp8_linear", "mxfp4_linear"),
    "merge_qkv": ("linear", "fp8_linear", "mxfp4_linear"),
    "moe_mxfp4_dequant": ("moe_mxfp4",),
    "moe_mxfp4_native": ("moe_mxfp4",),
    "qk_rope": ("qk_norm_rope",),
    "quantise": ("fp8_linear", "mxfp4_linear"),
}
"""Operations that a fusion makes, where they are not called as it is."""

MODELS: Mapping[str, str] = {
    "llama": "Llama",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3-MoE",
    "qwen3_next": "Qwen3-Next",
    "kimi_linear": "Kimi-Linear",
    "deepseek_v3": "DeepSeek-V3",
    "gpt_oss": "gpt-oss",
    "mixtral": "Mixtral",
    "gemma3": "Gemma 3",
    "phi3": "Phi-3",
    "llama4": "Llama 4",
    "bert": "BERT",
    "modernbert": "ModernBERT",
    "vit": "ViT",
}
"""What people call the samples."""

FAMILIES = {"cpu": "CPUs", "amdgpu": "AMD GPUs", "nvidia": "NVIDIA GPUs"}
LANGUAGES = {"cpp": "C++", "hip": "HIP", "triton": "Triton"}


# --- what the passes say --------------------------------------------------------------------


def module_of(each: type[Pass]) -> ModuleType:
    return sys.modules[each.__module__]


def specification(each: type[Pass]) -> str:
    text = module_of(each).__doc__
    assert text, each
    return text


def summary(each: type[Pass]) -> str:
    """The first sentence of the specification."""
    return " ".join(specification(each).strip().split("\n\n")[0].split()).rstrip(".")


def codes(each: type[Pass]) -> dict[str, str]:
    """The codes that a pass refuses by, and when."""
    found: dict[str, str] = {}
    block = LEAVES.search(specification(each))
    for line in block[1].splitlines() if block else ():
        if line.startswith("   "):
            last = next(reversed(found))
            found[last] = f"{found[last]} {line.strip()}"
        else:
            code, _, meaning = line.strip().partition(" ")
            found[code] = meaning.strip()
    return found


def fusion_of(each: type[Pass]) -> str | None:
    """The fusion under which the decisions of a pass are recorded."""
    named: str | None = getattr(each, "fusion", None)
    if named is not None:
        return named
    fitting = [name for name in FUSIONS if f"{each.name}_".startswith(f"{name}_")]
    return max(fitting, key=len, default=None)


def passes() -> list[type[Pass]]:
    """Every pass once, in order."""
    return list(dict.fromkeys(PIPELINE))


@cache
def by_fusion() -> Mapping[str, tuple[type[Pass], ...]]:
    """The passes that make each fusion, in order."""
    found: dict[str, tuple[type[Pass], ...]] = {}
    for each in passes():
        if (fusion := fusion_of(each)) is not None:
            found[fusion] = (*found.get(fusion, ()), each)
    return found


def reported_codes() -> dict[str, dict[str, str]]:
    """Codes with their meaning, by fusion; those of several passes joined."""
    found: dict[str, dict[str, str]] = {}
    for fusion, made_by in sorted(by_fusion().items()):
        known: dict[str, str] = {}
        for each in made_by:
            for code, meaning in codes(each).items():
                same = known.get(code)
                known[code] = meaning if same is None else f"{same}; or {meaning}"
        if known:
            found[fusion] = dict(sorted(known.items()))
    return found


# --- tables ---------------------------------------------------------------------------------


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def made_tables() -> dict[str, str]:
    """What stands between the marks of `docs/decisions.md`."""
    fusions = [
        (
            f"[`{name}`](fusions/{name}.md)",
            cell(". ".join(summary(each) for each in made_by)),
            listed([each.name for each in made_by]),
        )
        for name, made_by in sorted(by_fusion().items())
    ]
    rows = [
        (f"`{fusion}`", f"`{code}`", cell(meaning), cell(HINTS[fusion][code]))
        for fusion, known in reported_codes().items()
        for code, meaning in known.items()
    ]
    unreported = [
        (f"`{each.name}`", cell(summary(each)), listed(list(codes(each))))
        for each in passes()
        if fusion_of(each) is None and codes(each)
    ]
    made = {*by_fusion(), *BEFORE_EXPORT}
    reserved = listed([name for name in FUSIONS if name not in made])
    return {
        "fusions": table(("fusion", "what it is", "passes"), fusions),
        "reserved": f"{reserved}.",
        "codes": table(("fusion", "code", "it is left alone when", "to make it fire"), rows),
        "unreported": table(("pass", "what it recognises", "codes"), unreported),
    }


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """The page with the tables put in."""
    for name, made in tables.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, found, rest = text.partition(begin)
        assert found, f"no mark for `{name}`"
        text = before + begin + made + "\n" + end + rest.partition(end)[2]
    return text


# --- the guide to every fusion --------------------------------------------------------------


def prose(each: type[Pass]) -> str:
    """The specification after its summary and without its codes, formulas in fences."""
    text = LEAVES.sub("", specification(each)).strip()
    parts: list[str] = []
    for paragraph in re.split(r"\n\n+", text)[1:]:
        last = parts[-1] if parts else ""
        if not FORMULA.match(paragraph) or "   " not in paragraph:
            parts.append(paragraph)
        elif last.endswith("\n```"):
            parts[-1] = f"{last.removesuffix('```')}\n{dedent(paragraph)}\n```"
        else:
            parts.append(f"```text\n{dedent(paragraph)}\n```")
    return "\n\n".join(parts)


@cache
def cases(stem: str) -> tuple[tuple[str, str, Mapping[str, str]], ...]:
    """Title, settings and graphs of each golden case of a pass."""
    parts = CASE.split((GOLDEN / f"{stem}.md").read_text(encoding="utf-8"))
    return tuple(
        (title, "\n".join(SETTING.findall(body.partition("```")[0])), dict(GRAPH.findall(body)))
        for title, body in zip(parts[1::2], parts[2::2], strict=True)
    )


def example(each: type[Pass]) -> str:
    """The first golden case in which the pass changes something."""
    stem = each.__module__.rpartition(".")[2]
    title, settings, graphs = next(case for case in cases(stem) if "fir after" in case[2])
    asked = f" ({', '.join(f'`{line}`' for line in settings.splitlines())})" if settings else ""
    after = graphs["fir after"]
    return (
        f"{title[0].upper()}{title[1:]}{asked}. Before:\n\n```fir\n{graphs['fir']}```\n\n"
        f"After:\n\n```fir\n{after}```"
    )


def refusals(each: type[Pass]) -> dict[str, str]:
    """What a refusal says, by code: the first of the golden cases."""
    stem = each.__module__.rpartition(".")[2]
    found: dict[str, str] = {}
    for _, _, graphs in cases(stem):
        for line in graphs.get("refused", "").splitlines():
            found.setdefault(line.partition(" ")[0], line)
    return found


@cache
def counts(path: str, name: str) -> Mapping[Any, Mapping[str, int]]:
    """Fusions by model, as a test of whole models writes them down."""
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == name:
            assert node.value is not None
            found: Mapping[Any, Mapping[str, int]] = ast.literal_eval(node.value)
            return found
    raise LookupError(f"{path} has no {name}")


def models(fusion: str) -> list[tuple[str, str]]:
    """Where it fires: the models that tests compile, and how often."""
    small = counts("tests/models/test_models.py", "FUSIONS")
    wide = counts("tests/models/test_production.py", "FUSIONS")
    by_target = counts("tests/models/test_production.py", "BY_TARGET")
    found = {
        "small, f32, for a CPU": [
            f"{MODELS[name]} {held[fusion]}" for name, held in small.items() if fusion in held
        ],
        "2 to 4 layers of published width, for gfx950 and gfx942": [
            f"{MODELS[name]} {held[fusion]}" for name, held in wide.items() if fusion in held
        ],
    }
    for (name, target), held in by_target.items():
        if fusion in held:
            title = f"2 layers of published width, for {target} alone"
            found.setdefault(title, []).append(f"{MODELS[name]} {held[fusion]}")
    return [(title, ", ".join(names)) for title, names in found.items() if names]


def kernel_rows(fusion: str) -> list[tuple[str, ...]]:
    """Operation, kernel, language and families of targets of each kernel that computes it."""
    known = kernels()
    return [
        (
            f"`{op}`",
            f"`{each.name}`",
            LANGUAGES[each.provider],
            ", ".join(FAMILIES[family] for family in each.families),
        )
        for op in OPERATIONS.get(fusion, (fusion,))
        for each in known.get(op, ())
    ]


def fusion_page(fusion: str) -> str:
    """The page of one fusion."""
    made_by = by_fusion()[fusion]
    known = reported_codes().get(fusion, {})
    parts = [
        "<!-- Made by `python tests/unit/test_docs.py` from the passes, their golden cases, "
        "hints and kernels. -->",
        f"# {fusion}",
        f"{'. '.join(summary(each) for each in made_by)}.",
        "\n".join(pass_line(each) for each in made_by),
        "## What it does",
    ]
    for each in made_by:
        if len(made_by) > 1:
            parts.append(f"### The pass `{each.name}`")
        parts += [prose(each), example(each)]
    parts += ["## When it is left alone"]
    if known:
        rows = [
            (f"`{code}`", cell(meaning), cell(HINTS[fusion][code]))
            for code, meaning in known.items()
        ]
        said = {code: line for each in made_by for code, line in refusals(each).items()}
        parts += [
            table(("code", "when", "to make it fire"), rows),
            "And `escapes` and `cycle`, as [for all fusions](../decisions.md#every-code).",
        ]
        lines = [said[code] for code in known if code in said]
        if lines:
            parts += ["What such refusals say:", "```text\n" + "\n".join(lines) + "\n```"]
    else:
        parts += ["By `escapes` and `cycle` alone, as [all fusions](../decisions.md#every-code)."]
    parts += ["## What computes it"]
    parts += [
        table(("operation", "kernel", "written in", "for"), kernel_rows(fusion)),
        "They are asked in this order. Each may still refuse a type or a size; then the decision "
        "says so. [Kernels](../kernels.md) has registers, memory and instructions on GPUs.",
    ]
    if fires := models(fusion):
        parts += [
            "## Where it fires",
            "The number of sites that tests hold the compiler to:",
            table(("models", "sites"), fires),
        ]
    return "\n\n".join(parts) + "\n"


def pass_line(each: type[Pass]) -> str:
    """Its source, and what runs before it."""
    after = f"; it runs after {listed(each.after)}" if each.after else ""
    return f"* `passes/{each.__module__.rpartition('.')[2]}.py`, `--disable {each.name}`{after}."


def made_map() -> dict[str, str]:
    """What stands between the marks of `docs/fusions/index.md`."""
    groups = {
        group: table(
            ("fusion", "what it is"),
            [
                (f"[`{name}`]({name}.md)", cell(". ".join(summary(each) for each in made_by)))
                for name in names
                for made_by in [by_fusion()[name]]
            ],
        )
        for group, names in GROUPS.items()
    }
    recognised = [
        (f"[`{each.name}`](recognised.md#{each.name})", cell(summary(each)))
        for each in passes()
        if fusion_of(each) is None
    ]
    return groups | {"recognised": table(("pass", "what it recognises"), recognised)}


def recognised_page() -> str:
    """The passes that have no name in decisions."""
    parts = [
        "<!-- Made by `python tests/unit/test_docs.py` from the docstrings of the passes. -->",
        "# Recognised on the way",
        "Passes without rows in decisions, in the order in which they run. What they leave alone "
        "stays as the model writes it.",
    ]
    for each in passes():
        if fusion_of(each) is not None:
            continue
        parts += [f"## {each.name}", f"{summary(each)}.", prose(each)]
        if known := codes(each):
            rows = [(f"`{code}`", cell(meaning)) for code, meaning in known.items()]
            parts.append(table(("code", "it is left alone when"), rows))
        parts.append(example(each))
    return "\n\n".join(parts) + "\n"


def made_pages() -> Iterator[tuple[Path, str]]:
    """Every page that is made, with what has to be in it."""
    for path, tables in ((DECISIONS, made_tables()), (GUIDE / "index.md", made_map())):
        yield path, with_tables(path.read_text(encoding="utf-8"), tables)
    yield GUIDE / "recognised.md", recognised_page()
    for fusion in by_fusion():
        yield GUIDE / f"{fusion}.md", fusion_page(fusion)


def write_pages() -> None:
    """Bring the pages that are made up to date."""
    GUIDE.mkdir(exist_ok=True)
    for path, text in made_pages():
        path.write_text(text, encoding="utf-8")
