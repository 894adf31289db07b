"""Runs an artifact and its source on the same inputs and says whether they agree."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fusec.diagnostics import InputError, MismatchError, UsageError
from fusec.dtypes import DTYPES
from fusec.emulation import emulated
from fusec.frontend.eager import Eager, eager_source
from fusec.generate import generate_inputs
from fusec.ir.interpret import interpret, opaque_nodes, widen
from fusec.runtime import Model, load
from fusec.runtime.artifact import Artifact, open_artifact
from fusec.runtime.files import NewFile, check_place, write_errors, write_file
from fusec.runtime.io import read_arrays
from fusec.runtime.model import bind_symbols, check_inputs
from fusec.verify.compilation import Compilation, Given, Stage, read_again
from fusec.verify.measures import Measures, measured
from fusec.verify.place import Place, find_place
from fusec.verify.residual import OnOnnxruntime
from fusec.verify.tolerances import (
    INTEGERS_READ,
    LARGEST_RATIO,
    PRECISION,
    QUANTISED_ROWS,
    RMS_RATIO,
    TOLERANCES,
    computed_in,
    float_dtypes,
    format_of,
    narrowest,
)

SCHEMA = "fusec.verify/1"
_SAVED = re.compile(r"case-\d+\.npz")
ROUTING = frozenset(("topk", "router", "moe"))
SMALL_SIZES = {"batch": 3, "seq": 37}
TYPICAL_SIZES = {"batch": 2, "seq": 67}
"""The middle and the last case, small so that meanings in float64 stay quick."""

OTHER_SIZES = (5, 8)
"""Sizes of other names in them."""

Arrays = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be verified, and how.

    Attributes:
        artifact: its path.
        source: what it was compiled from.
        device: `cpu`, `hip:0`, `cuda:0` or `emulator:TARGET`.
        inputs: files of inputs; none for generated ones.
        dims: sizes to run at, by name; the rest are chosen.
        seed: of generated inputs.
        tolerances: by output, or `""` for all: what the largest difference may be, relative to the
            largest magnitude; integers by the share that differs.
        bisect: whether to look for the pass or the step that is wrong.
        threads: of the CPU.
        weights: a file, where the artifact has none.
        given: what the compilation was given beside the source.
    """

    artifact: Path
    source: Any
    device: str = "cpu"
    inputs: tuple[Path, ...] = ()
    dims: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0
    tolerances: Mapping[str, float] = field(default_factory=dict)
    bisect: bool = False
    threads: int | None = None
    weights: Path | None = None
    given: Given = field(default_factory=Given)


@dataclass(frozen=True, slots=True)
class Case:
    """One run.

    Attributes:
        name: of the case.
        sizes: the value of each symbol.
        inputs: what goes in.
        got: what the artifact makes of it.
        exact: what it should, in float64.
        own: what the reference makes of it.
        ours: by output, how far `got` is from `exact`.
        theirs: by output, how far `own` is from it.
    """

    name: str
    sizes: Mapping[str, int]
    inputs: Arrays
    got: Arrays
    exact: Arrays
    own: Arrays
    ours: Mapping[str, Measures]
    theirs: Mapping[str, Measures]


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of it.

    Attributes:
        document: as `--json` prints it.
        cases: that were run, with all arrays.
    """

    document: dict[str, Any]
    cases: tuple[Case, ...]

    @property
    def is_right(self) -> bool:
        """Whether the artifact computes what its source does."""
        return bool(self.document["verdict"] == "right")

    def error(self) -> MismatchError:
        """For a verification that found a difference."""
        lines = [each["said"] for each in self.document["outputs"] if each["verdict"] == "wrong"]
        found = self.document["bisect"]
        if found is not None:
            lines.append(found["said"])
            hint = found["hint"]
        elif self.document["looked_at"] is not None:
            lines.append("every pass and every step is right by itself: small errors add up")
            hint = "`--tol` allows for more"
        elif self.document["source_changed"]:
            hint = "name the source (and adapter) that it was compiled from, or compile this one"
        else:
            hint = "`--bisect` finds the pass or the kernel that is wrong"
        return MismatchError(
            "the artifact does not compute what its source does",
            at=self.document["artifact"],
            detail=tuple(lines),
            hint=hint,
        )

    def save(self, folder: Path) -> None:
        """Write every case as `.npz`, and the document."""
        folder.mkdir(parents=True, exist_ok=True)
        for case in self.cases:
            kinds = {"output": case.got, "exact": case.exact, "reference": case.own}
            arrays = dict(case.inputs)
            for kind, held in kinds.items():
                arrays |= {f"{kind}.{name}": array for name, array in held.items()}
            with NewFile(folder / f"{case.name}.npz") as file:
                np.savez(file.file, **arrays)
                file.keep()
        text = json.dumps(self.document, indent=2) + "\n"
        write_file(folder / "verify.json", text.encode("utf-8"))


def check_folder(folder: Path, request: Request) -> None:
    """Make a folder for what `Verification.save` writes, before it is known what that will be.

    Raises:
        InputError: it cannot be made or written to.
        UsageError: an input of the request would be replaced.
    """
    given = request.given
    files = *request.inputs, request.weights, given.adapter, *given.tuning
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        written = [path for path in folder.iterdir() if _SAVED.fullmatch(path.name)]
    for place in (folder / "verify.json", *written):
        check_place(place, request.artifact, request.source, *files)


def verify(request: Request, report: Callable[[str], None] = lambda _: None) -> Verification:
    """Run an artifact and its source, and compare.

    Args:
        request: what and how.
        report: is told what is being done.

    Raises:
        FusecError: the artifact or the source cannot be read or run; a difference is no error here.
    """
    with opaque_nodes(OnOnnxruntime()):
        return _Verifying(request, report).run()


class _Verifying:
    def __init__(self, request: Request, report: Callable[[str], None]) -> None:
        self.request = request
        self.report = report
        self.artifact: Artifact = open_artifact(request.artifact)
        self._check_tolerances()
        self.sizes = self._sizes()  # what is asked for comes before the source, which may be long
        self.given = [self._read_inputs(path) for path in request.inputs]
        self.model = self._load()
        report("reading the source")
        self.compilation: Compilation = read_again(
            self.artifact, self.model.target, request.source, request.given, report
        )
        self.graph = self.compilation.source.graph
        self._check_interface()
        self.dtype = computed_in(self.graph)
        self.quantised = self._quantised()
        routed = any(node.op in ROUTING for node in self.graph.nodes())
        self.median_counts = routed and (self.dtype != "f32" or self.quantised is not None)
        self.eager, self.why_not_eager = self._eager()

    def run(self) -> Verification:
        cases = tuple(
            self._case(f"case-{number}", inputs)
            for number, inputs in enumerate(self._inputs(), start=1)
        )
        cost, read = self._as_read(cases)
        outputs = [
            self._judged(spec.name, spec.dtype, cases, read)
            for spec in self.artifact.manifest.outputs
        ]
        outputs_wrong = any(each["verdict"] == "wrong" for each in outputs)
        place = self._place(cases, outputs_wrong)
        is_wrong = outputs_wrong or (place is not None and place.document is not None)
        document = {
            "schema": SCHEMA,
            "verdict": "wrong" if is_wrong else "right",
            "artifact": str(self.request.artifact),
            "source": str(self.request.source),
            "source_changed": self.compilation.changed,
            "target": self.model.target,
            "device": self.request.device,
            "dtype": self.dtype,
            "reference": self._reference_name(),
            "reference_missing": self.why_not_eager,
            "median_counts": self.median_counts,
            "format_cost": cost,
            "cases": [self._described(case) for case in cases],
            "outputs": outputs,
            "looked_at": None
            if place is None
            else {"passes": place.passes, "values": place.values},
            "bisect": None if place is None else place.document,
        }
        return Verification(document, cases)

    def _place(self, cases: Sequence[Case], outputs_wrong: bool) -> Place | None:
        """Look at each pass and step, where that was asked for or outputs alone say too little.

        Beside what a format or a router that is torn between two experts does to outputs, one
        wrong block would not be seen.
        """
        says_little = self.quantised is not None or self.median_counts
        if not (self.request.bisect if outputs_wrong else says_little):
            return None
        smallest = min(cases, key=lambda case: sum(case.sizes.values()))
        looked_at = [smallest, *(each for each in cases if outputs_wrong and each is not smallest)]
        runs = {case.name: case.inputs for case in looked_at}
        return find_place(self.compilation, self.model, runs, self.dtype, self.report)

    # --- what runs --------------------------------------------------------------------------

    def _load(self) -> Model:
        driver = emulated(self.artifact, self.request.device)
        return load(
            self.artifact,
            "cpu" if driver else self.request.device,
            self.request.threads,
            weights=self.request.weights,
            driver=driver,
            graphs=False,
        )

    def _check_interface(self) -> None:
        """Refuse a source that takes or gives something else than the artifact."""
        manifest, graph = self.artifact.manifest, self.graph
        sides = (
            (
                "takes",
                [_shaped(spec.name, spec.shape) for spec in manifest.inputs],
                [_shaped(name, graph.type(name).shape) for name in graph.inputs],
            ),
            ("gives", [spec.name for spec in manifest.outputs], list(graph.output_names)),
        )
        for verb, ours, theirs in sides:
            if ours != theirs:
                raise InputError(
                    f"the source {verb} something else than the artifact",
                    at=str(self.request.artifact),
                    detail=(
                        f"the artifact {verb} {_listed(ours)}",
                        f"the source {verb} {_listed(theirs)}",
                    ),
                    hint="name the source that it was compiled from, or compile this one",
                )

    def _check_tolerances(self) -> None:
        """Refuse a tolerance of something that is no output."""
        names = [spec.name for spec in self.artifact.manifest.outputs]
        for name in self.request.tolerances:
            if name and name not in names:
                raise UsageError(
                    f"there is no output `{name}`", hint=f"outputs are {_listed(names)}"
                )

    def _quantised(self) -> Stage | None:
        """The graph after the last pass that quantised something; `None` if none did."""
        if not any(self.compilation.options["quantize"]) and not any(
            weight.quantised for weight in self.graph.parameters.values()
        ):
            return None
        found = [
            each
            for each in self.compilation.rewrite()
            if each.rounds
            and narrowest(float_dtypes(each.graph)) in QUANTISED_ROWS
            and each.name != "fold_weights"
        ]
        return found[-1] if found else None

    def _eager(self) -> tuple[Eager | None, str | None]:
        given = self.request.given
        try:
            eager = eager_source(
                self.request.source,
                self.graph.output_names,
                dtype=self.compilation.options["dtype"],
                adapter=given.adapter,
                trust_pickle=given.trust_pickle,
                trust_remote_code=given.trust_remote_code,
                example_inputs=given.example_inputs,
            )
        except InputError as error:
            return None, str(error)
        return eager, None

    def _reference_name(self) -> str:
        if self.quantised is not None:
            return f"the quantised graph with each value rounded to {self.dtype}"
        if self.eager is not None:
            return f"{self.eager.name} in {self.dtype}"
        return f"the graph with each value rounded to {self.dtype}"

    # --- cases ------------------------------------------------------------------------------

    def _inputs(self) -> list[dict[str, Any]]:
        specs = self.artifact.manifest.inputs
        return self.given or [
            generate_inputs(specs, sizes, self.request.seed + number, self.graph)
            for number, sizes in enumerate(self.sizes)
        ]

    def _read_inputs(self, path: Path) -> dict[str, Any]:
        """The arrays of a file, which must be those that the artifact takes."""
        manifest = self.artifact.manifest
        inputs = read_arrays(path, [spec.name for spec in manifest.inputs])
        try:
            arrays = check_inputs(manifest.inputs, manifest.symbols, inputs)
            bind_symbols(manifest.inputs, manifest.symbols, arrays)
        except InputError as error:
            raise InputError(str(error), at=str(path), hint=error.hint) from None
        return inputs

    def _sizes(self) -> list[dict[str, int]]:
        """The least sizes, an odd one and a larger one; or every combination that is asked for."""
        ranges = self.artifact.manifest.symbols
        asked = self.request.dims
        for name, values in asked.items():
            if name not in ranges:
                known = _listed([*ranges]) or "none"
                raise UsageError(f"there is no size `{name}`", hint=f"sizes are {known}")
            low, high = ranges[name]
            if wrong := [value for value in values if not low <= value <= high]:
                raise UsageError(
                    f"`--dim {name}={wrong[0]}`: the artifact was compiled for {low}..{high}",
                    hint="name a size in that range, or compile it with another",
                )

        def bounded(wanted: Mapping[str, int], other: int) -> dict[str, int]:
            return {
                name: min(max(wanted.get(name, other), low), high)
                for name, (low, high) in ranges.items()
            }

        if asked:
            rest = bounded(SMALL_SIZES, OTHER_SIZES[0])
            combined = itertools.product(*asked.values())
            return [{**rest, **dict(zip(asked, values, strict=True))} for values in combined]
        least = {name: low for name, (low, _) in ranges.items()}
        last = TYPICAL_SIZES if "seq" in ranges else {}
        found = [least, bounded(SMALL_SIZES, OTHER_SIZES[0]), bounded(last, OTHER_SIZES[1])]
        return [sizes for index, sizes in enumerate(found) if sizes not in found[:index]]

    def _case(self, name: str, inputs: dict[str, Any]) -> Case:
        self.report(f"running {name}")
        got = self.model.run(inputs)
        graph = self.graph if self.quantised is None else self.quantised.graph
        given = {
            spec.name: widen(np.asarray(inputs[spec.name]), spec.dtype)
            for spec in self.model.inputs
        }
        exact = interpret(graph, given)
        own: Arrays
        if self.eager is not None and self.quantised is None:
            own = self.eager.run(inputs)
        else:
            own = interpret(graph, given, rounds=True)
        wide = {
            spec.name: widen(np.asarray(got[spec.name]), spec.dtype) for spec in self.model.outputs
        }
        for output, meant in exact.items():
            if wide[output].shape != meant.shape:
                message = f"`{output}` is {list(wide[output].shape)}, not {list(meant.shape)}"
                raise MismatchError(message, at=str(self.request.artifact))
        sizes = bind_symbols(self.model.inputs, self.model.symbols, inputs)
        ours, theirs = (
            {output: measured(each[output], meant) for output, meant in exact.items()}
            for each in (wide, own)
        )
        return Case(name, sizes, inputs, wide, exact, own, ours, theirs)

    def _described(self, case: Case) -> dict[str, Any]:
        return {
            "name": case.name,
            "sizes": dict(case.sizes),
            "outputs": {
                name: {**found.document(), "reference": case.theirs[name].document()}
                for name, found in case.ours.items()
            },
        }

    # --- judging ----------------------------------------------------------------------------

    def _judged(
        self, name: str, dtype: str, cases: Sequence[Case], read: Mapping[str, float]
    ) -> dict[str, Any]:
        """Whether an output is right, over all cases."""
        ours = [case.ours[name] for case in cases]
        own = [case.theirs[name] for case in cases]
        misplaced = sum(
            _misplaced(case.got[name], case.exact[name], case.own[name]) for case in cases
        )
        given = self.request.tolerances.get(name, self.request.tolerances.get(""))
        checks: list[tuple[str, float, float]] = []
        is_float = DTYPES[dtype].is_float
        if not is_float:
            share = max(each.differing for each in ours)
            allowed = RMS_RATIO * max(each.differing for each in own)
            checks.append(("share that differs", share, allowed if given is None else given))
        elif given is not None:
            checks.append(("largest", max(each.error for each in ours), given))
        else:
            checks += self._checks(ours, own)
        said = [
            f"{what} {value:.1e} where {allowed:.1e} is allowed"
            for what, value, allowed in checks
            if not value <= allowed
        ]
        exact_enough = self.dtype in ("f32", "f64") and self.quantised is None
        if not is_float and self.eager is not None and exact_enough and given is None:
            read_apart = max(each.differing for each in own)
            if read_apart > INTEGERS_READ:
                said.append(
                    f"{self.eager.name} itself differs from what fusec has read in "
                    f"{read_apart:.0%} of the elements"
                )
        if misplaced:
            said.append(f"{misplaced} places are not finite, or should not be")
        if is_float and self.eager is not None and not read[name] <= TOLERANCES[self.dtype].read:
            said.append(f"{self.eager.name} itself is {read[name]:.1e} from what fusec has read")
        return {
            "name": name,
            "dtype": dtype,
            "verdict": "wrong" if said else "right",
            "checks": [
                {"measure": what, "value": value, "allowed": allowed}
                for what, value, allowed in checks
            ],
            "misplaced": misplaced,
            "read": read.get(name),
            "said": f"`{name}`: {', '.join(said)}" if said else "",
        }

    def _checks(
        self, ours: Sequence[Measures], own: Sequence[Measures]
    ) -> list[tuple[str, float, float]]:
        rms, largest = self._floors()
        if self.median_counts:
            allowed = max(rms, RMS_RATIO * self._typical(own))
            return [("rms of the median place", self._typical(ours), allowed)]
        allowed_rms = max(rms, RMS_RATIO * self._typical(own))
        allowed_largest = max(largest, LARGEST_RATIO * max(each.error for each in own))
        return [
            ("rms", self._typical(ours), allowed_rms),
            ("largest", max(each.error for each in ours), allowed_largest),
        ]

    def _floors(self) -> tuple[float, float]:
        tolerance = TOLERANCES[self.dtype]
        wider = (
            PRECISION[self.compilation.options["fp32_precision"]] if self.dtype == "f32" else 1.0
        )
        rms, largest = tolerance.rms * wider, tolerance.largest * wider
        if self.quantised is not None:
            made = {
                self.quantised.graph.type(value).dtype
                for node in self.quantised.graph.nodes()
                for value in node.outputs
            }
            for key in {format_of(dtype) for dtype in made} & QUANTISED_ROWS.keys():
                rms, largest = (
                    max(rms, QUANTISED_ROWS[key][0]),
                    max(largest, QUANTISED_ROWS[key][1]),
                )
        return rms, largest

    def _typical(self, found: Sequence[Measures]) -> float:
        """The root mean square over all cases; with a router, of the median place."""
        if self.median_counts:
            places = np.concatenate([each.places for each in found])
            return float(np.sqrt(np.median(places)))
        return float(np.sqrt(np.mean([each.rms_error**2 for each in found])))

    def _as_read(self, cases: Sequence[Case]) -> tuple[dict[str, float] | None, dict[str, float]]:
        """What is told of the graph as it was read, by output.

        Returns:
            What the format itself costs, if there is one: the quantised graph against that as it
            was read, both exact; and how far the framework is from the latter, if there is one.
        """
        if self.quantised is None:
            runs = {name: [case.theirs[name] for case in cases] for name in cases[0].theirs}
            cost = None
        else:
            case = cases[-1]
            meant = interpret(self.graph, case.inputs)
            cost = {name: measured(case.exact[name], meant[name]).rms_error for name in meant}
            own = {} if self.eager is None else self.eager.run(case.inputs)
            runs = {name: [measured(array, meant[name])] for name, array in own.items()}
        if self.eager is None:
            return cost, {}
        return cost, {name: self._typical(found) for name, found in runs.items()}


def _shaped(name: str, shape: Sequence[Any]) -> str:
    """An input with its fixed sizes: `x[*, 64]`."""
    sizes = (str(size) if isinstance(size, int) else "*" for size in shape)
    return f"{name}[{', '.join(sizes)}]"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{each}`" for each in names)


def _misplaced(got: Any, exact: Any, own: Any) -> int:
    """Places where a result is not of the kind that it should be, nor of that of the reference."""
    kind = _kind(got)
    return int(np.sum((kind != _kind(exact)) & (kind != _kind(own))))


def _kind(array: Any) -> Any:
    """0 where a number is finite, 1, 2 and 3 for NaN and the infinities."""
    wide = np.asarray(array, np.float64)
    return np.isnan(wide) + 2 * np.isposinf(wide) + 3 * np.isneginf(wide)
