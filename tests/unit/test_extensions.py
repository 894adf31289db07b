"""What distributions add: what is refused and how, the order of passes, and sources elsewhere."""

from __future__ import annotations

import importlib.metadata
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from fusec import extensions
from fusec.diagnostics import InputError, UnsupportedError
from fusec.emulator.host import library, run
from fusec.extensions import API_VERSION, ExtensionError, Extensions, load
from fusec.ir import OPS, Graph, TensorType, parse_graph, print_graph
from fusec.ir.interpret import interpret
from fusec.kernels.launch import HipSource, TritonSource
from fusec.kernels.sources import package_folder
from fusec.link.gpu_sources import source_digest, triton_text
from fusec.link.hip_build import build_hip
from fusec.link.linker import headers_digest
from fusec.options import parse_requirement, selected_passes
from fusec.passes import PIPELINE
from fusec.target import target_named

API = f"FUSEC_API = {API_VERSION}\n"
PASS = """
from fusec.rewrite import Pass

class Added(Pass):
    '''Nothing.'''
    name = "added"
    after = ("rms_norm",)
    def run(self, graph, target, log):
        return 0
"""
KERNEL = """
from fusec.kernels.registry import Kernel

def kernel(op="rms_norm", name="added.cpp", source="kernel.cpp", package="PACKAGE"):
    return Kernel(op, name, "cpp", ("cpu",), source, None, None, package=package)
"""
OP = """
from fusec.ir.ops.base import OpDef

def op(name):
    return OpDef(name, lambda types, attrs: types[:1], lambda arrays, attrs, types: arrays[:1])
"""
NAMES = itertools.count()


class Site:
    """A folder of distributions, as pip makes one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ops = {*OPS}

    def add(self, text: str, points: str, *, name: str = "some-extension", api: str = API) -> str:
        """Install a distribution with one package; `PACKAGE` in the texts stands for its name."""
        package = f"added_{next(NAMES)}"
        files = {
            f"{package}/__init__.py": api,
            f"{package}/parts.py": text.replace("PACKAGE", package),
            f"{package}/kernel.cpp": "// nothing\n",
            f"{package}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n",
            f"{package}.dist-info/entry_points.txt": points.replace("PACKAGE", package),
        }
        for path, content in files.items():
            (self.folder / path).parent.mkdir(exist_ok=True)
            (self.folder / path).write_text(content)
        return package

    def load(self) -> Extensions:
        """What the distributions add."""
        found = importlib.metadata.distributions(path=[str(self.folder)])
        return load(point for each in found for point in each.entry_points)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Site(tmp_path)
    yield made
    for name in {*OPS} - made.ops:
        del OPS[name]
    for module in [each for each in sys.modules if each.startswith("added_")]:
        del sys.modules[module]


def points(group: str, *values: str) -> str:
    """The text of `entry_points.txt`."""
    lines = (f"e{number} = PACKAGE.parts:{value}" for number, value in enumerate(values))
    return "\n".join([f"[fusec.{group}]", *lines])


@pytest.mark.parametrize(
    ("text", "group", "named", "said", "hint"),
    [
        ("import there_is_none", "passes", "P", "cannot be loaded: ModuleNotFoundError", "mend it"),
        ("X = 1 / 0", "passes", "X", "cannot be loaded: ZeroDivisionError", "`--no-extensions`"),
        ("X = 1", "passes", "missing", "cannot be loaded: AttributeError", "mend it"),
        (
            "X = 1",
            "passes",
            "X",
            "value of the type `int`, which is not a class",
            "mend it",
        ),
        (f"{PASS}X = Added()", "passes", "X", "names a value of the type `Added`", "mend it"),
        (
            f"{PASS}class X(Pass): name = 'x'",
            "passes",
            "X",
            "names the pass `X`, which has no `run`",
            "mend it",
        ),
        (f"{PASS}del Added.name", "passes", "Added", "`Added`, which has no `name`", "mend it"),
        (
            f"{PASS}Added.name = 'rope'",
            "passes",
            "Added",
            "the pass `rope`, which `fusec`",
            "rename",
        ),
        (f"{PASS}Added.name = 'A b'", "passes", "Added", "calls a pass `A b`", "lower-case"),
        (
            f"{PASS}Added.fusion = 'attention'",
            "passes",
            "Added",
            "adds the fusion `attention`, which `fusec` has",
            "rename",
        ),
        (
            f"{PASS}Added.after = ('rmsnorm',)",
            "passes",
            "Added",
            "has the pass `added`, which runs after `rmsnorm`, and no pass has that name",
            "fusec list passes",
        ),
        (f"{PASS}Added.before = ('x',)", "passes", "Added", "runs before `x`", "fusec list passes"),
        (
            f"{PASS}Added.before = ('linear',)",
            "passes",
            "Added",
            "runs after `rms_norm` and before `linear`, and `linear` comes first",
            "fusec list passes",
        ),
        (f"{PASS}Added.after = ()", "passes", "Added", "says no place to run at", "`after`"),
        (f"{PASS}Added.after = ('added',)", "passes", "Added", "depends on itself", "let one"),
        (f"{OP}X = op('rms_norm')", "ops", "X", "adds the operation `rms_norm`, which", "rename"),
        (f"{OP}X = op('aten.x')", "ops", "X", "calls an operation `aten.x`", "lower-case"),
        (
            f"{OP}X = op",
            "ops",
            "X",
            "`function`, which is not an `OpDef`",
            "mend it",
        ),
        (f"{KERNEL}X = kernel", "kernels", "X", "which is not a `Kernel`", "mend it"),
        (
            f"{KERNEL}X = kernel(op='rmsnorm')",
            "kernels",
            "X",
            "has the kernel `added.cpp` for `rmsnorm`, which is no operation",
            "`fusec.ops`",
        ),
        (f"{KERNEL}X = kernel(name='rms_norm.cpp')", "kernels", "X", "adds the kernel", "rename"),
        (
            f"{KERNEL}X = kernel(source='not_there.cpp')",
            "kernels",
            "X",
            "whose source `not_there.cpp` is not in the folder of `added_",
            "the wheel the file",
        ),
        (
            f"{KERNEL}X = kernel(package='fusec.kernels')",
            "kernels",
            "X",
            "whose source `kernel.cpp` is not in the folder of `fusec.kernels`",
            "the `package`",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_where(
    site: Site, text: str, group: str, named: str, said: str, hint: str
) -> None:
    package = site.add(text, points(group, named))
    with pytest.raises(ExtensionError) as caught:
        site.load()
    assert str(caught.value).startswith("the extension `some-extension 1.2` ")
    assert said in str(caught.value)
    where = f'[project.entry-points."fusec.{group}"] e0 = "{package}.parts:{named}"'
    assert caught.value.at == where
    assert caught.value.hint is not None and hint in caught.value.hint
    assert {*OPS} == site.ops


@pytest.mark.parametrize(
    ("api", "said"),
    [
        ("", "does not say which version of the interface it is written for"),
        (
            "FUSEC_API = 2\n",
            "is written for version 2 of the interface, and this fusec has version 1",
        ),
    ],
)
def test_another_version_of_the_interface_is_an_error_before_anything_is_loaded(
    site: Site, api: str, said: str
) -> None:
    site.add("raise SystemError", points("passes", "P"), api=api)
    with pytest.raises(ExtensionError, match=re.escape(said)):
        site.load()


def test_two_distributions_cannot_add_one_name(site: Site) -> None:
    site.add(PASS, points("passes", "Added"), name="first")
    site.add(PASS, points("passes", "Added"), name="second")
    with pytest.raises(ExtensionError, match=r"`second 1\.2` adds the pass `added`, which `first"):
        site.load()


def placed(site: Site, *passes: tuple[str, str, Sequence[str], Sequence[str]]) -> list[str]:
    """Names of the pipeline with passes of (distribution, name, after, before)."""
    for distribution, name, after, before in passes:
        text = f"{PASS}Added.name, Added.after, Added.before = {name!r}, {after!r}, {before!r}"
        site.add(text, points("passes", "Added"), name=distribution)
    return [each.name for each in site.load().pipeline]


def test_passes_stand_right_behind_what_they_name(site: Site) -> None:
    names = placed(
        site,
        ("zebra", "p", ("add_rms_norm", "rope"), ()),
        ("aster", "q", ("add_rms_norm",), ("rms_norm_quant",)),
        ("mint", "r", (), ("p",)),
        ("mint2", "s", (), ("canonicalise",)),
    )
    place = names.index("add_rms_norm")
    assert names[place : place + 5] == ["add_rms_norm", "q", "r", "p", "dual_rms_norm_quant"]
    assert names[0] == "s"
    assert [name for name in names if name not in "pqrs"] == [each.name for each in PIPELINE]


def test_the_order_does_not_depend_on_how_distributions_are_found(site: Site) -> None:
    names = placed(site, ("b", "p", ("rope",), ()), ("a", "q", ("rope",), ()))
    found = [*importlib.metadata.distributions(path=[str(site.folder)])]
    for some in (found, found[::-1]):
        pipeline = load(point for each in some for point in each.entry_points).pipeline
        assert [each.name for each in pipeline] == names
    assert names[names.index("rope") + 1 :][:2] == ["q", "p"]


def test_what_is_added_counts_where_fusions_and_passes_are_named(site: Site) -> None:
    text = f"{PASS}{OP}{KERNEL}Added.fusion = 'fused'\nX = op('some_op'), op('other_op')\n"
    text += "K = [kernel(op='some_op')]"
    package = site.add(
        text, "\n".join([points("passes", "Added"), points("ops", "X"), points("kernels", "K")])
    )
    found = site.load()
    assert str(parse_requirement("fused>=2", found.fusions)) == "fused>=2"
    kept = selected_passes(["added"], pipeline=found.pipeline)
    assert [each.name for each in kept] == [each.name for each in PIPELINE]
    assert {"some_op", "other_op"} <= {*OPS}
    assert [kernel.package for kernel in found.kernels] == [package]
    assert found.source_of(found.kernels[0]) == "some-extension 1.2"
    assert found.source_of(PIPELINE[0]) == "fusec"
    (before,) = found.document().values()
    assert before["version"] == "1.2"


def test_the_digest_follows_every_file(site: Site) -> None:
    package = site.add(PASS, points("passes", "Added"))
    before = site.load().document()
    (site.folder / package / "kernel.cpp").write_text("// something\n")
    after = site.load().document()
    assert before != after
    (site.folder / package / "kernel.cpp").write_text("// nothing\n")
    assert site.load().document() == before


def test_what_is_missing_of_a_compilation_is_said(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add(PASS, points("passes", "Added"))
    found = site.load()
    monkeypatch.setattr(extensions, "installed", lambda: found)
    (recorded,) = found.document().values()
    assert extensions.absent({"some-extension": recorded}) == ()
    then = "which took part in the compilation,"
    for changed, said in (
        ({"version": "1.1"}, f"the extension `some-extension` 1.1, {then} is installed as 1.2"),
        ({"sha256": "0"}, f"the extension `some-extension` 1.2, {then} has other files here"),
    ):
        assert extensions.absent({"some-extension": {**recorded, **changed}}) == (said,)
    assert extensions.absent({"x": recorded}) == (
        f"the extension `x` 1.2, {then} is not installed",
    )


def test_a_graph_with_operations_that_are_not_here_is_read_and_not_interpreted() -> None:
    graph = Graph("g")
    graph.add_input("x", TensorType("f32", (2,)))
    node = graph.add("some_op", ["x"], types=[TensorType("f32", (2,))])
    graph.outputs, graph.output_names = [node.output], ["y"]
    text = print_graph(graph)
    assert print_graph(parse_graph(text, foreign=True)) == text
    with pytest.raises(InputError, match="unknown operation `some_op`"):
        parse_graph(text)
    with pytest.raises(UnsupportedError, match="an extension that is not installed"):
        interpret(graph, {"x": np.zeros(2)})


# --- sources elsewhere ----------------------------------------------------------------------


def test_a_package_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InputError, match="`not_there`, which holds the source of a kernel"):
        package_folder("not_there")


def test_headers_beside_a_source_count(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text('#include "b.h"\n')
    (tmp_path / "b.h").write_text("int b;\n")
    before = headers_digest(b'#include "a.h"\n', tmp_path / "include", tmp_path)
    (tmp_path / "b.h").write_text("int c;\n")
    assert headers_digest(b'#include "a.h"\n', tmp_path / "include", tmp_path) != before


HIP = """
#include <fusec/hip.h>
#include "factor.h"

namespace fusec {
FUSEC_KERNEL(scale_all, f32* x) { x[lane()] *= FACTOR; }
}
"""


def test_a_hip_source_of_another_package_is_compiled_and_runs_on_the_host(site: Site) -> None:
    package = site.add("", "")
    (site.folder / package / "kernel.hip").write_text(HIP)
    source = HipSource("kernel.hip", "scale_all", (("x", "ptr"),), (), 64, package)
    target, digests = target_named("gfx950"), set()
    for factor in (3, 5):
        (site.folder / package / "factor.h").write_text(f"#define FACTOR {factor}.0f\n")
        digests.add(source_digest(source, target))
        library.cache_clear()
        x = np.arange(64, dtype=np.float32)
        run(source, [x.ctypes.data], [1], fnuz=False)
        np.testing.assert_array_equal(x, factor * np.arange(64))
    assert len(digests) == 2
    assert build_hip(source, target).symbol == "scale_all"


def test_the_digest_of_a_triton_source_follows_its_own_package(site: Site) -> None:
    text = "from PACKAGE import tools\nfrom . import more\n"
    package = site.add(text, "")
    for name in ("tools", "more"):
        (site.folder / package / f"{name}.py").write_text("X = 1\n")
    digests = set()
    for name in ("", "tools", "more", "parts"):
        if name:
            path = site.folder / package / f"{name}.py"
            path.write_text(path.read_text() + "Y = 2\n")
        triton_text.cache_clear()
        source = TritonSource(f"{package}.parts", "f", (), (), (), 4)
        digests.add(source_digest(source, target_named("gfx950")))
    assert len(digests) == 4
    assert f"{package}.parts" not in sys.modules
