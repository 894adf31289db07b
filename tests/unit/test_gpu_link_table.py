"""The table of kernels in the documentation has a row for every kernel that a GPU can run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gpu_cases import gpu_cases

from fusec.kernels.registry import Kernel, kernels
from fusec.target import GPU_TARGETS, Target

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
RECORDS = [
    record
    for records in kernels().values()
    for record in records
    if record.provider in ("triton", "hip")
]


def supported(record: Kernel, target: Target) -> bool:
    """Whether `record` computes any of the cases on `target`."""
    if target.family not in record.families:
        return False
    cases = [case for case in gpu_cases(target) if case.op == record.op]
    return any(record.supports(*case.node(), target) is None for case in cases)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_every_record_has_a_case(record: Kernel) -> None:
    assert any(supported(record, target) for target in GPU_TARGETS.values())


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_the_page_has_a_row_for_every_record_and_target(record: Kernel) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for target in GPU_TARGETS.values():
        if supported(record, target):
            row = rf"^\| `{re.escape(record.name)}`.*\| {target.name} \|"
            assert re.search(row, text, re.MULTILINE), f"{record.name} on {target.name}"
