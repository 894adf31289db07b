"""Help and man pages: what they say of each command, and that the pages in the tree are current.

`python tests/cli/test_manual.py` writes the man pages.
"""

from __future__ import annotations

import ast
import importlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from test_cli import Fusec, fusec  # noqa: F401

from fusec.cli import app
from fusec.cli import list as list_module
from fusec.cli.manual import help_text, man_name, man_page, manual_of
from fusec.cli.pages import COMMANDS, GROUPS, ROOT

MAN = Path(__file__).parents[2] / "man"
GROUP: Any = typer.main.get_command(app)
NAMES = ["", *COMMANDS]


def command(name: str) -> Any:
    return GROUP.commands[name] if name else GROUP


def test_every_command_is_in_one_group_and_has_a_module() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    folder = Path(list_module.__file__).parent
    registering = {
        path.stem
        for path in folder.glob("*.py")
        if "register" in {getattr(node, "name", "") for node in ast.parse(path.read_text()).body}
    }
    assert registering == {*COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_purpose_is_the_first_sentence_of_the_docstring(name: str) -> None:
    assert command(name).help.split("\n\n")[0].replace("\n", " ") == COMMANDS[name].purpose


@pytest.mark.parametrize("name", NAMES)
def test_help_fits_eighty_columns_and_has_all_sections(name: str) -> None:
    text = help_text(manual_of(command(name), name), 80)
    assert max(map(len, text.splitlines())) <= 80
    for heading in ("Usage: fusec", "Examples:", "Exit codes:", "-h, --help"):
        assert heading in text
    for option in command(name).params:
        assert option.hidden or all(each in text for each in option.opts if each[0] == "-")


def words_of(example: str) -> list[str]:
    """The words of the first command of a pipe."""
    words = shlex.split(example)
    ends = [place for place, word in enumerate(words) if word in ("|", ">")]
    return words[: min(ends, default=len(words))]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_parses(name: str) -> None:
    assert COMMANDS[name].examples
    for example in COMMANDS[name].examples:
        program, called, *rest = words_of(example.command)
        assert (program, called) == ("fusec", name)
        command(name).make_context(name, rest)


def test_the_examples_of_fusec_itself_parse() -> None:
    for example in ROOT.examples:
        _, called, *rest = words_of(example.command)
        command(called).make_context(called, rest)


def test_an_example_with_a_wrong_option_would_not_pass() -> None:
    with pytest.raises(typer.BadParameter.__bases__):
        command("inspect").make_context("inspect", ["model.fusec", "--kernel"])


@pytest.mark.parametrize("name", NAMES)
def test_see_also_names_commands(name: str) -> None:
    page = COMMANDS[name] if name else ROOT
    assert {*page.see_also} <= {*NAMES} - {name}


def test_the_usage_is_a_command_that_can_be_typed() -> None:
    usage = manual_of(command("run"), "run").usage
    assert usage == "fusec run ARTIFACT --input FILE [options]"


@pytest.mark.parametrize("name", NAMES)
def test_man_pages_in_the_tree_are_current(name: str) -> None:
    written = (MAN / man_name(name)).read_text(encoding="utf-8")
    made = man_page(manual_of(command(name), name))
    assert written == made, "run `PYTHONPATH=tests/unit python tests/cli/test_manual.py`"


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
@pytest.mark.parametrize("name", ["", "compile"])
def test_man_renders_without_complaints(name: str) -> None:
    arguments = ["man", "--warnings", "-l", str(MAN / man_name(name))]
    environment = {"MANWIDTH": "80", "PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    for heading in ("NAME", "SYNOPSIS", "EXAMPLES", "EXIT STATUS"):
        assert heading in done.stdout
    lines = [line for line in done.stdout.splitlines() if " fusec " not in line]
    assert max(map(len, lines)) <= 80


def test_help_command_is_the_help_option(fusec: Fusec) -> None:  # noqa: F811
    assert fusec("help", "inspect").out == fusec("inspect", "--help").out
    assert fusec("help").out == fusec("--help").out
    assert fusec("help", "inspect", "--man").out.startswith('.TH "FUSEC-INSPECT" 1')
    wrong = fusec("help", "inspekt")
    assert wrong.code == 2
    assert "no such command `inspekt`" in wrong.err


def test_a_mistyped_command_is_guessed(fusec: Fusec) -> None:  # noqa: F811
    wrong = fusec("inspct")
    assert wrong.code == 2
    assert "Did you mean `inspect`" in wrong.err


def write() -> None:
    for name in NAMES:
        path = MAN / man_name(name)
        path.write_text(man_page(manual_of(command(name), name)), encoding="utf-8")
        print(f"wrote {path.relative_to(MAN.parent)}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    importlib.invalidate_caches()
    write()
