"""Scripts for shells: bash is run with one, and asked what can follow."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from test_cli import Fusec, fusec  # noqa: F401

ASK = """\
source "$1"
COMP_LINE=$2 COMP_POINT=${#2}
eval "COMP_WORDS=($2)"
_fusec
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(fusec: Fusec, tmp_path: Path) -> Path:  # noqa: F811
    path = tmp_path / "fusec.bash"
    made = fusec("completion", "bash")
    assert (made.code, made.err) == (0, "")
    path.write_text(made.out)
    return path


def ask(script: Path, line: str, folder: Path) -> list[str]:
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", str(script), line],
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("fusec comp", ["compile", "completion"]),
        ("fusec --ver", ["--version"]),
        ("fusec compile --stop", ["--stop-after"]),
        ("fusec compile x.pt2 --target gfx9", ["gfx950", "gfx942"]),
        ("fusec compile x.pt2 --target=gfx95", ["gfx950"]),
        ("fusec compile --disable dual_rms", ["dual_rms_norm", "dual_rms_norm_quant"]),
        ("fusec explain m.fusec --fusion gated_d", ["gated_delta_rule"]),
        ("fusec compile m --require moe_m", ["moe_mxfp4_native", "moe_mxfp4_dequant"]),
        ("fusec compile m --quantize mxfp8", ["mxfp8", "mxfp8:experts"]),
        ("fusec compile m --weights e", ["embed", "external"]),
        ("fusec run m.fusec --device hi", ["hip:0"]),
        ("fusec run m.fusec --device emulator:gfx95", ["gfx950"]),
        ("fusec list t", ["targets"]),
        ("fusec help insp", ["inspect"]),
        ("fusec compile mod", ["model.pt2"]),
        ("fusec compile m -o mod", ["model.pt2"]),
        ("fusec compile --json --tar", ["--target"]),
        ("fusec nonsense ", []),
    ],
)
def test_bash_completes(line: str, found: list[str], script: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "model.pt2").touch()
    assert sorted(ask(script, line, folder)) == sorted(found)


def test_a_completion_takes_no_time(script: Path, tmp_path: Path) -> None:
    begin = time.monotonic()
    ask(script, "fusec compile x --target gfx", tmp_path)
    assert time.monotonic() - begin < 1.0  # a shell that starts, on a busy machine
    assert "$(fusec" not in script.read_text()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_theirs(shell: str, fusec: Fusec, tmp_path: Path) -> None:  # noqa: F811
    made = fusec("completion", shell)
    assert made.code == 0
    for word in ("gfx950", "dual_rms_norm_quant", "stop-after", "hip:0", "completion"):
        assert word in made.out
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / f"fusec.{shell}"
    path.write_text(made.out)
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_completes(fusec: Fusec, tmp_path: Path) -> None:  # noqa: F811
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    path = tmp_path / "fusec.fish"
    path.write_text(fusec("completion", "fish").out)
    asked = f"source {path}; complete -C 'fusec compile m --target gfx9'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", asked], capture_output=True, text=True, timeout=60
    )
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == ["gfx942", "gfx950"]


def test_an_unknown_shell_is_refused(fusec: Fusec) -> None:  # noqa: F811
    assert fusec("completion", "tcsh").code == 2
