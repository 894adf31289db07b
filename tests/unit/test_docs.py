"""The documentation is true: tables follow the code, examples run, links lead somewhere.

`python tests/unit/test_docs.py` writes the tables that are made from the passes into
`docs/decisions.md`.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer

import fusec
from fusec.cli import app, main
from fusec.passes import FUSIONS, PIPELINE
from fusec.passes.hints import ALWAYS, HINTS
from fusec.rewrite import Pass

ROOT = Path(fusec.__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "passes" / "README.md", *DOCS.glob("*.md")])
DECISIONS = DOCS / "decisions.md"

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LEAVES = re.compile(r"^Leaves it alone when\n((?:  .*\n?)+)", re.MULTILINE)


# --- tables made from the passes ------------------------------------------------------------


def module_of(each: type[Pass]) -> ModuleType:
    return sys.modules[each.__module__]


def specification(each: type[Pass]) -> str:
    text = module_of(each).__doc__
    assert text, each
    return text


def summary(each: type[Pass]) -> str:
    """The first sentence of the specification."""
    return " ".join(specification(each).strip().split("\n\n")[0].split()).rstrip(".")


def codes(each: type[Pass]) -> dict[str, str]:
    """The codes that a pass refuses by, and when."""
    found: dict[str, str] = {}
    block = LEAVES.search(specification(each))
    for line in block[1].splitlines() if block else ():
        if line.startswith("   "):
            last = next(reversed(found))
            found[last] = f"{found[last]} {line.strip()}"
        else:
            code, _, meaning = line.strip().partition(" ")
            found[code] = meaning.strip()
    return found


def fusion_of(each: type[Pass]) -> str | None:
    """The fusion under which the decisions of a pass are recorded."""
    named: str | None = getattr(each, "fusion", None)
    if named is not None:
        return named
    fitting = [name for name in FUSIONS if f"{each.name}_".startswith(f"{name}_")]
    return max(fitting, key=len, default=None)


def passes() -> list[type[Pass]]:
    """Every pass once, in order."""
    return list(dict.fromkeys(PIPELINE))


def reported_codes() -> dict[str, dict[str, str]]:
    """Codes with their meaning, by fusion; those of several passes joined."""
    found: dict[str, dict[str, str]] = {}
    for each in passes():
        fusion = fusion_of(each)
        if fusion is None:
            continue
        for code, meaning in codes(each).items():
            known = found.setdefault(fusion, {})
            same = known.get(code)
            known[code] = meaning if same is None else f"{same}; or {meaning}"
    return {name: dict(sorted(found[name].items())) for name in sorted(found)}


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def made_tables() -> dict[str, str]:
    """What stands between the marks of `docs/decisions.md`."""
    by_fusion: dict[str, list[type[Pass]]] = {}
    for each in passes():
        if (fusion := fusion_of(each)) is not None:
            by_fusion.setdefault(fusion, []).append(each)
    fusions = [
        (
            f"`{name}`",
            cell(". ".join(summary(each) for each in by_fusion[name])),
            ", ".join(f"`{each.name}`" for each in by_fusion[name]),
        )
        for name in sorted(by_fusion)
    ]
    rows = [
        (f"`{fusion}`", f"`{code}`", cell(meaning), cell(HINTS[fusion][code]))
        for fusion, known in reported_codes().items()
        for code, meaning in known.items()
    ]
    unreported = [
        (f"`{each.name}`", cell(summary(each)), ", ".join(f"`{code}`" for code in codes(each)))
        for each in passes()
        if fusion_of(each) is None and codes(each)
    ]
    reserved = ", ".join(f"`{name}`" for name in FUSIONS if name not in by_fusion)
    return {
        "fusions": table(("fusion", "what it is", "passes"), fusions),
        "reserved": f"{reserved}.",
        "codes": table(("fusion", "code", "it is left alone when", "to make it fire"), rows),
        "unreported": table(("pass", "what it recognises", "codes"), unreported),
    }


def with_tables(text: str) -> str:
    """The page with the tables put in."""
    for name, made in made_tables().items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, found, rest = text.partition(begin)
        assert found, f"no mark for `{name}`"
        text = before + begin + made + "\n" + end + rest.partition(end)[2]
    return text


def test_tables_of_decisions_follow_the_passes() -> None:
    page = DECISIONS.read_text(encoding="utf-8")
    assert page == with_tables(page), "run `python tests/unit/test_docs.py`"


def test_every_code_of_a_fusion_has_a_hint_and_the_reverse() -> None:
    listed = {fusion: set(known) for fusion, known in reported_codes().items()}
    assert {fusion: set(known) for fusion, known in HINTS.items()} == listed
    hints = [*ALWAYS.values(), *(hint for known in HINTS.values() for hint in known.values())]
    assert all(hint and not hint.endswith(".") for hint in hints)


def test_codes_that_no_docstring_lists_are_on_the_page() -> None:
    page = DECISIONS.read_text(encoding="utf-8")
    frontend = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "fusec" / "frontend").rglob("*.py")
    )
    others = {*re.findall(r'"(delta_rule\.\w+)"', frontend), *ALWAYS}
    assert len(others) >= 4
    for code in others:
        assert f"| `{code}` |" in page


def test_codes_in_the_source_of_passes_are_listed() -> None:
    known = {code for each in passes() for code in codes(each)}
    written = re.compile(r'\b(?:Rejection|RefusedError)\(\s*"([\w.-]+)"')
    for path in (ROOT / "passes").rglob("*.py"):
        for code in written.findall(path.read_text(encoding="utf-8")):
            assert code in known, f"`{code}` of {path.name} is in no docstring"


# --- the command line -----------------------------------------------------------------------


@cache
def commands() -> Mapping[str, Any]:
    group: Any = typer.main.get_command(app)
    return {"": group, **group.commands}


def flags(command: Any) -> set[str]:
    own = {flag for option in command.params for flag in option.opts if flag.startswith("-")}
    return own - {"-h", "--help"}


def sections(page: Path) -> dict[str, str]:
    """The text under each heading of the second level."""
    parts = re.split(r"^## (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_option_is_documented_and_the_reverse(name: str) -> None:
    section = sections(DOCS / "command-line.md")[f"`fusec {name}`" if name else "All commands"]
    rows = re.findall(r"^\| (`-.*?) \|", section, flags=re.MULTILINE)
    documented = {flag for row in rows for flag in re.findall(r"(?<![\w-])--?[a-z][\w-]*", row)}
    assert documented - {"-h", "--help"} == flags(commands()[name])


def written_commands() -> Iterator[tuple[Path, list[str]]]:
    """Every `$ fusec ...` on any page."""
    for page in PAGES:
        for _, body in FENCE.findall(page.read_text(encoding="utf-8")):
            for line in body.splitlines():
                if line.startswith("$ fusec "):
                    yield page, shlex.split(line[2:], comments=True)[1:]


def test_written_commands_use_options_that_exist() -> None:
    seen = 0
    for page, words in written_commands():
        name = next(word for word in words if not word.startswith("-"))
        assert name in commands(), f"{page.name}: fusec {name}"
        known = flags(commands()[name]) | {"--help", "-h", "--debug"}
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in known, f"{page.name}: {word}"
        seen += 1
    assert seen >= 10


# --- examples -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples begin with."""
    from small_block import WIDTH, TiedBlock, export_block

    folder = tmp_path_factory.mktemp("example")
    export_block(folder / "block.pt2")
    export_block(folder / "tied.pt2", TiedBlock)
    x, residual = np.random.default_rng(0).standard_normal((2, 5, WIDTH)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, residual=residual)
    (folder / "bad.jsonl").write_text('{"x": [1]}\nnot json\n', encoding="utf-8")
    compile = ["compile", "block.pt2", "--target", "x86-64-v3"]
    assert "wrote" in run(folder, [*compile, "-o", "block.fusec"])
    assert "wrote" in run(folder, [*compile, "--disable", "add_rms_norm", "-o", "unfused.fusec"])
    return folder


def run(folder: Path, words: list[str]) -> str:
    """What a command prints, to stderr and to stdout."""
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(tuple(words))
    except SystemExit:
        pass
    finally:
        os.chdir(before)
    return f"{err.getvalue()}\n{out.getvalue()}"


def normalised(text: str) -> list[str]:
    """Lines without what differs between machines and runs, in no order."""
    text = re.sub(r"(\b|(?<=_))[0-9a-f]{12,}\b", "HASH", text)
    text = re.sub(r"\.py:\d+", ".py:LINE", text)
    text = re.sub(r"\d+ (objects )?compiled, \d+ cached", "OBJECTS", text)
    text = re.sub(r"\d[\d,]*\.\d+", "N", text)
    text = re.sub(r"(?<=  )\d+(?=  fusec_)|(?<=\()[+-]\d[\d,]*(?= bytes)", "N", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return sorted(line for line in lines if line)


def console_examples() -> Iterator[Any]:
    for page in PAGES:
        for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, _, printed = part.partition("\n")
                if language == "console" and printed.strip():
                    yield pytest.param(command, printed, id=f"{page.stem}: {command}")


@pytest.mark.parametrize(("command", "printed"), [*console_examples()])
def test_an_example_prints_what_the_page_shows(command: str, printed: str, example: Path) -> None:
    program, *words = shlex.split(command, comments=True)
    assert program == "fusec"
    assert normalised(run(example, words)) == normalised(printed)


def paths(document: Any, at: str = "") -> set[str]:
    """The keys of a document; those of a list are those of all its items."""
    if isinstance(document, dict):
        inner = (paths(value, f"{at}.{key}") | {f"{at}.{key}"} for key, value in document.items())
        return set().union(*inner) if document else set()
    if isinstance(document, list):
        return set().union(*(paths(item, f"{at}[]") for item in document)) if document else set()
    return set()


OPEN = (
    ".tools",
    ".symbols",
    ".targets[].residual[]",
    ".targets[].kernels[].machine.",
    ".targets[].decisions[].details.",
    ".targets[].decisions[].rejected[]",
)
"""Keys that depend on the model, on the target, or on what is installed."""

JSON_COMMANDS = {
    "inspect": "inspect block.fusec --json",
    "explain": "explain block.fusec --json",
    "diff": "diff block.fusec unfused.fusec --json",
    "run": "run block.fusec --input rows.npz --output json.npz --json",
    "list-targets": "list targets --json",
    "list-passes": "list passes --json",
    "list-kernels": "list kernels --json",
    "doctor": "doctor --json",
}


@pytest.mark.parametrize("name", JSON_COMMANDS)
def test_json_documents_have_the_keys_that_are_documented(name: str, example: Path) -> None:
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    (body,) = [body for language, body in FENCE.findall(page) if language == f"json {name}"]
    shown = json.loads(body)
    printed = json.loads(run(example, JSON_COMMANDS[name].split()))
    assert printed["schema"] == shown["schema"]

    def fixed(document: Any) -> set[str]:
        found = paths(document)
        if name == "explain":
            counts = re.compile(r"\.counts\.\w+")
            found = {counts.sub(".counts.FUSION", path) for path in found}
        return {path for path in found if not path.startswith(OPEN)}

    assert fixed(printed) == fixed(shown)


def python_examples() -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = [body for language, body in FENCE.findall(text) if language == "python"]
        if blocks and page.parent == DOCS:
            yield pytest.param("\n".join(blocks), id=page.stem)


@pytest.mark.parametrize("code", [*python_examples()])
def test_python_examples_run(code: str, example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page, one after the other; what only shows a form is marked `py`."""
    monkeypatch.chdir(example)
    exec(compile(code, "page", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("name", ["compile", "load"])
def test_every_argument_is_on_the_page(name: str) -> None:
    section = sections(DOCS / "python.md")[f"fusec.{name}"]
    words = set(re.findall(r"\w+", section))
    arguments = set(inspect.signature(getattr(fusec, name)).parameters)
    # These two are given by position, and the third is for the command line.
    assert arguments - {"source", "output", "reporter"} <= words


# --- links ----------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_on_the_map() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index


if __name__ == "__main__":
    DECISIONS.write_text(with_tables(DECISIONS.read_text(encoding="utf-8")), encoding="utf-8")
