"""How many launches a layer takes, beside what it would take unfused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fusec.ir import Graph
from fusec.lower.fusion import CREATED
from fusec.lower.steps import Lowered, OnnxStep
from fusec.lower.storage import VIEWS

_LAYER = re.compile(r"(?:[^.]+\.)+?\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class LayerLaunches:
    """One layer of a model.

    Attributes:
        layer: its module path; "" for what stands outside of all layers.
        launches: at the largest sizes.
        unfused: operations of the imported graph that are no views: a launch each where nothing is
            fused.
    """

    layer: str
    launches: int
    unfused: int


def layer_of(path: str) -> str:
    """The layer that a module is in: its path up to the first number; "" where there is none."""
    found = _LAYER.match(path)
    return "" if found is None else found[0]


def unfused_by_layer(imported: Graph) -> Counter[str]:
    """Operations of each layer that compute or move elements."""
    return _counted(node.origin.path for node in imported.nodes() if node.op not in VIEWS | CREATED)


def launches_by_layer(lowered: Lowered, unfused: Mapping[str, int]) -> tuple[LayerLaunches, ...]:
    """What runs in each layer, in the order of the layers; `unfused` as of `unfused_by_layer`."""
    launches = _counted(
        step.residual.path if isinstance(step, OnnxStep) else step.node.origin.path
        for step in lowered.launched()
    )
    return tuple(
        LayerLaunches(layer, launches[layer], unfused.get(layer, 0))
        for layer in dict.fromkeys((*unfused, *launches))
    )


def _counted(paths: Iterable[str]) -> Counter[str]:
    return Counter(map(layer_of, paths))
