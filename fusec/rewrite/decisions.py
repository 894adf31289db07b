"""What was decided, and why: the records behind `inspect`, `explain` and `--require`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a fusion fired at a site.

    Attributes:
        fusion: the fusion's stable name.
        site: the module path in the model, such as `model.layers.0.input_layernorm`.
        status: `fired` or `refused`.
        code: the guard's stable code, when refused.
        reason: the guard's sentence, when refused.
        hint: what to change so that it fires.
        node: the node in the graph: the new one if fired, else the one left alone.
        details: what the pass says of the place, such as how much is padded.
        backend: the kernel that computes the node, once kernels were chosen.
        rejected: fusions and kernels that were asked before, each with `backend`, `code` and
            `reason`.
    """

    fusion: str
    site: str
    status: Literal["fired", "refused"]
    code: str | None = None
    reason: str | None = None
    hint: str | None = None
    node: str = ""
    details: Mapping[str, str | int | float] = field(default_factory=dict)
    backend: str | None = None
    rejected: tuple[Mapping[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The record as it stands in `decisions.jsonl`."""
        return {**asdict(self), "rejected": [dict(each) for each in self.rejected]}


class DecisionLog:
    """Decisions in the order they were made, one a site and fusion."""

    def __init__(self, decisions: Iterable[Decision] = ()) -> None:
        self._decisions: dict[tuple[str, str, str], Decision] = {}
        self._by_node: dict[str, list[tuple[str, str, str]]] = {}
        for decision in decisions:
            self.add(decision)

    def __iter__(self) -> Iterator[Decision]:
        return iter(self._decisions.values())

    def __len__(self) -> int:
        return len(self._decisions)

    def add(self, decision: Decision) -> None:
        """Record a decision; a later one about the same fusion, node and site takes its place."""
        key = (decision.fusion, decision.node, decision.site)
        self._decisions[key] = decision
        self._by_node.setdefault(decision.node, []).append(key)

    def tells_of(self, fusion: str, node: str) -> bool:
        """Whether there is a decision of `fusion` about `node`, whatever its site is called."""
        return any(
            key[0] == fusion for key in self._by_node.get(node, ()) if key in self._decisions
        )

    def absorb(self, nodes: Iterable[str]) -> tuple[Decision, ...]:
        """Forget, and give, what was decided about `nodes`: a larger fusion took them in."""
        gone: list[Decision] = []
        for node in nodes:
            for key in self._by_node.pop(node, ()):
                if (decision := self._decisions.pop(key, None)) is not None:
                    gone.append(decision)
        return tuple(gone)

    def advise(self, hint_for: Callable[[str, str], str | None]) -> None:
        """Give each refusal without a hint the one for its fusion and code, if there is one."""
        for key, decision in self._decisions.items():
            if decision.code is not None and decision.hint is None:
                hint = hint_for(decision.fusion, decision.code)
                self._decisions[key] = replace(decision, hint=hint)

    def fired(self) -> Counter[str]:
        """How often each fusion fired."""
        return Counter(d.fusion for d in self if d.status == "fired")

    def refused(self) -> tuple[Decision, ...]:
        """Every refusal."""
        return tuple(d for d in self if d.status == "refused")
