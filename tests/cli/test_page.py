"""`fusec inspect --html`: what the page holds, that nothing escapes from it, how it behaves."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_samples import contents, entries_of, program, seal
from chromium import Chromium, executable
from small_block import Layer
from torch import nn

import fusec
from fusec.cli import main
from fusec.link.artifact_writer import KernelRecord, ResidualRecord, write_artifact
from fusec.page import page_document, page_html
from fusec.page.blocks import layers_name
from fusec.page.html import SCRIPTS
from fusec.runtime.artifact import open_artifact

TARGET = "x86-64-v3"
HOSTILE = '</script><img src=x onerror="window.hacked=1">{{DATA}}&amp;\''
WIDTHS = (1440, 390)


class Stack(nn.Module):
    """Three equal layers, and one operation outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        residual = x
        for layer in self.layers:
            x, residual = layer(x, residual), x
        return {"y": torch.tanh(x)}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    batch = torch.export.Dim("batch", min=2, max=64)
    return fusec.compile(
        Stack().eval(),
        tmp_path_factory.mktemp("page") / "stack.fusec",
        target=TARGET,
        example_inputs=(torch.randn(4, 48),),
        dynamic_shapes=({0: batch},),
    ).path


@pytest.fixture(scope="module")
def page(artifact: Path) -> Path:
    path = artifact.with_name("page.html")
    path.write_text(page_html(page_document(open_artifact(artifact))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def document(artifact: Path) -> dict[str, Any]:
    return page_document(open_artifact(artifact))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose every free text is markup."""
    base = contents()
    said = json.dumps(HOSTILE)
    graph = (
        "graph @sample(%x: f32[2]) {\n"
        f"  param %w: f32[2] = {said}\n"
        f"  %a: f32[2] = aten.odd(%x, %w) {{word = {said}}} @ {said} {said} {said}\n"
        '  return %a as "a"\n}\n'
    )
    target = replace(
        base.targets[0],
        kernels=(KernelRecord(HOSTILE, HOSTILE, HOSTILE, HOSTILE, "0" * 64, 12),),
        residual=(ResidualRecord(HOSTILE, HOSTILE, HOSTILE),),
    )
    row = {
        name: HOSTILE
        for name in ("fusion", "site", "code", "reason", "hint", "node", "backend", "target")
    }
    made = contents(
        name=HOSTILE,
        graph=graph,
        source_graph=graph,
        origins={"cpu": {"a": ["a"]}},
        decisions=[{**row, "status": "refused", "target": "cpu"}],
        targets=(target,),
        options={HOSTILE: HOSTILE},
        tools={HOSTILE: HOSTILE},
    )
    folder = tmp_path_factory.mktemp("hostile")
    path = folder / "hostile.html"
    opened = open_artifact(write_artifact(folder / "hostile.fusec", made).path)
    path.write_text(page_html(page_document(opened)), encoding="utf-8")
    return path


# --- the document ---------------------------------------------------------------------------


def test_an_operation_of_an_absent_extension_has_its_place(tmp_path: Path) -> None:
    graph = 'graph @sample(%x: f32[2]) {\n  %a: f32[2] = softcap(%x)\n  return %a as "a"\n}\n'
    made = contents(graph=graph, source_graph=graph)
    opened = open_artifact(write_artifact(tmp_path / "foreign.fusec", made).path)
    document = page_document(opened)
    assert [node["op"] for each in document["graphs"] for node in each["nodes"]] == ["softcap"]


def test_equal_layers_are_one_block(document: dict[str, Any]) -> None:
    (target,) = document["targets"]
    assert [layer["layer"] for layer in target["layers"]] == ["layers.0", "layers.1", "layers.2"]
    largest, *_, outside = target["blocks"]
    assert len(largest["layers"]) > 1
    assert outside["layers"] == [""]
    assert sum(len(block["layers"]) for block in target["blocks"]) == 4
    before, after = (document["graphs"][largest[side]]["nodes"] for side in ("before", "after"))
    assert len(before) > len(after)
    fused = [node for node in after if node.get("fused")]
    assert any(len(node["made"]) > 2 for node in fused)
    assert all(0 <= index < len(before) for node in after for index in node.get("made", ()))
    assert all(node["kernels"] for node in fused)


def test_each_decision_stands_in_one_group(document: dict[str, Any], artifact: Path) -> None:
    rows = [row for row in open_artifact(artifact).decisions() if row["target"] == TARGET]
    groups = document["targets"][0]["decisions"]
    sites = [
        (group["fusion"], group["status"], site) for group in groups for site, _ in group["sites"]
    ]
    assert sorted(sites) == sorted((row["fusion"], row["status"], row["site"]) for row in rows)
    assert any(len(group["sites"]) > 1 for group in groups)


def test_buffers_of_a_slot_do_not_live_at_the_same_time(document: dict[str, Any]) -> None:
    (target,) = document["targets"]
    plan = target["memory_plan"]
    assert plan["buffers"]
    ends: dict[int, int] = {}
    for slot, first, last, held in plan["buffers"]:
        assert first >= ends.get(slot, 0)  # a result may take the place of an operand
        assert all(size <= room for size, room in zip(held, plan["slots"][slot], strict=True))
        assert last < len(target["steps"])
        ends[slot] = last


def test_a_bound_above_what_stands_for_none_is_a_bound(tmp_path: Path) -> None:
    ranges = {"batch": (1, 65536), "seq": (1, 163840)}
    made = {**program(), "symbols": {name: list(ends) for name, ends in ranges.items()}}
    target = replace(contents().targets[0], program=made)
    graph = 'graph @sample(%x: f32[2]) {\n  return %x as "x"\n}\n'
    held = contents(symbols=ranges, targets=(target,), graph=graph, source_graph=None, origins={})
    artifact = open_artifact(write_artifact(tmp_path / "m.fusec", held).path)
    largest = page_document(artifact)["sizes"][-1]
    assert largest == {"name": "largest", "at": {"batch": 1, "seq": 163840}}


def test_ranges_of_layers() -> None:
    names = ["model.layers.0", "model.layers.1", "model.layers.2", "model.layers.5", "vision.0"]
    assert layers_name(names) == "model.layers.0\u20132, 5, vision.0"


def test_an_older_artifact_has_no_graph_before_fusion(artifact: Path, tmp_path: Path) -> None:
    kept = {
        name: data
        for name, data in entries_of(artifact).items()
        if name != "source.fir" and not name.startswith("origins/")
    }
    path = tmp_path / "old.fusec"
    path.write_bytes(seal(kept))
    document = page_document(open_artifact(path))
    assert not document["before"]
    assert all(block["before"] is None for block in document["targets"][0]["blocks"])
    assert "</html>" in page_html(document)


# --- the file -------------------------------------------------------------------------------


def test_the_command_writes_the_same_bytes_each_time(
    artifact: Path, page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.html"
    with pytest.raises(SystemExit) as caught:
        main(("inspect", str(artifact), "--html", str(path)))
    assert caught.value.code == 0
    assert path.read_bytes() == page.read_bytes()
    printed = capsys.readouterr()
    assert str(path) in printed.err
    assert str(path) not in printed.out


def test_the_page_needs_nothing_else_and_runs_only_its_own_script(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert rules["default-src"] == "'none'"
    for tag in ("script", "style"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"<(?:link|img|iframe|object)\b|<script src|@import|url\(h", text)
    assert set(re.findall(r"https?://[^\s'\"]+", text)) == {"http://www.w3.org/2000/svg"}


def test_scripts_put_in_nothing_as_markup() -> None:
    folder = Path(fusec.__file__).parent / "page"
    for name in SCRIPTS:
        text = (folder / name).read_text(encoding="utf-8")
        found = re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", text)
        assert found is None, name


def test_hostile_names_stay_inside_of_the_document(hostile: Path) -> None:
    text = hostile.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert data is not None
    assert json.loads(data[1])["name"] == HOSTILE
    assert not set("<>&") & set(data[1])
    assert "<img" not in text
    assert text.count("</script>") == 2


def test_torch_is_not_imported(artifact: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from fusec.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(*(name for name in ('torch', 'triton') if name in sys.modules))"
    )
    words = ["inspect", str(artifact), "--html", str(tmp_path / "page.html"), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == ""


# --- in a browser ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = executable()
    if program is None:
        pytest.skip("no Chromium is installed")
    with Chromium(program, tmp_path_factory.mktemp("profile")) as started:
        yield started


COUNT = "document.querySelectorAll({!r}).length"


def test_every_section_is_drawn(browser: Chromium, page: Path) -> None:
    browser.open(page)
    assert browser.errors == []
    assert browser.value("document.querySelector('h1').textContent") == "Stack"
    for place in (".tile", ".block", "#panes .pane svg .n", ".group", "#kernel-table tbody tr"):
        assert browser.value(COUNT.format(place)) > 0, place
    assert browser.value(COUNT.format("#panes .pane")) == 2
    assert browser.value(COUNT.format("#memory-plot .b")) > 0


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(browser: Chromium, page: Path, width: int) -> None:
    browser.open(page, width=width, height=844)
    assert browser.value("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_words_of_the_chart_lie_beside_each_other(
    browser: Chromium, page: Path, width: int
) -> None:
    browser.open(page, width=width)
    overlapping = """
    [...document.querySelectorAll('#roofline text')].map((text) => text.getBoundingClientRect())
      .flatMap((a, i, all) => all.slice(i + 1).map((b) => [a, b]))
      .filter(([a, b]) => a.left < b.right && b.left < a.right)
      .filter(([a, b]) => a.top < b.bottom && b.top < a.bottom)
      .length
    """
    assert browser.value(overlapping) == 0


def test_search_and_filters(browser: Chromium, page: Path, document: dict[str, Any]) -> None:
    groups = document["targets"][0]["decisions"]
    name = groups[0]["fusion"]
    browser.open(page)
    assert browser.value(COUNT.format(".group")) == len(groups)
    browser.key("/", "/")
    assert browser.value("document.activeElement.id") == "search"
    browser.type("LAYERS.1")
    texts = "[...document.querySelectorAll('.group .sites button')].map((each) => each.textContent)"
    assert all("layers.1" in text for text in browser.value(texts))
    assert browser.value(COUNT.format(".sites mark")) > 0
    browser.key("Escape")
    assert browser.value("document.getElementById('search').value") == ""
    assert browser.value(COUNT.format(".group")) == len(groups)
    browser.value(
        "(() => { const by = document.getElementById('by-fusion'); "
        f"by.value = {name!r}; by.dispatchEvent(new Event('change')); }})()"
    )
    shown = browser.value(
        "[...document.querySelectorAll('.group .fusion')].map((each) => each.textContent)"
    )
    assert shown == [group["fusion"] for group in groups if group["fusion"] == name]
    browser.value("document.querySelector('#by-status [data-value=refused]').click()")
    left = [g for g in groups if (g["fusion"], g["status"]) == (name, "refused")]
    assert browser.value(COUNT.format(".group")) == len(left)


def test_the_theme_follows_the_system_and_the_switch(browser: Chromium, page: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", features=[feature])
    browser.open(page)
    dark = browser.value(ground)
    browser.value("document.getElementById('theme').click()")
    light = browser.value(ground)
    browser.call("Emulation.setEmulatedMedia", features=[])
    browser.open(page, "#theme=dark")
    assert browser.value(ground) == dark != light


def test_the_graph_is_used_with_the_keyboard(browser: Chromium, page: Path) -> None:
    browser.open(page)
    title = "document.querySelector('#node h3').textContent"
    browser.value("document.querySelectorAll('.canvas')[1].focus()")
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        browser.key(key)
    active = browser.value("document.activeElement.getAttribute('aria-activedescendant')")
    shown = browser.value(f"document.querySelector('#{active} .op').textContent")
    assert browser.value(title) == shown
    assert browser.value(COUNT.format("#panes .pane:first-child .n.same")) > 0
    browser.key("Escape")
    assert browser.value(COUNT.format(".n.same")) == 0
    assert browser.value(title).startswith(("Block", "Outside"))


def test_kernels_are_sorted_by_what_is_asked(browser: Chromium, page: Path) -> None:
    browser.open(page)
    browser.value("document.querySelector('[data-key=name]').click()")
    names = browser.value(
        "[...document.querySelectorAll('#kernel-table tbody td:first-child')]"
        ".map((each) => each.firstChild.textContent)"
    )
    assert names == sorted(names)
    assert browser.value("document.querySelector('th[aria-sort]').ariaSort") == "ascending"


def test_hostile_names_are_text(browser: Chromium, hostile: Path) -> None:
    browser.open(hostile)
    assert browser.errors == []
    assert browser.value("document.querySelector('h1').textContent") == HOSTILE
    browser.value("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.value(COUNT.format("img")) == 0
    assert browser.value("typeof window.hacked") == "undefined"
