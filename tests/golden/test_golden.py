"""Runs the cases of every golden file: text, refusals, and numbers before and after.

A golden file is Markdown, one a pass.  The title is the pass's name; each second-level heading is
a case, with fences `fir` (before), `fir after` (absent: the pass changes nothing) and `refused`
(lines `code at %node: reason`).  Lines before the fences change how it runs:

    target: gfx950                          x86-64-v3 by default
    tp: 3, mxfp4-align: reject              settings of the pass
    quantize: fp8-block, mxfp4:experts
    held: w f8e4m3fn f32 128x128, v f4e2m1x2 e8m0 1x32 turned
                                            parameters that the source holds as codes and scales

`pytest --update-golden` writes what came out; read the diff.  Numbers of cases with weights in few
bits are in `tests/unit/test_quantise.py`, those of weights that are computed ahead of time in
`tests/unit/test_fold_weights.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from fusec.ir import Graph, TensorType, Weight, parse_graph, print_graph
from fusec.ir.interpret import interpret
from fusec.ir.ops import is_opaque
from fusec.ir.weights import Quantised, dequantised
from fusec.options import parse_quantise
from fusec.passes import PIPELINE
from fusec.rewrite import DEFAULTS, DecisionLog, FusionPass, Pass, Settings
from fusec.symbolic import substitute
from fusec.target import Target, target_named

HERE = Path(__file__).parent
TARGET = target_named("x86-64-v3")
PASSES: dict[str, type[Pass]] = {each.name: each for each in PIPELINE}
_HEADING = re.compile(r"^## (.+)$", re.M)
_SETTING = re.compile(r"^(tp|target|quantize|mxfp4-align|held): (.+)$", re.M)
_FENCE = re.compile(r"^```(fir after|fir|refused)\n(.*?)^```\n?", re.M | re.S)


@dataclass(frozen=True, slots=True)
class Case:
    """One heading of a golden file."""

    file: Path
    title: str
    before: str
    after: str | None
    refused: tuple[str, ...]
    settings: Settings = DEFAULTS
    target: Target = TARGET
    held: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.file.stem}: {self.title}"


def _cases(file: Path) -> Iterator[Case]:
    parts = _HEADING.split(file.read_text())
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        fences: dict[str, str] = {kind: text for kind, text in _FENCE.findall(body)}
        refused = tuple(fences.get("refused", "").splitlines())
        given = dict(_SETTING.findall(body.partition("```")[0]))
        yield Case(
            file,
            title,
            fences.get("fir", ""),
            fences.get("fir after"),
            refused,
            _settings(given),
            target_named(given.get("target", TARGET.name)),
            tuple(part for part in given.get("held", "").split(", ") if part),
        )


def _settings(given: dict[str, str]) -> Settings:
    requests = [part for part in given.get("quantize", "").split(", ") if part]
    return Settings(
        quantise=tuple(map(parse_quantise, requests)),
        mxfp4_align="reject" if given.get("mxfp4-align") == "reject" else "pad",
        tensor_parallel=int(given.get("tp", "1")),
    )


def graph_of(case: Case) -> Graph:
    """The graph before, its parameters held as the case says; `a+b` is made of a and b."""
    graph = parse_graph(case.before)
    for value, weight in graph.parameters.items():
        if "+" in weight.name:
            graph._parameters[value] = replace(weight, sources=tuple(weight.name.split("+")))
    for text in case.held:
        value, code_type, scale_type, blocks, *turned = text.split()
        weight = graph.parameters[value]
        rows, columns = map(int, blocks.split("x"))
        *outer, outputs, length = weight.shape
        if turned:
            outputs, length = length, outputs
        kind = TensorType(code_type, (*outer, outputs, length // 2))
        if code_type != "f4e2m1x2":
            kind = TensorType(code_type, (*outer, outputs, length))
        scales = TensorType(scale_type, (*outer, -(-outputs // rows), -(-length // columns)))
        codes, scale = (
            Weight(f"{weight.name}.{part}", each, None, f"{weight.name}.{part}")
            for part, each in (("codes", kind), ("scale", scales))
        )
        held = Quantised(codes, scale, (rows, columns), turned=bool(turned))
        graph._parameters[value] = dequantised(weight.name, weight.type.dtype, held)
    return graph


FILES = sorted(HERE.glob("*.md"))
CASES = [case for file in FILES for case in _cases(file)]


def _pass_of(file: Path) -> type[Pass]:
    title = file.read_text().splitlines()[0].removeprefix("# ")
    assert title == file.stem.replace("_", "-") or title == file.stem, (
        f"{file.name} is titled {title}"
    )
    return PASSES[title]


def probe(which: type[Pass], settings: Settings = DEFAULTS) -> Pass:
    """The pass; one that only recognises gets a name in decisions, so that refusals show."""
    if issubclass(which, FusionPass) and which.fusion is None:
        recorded: Pass = type(which.__name__, (which,), {"fusion": which.name})()
        return recorded
    return which.configured(settings)


def _refusals(log: DecisionLog) -> list[str]:
    return [f"{each.code} at %{each.node}: {each.reason}" for each in log.refused()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, request: pytest.FixtureRequest) -> None:
    which = _pass_of(case.file)
    graph = graph_of(case)
    assert print_graph(graph) == case.before, "write the case as it prints"
    log = DecisionLog()
    changes = probe(which, case.settings).run(graph, case.target, log)
    graph.verify()
    after, refused = print_graph(graph), _refusals(log)
    if request.config.getoption("--update-golden", default=False):
        _update(case, None if after == case.before else after, refused)
        return
    assert after == (case.after or case.before)
    assert refused == list(case.refused)
    assert (changes > 0) == (case.after is not None)
    again = probe(which, case.settings).run(graph, case.target, DecisionLog())
    assert (again, print_graph(graph)) == (0, after), "a second run rewrites something"


def _is_rounded(case: Case) -> bool:
    """Whether the pass brings weights into few bits, or rounds what it makes of them."""
    rounds = case.file.stem in ("fold_weights", "row_quantize")
    return rounds or bool(case.settings.quantise or case.held)


NUMERIC = [case for case in CASES if case.after and not _is_rounded(case)]


@pytest.mark.parametrize("case", NUMERIC, ids=lambda case: case.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_numbers(case: Case, seed: int) -> None:
    assert case.after is not None
    before, after = parse_graph(case.before), parse_graph(case.after)
    inputs, weights = sample(before, seed)
    expected = interpret(before, inputs, weights)
    actual = interpret(after, inputs, derived_weights(after, weights, case.before))
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-9, atol=1e-9)
        floats = value[np.isfinite(value)] if value.dtype.kind == "f" else np.zeros(0)
        assert floats.size == 0 or np.abs(floats).max() > 1e-3, "a result of zeros shows nothing"


def sample(graph: Graph, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Random inputs and weights at odd sizes."""
    random = np.random.default_rng(seed)
    sizes = {name: max(low, 3 + 2 * n) for n, (name, (low, _)) in enumerate(graph.symbols.items())}

    def array(value: str) -> np.ndarray:
        kind = graph.type(value)
        shape = tuple(int(str(substitute(dim, sizes))) for dim in kind.shape)
        if kind.dtype == "bool":
            return random.random(shape) < 0.5
        if kind.element.is_integer:
            return random.integers(0, 4, shape)
        return random.standard_normal(shape) + 0.25

    inputs = {name: array(name) for name in graph.inputs}
    return inputs, {name: array(name) for name in graph.parameters}


def derived_weights(
    after: Graph, weights: dict[str, np.ndarray], before: str
) -> dict[str, np.ndarray]:
    """Values for the parameters of `after`, which are named `a+zeros[8]+b`, `a^T` or `a.flat`."""
    given = dict(weights)
    named = {w.name: weights[v] for v, w in parse_graph(before).parameters.items()}
    for value, weight in after.parameters.items():
        if value not in given:
            given[value] = _weight(weight.name, named).reshape(weight.shape)
    return given


def _weight(name: str, named: dict[str, np.ndarray]) -> np.ndarray:
    if name in named:
        return named[name]
    if "+" in name:
        return np.concatenate([_weight(part, named) for part in name.split("+")])
    if name.startswith("zeros["):
        return np.zeros(int(name[6:-1]))
    if name.endswith(".flat"):
        return _weight(name.removesuffix(".flat"), named)
    return _weight(name.removesuffix("^T"), named).swapaxes(-1, -2)


def _update(case: Case, after: str | None, refused: list[str]) -> None:
    text = case.file.read_text()
    begin = text.index(f"## {case.title}\n")
    end = text.find("\n## ", begin + 1)
    end = len(text) if end < 0 else end
    section = text[begin:end]
    head = section[: section.index("```fir\n")]
    fences = [f"```fir\n{case.before}```\n"]
    if after is not None:
        fences.append(f"```fir after\n{after}```\n")
    if refused:
        fences.append("```refused\n" + "\n".join(refused) + "\n```\n")
    case.file.write_text(text[:begin] + head + "\n".join(fences) + text[end:])


# --- what every pass owes -------------------------------------------------------------------


@pytest.mark.parametrize("which", PASSES.values(), ids=lambda each: each.name)
def test_pass_has_a_golden_file_for_every_code(which: type[Pass]) -> None:
    file = HERE / f"{which.name.replace('-', '_')}.md"
    assert file.exists(), f"`{which.name}` has no golden file"
    shown = {line.split(" at ")[0] for case in _cases(file) for line in case.refused}
    assert shown - {"escapes", "cycle"} == documented_codes(which) - {"escapes", "cycle"}


def documented_codes(which: type[Pass]) -> set[str]:
    """The words that the module's docstring lists under *Leaves it alone when*."""
    module = __import__(which.__module__, fromlist=["_"])
    text = (module.__doc__ or "").partition("Leaves it alone when\n")[2].partition("\n\n")[0]
    return set(re.findall(r"^  (?! )([a-z][a-z0-9.-]*) ", text, re.M))


def test_order_of_the_pipeline() -> None:
    names = [each.name for each in PIPELINE]
    for position, each in enumerate(PIPELINE):
        for earlier in each.after:
            assert earlier in names, f"`{each.name}` comes after `{earlier}`, which is not there"
            assert earlier in names[:position], f"`{each.name}` must come after `{earlier}`"
        for later in each.before:
            assert later in names[position:], f"`{each.name}` must come before `{later}`"


def test_every_golden_file_belongs_to_a_pass() -> None:
    for file in FILES:
        assert _pass_of(file) in PIPELINE


def test_no_golden_case_is_opaque() -> None:
    for case in CASES:
        assert not any(is_opaque(node.op) for node in parse_graph(case.before).nodes())
