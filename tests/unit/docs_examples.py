"""The commands that pages show: found, run as a person would, compared, and pasted.

The second word of a `console` fence says how its commands are run: with none, each by itself in a
folder with the files that examples begin with; `session`, those of a page one after the other in
a folder of their own; `slow`, likewise, but only with `pytest -m slow`.

`python tests/unit/docs_examples.py PAGE ...` runs the commands of pages again, and writes what they
print below them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from docs_made import DOCS, ROOT
from small_block import WIDTH, TiedBlock, export_block

from fusec.cli import main

PAGES = sorted([ROOT / "README.md", ROOT / "passes" / "README.md", *DOCS.rglob("*.md")])

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"^\$ ", re.MULTILINE)
WIDTH_OF_PAGES = "100"
FUSEC = f'fusec() {{ {shlex.quote(sys.executable)} -m fusec "$@"; }}\n'
"""`fusec` of this environment, whatever is on the path."""


@dataclass(frozen=True, slots=True)
class Example:
    """A command on a page.

    Attributes:
        page: the page.
        kind: the second word of the fence: "", `session` or `slow`.
        command: as it is typed; a line that ends in a backslash goes on in the next one.
        printed: what the page shows below it.
    """

    page: Path
    kind: str
    command: str
    printed: str


def split(part: str) -> tuple[str, str]:
    """The command at the begin of `part`, and what is below it."""
    lines = part.splitlines(keepends=True)
    end = next(n for n, line in enumerate(lines) if not line.endswith("\\\n")) + 1
    return "".join(lines[:end]).rstrip("\n"), "".join(lines[end:])


def examples(page: Path) -> Iterator[Example]:
    """Every command of a page, in order."""
    for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
        name, _, kind = language.partition(" ")
        if name == "console":
            for part in PROMPT.split(body)[1:]:
                yield Example(page, kind, *split(part))


def prepare(folder: Path) -> None:
    """Write the files that examples begin with."""
    export_block(folder / "block.pt2")
    export_block(folder / "tied.pt2", TiedBlock)
    x, residual = np.random.default_rng(0).standard_normal((2, 5, WIDTH)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, residual=residual)
    (folder / "bad.jsonl").write_text('{"x": [1]}\nnot json\n', encoding="utf-8")
    compile = ["compile", "block.pt2", "--target", "x86-64-v3"]
    assert "wrote" in run(folder, [*compile, "-o", "block.fusec"])
    assert "wrote" in run(folder, [*compile, "--disable", "add_rms_norm", "-o", "unfused.fusec"])


def run(folder: Path, words: list[str]) -> str:
    """What `fusec` prints in this process, to stderr and to stdout."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.suppress(SystemExit),
    ):
        main(tuple(words))
    return f"{err.getvalue()}\n{out.getvalue()}"


def shell(folder: Path, command: str) -> str:
    """What a command prints in a shell, in order; `samples` are those of this tree."""
    if not (folder / "samples").exists():
        (folder / "samples").symlink_to(ROOT / "samples")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-c", FUSEC + command],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": WIDTH_OF_PAGES, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout


def in_process(folder: Path, command: str) -> str:
    """What a command prints: `fusec` in this process, anything else in a shell."""
    program, *words = shlex.split(command, comments=True)
    return run(folder, words) if program == "fusec" else shell(folder, command)


def normalised(text: str) -> list[str]:
    """Lines without what differs between machines and runs, in no order."""
    text = re.sub(r"(\b|(?<=_))[0-9a-f]{12,}\b", "HASH", text)
    text = re.sub(r"\.py:\d+", ".py:LINE", text)
    text = re.sub(r"\bcpu \([\w-]+\)", "cpu (LEVEL)", text)
    text = re.sub(r"\d+ (objects )?compiled, \d+ cached", "OBJECTS", text)
    text = re.sub(r"\d[\d,]*\.\d+(e-\d+)?", "N", text)
    text = re.sub(r"(?<=  )\d+(?=  fusec_)|(?<=\()[+-]\d[\d,]*(?= bytes)", "N", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return sorted(line for line in lines if line)


def pasted(page: Path, folder: Path) -> str:
    """The page with what its commands print now."""
    text = page.read_text(encoding="utf-8")

    def again(part: str) -> str:
        command, printed = split(part)
        print(f"$ {command}", file=sys.stderr)
        now = shell(folder, command).rstrip("\n")
        end = "\n" if re.search(r"(^|\n)\n$", printed) else ""
        return f"$ {command}\n" + (f"{now}\n" if printed.strip() else "") + end

    def fence(found: re.Match[str]) -> str:
        language, body = found[1], found[2]
        name, _, kind = language.partition(" ")
        parts = PROMPT.split(body)[1:]
        if name != "console" or not (kind or any(split(part)[1] for part in parts)):
            return found[0]
        return f"```{language}\n{''.join(map(again, parts))}```"

    return FENCE.sub(fence, text)


if __name__ == "__main__":
    for given in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as work:
            prepare(Path(work))
            given.write_text(pasted(given.resolve(), Path(work)), encoding="utf-8")
