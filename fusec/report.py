"""Documents about an artifact: what `inspect` and `explain` show, for people and for programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusec.runtime.artifact import Artifact

INSPECT_SCHEMA = "fusec.inspect/1"
EXPLAIN_SCHEMA = "fusec.explain/1"

Row = Mapping[str, Any]

_NUMBER = re.compile(r"(\.|`%\w+_)\d+(?=[.`+])")

_WORDS = {"how": "", "with_plain": "also read by "}
"""What is said before a detail, where that is not its name."""


def inspect_document(artifact: Artifact) -> dict[str, Any]:
    """Everything in an artifact, as JSON of the schema `fusec.inspect/1`.

    The decisions of a target are the rows of `decisions.jsonl` that name it.
    """
    manifest = artifact.manifest
    by_target: dict[str, list[Row]] = {section.target: [] for section in manifest.targets}
    for row in artifact.decisions():
        kept = {key: value for key, value in row.items() if key != "target"}
        by_target.setdefault(str(row.get("target")), []).append(kept)
    return {
        "schema": INSPECT_SCHEMA,
        "name": manifest.name,
        "id": artifact.id,
        "file": {"name": artifact.path.name, "bytes": artifact.bytes},
        "source": {
            "kind": manifest.source.kind,
            "name": manifest.source.name,
            "sha256": manifest.source.sha256,
        },
        "tools": dict(manifest.tools),
        "options": dict(manifest.options),
        "symbols": {name: list(ends) for name, ends in manifest.symbols.items()},
        "inputs": [_spec(spec) for spec in manifest.inputs],
        "outputs": [_spec(spec) for spec in manifest.outputs],
        "weights": {
            "count": len(manifest.weights.tensors),
            "bytes": manifest.weights.tensor_bytes,
            "storage": manifest.weights.storage,
        },
        "targets": [
            {
                "target": section.target,
                "family": section.family,
                "arch": section.arch,
                "features": list(section.features),
                **section.report,
                "decisions": by_target[section.target],
            }
            for section in manifest.targets
        ],
    }


def _spec(spec: Any) -> dict[str, Any]:
    shape = [dim if isinstance(dim, int) else str(dim) for dim in spec.shape]
    return {"name": spec.name, "dtype": spec.dtype, "shape": shape}


def fusion_counts(decisions: Iterable[Row]) -> dict[str, tuple[int, int]]:
    """How often each fusion fired and was refused, by name."""
    counts: dict[str, tuple[int, int]] = {}
    for row in decisions:
        fired, refused = counts.get(row["fusion"], (0, 0))
        counts[row["fusion"]] = (
            fired + (row["status"] == "fired"),
            refused + (row["status"] == "refused"),
        )
    return dict(sorted(counts.items()))


def layers_text(target: Mapping[str, Any]) -> str:
    """Launches of each layer, and unfused: `9 in each of 30 layers (27 unfused)`."""
    found: dict[tuple[int, int], int] = {}
    for layer in target.get("layers", ()):
        if layer["layer"]:
            counts = layer["launches"], layer["unfused"]
            found[counts] = found.get(counts, 0) + 1
    return ", ".join(
        f"{launches} in {'each of ' if count > 1 else ''}{count} layer{'s' if count > 1 else ''} "
        f"({unfused} unfused)"
        for (launches, unfused), count in sorted(found.items(), key=lambda item: -item[1])
    )


def alike(texts: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Texts that differ in the numbers of layers or values at most, with where they stand.

    Numbers in module paths, and at the ends of `%value_7`, that differ are given as `*`.
    """
    groups: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        groups.setdefault(_NUMBER.sub(r"\1*", text), []).append(place)
    return [
        (texts[places[0]] if len({texts[place] for place in places}) == 1 else masked, places)
        for masked, places in groups.items()
    ]


def details_text(row: Row) -> str:
    """What a pass says of a place that fired: `hidden 2880 padded to 3072, experts 32`."""
    held: Mapping[str, Any] = row.get("details") or {}
    parts: list[str] = []
    for name, value in sorted(held.items(), key=lambda item: item[0] != "how"):
        if name.endswith("_pad") and name.removesuffix("_pad") in held:
            continue
        pad = held.get(f"{name}_pad")
        padded = f" padded to {value + pad}" if pad else ""
        word = _WORDS.get(name, f"{name.replace('_', ' ')} ")
        said = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        parts.append(f"{word}{said}{padded}")
    return ", ".join(parts)


def rejected_texts(row: Row) -> list[str]:
    """The fusions and kernels that were asked before those that were chosen, with their reasons."""
    return [
        f"instead of {each['backend']}: `{each['code']}`: {each['reason']}"
        if each.get("code")
        else f"not by {each['backend']}: {each['reason']}"
        for each in row.get("rejected") or ()
    ]


def artifact_name(source: str) -> str:
    """The file that `compile` writes when no output is named, from the name of the source."""
    stem = source.rpartition(":")[2]
    for suffix in (".pt2", ".pt", ".onnx"):
        stem = stem.removesuffix(suffix)
    return f"{stem or 'model'}.fusec"


def size_text(size: int) -> str:
    """Bytes for people: `12.4 MB`."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def counts_text(counts: Mapping[str, int]) -> str:
    """`attention 4   rope 8`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "   ".join(f"{name} {count}" for name, count in ordered)
