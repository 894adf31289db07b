"""The documentation is true: tables follow the code, examples run, links lead somewhere.

`python tests/unit/test_docs.py` writes what is made from the passes: the tables of
`docs/decisions.md`, and the guide to every fusion.
"""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from docs_examples import (
    FENCE,
    PAGES,
    Example,
    examples,
    in_process,
    normalised,
    prepare,
    run,
    shell,
)
from docs_made import (
    DECISIONS,
    DOCS,
    GROUPS,
    GUIDE,
    OPERATIONS,
    ROOT,
    by_fusion,
    codes,
    kernel_rows,
    made_pages,
    passes,
    reported_codes,
    write_pages,
)

import fusec
from fusec.cli import app
from fusec.passes.hints import ALWAYS, HINTS

# --- pages made from the passes --------------------------------------------------------------


def test_pages_that_are_made_follow_the_passes() -> None:
    made = dict(made_pages())
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, "run `python tests/unit/test_docs.py`"
    assert set(GUIDE.glob("*.md")) == {path for path in made if path.parent == GUIDE}


def test_every_fusion_is_in_the_guide_once() -> None:
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted(listed) == sorted(by_fusion())


def test_operations_that_fusions_are_said_to_make_have_kernels() -> None:
    assert set(OPERATIONS) <= set(by_fusion())
    for fusion in by_fusion():
        assert kernel_rows(fusion), fusion


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
    """Every `$ fusec ...` on any page, up to a pipe."""
    for page in PAGES:
        for each in examples(page):
            if each.command.startswith("fusec "):
                words = shlex.split(each.command.replace("\\\n", " "), comments=True)[1:]
                ends = [n for n, word in enumerate(words) if word in ("|", ";", "&&", ">", "2>&1")]
                yield page, words[: min(ends, default=len(words))]


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
    folder = tmp_path_factory.mktemp("example")
    prepare(folder)
    return folder


def shown() -> Iterator[Any]:
    """Commands with what they print, which need nothing that another one leaves behind."""
    for page in PAGES:
        for each in examples(page):
            if each.kind == "" and each.printed.strip():
                yield pytest.param(each, id=f"{page.stem}: {each.command}")


@pytest.mark.parametrize("each", [*shown()])
def test_an_example_prints_what_the_page_shows(each: Example, example: Path) -> None:
    assert each.command.startswith("fusec ")
    assert normalised(in_process(example, each.command)) == normalised(each.printed)


def sessions() -> Iterator[Any]:
    """Pages whose commands go on from each other."""
    for page in PAGES:
        kinds = {each.kind for each in examples(page) if each.kind}
        assert kinds <= {"session", "slow"} and len(kinds) <= 1, page
        for kind in kinds:
            marks = [pytest.mark.slow] if kind == "slow" else []
            yield pytest.param(page, kind, id=page.stem, marks=marks)


@pytest.mark.parametrize(("page", "kind"), [*sessions()])
def test_a_session_goes_as_the_page_shows(page: Path, kind: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    once_more = shell if kind == "slow" else in_process
    for each in examples(page):
        if each.kind == kind:
            printed = once_more(tmp_path, each.command)
            if each.printed.strip():
                assert normalised(printed) == normalised(each.printed), each.command


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


# --- messages -------------------------------------------------------------------------------


def test_messages_that_are_explained_are_those_of_the_code() -> None:
    """Between its names and numbers, a message stands in the source as it is on the page."""
    folders = ("fusec", "runtime", "kernels")
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    source = re.sub(r'"\s*\n\s*f?"', "", source).replace("`", "")
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]*[a-z]{3}[^`]*)`", page, flags=re.MULTILINE)
    assert len(messages) >= 30
    for message in messages:
        for part in message.split("…"):
            assert part.strip(" :") in source, message


# --- the site -------------------------------------------------------------------------------


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(
    tmp_path: Path,
) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    loaded = re.compile(
        r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//"""
        r"""|url\(["']?(?:https?:)?//|@import"""
    )
    pages = [path for path in tmp_path.rglob("*") if path.suffix in (".html", ".css")]
    assert len(pages) >= 50
    for path in pages:
        assert not loaded.search(path.read_text(encoding="utf-8")), path


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
    for folder in (DOCS, GUIDE):
        index = (folder / "index.md").read_text(encoding="utf-8")
        for page in folder.glob("*.md"):
            assert page.name == "index.md" or f"({page.name}" in index


if __name__ == "__main__":
    write_pages()
