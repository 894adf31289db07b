"""Kernels stay inside their memory and within what C++ defines, scratch memory included."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("test_cpu_*.py"))
FILES = [file for file in FILES if file.stem not in ("test_cpu_isa", Path(__file__).stem)]
FLAGS = "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -O1 -g1"


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernels_under_sanitizers(file: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    asked = ["g++", "-print-file-name=libasan.so"]
    library = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("g++ has no AddressSanitizer")
    environment = {
        "FUSEC_TEST_FLAGS": FLAGS,
        "LD_PRELOAD": library,  # it has to come before all others
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", str(file)],
        capture_output=True,
        text=True,
        cwd=file.parents[2],
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
