"""Every GPU kernel compiles for every target, and its code objects fit its launches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gpu_cases import GpuCase, gpu_cases

from fusec.kernels.launch import HipSource, Launch, TritonSource
from fusec.kernels.registry import Kernel, kernels
from fusec.link.cache import ObjectCache
from fusec.link.gpu_checks import GpuSource, fitted, unfit
from fusec.link.gpu_compile import compile_sources
from fusec.target import GPU_TARGETS, Target

CHECKOUT = str(Path(__file__).resolve().parents[2]).encode()


def launches(record: Kernel, case: GpuCase, target: Target) -> list[tuple[GpuSource, Launch]]:
    """What `record` launches for `case`; nothing if it cannot compute it."""
    graph, node = case.node()
    if record.supports(graph, node, target) is not None:
        return []
    found: list[tuple[GpuSource, Launch]] = []
    for launch in record.launches(case.call(graph, node, target)):
        assert isinstance(launch.code, TritonSource | HipSource)
        found.append((launch.code, launch))
    return found


def check(target: Target, every_case: bool, cache: ObjectCache) -> None:
    """Compile the first case, or every one, of each record for `target`."""
    checks: list[tuple[Kernel, GpuCase, GpuSource, Launch]] = []
    for record in (record for records in kernels().values() for record in records):
        if record.provider not in ("triton", "hip") or target.family not in record.families:
            continue
        for case in (case for case in gpu_cases(target) if case.op == record.op):
            found = launches(record, case, target)
            checks += [(record, case, source, launch) for source, launch in found]
            if found and not every_case:
                break
    sources = list(dict.fromkeys(source for _, _, source, _ in checks))
    code = compile_sources(sources, target, cache, jobs=os.cpu_count() or 1).code
    problems = [
        f"{record.name}, {case.label}: {reason}"
        for record, case, source, launch in checks
        for reason in unfit(code[source], source, launch, target, record)
    ]
    assert not problems, "\n".join(problems)
    for record, _, source, launch in checks:
        kernel = fitted(code[source], source, target)
        assert len(kernel.arguments) == len(launch.operands) + len(launch.params)
        assert CHECKOUT not in kernel.code, f"{record.name} names a folder of this machine"


@pytest.fixture
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectCache:
    kept = getattr(request.config, "cache", None)
    return ObjectCache(kept.mkdir("gpu-kernels") if kept else tmp_path)


@pytest.mark.parametrize("name", ["gfx950", "gfx942"])
def test_every_record_compiles(name: str, cache: ObjectCache) -> None:
    check(GPU_TARGETS[name], False, cache)


@pytest.mark.slow
@pytest.mark.parametrize("name", GPU_TARGETS)
def test_every_case_compiles(name: str, cache: ObjectCache) -> None:
    check(GPU_TARGETS[name], True, cache)
