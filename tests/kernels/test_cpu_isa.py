"""Each build keeps to the instructions of its target: by its machine code, and on older CPUs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cpu_library import LEVELS, build

FILES = sorted(Path(__file__).parent.glob("test_cpu_*.py"))
FILES.remove(Path(__file__))

# In 64-bit code nothing else begins with this byte, after prefixes for segments or addresses.
EVEX = re.compile(r"^\s*[0-9a-f]+:\t(?:(?:2e|36|3e|26|64|65|67) )*62 .*$", re.MULTILINE)
TILES = r"tdp\w+|tile\w+|ldtilecfg|sttilecfg"
BF16 = r"vdpbf16ps|vcvtne2?ps2bf16"
VNNI = r"vpdp\w+"


def mnemonic(pattern: str) -> re.Pattern[str]:
    """Lines of a listing with such an instruction."""
    return re.compile(rf"^.*\t(?:{{evex}} )?(?:{pattern})\b.*$", re.MULTILINE)


def listing(level: str, folder: Path, request: pytest.FixtureRequest, *folders: str) -> str:
    """The machine code of a build, disassembled; of all kernels if none is named."""
    if shutil.which("objdump") is None:
        pytest.skip("there is no objdump")
    cache = getattr(request.config, "cache", None)
    objects = cache.mkdir("cpu-kernels") if cache else folder
    module = build(LEVELS[level], folder, objects, folders)
    command = ["objdump", "--disassemble", "--wide", str(module)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_avx2_code_has_nothing_of_avx512(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    code = listing("x86-64-v3", tmp_path, request)
    assert "%ymm" in code and mnemonic("vfmadd\\w+").search(code)
    for found in (EVEX, re.compile(r"^.*%zmm.*$", re.MULTILINE), mnemonic(f"{TILES}|{VNNI}")):
        assert not found.search(code), found.search(code)


def test_avx512_code_has_nothing_newer(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    code = listing("x86-64-v4", tmp_path, request)
    assert "%zmm" in code and EVEX.search(code)
    newer = mnemonic(f"{TILES}|{BF16}|{VNNI}|vpermt?2?b|vpermi2b")
    assert not newer.search(code), newer.search(code)


def test_products_of_bytes_are_used_where_they_are(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    code = listing("cascadelake", tmp_path, request, "mxfp4_linear")
    assert mnemonic("vpdpbusds?").search(code), "no vpdpbusd"
    newer = mnemonic(f"{TILES}|{BF16}|vpermt?2?b|vpermi2b")
    assert not newer.search(code), newer.search(code)


def test_stand_ins_replace_what_is_missing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    code = listing("emulated", tmp_path, request, "linear")
    missing = mnemonic(f"{TILES}|{BF16}")
    assert not missing.search(code), missing.search(code)


def test_tiles_are_used_where_they_are(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    code = listing("sapphirerapids", tmp_path, request, "linear")
    for instruction in ("tdpbf16ps", "tilerelease", "vdpbf16ps"):
        assert mnemonic(instruction).search(code), f"no {instruction}"


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_avx2_kernels_run_on_a_processor_without_avx512(file: Path) -> None:
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("there is no qemu-user")
    command = [emulator, "-cpu", "Haswell", sys.executable, "-m", "pytest", "-q", "-x", str(file)]
    command += ["-k", "x86-64-v3 and not forked and not sleep"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=file.parents[2],
        env=os.environ | {"FUSEC_TEST_SPARE_BYTES": "64"},
    )
    assert done.returncode in (0, 5), done.stdout[-3000:] + done.stderr[-1000:]
