"""What a person can ask of a compilation, and how it is written on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from fusec.diagnostics import RequirementError, UsageError, did_you_mean
from fusec.passes import FUSIONS, PIPELINE
from fusec.report import alike
from fusec.rewrite import DEFAULTS, Decision, DecisionLog, Pass, QuantRequest, Settings
from fusec.rewrite.settings import QuantFormat
from fusec.target import Fp32Precision, Target

_REQUIREMENT = re.compile(r"(?P<fusion>\w+)(?:>=(?P<count>\d+))?")


def parse_dims(texts: Iterable[str]) -> dict[str, str]:
    """Split `NAME=MIN:OPT:MAX` into the name and its range, for each of `texts`.

    Raises:
        UsageError: there is no name, or one comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, span = text.partition("=")
        if not equals or not name.isidentifier() or name in found:
            hint = "write `--dim NAME=MIN:OPT:MAX` once a name, such as `--dim seq=1:512:4096`"
            raise UsageError(f"`--dim {text}` is not a range of a named size", hint=hint)
        found[name] = span
    return found


@dataclass(frozen=True, slots=True)
class Requirement:
    """A fusion that must fire at least `count` times on every target."""

    fusion: str
    count: int

    def __str__(self) -> str:
        return f"{self.fusion}>={self.count}"


def parse_requirement(text: str, fusions: Sequence[str] = FUSIONS) -> Requirement:
    """Read `FUSION` or `FUSION>=N`, for one of `fusions`.

    Raises:
        UsageError: it is neither, or no fusion has that name.
    """
    found = _REQUIREMENT.fullmatch(text.replace(" ", ""))
    if found is None:
        hint = "write `FUSION` or `FUSION>=N`, for example `--require 'add_rms_norm>=64'`"
        raise UsageError(f"`--require {text}` is not a requirement", hint=hint)
    return Requirement(known_fusion(found["fusion"], fusions), int(found["count"] or 1))


def known_fusion(name: str, fusions: Sequence[str] = FUSIONS) -> str:
    """`name`, which must be one of `fusions`.

    Raises:
        UsageError: it is not; the hint lists those there are.
    """
    if name not in fusions:
        known = ", ".join(f"`{fusion}`" for fusion in fusions)
        hint = did_you_mean(name, fusions) or f"known fusions are {known}"
        raise UsageError(f"unknown fusion `{name}`", hint=hint)
    return name


def parse_quantise(text: str) -> QuantRequest:
    """Read `FORMAT`, `FORMAT:experts` or `FORMAT:PATTERN` over the names of weights.

    Raises:
        UsageError: there is no such format, or nothing after the colon.
    """
    wanted, colon, pattern = text.partition(":")
    known: tuple[QuantFormat, ...] = get_args(QuantFormat)
    found = next((format for format in known if format == wanted), None)
    if found is None:
        formats = ", ".join(f"`{format}`" for format in known)
        hint = f"formats are {formats}, each with an optional `:experts` or `:PATTERN`"
        raise UsageError(f"unknown format `{wanted}` in `--quantize {text}`", hint=hint)
    if colon and not pattern:
        hint = f"write `{wanted}:experts`, or a pattern such as `{wanted}:*.mlp.*`"
        raise UsageError(f"`--quantize {text}` names no weights", hint=hint)
    return QuantRequest(found, pattern or "*")


def settings_of(quantize: Iterable[str], mxfp4_align: str, tp: int) -> Settings:
    """The settings of passes, as they are written on the command line.

    Raises:
        UsageError: one of them has no meaning.
    """
    requests = tuple(map(parse_quantise, quantize))
    if mxfp4_align not in ("pad", "reject"):
        hint = "write `pad` or `reject`"
        raise UsageError(f"unknown `--mxfp4-align {mxfp4_align}`", hint=hint)
    if tp < 1:
        hint = "give the number of ranks that heads are divided among, 1 for one device"
        raise UsageError(f"`--tp {tp}` is no number of ranks", hint=hint)
    return Settings(requests, "pad" if mxfp4_align == "pad" else "reject", tp)


def with_fp32_precision(targets: Sequence[Target], precision: str) -> tuple[Target, ...]:
    """`targets`, with products of f32 as precise as `--fp32-precision` asks for.

    Raises:
        UsageError: there is no such precision, or a GPU is to have less than the highest.
    """
    known: tuple[Fp32Precision, ...] = get_args(Fp32Precision)
    found = next((each for each in known if each == precision), None)
    if found is None:
        hint = f"write {', '.join(f'`{each}`' for each in known)}"
        raise UsageError(f"unknown `--fp32-precision {precision}`", hint=hint)
    on_gpu = [target.name for target in targets if target.is_gpu]
    if on_gpu and found != "highest":
        raise UsageError(
            f"`--fp32-precision {found}` has no meaning for `{on_gpu[0]}`: kernels for GPUs "
            "multiply f32 exactly",
            hint="leave it out, or compile the model in bf16 with `--dtype bf16`",
        )
    return tuple(replace(target, fp32_precision=found) for target in targets)


def check_requirements(
    requirements: Iterable[Requirement], log: DecisionLog, target: str, *, several: bool = False
) -> None:
    """Compare what fired with what was required.

    Args:
        requirements: what was asked for.
        log: what was decided.
        target: for which target.
        several: whether there are other targets, so that a message names this one.

    Raises:
        RequirementError: a fusion fired too seldom; it names the sites that refused and why, and
            what was chosen instead.
    """
    fired = log.fired()
    for requirement in requirements:
        if fired[requirement.fusion] >= requirement.count:
            continue
        refused = [d for d in log.refused() if d.fusion == requirement.fusion]
        sites = fired[requirement.fusion] + len(refused)
        raise RequirementError(
            f"`--require {requirement}` is not met{f' on {target}' if several else ''}: "
            f"{fired[requirement.fusion]} of {sites} sites fired",
            at=_sites(refused),
            detail=(
                *(text for text, _ in alike([f"{d.code}: {d.reason}" for d in refused])),
                *_instead(log, requirement.fusion),
            ),
            hint=next((d.hint for d in refused if d.hint), None)
            or f"`fusec explain SOURCE --target {target}` tells what matched where",
        )


def _instead(log: DecisionLog, fusion: str) -> tuple[str, ...]:
    """What was chosen at sites where `fusion` was refused."""
    chosen = [
        decision
        for decision in log
        if any(rejected["backend"] == fusion for rejected in decision.rejected)
    ]
    texts = (f"{d.fusion} ({d.details['how']})" if "how" in d.details else d.fusion for d in chosen)
    return tuple(f"chosen instead: {text}" for text in dict.fromkeys(texts))


def _sites(refused: list[Decision]) -> str | None:
    if not refused:
        return None
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    return f"{refused[0].site}{more}"


def selected_passes(
    disabled: Iterable[str],
    settings: Settings = DEFAULTS,
    pipeline: Sequence[type[Pass]] = PIPELINE,
) -> tuple[Pass, ...]:
    """The pipeline without the passes called `disabled`, each as `settings` ask for it.

    Raises:
        UsageError: no pass has such a name.
    """
    names = [each.name for each in pipeline]
    without = set(disabled)
    for name in sorted(without):
        if name not in names:
            known = ", ".join(f"`{known}`" for known in dict.fromkeys(names))
            hint = did_you_mean(name, names) or f"passes are {known}"
            raise UsageError(f"unknown pass `{name}`", hint=hint)
    return tuple(each.configured(settings) for each in pipeline if each.name not in without)
