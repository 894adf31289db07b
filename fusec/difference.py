"""What differs between two artifacts: what `fusec diff` shows, for people and for programs.

Only what differs is listed, so that of equal artifacts nothing is.  Fusions are told apart by their
sites, kernels by their code, layers by their module paths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

from fusec.ir.text import parse_graph
from fusec.lower.layers import layer_of
from fusec.report import Row, alike, inspect_document, size_text
from fusec.runtime.artifact import Artifact

DIFF_SCHEMA = "fusec.diff/1"

Document = dict[str, Any]
Item = TypeVar("Item", bound=Hashable)

_MODEL = ("name", "source", "options", "symbols", "inputs", "outputs", "weights")
"""Members of the document of `inspect` that are compared as they are."""


def difference(a: Artifact, b: Artifact) -> Document:
    """Everything that differs from `a` to `b`, as JSON of the schema `fusec.diff/1`.

    Where two values are given, the first is that of `a`.
    """
    documents = first, second = inspect_document(a), inspect_document(b)
    found: Document = {
        "schema": DIFF_SCHEMA,
        "artifacts": [{"id": each["id"], **each["file"]} for each in documents],
    }
    for each in documents:
        each["options"].pop("command", None)  # says nothing that other members do not say
    model = {name: [first[name], second[name]] for name in _MODEL if first[name] != second[name]}
    for name, value in (
        ("model", model),
        ("tools", _changed(first["tools"], second["tools"])),
        ("targets", _targets(first, second)),
        ("graph", _operations(a, b)),
    ):
        if value:
            found[name] = value
    found["same"] = not {"model", "targets", "graph"} & set(found)
    return found


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> Document:
    """The members that differ; what one has not is `None`."""
    names = dict.fromkeys((*a, *b))
    return {name: [a.get(name), b.get(name)] for name in names if a.get(name) != b.get(name)}


def _targets(a: Document, b: Document) -> list[Document]:
    by_name = [{each["target"]: each for each in document["targets"]} for document in (a, b)]
    disabled = {*b["options"].get("disable", ())} - {*a["options"].get("disable", ())}
    found = []
    for name in dict.fromkeys((*by_name[0], *by_name[1])):
        if not all(name in each for each in by_name):
            found.append({"target": name, "only_in": "a" if name in by_name[0] else "b"})
        elif changes := _target(by_name[0][name], by_name[1][name], disabled):
            found.append({"target": name, **changes})
    return found


def _target(a: Document, b: Document, disabled: set[str]) -> Document:
    changes: Document = {
        "fusions": _fusions(a["decisions"], b["decisions"], disabled),
        "refusals": _refusals(a["decisions"], b["decisions"]),
        "kernels": _kernels(a["kernels"], b["kernels"], b["family"]),
        "module": _module(a, b),
        "layers": _layers(a.get("layers", ()), b.get("layers", ())),
        "residual": _gone_and_new(a["residual"], b["residual"], ("op", "node", "reason")),
        "memory": _changed(a["memory"], b["memory"]),
    }
    for name in ("arch", "features", "launches"):
        if a[name] != b[name]:
            changes[name] = [a[name], b[name]]
    return {name: change for name, change in changes.items() if change}


# --- fusions --------------------------------------------------------------------------------


def _with_status(decisions: Iterable[Row], status: str) -> list[Row]:
    return [row for row in decisions if row["status"] == status]


def _lost_and_gained(a: Iterable[Item], b: Iterable[Item]) -> tuple[list[Item], list[Item]]:
    """What is more often in `a`, and in `b`, in the order in which it came."""
    first, second = Counter(a), Counter(b)
    return [*(first - second).elements()], [*(second - first).elements()]


def _fusions(a: Sequence[Row], b: Sequence[Row], disabled: set[str]) -> list[Document]:
    """The fusions that fire elsewhere, and why those that are lost do not fire any more."""
    reasons = {
        (row["fusion"], row["site"]): f"`{row['code']}`: {row['reason']}"
        for row in _with_status(b, "refused")
    }

    def why(fusion: str, site: str) -> str:
        if fusion in disabled:
            return "its pass is disabled"
        return reasons.get((fusion, site), "nothing there fits it any more")

    fired = [_with_status(decisions, "fired") for decisions in (a, b)]
    found = []
    for fusion in sorted({row["fusion"] for rows in fired for row in rows}):
        sites = [[row["site"] for row in rows if row["fusion"] == fusion] for rows in fired]
        lost, gained = _lost_and_gained(*sites)
        if lost or gained:
            found.append(
                {
                    "fusion": fusion,
                    "fired": [len(each) for each in sites],
                    "lost": [{"site": site, "why": why(fusion, site)} for site in lost],
                    "gained": [{"site": site} for site in gained],
                }
            )
    return found


def _refusals(a: Sequence[Row], b: Sequence[Row]) -> Document:
    """Refusals that are new in `b`, and those that are gone."""
    members = ("fusion", "site", "code", "reason")
    return _gone_and_new(_with_status(a, "refused"), _with_status(b, "refused"), members)


def _gone_and_new(a: Iterable[Row], b: Iterable[Row], members: tuple[str, ...]) -> Document:
    """The rows that only one of both has, told apart by some of their members."""
    keys = ([tuple(row[name] for name in members) for row in rows] for rows in (a, b))
    found = zip(("gone", "new"), _lost_and_gained(*keys), strict=True)
    return {
        word: [dict(zip(members, key, strict=True)) for key in each] for word, each in found if each
    }


# --- kernels, launches, memory --------------------------------------------------------------


def _kernels(a: Sequence[Row], b: Sequence[Row], family: str) -> list[Document]:
    """Kernels whose code is in one artifact only; those of one name and symbol are paired.

    All kernels of a CPU are in one module with one digest: they are told apart by their sizes.
    """

    def code_of(kernel: Row) -> Hashable:
        if family == "cpu":
            return kernel["name"], kernel["symbol"], kernel["bytes"]
        return str(kernel["sha256"])

    code = [{code_of(kernel) for kernel in kernels} for kernels in (a, b)]
    groups: dict[tuple[str, str], list[list[Row]]] = {}
    for place, kernels in enumerate((a, b)):
        for kernel in kernels:
            key = (kernel["name"], kernel["symbol"])
            of_name = groups.setdefault(key, [[], []])
            if code_of(kernel) not in code[1 - place]:
                of_name[place].append(kernel)
    found = []
    for (name, symbol), (gone, new) in groups.items():
        paired = len(gone) if len(gone) == len(new) else 0
        entry = {"kernel": name, "symbol": symbol}
        for before, after in zip(gone[:paired], new[:paired], strict=True):
            resources = _changed(before["resources"], after["resources"])
            sizes = [before["bytes"], after["bytes"]]
            found.append({**entry, "status": "changed", "bytes": sizes, "resources": resources})
        found += [{**entry, "status": "removed", "bytes": [k["bytes"], 0]} for k in gone[paired:]]
        found += [{**entry, "status": "added", "bytes": [0, k["bytes"]]} for k in new[paired:]]
    return found


def _module(a: Document, b: Document) -> list[str | None]:
    """The digests of the module that all kernels of a CPU are in, if they differ."""
    if b["family"] != "cpu":
        return []
    digests = [next((kernel["sha256"] for kernel in each["kernels"]), None) for each in (a, b)]
    return digests if digests[0] != digests[1] else []


def _layers(a: Iterable[Row], b: Iterable[Row]) -> list[Document]:
    """Layers with another number of launches."""
    launches = [{layer["layer"]: layer["launches"] for layer in layers} for layers in (a, b)]
    return [
        {"layer": layer, "launches": [before or 0, after or 0]}
        for layer, (before, after) in _changed(*launches).items()
    ]


def _operations(a: Artifact, b: Artifact) -> list[Document]:
    """Layers of the rewritten graphs that have other operations."""
    if a.graph_text() == b.graph_text():
        return []
    counts: list[dict[str, Counter[str]]] = []
    for artifact in (a, b):
        by_layer: dict[str, Counter[str]] = {}
        for node in parse_graph(artifact.graph_text(), foreign=True).nodes():
            by_layer.setdefault(layer_of(node.origin.path), Counter())[node.op] += 1
        counts.append(by_layer)
    found = []
    for layer in dict.fromkeys((*counts[0], *counts[1])):
        before, after = (each.get(layer, Counter()) for each in counts)
        changes = {
            op: [before[op], after[op]]
            for op in sorted({*before, *after})
            if before[op] != after[op]
        }
        if changes:
            found.append({"layer": layer, "operations": changes})
    return found


# --- for people -----------------------------------------------------------------------------


def difference_text(document: Document) -> str:
    """The document in lines; layers and sites that change alike stand together."""
    lines = [
        f"{mark:<9} {each['name']}, {size_text(each['bytes'])}, {each['id'][:16]}"
        for mark, each in zip("ab", document["artifacts"], strict=True)
    ]
    for name, (before, after) in document.get("model", {}).items():
        lines += _section(name, _model_lines(before, after))
    tools = document.get("tools", {}).items()
    lines += _section("tools", [f"{name} {_change(versions)}" for name, versions in tools])
    for target in document.get("targets", ()):
        lines += ["", *_target_lines(target)]
    if graph := document.get("graph"):
        lines += ["", *_section("graph", _graph_lines(graph))]
    if document["same"]:
        lines += ["", "the same, but for the tools" if "tools" in document else "the same"]
    return "\n".join(lines)


def _section(word: str, lines: Iterable[str]) -> Iterator[str]:
    """Lines with what they are about in front of the first."""
    for number, line in enumerate(lines):
        yield f"{'' if number else word:<9} {line}"


def _said(value: Any) -> str:
    """A value of the document in words."""
    if isinstance(value, dict) and "shape" in value:
        return f"{value['name']}: {value['dtype']}[{', '.join(map(str, value['shape']))}]"
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "none"
    return "none" if value is None else str(value)


def _change(values: Sequence[Any]) -> str:
    before, after = values
    return f"{_said(before)} -> {_said(after)}"


def _places(paths: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Module paths that differ in the numbers of layers at most, and how many there are of each."""
    for text, among in alike([f"{path or 'outside of layers'}." for path in paths]):
        yield text.removesuffix("."), len(among)


def _model_lines(before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key, values in _changed(before, after).items():
            yield f"{key}: {_change(values)}"
    else:
        yield _change((before, after))


def _target_lines(target: Document) -> Iterator[str]:
    if "only_in" in target:
        yield from _section("target", [f"{target['target']} is only in {target['only_in']}"])
        return
    yield from _section("target", [target["target"]])
    for fusion in target.get("fusions", ()):
        yield from _section("fusion", _fusion_lines(fusion))
    yield from _section("refusals", _refusal_lines(target.get("refusals", {})))
    yield from _section("kernels", _kernel_lines(target.get("kernels", ())))
    if "module" in target and "kernels" not in target:
        yield from _section("module", ["other code in kernels of the same sizes"])
    for name in ("launches", "arch", "features"):
        if name in target:
            yield from _section(name, [_change(target[name])])
    yield from _section("layers", _layer_lines(target.get("layers", ())))
    yield from _section("residual", _residual_lines(target.get("residual", {})))
    sizes = {name: map(size_text, values) for name, values in target.get("memory", {}).items()}
    memory = [f"{name.removesuffix('_bytes')} {_change([*both])}" for name, both in sizes.items()]
    yield from _section("memory", memory)


def _fusion_lines(fusion: Document) -> Iterator[str]:
    yield f"{fusion['fusion']} {_change(fusion['fired'])}"
    reasons = [each["why"] for each in fusion["lost"]]
    for why, among in alike(reasons):
        for site, count in _places(fusion["lost"][place]["site"] for place in among):
            yield f"  {count} lost at {site}: {why}"
    for site, count in _places(each["site"] for each in fusion["gained"]):
        yield f"  {count} gained at {site}"


def _refusal_lines(refusals: Document) -> Iterator[str]:
    for word, verb in (("gone", "no longer refused"), ("new", "refused")):
        said = [
            f"{row['fusion']} {verb} by `{row['code']}`: {row['reason']}"
            for row in refusals.get(word, ())
        ]
        for text, places in alike(said):
            yield f"{len(places)} {text}"


def _kernel_lines(kernels: Sequence[Document]) -> Iterator[str]:
    for (status, name, symbol), group in groupby(
        kernels, key=lambda each: (each["status"], each["kernel"], each["symbol"])
    ):
        of_name = [*group]
        resources: dict[str, dict[str, None]] = {}
        for each in of_name:
            for key, values in each.get("resources", {}).items():
                resources.setdefault(key, {})[_change(values)] = None
        said = [f"{key} {', '.join(changes)}" for key, changes in resources.items()]
        growth = sum(after - before for before, after in (each["bytes"] for each in of_name))
        facts = "; ".join([*said, f"{growth:+,} bytes"])
        yield f"{len(of_name)} {status}: {name} `{symbol}` ({facts})"


def _layer_lines(layers: Sequence[Document]) -> Iterator[str]:
    for change, among in alike([_change(layer["launches"]) for layer in layers]):
        for path, count in _places(layers[place]["layer"] for place in among):
            yield f"{change} launches in {count}: {path}"


def _residual_lines(residual: Document) -> Iterator[str]:
    for word, verb in (("gone", "no longer left"), ("new", "left")):
        for item in residual.get(word, ()):
            yield f"{item['op']} at {item['node']} is {verb} to onnxruntime: {item['reason']}"


def _graph_lines(graph: Sequence[Document]) -> Iterator[str]:
    changes = [
        ", ".join(f"{op} {_change(counts)}" for op, counts in each["operations"].items())
        for each in graph
    ]
    for change, among in alike(changes):
        for path, _ in _places(graph[place]["layer"] for place in among):
            yield f"{path}: {change}"
