"""Where an artifact goes wrong: the first pass or the first step that is not right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusec.runtime.model import Model
from fusec.verify.compilation import AS_READ, Compilation
from fusec.verify.rewrites import WrongRewrite, fired, wrong_rewrite
from fusec.verify.steps import StepError, step_errors


@dataclass(frozen=True, slots=True)
class Place:
    """What was found where every pass and every step was looked at by itself.

    Attributes:
        passes: that changed the graph.
        values: that steps made, over all runs.
        document: of the first that is wrong, as `--json` prints it; `None` if all are right.
    """

    passes: int
    values: int
    document: dict[str, Any] | None


def find_place(
    compilation: Compilation,
    model: Model,
    runs: Mapping[str, Mapping[str, Any]],
    dtype: str,
    report: Callable[[str], None],
) -> Place:
    """Look at every pass, with the first of `runs`, and then at every step of each run.

    Args:
        compilation: of the artifact, again.
        model: the artifact, loaded on some device.
        runs: inputs by the name of the run; passes are looked at with the first.
        dtype: the narrowest that the model computes in.
        report: is told what is being done.

    Raises:
        InputError: the compilation cannot be repeated.
    """
    report("interpreting the graph between passes")
    stages = compilation.rewrite()
    rewrite = wrong_rewrite(stages, next(iter(runs.values())))
    passes = len(stages) - 1
    if rewrite is not None:
        return Place(passes, 0, _of_pass(rewrite))
    report("running step by step")
    lowered = compilation.lower()
    values = 0
    for name, inputs in runs.items():
        errors = step_errors(lowered, model, inputs, dtype)
        values += len(errors)
        for index, error in enumerate(errors):
            if not error.is_right:
                found = _of_step(compilation, error, errors[index + 1 :], name)
                return Place(passes, values, found)
    return Place(passes, values, None)


def _of_pass(found: WrongRewrite) -> dict[str, Any]:
    row = found.decision
    fusion = found.pass_name if row is None else row.fusion
    site = found.path if row is None else row.site
    return {
        "kind": "rewrite",
        "fusion": fusion,
        "site": site,
        "pass": found.pass_name,
        "node": found.node,
        "value": found.value,
        "error": _number(found.error),
        "allowed": found.allowed,
        "said": (
            f"first wrong: {fusion} at {site} (pass {found.pass_name}, node `%{found.node}`): it "
            f"changes `{found.value}` by {found.error:.1e} where {found.allowed:.1e} is allowed"
        ),
        "hint": _without(found.pass_name),
    }


def _of_step(
    compilation: Compilation, first: StepError, later: Sequence[StepError], run: str
) -> dict[str, Any]:
    stages = compilation.rewrite()
    made_by = next((each.name for each in stages if first.node in each.graph), AS_READ)
    row = fired(stages[-1]).get(first.node)
    origin = stages[-1].graph.node(first.node).origin
    fusion = first.op if row is None else row.fusion
    site = (origin.path or first.node) if row is None else row.site
    right = sum(each.is_right for each in later)
    return {
        "kind": "kernel",
        "fusion": fusion,
        "site": site,
        "pass": made_by,
        "kernel": first.kernel,
        "node": first.node,
        "step": first.step,
        "error": _number(first.error),
        "allowed": first.allowed,
        "case": run,
        "later": {"values": len(later), "right": right},
        "said": (
            f"first wrong: {fusion} at {site} (pass {made_by}, kernel {first.kernel}, node "
            f"`%{first.node}`): error {first.error:.1e} where {first.allowed:.1e} is allowed; "
            f"{right} of {len(later)} later values are right given their operands"
        ),
        "hint": "report the kernel with this output" if row is None else _without(made_by),
    }


def _number(value: float) -> float | None:
    """JSON has no infinity."""
    return value if np.isfinite(value) else None


def _without(pass_name: str) -> str:
    return f"compile with `--disable {pass_name}` to do without it"
