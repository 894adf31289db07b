"""Keeps the graph of a model folder, because exporting a large model takes minutes.

A graph is found again by the digest of all that shaped it: the folder's configuration and the
headers of its weights, what was asked for, the versions of what exported it, and fusec's own code.
Weights are not kept; tensors that the model computes when it is made are.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import fusec
import fusec.frontend
import fusec.ir
import fusec.rewrite
from fusec.ir import Graph, TensorType, Weight, parse_graph, print_graph
from fusec.ir.text import named_weight
from fusec.ir.weights import Bits, from_array
from fusec.rewrite import Decision

LARGEST = 1 << 24
"""Bytes of computed tensors up to which a graph is kept."""


class Store(Protocol):
    """Bytes by digest, such as `fusec.link.cache.ObjectCache`."""

    def find(self, digest: str) -> Path | None:
        """A file with what was kept."""

    def keep_bytes(self, digest: str, made: bytes) -> Path:
        """Keep `made`."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export gives.

    Attributes:
        graph: what the model computes.
        decisions: fusions that were made or refused before it was exported.
        notes: what a person should know.
    """

    graph: Graph
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...]


def graph_digest(folder_digest: str, asked: Mapping[str, object]) -> str:
    """What the graph of a folder is found by.

    Args:
        folder_digest: of the configuration and the headers of weights.
        asked: everything else that shapes the graph, each with a text that tells it from others.
    """
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    said = [f"{name}={value!r}" for name, value in sorted(asked.items())]
    parts = ("graph", folder_digest, platform.python_version(), *versions, _own_code(), *said)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@cache
def _own_code() -> str:
    state = hashlib.sha256()
    for path in own_files():
        state.update(path.read_bytes())
    return state.hexdigest()


def own_files() -> list[Path]:
    """The files of fusec that shape a graph and what is kept with it."""
    root = Path(fusec.__path__[0])
    folders = (Path(package.__path__[0]) for package in (fusec.frontend, fusec.ir, fusec.rewrite))
    return sorted([*root.glob("*.py"), *(path for each in folders for path in each.rglob("*.py"))])


def keep(store: Store, digest: str, exported: Exported, held: Mapping[str, Weight]) -> None:
    """Keep a graph, if what the model computed when it was made is small.

    Args:
        store: where to.
        digest: of `graph_digest`.
        exported: what to keep.
        held: weights, by name, that come from the folder.
    """
    parameters: list[dict[str, Any]] = []
    arrays: dict[str, Bits] = {}
    for value, weight in exported.graph.parameters.items():
        entry: dict[str, Any] = {"value": value, "identity": weight.identity}
        if weight.name not in held and weight.read is not None:
            entry["array"] = f"a{len(arrays)}"
            arrays[entry["array"]] = weight.load()
        parameters.append(entry)
    if sum(array.nbytes for array in arrays.values()) > LARGEST:
        return
    document = {
        "graph": print_graph(exported.graph),
        "parameters": parameters,
        "decisions": [decision.as_json() for decision in exported.decisions],
        "notes": list(exported.notes),
    }
    packed = io.BytesIO()
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    np.savez(packed, allow_pickle=False, document=text, **arrays)
    made = packed.getvalue()
    store.keep_bytes(digest, hashlib.sha256(made).digest() + made)


def find(store: Store, digest: str, held: Mapping[str, Weight]) -> Exported | None:
    """The graph that was kept under `digest`; `None` if there is none, or it is damaged.

    Args:
        store: where from.
        digest: of `graph_digest`.
        held: weights, by name, that come from the folder.
    """
    path = store.find(digest)
    if path is None:
        return None
    data = path.read_bytes()
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    with np.load(io.BytesIO(data[32:]), allow_pickle=False) as arrays:
        document = json.loads(arrays["document"].tobytes())
        known = {entry["value"]: entry for entry in document["parameters"]}

        def weight_of(parameter: str, name: str, type: TensorType) -> Weight:
            return _weight(named_weight(parameter, name, type), known[parameter], arrays, held)

        graph = parse_graph(document["graph"], weight_of)
    decisions = tuple(
        Decision(**{**each, "rejected": tuple(each["rejected"])}) for each in document["decisions"]
    )
    return Exported(graph, decisions, tuple(document["notes"]))


def _weight(
    named: Weight, entry: Mapping[str, Any], arrays: Mapping[str, Bits], held: Mapping[str, Weight]
) -> Weight:
    if named.name in held:
        return held[named.name]
    if "array" in entry:
        made = from_array(named.name, named.type.dtype, arrays[entry["array"]])
        return replace(made, identity=entry["identity"])
    return replace(named, identity=entry["identity"])
