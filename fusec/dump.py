"""The graph after each pass, for people: what `--dump-ir` and `--stop-after` write.

A folder has `NN-PASS.fir`, the graph after pass number NN, wherever that pass changed it; beside it
`NN-PASS.diff`, what changed since the graph before; and `index.md`, a line for each of them.
Values keep their names as long as they exist, so a difference shows what a pass did and nothing
else; each of its parts is headed by the module that it is about.  In differences the origins of
nodes are left out.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusec.diagnostics import UsageError, did_you_mean
from fusec.ir import Graph, print_graph
from fusec.report import counts_text
from fusec.rewrite import DecisionLog, Pass
from fusec.runtime.files import write_errors

INDEX = "index.md"
_TABLE = "| after | nodes | lines | fusions | files |\n|---|---|---|---|---|"

_CONTEXT = 2
"""Lines around a change that are shown."""

_WRITTEN = re.compile(r"\d\d-\w+\.(fir|diff)|" + re.escape(INDEX))
_ORIGIN = re.compile(r' @ ("(?P<path>(?:[^"\\]|\\.)*)".*)$')


@dataclass(frozen=True, slots=True)
class DumpRequest:
    """What `--dump-ir` and `--dump-ir-after` ask for.

    Attributes:
        folder: where to write; `None` for standard output.
        after: labels of the only passes to write; of all that changed something if empty.
        say: prints to standard output.
    """

    folder: Path | None
    after: frozenset[str]
    say: Callable[[str], None]

    def for_target(self, name: str, several: bool) -> DumpRequest:
        """The request for one target, which has a folder of its own if there are several."""
        if self.folder is None or not several:
            return self
        return DumpRequest(self.folder / name, self.after, self.say)


def dump_request(
    folder: str | os.PathLike[str] | None,
    after: Sequence[str],
    passes: Sequence[Pass],
    targets: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> DumpRequest | None:
    """Read `--dump-ir` and `--dump-ir-after`.

    Args:
        folder: a folder, or `-` for standard output.
        after: passes, by name or label.
        passes: those that run.
        targets: names; if there are several, each has a folder of its own.
        say: prints to standard output.

    Raises:
        InputError: the folder cannot be written to.
        UsageError: no such pass runs, passes are named without a folder, it is a file, or has files
            that would be replaced and are not of a dump.
    """
    if folder is None:
        if after:
            hint = "add `--dump-ir DIR`, or `--dump-ir -` for standard output"
            raise UsageError("`--dump-ir-after` does not say where to write", hint=hint)
        return None
    labels = frozenset(label for name in after for label in labels_of(name, passes))
    if os.fspath(folder) == "-":
        return DumpRequest(None, labels, say)
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise UsageError(f"`--dump-ir {folder}` is not a folder", hint="name a folder, or `-`")
    request = DumpRequest(path, labels, say)
    for name in targets:
        _check_folder(request.for_target(name, len(targets) > 1).folder or path)
    return request


def label(number: int, each: Pass) -> str:
    """How a pass that runs is told from others of its name: `03-rms_norm`."""
    return f"{number:02}-{each.name}"


def labels_of(name: str, passes: Sequence[Pass]) -> tuple[str, ...]:
    """The labels of the passes called `name`; a label stands for itself.

    Raises:
        UsageError: no such pass runs.
    """
    labels = [(each.name, label(number, each)) for number, each in enumerate(passes, start=1)]
    if found := tuple(text for own, text in labels if name in (own, text)):
        return found
    raise UsageError(
        f"no pass `{name}` runs",
        hint=did_you_mean(name, (own for own, _ in labels)) or "`fusec list passes` names them all",
    )


def passes_until(name: str, passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """The passes up to the first one called `name`, or the one of that label.

    Raises:
        UsageError: no such pass runs.
    """
    first = labels_of(name, passes)[0]
    number = int(first.partition("-")[0])
    return tuple(passes[:number])


class Dump:
    """Watches passes, and writes what was asked for.

    Attributes:
        changed: how many passes changed the graph.
    """

    def __init__(self, request: DumpRequest, graph: Graph, target: str, log: DecisionLog) -> None:
        self.request = request
        self.target = target
        self.log = log
        self.changed = 0
        self._number = 0
        self._lines = [*print_graph(graph).splitlines()]
        self._nodes = len(graph)
        self._fired = log.fired()
        if request.folder is not None:
            _clear(request.folder)
            self._index(f"# {graph.name}, {target}\n")
            self._index(_TABLE)
        self._write("00-import", [], "")

    def __call__(self, each: Pass, graph: Graph, changes: int) -> None:
        """Observe a pass."""
        self._number += 1
        if not changes:
            return
        self.changed += 1
        before, nodes, fired = self._lines, self._nodes, self._fired
        self._lines, self._nodes = print_graph(graph).splitlines(), len(graph)
        self._fired = self.log.fired()
        self._write(label(self._number, each), before, f"{nodes} -> ", _gained(fired, self._fired))

    def _write(self, name: str, before: list[str], nodes: str, fusions: str = "") -> None:
        """Write the graph as it is now, what changed since `before`, and a line of the index."""
        wanted = not self.request.after or name in self.request.after
        folder = self.request.folder
        if folder is None:
            if wanted:
                self.request.say(f"// {name}, {self.target}, {nodes}{self._nodes} nodes")
                self.request.say("\n".join(self._lines))
            return
        changes = [*difference(before, self._lines, name)] if before else []
        files = []
        if wanted:
            files.append(f"{name}.fir")
            self._put(files[-1], self._lines)
        if wanted and changes:
            files.append(f"{name}.diff")
            self._put(files[-1], changes)
        signs = Counter(line[0] for line in changes[2:] if line[0] in "+-")
        lines = f"+{signs['+']} -{signs['-']}" if before else ""
        links = ", ".join(f"[{file.rpartition('.')[2]}]({file})" for file in files)
        self._index(f"| {name} | {nodes}{self._nodes} | {lines} | {fusions} | {links} |")

    def _index(self, text: str) -> None:
        self._put(INDEX, [text])

    def _put(self, name: str, lines: Sequence[str]) -> None:
        """Append to a file of the folder."""
        assert self.request.folder is not None
        path = self.request.folder / name
        with write_errors(path), path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


def difference(before: Sequence[str], after: Sequence[str], name: str) -> Iterator[str]:
    """A unified difference of two printed graphs, without origins.

    Args:
        before: lines, with origins.
        after: lines, with origins.
        name: of the pass between them.
    """
    old, new = [[*map(_split, lines)] for lines in (before, after)]
    texts = [text for text, _ in old], [text for text, _ in new]
    yield f"--- before {name}"
    yield f"+++ after {name}"
    matcher = difflib.SequenceMatcher(None, *texts, autojunk=False)
    for group in matcher.get_grouped_opcodes(_CONTEXT):
        (_, a, _, c, _), (_, _, b, _, d) = group[0], group[-1]
        paths = [
            path
            for tag, i, j, k, m in group
            if tag != "equal"
            for _, path in (*old[i:j], *new[k:m])
            if path
        ]
        yield f"@@ -{a + 1},{b - a} +{c + 1},{d - c} @@ {paths[0] if paths else ''}".rstrip()
        for tag, i, j, k, m in group:
            if tag == "equal":
                yield from (f" {text}" for text in texts[0][i:j])
                continue
            yield from (f"-{text}" for text in texts[0][i:j])
            yield from (f"+{text}" for text in texts[1][k:m])


def _split(line: str) -> tuple[str, str]:
    """A line without its origin, and the module path of that."""
    found = _ORIGIN.search(line)
    return (line, "") if found is None else (line[: found.start()], found["path"])


def _gained(before: Counter[str], after: Counter[str]) -> str:
    """`add_rms_norm 2`, and `rms_norm_quant -2` for those that a larger one took in."""
    changes = {name: after[name] - before[name] for name in {*before, *after}}
    return counts_text({name: count for name, count in changes.items() if count})


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written to, or files in it that are not of a dump."""
    with write_errors(folder):
        there = next(each for each in (folder, *folder.parents) if each.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
        written = _written(folder) if folder.exists() else []
    index = folder / INDEX
    if written and not (index.is_file() and _TABLE in index.read_text("utf-8", "replace")):
        hint = "name an empty folder, or one that does not exist"
        raise UsageError(f"`{min(written)}` is not of a dump, but would be replaced", hint=hint)


def _clear(folder: Path) -> None:
    """Make `folder`, and remove what an earlier dump wrote there."""
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in _written(folder):
            path.unlink()


def _written(folder: Path) -> list[Path]:
    """What has the name of a file of a dump."""
    return [path for path in folder.iterdir() if _WRITTEN.fullmatch(path.name)]
