"""`fusec completion`: scripts that complete commands, options and names in a shell.

A script holds every word that can follow, so that a shell starts no process for a completion; one
that was made before an extension or another fusec was installed is made again.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, get_args

import typer

from fusec.cli.console import data
from fusec.cli.pages import COMMANDS


class Shell(StrEnum):
    """A shell that a script is made for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


@dataclass(frozen=True, slots=True)
class Flag:
    """An option, or the first argument of a command.

    Attributes:
        names: as they are typed; none for an argument.
        about: its help.
        takes: whether a value follows.
        words: that the value may be; files where there are none.
    """

    names: tuple[str, ...]
    about: str
    takes: bool
    words: tuple[str, ...]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(completion)


def completion(
    context: typer.Context,
    shell: Annotated[
        Shell, typer.Argument(metavar="bash|zsh|fish", help="The shell to make it for.")
    ],
) -> None:
    """Print a script that completes commands, options and names in a shell.

    It knows the targets, passes, fusions and devices of this installation. Make it again after
    fusec or an extension was installed.
    """
    group: Any = context.find_root().command
    known = _words()
    flags = {
        name: [_flag(each, known) for each in group.commands[name].params] for name in COMMANDS
    }
    flags[""] = [_flag(each, known) for each in group.params]
    for found in flags.values():
        found.append(Flag(("-h", "--help"), "Show this text and exit.", False, ()))
    data({Shell.bash: _bash, Shell.zsh: _zsh, Shell.fish: _fish}[shell](flags).rstrip("\n"))


def _words() -> Mapping[str, tuple[str, ...]]:
    """What values may be, by the first word of what help calls them."""
    from fusec.extensions import installed
    from fusec.rewrite.settings import QuantFormat
    from fusec.target import CPU_ARCHES, GPU_TARGETS, PRODUCTS

    added = installed()
    targets = ("cpu", *CPU_ARCHES, *GPU_TARGETS, *PRODUCTS)
    formats: tuple[str, ...] = get_args(QuantFormat)
    return {
        "TARGET": targets,
        "PASS": tuple(dict.fromkeys(each.name for each in added.pipeline)),
        "FUSION": added.fusions,
        "DEVICE": ("cpu", "hip:0", "cuda:0", *(f"emulator:{name}" for name in GPU_TARGETS)),
        "FORMAT": (*formats, *(f"{name}:experts" for name in formats)),
        "COMPILER": ("clang++", "g++", "zig"),
        "COMMAND": tuple(COMMANDS),
    }


def _flag(parameter: Any, known: Mapping[str, tuple[str, ...]]) -> Flag:
    argument = parameter.param_type_name == "argument"
    metavar = str(parameter.metavar or "")
    choices = tuple(metavar.split("|")) if "|" in metavar and "[" not in metavar else ()
    return Flag(
        () if argument else tuple(parameter.opts),
        " ".join((parameter.help or "").split()),
        argument or not parameter.is_flag,
        choices or known.get(metavar.partition("[")[0], ()),
    )


Flags = Mapping[str, list[Flag]]
"""Options and arguments by command; those of `fusec` itself under the empty name."""


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].partition("; ")[0].rstrip(".")


# --- bash -----------------------------------------------------------------------------------

_BASH = """\
# Completion of fusec for bash; made by `fusec completion bash`.
_fusec() {
  local line=${COMP_LINE:0:COMP_POINT} command= current= previous= word
  local -a typed
  read -ra typed <<< "$line"
  [[ $line == *[[:space:]] ]] && typed+=("")
  current=${typed[${#typed[@]}-1]}
  (( ${#typed[@]} > 1 )) && previous=${typed[${#typed[@]}-2]}
  for word in "${typed[@]:1:${#typed[@]}-2}"; do
    if [[ $word != -* ]]; then command=$word; break; fi
  done
  if [[ $current == --*=* ]]; then previous=${current%%=*} current=${current#*=}; fi
  local words= files=
  case "$command $previous" in
%(values)s
    *)
      case "$command" in
%(commands)s
      esac
      ;;
  esac
  COMPREPLY=()
  if [[ -n $files ]]; then
    compopt -o filenames 2> /dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$current")
  fi
  [[ -n $words ]] && mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
  # Readline replaces what stands after the last colon only.
  if [[ $current == *:* && $COMP_WORDBREAKS == *:* ]]; then
    local before=${current%%"${current##*:}"}
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
  fi
}
complete -F _fusec fusec
"""


def _bash(flags: Flags) -> str:
    values, commands = [], []
    for command, found in flags.items():
        options = [name for flag in found for name in flag.names]
        for flag in found:
            if flag.names and flag.takes:
                patterns = "|".join(f'"{command} {name}"' for name in flag.names)
                values.append(f"    {patterns}) {_bash_value(flag)} ;;")
        plain = next((flag for flag in found if not flag.names), None)
        if not command:
            value = f"words={shlex.quote(' '.join(COMMANDS))}"
        else:
            value = "" if plain is None else _bash_value(plain)
        pattern = command or '""'
        commands.append(
            f"        {pattern}) if [[ $current == -* ]]; then "
            f"words={shlex.quote(' '.join(options))}; else {value or ':'}; fi ;;"
        )
    return _BASH % {"values": "\n".join(values), "commands": "\n".join(commands)}


def _bash_value(flag: Flag) -> str:
    return f"words={shlex.quote(' '.join(flag.words))}" if flag.words else "files=1"


# --- zsh ------------------------------------------------------------------------------------


def _zsh(flags: Flags) -> str:
    lines = [
        "#compdef fusec",
        "# Completion of fusec for zsh; made by `fusec completion zsh`.",
        "_fusec() {",
        "  local command= previous=${words[CURRENT-1]} word",
        "  local -a options commands",
        "  for word in ${words[2,CURRENT-1]}; do",
        "    if [[ $word != -* ]]; then command=$word; break; fi",
        "  done",
        '  case "$command $previous" in',
    ]
    for command, found in flags.items():
        for flag in found:
            if flag.names and flag.takes:
                names = "|".join(f'"{command} {name}"' for name in flag.names)
                lines.append(f"    ({names}) {_zsh_value(flag)}; return ;;")
    lines += ["  esac", '  case "$command" in']
    for command, found in flags.items():
        described = [
            _zsh_item(name, flag.about) for flag in found for name in flag.names if flag.names
        ]
        pattern = command or '""'
        lines.append(f"    ({pattern})")
        lines.append("      if [[ $PREFIX == -* ]]; then")
        lines.append(f"        options=({' '.join(described)})")
        lines.append("        _describe option options")
        lines.append("      else")
        if not command:
            listed = (_zsh_item(name, page.purpose) for name, page in COMMANDS.items())
            lines.append(f"        commands=({' '.join(listed)})")
            lines.append("        _describe command commands")
        else:
            plain = next((flag for flag in found if not flag.names), None)
            lines.append(f"        {':' if plain is None else _zsh_value(plain)}")
        lines += ["      fi ;;"]
    # From `fpath` the file is the body of the function; sourced, it has to register one.
    return "\n".join(
        [
            *lines,
            "  esac",
            "}",
            'if [[ $funcstack[1] == _fusec ]]; then _fusec "$@"; else compdef _fusec fusec; fi',
        ]
    )


def _zsh_value(flag: Flag) -> str:
    return f"compadd -- {' '.join(map(shlex.quote, flag.words))}" if flag.words else "_files"


def _zsh_item(name: str, about: str) -> str:
    said = _first_sentence(about).replace(":", "\\:")
    return shlex.quote(f"{name.replace(':', chr(92) + ':')}:{said}")


# --- fish -----------------------------------------------------------------------------------


def _fish(flags: Flags) -> str:
    lines = ["# Completion of fusec for fish; made by `fusec completion fish`."]
    for name, page in COMMANDS.items():
        lines.append(
            f"complete -c fusec -f -n __fish_use_subcommand -a {name} -d {_fish_text(page.purpose)}"
        )
    for command, found in flags.items():
        seen = f"__fish_seen_subcommand_from {command}" if command else "__fish_use_subcommand"
        for flag in found:
            parts = [f"complete -c fusec -n {_fish_text(seen)}"]
            for name in flag.names:
                parts.append(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}")
            if flag.names:
                parts.append(f"-d {_fish_text(flag.about)}")
            if flag.takes and flag.words:
                parts.append(
                    f"{'-x' if flag.names else '-f'} -a {_fish_text(' '.join(flag.words))}"
                )
            elif flag.takes:
                parts.append("-r -F" if flag.names else "-F")
            else:
                parts.append("-f")
            lines.append(" ".join(parts))
    return "\n".join(lines)


def _fish_text(text: str) -> str:
    said = _first_sentence(text).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{said}'"
