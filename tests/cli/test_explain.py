"""`fusec explain` for people: what comes first, what stands together, what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_cli import Fusec, archive, artifact, fusec  # noqa: F401

from fusec.explanation import Filter, explain_text, places_text, ranges_text
from fusec.report import Row


def row(fusion: str, site: str, reason: str | None = None, **more: object) -> Row:
    return {
        "fusion": fusion,
        "site": site,
        "status": "refused" if reason else "fired",
        "code": "head_dim" if reason else None,
        "reason": reason,
        "hint": "use a power of two" if reason else None,
        "node": "",
        "details": {},
        "backend": None,
        "rejected": [],
        **more,
    }


WRONG = "head dim 96 is not a power of two"
GFX950 = [
    *(row("add_rms_norm", f"model.layers.{n}.input_layernorm") for n in range(12)),
    *(
        row("gated_rms_norm", f"model.layers.{n}.norm", WRONG if n in (1, 5, 9) else None)
        for n in range(12)
    ),
]
GFX942 = [
    {**each, "status": "fired", "code": None, "reason": None, "hint": None} for each in GFX950
]


def test_counts_come_first_and_equal_reasons_stand_together() -> None:
    assert explain_text({"gfx950": GFX950}) == (
        "gfx950: 21 sites fired (2 fusions), 3 sites refused (1 fusion)\n"
        "\n"
        "  add_rms_norm    12 of 12 fired\n"
        "  gated_rms_norm  9 of 12 fired\n"
        "\n"
        "refused\n"
        "  gated_rms_norm, 3 of 12 refused: head dim 96 is not a power of two\n"
        "    layers 1, 5, 9: model.layers.*.norm\n"
        "    code: `head_dim`\n"
        "    hint: use a power of two"
    )


def test_targets_stand_side_by_side_where_they_differ() -> None:
    text = explain_text({"gfx950": GFX950, "gfx942": GFX942})
    assert text == (
        "gfx950: 21 sites fired (2 fusions), 3 sites refused (1 fusion)\n"
        "gfx942: 24 sites fired (2 fusions)\n"
        "\n"
        "                  gfx950          gfx942\n"
        "  add_rms_norm    12 of 12 fired  12 of 12 fired\n"
        "  gated_rms_norm  9 of 12 fired   12 of 12 fired  differs\n"
        "\n"
        "refused\n"
        "  gated_rms_norm on gfx950, 3 of 12 refused: head dim 96 is not a power of two\n"
        "    layers 1, 5, 9: model.layers.*.norm\n"
        "    code: `head_dim`\n"
        "    hint: use a power of two"
    )
    same = explain_text({"gfx950": GFX942, "gfx942": GFX942})
    assert same.startswith("gfx950, gfx942: 24 sites fired (2 fusions)\n")
    assert same.count("add_rms_norm") == 1


def test_one_fusion_is_told_with_its_places() -> None:
    text = explain_text({"gfx950": GFX950}, Filter(fusion="add_rms_norm"))
    assert "at layers 0-11: model.layers.*.input_layernorm" in text
    assert "gated_rms_norm" not in text


def test_refusals_alone() -> None:
    text = explain_text({"gfx950": GFX950}, Filter(refused=True))
    assert "add_rms_norm" not in text
    assert text.startswith("gfx950: 3 sites refused (1 fusion)")
    nothing = explain_text({"gfx942": GFX942}, Filter(refused=True))
    assert nothing == "nothing was refused in this model"


@pytest.mark.parametrize("pattern", ["model.layers.1", "*.layers.1.norm", "model.layers.1.*"])
def test_all_that_was_decided_in_one_place(pattern: str) -> None:
    text = explain_text({"gfx950": GFX950}, Filter(site=pattern))
    assert "model.layers.1.norm\n  gated_rms_norm refused: head dim 96" in text
    assert "hint: use a power of two" in text
    assert "layers.10" not in text and "layers.11" not in text


def test_a_place_where_nothing_was_decided() -> None:
    text = explain_text({"gfx950": GFX950}, Filter(site="model.layers.99.norm"))
    assert text.startswith("nothing was decided at `model.layers.99.norm`: no fusion matched there")
    near = "made at layers 0-11: model.layers.*.input_layernorm, model.layers.*.norm"
    assert near in " ".join(text.split())


def test_layers_are_ranges() -> None:
    assert ranges_text([0, 1, 2, 5, 9, 10]) == "0-2, 5, 9-10"
    sites = [f"model.layers.{n}.mlp.experts.{n % 2}.up" for n in range(3)]
    assert places_text([*sites, "lm_head"]) == [
        "layers 0-2: model.layers.*.mlp.experts.*.up",
        "lm_head",
    ]
    assert places_text(["model.layers.7.mlp"]) == ["model.layers.7.mlp"]
    assert places_text([f"mul_{n}" for n in range(8)]) == [
        "mul_0, mul_1, mul_2, mul_3, mul_4, mul_5 and 2 more"
    ]


def test_lines_are_wrapped_below_their_text() -> None:
    rows = [row("moe", "a.b", "word " * 40, hint="change " * 30)]
    lines = explain_text({"cpu": rows}, width=60).splitlines()
    assert max(map(len, lines)) <= 60
    place = next(n for n, line in enumerate(lines) if line.startswith("    hint: "))
    assert lines[place + 1].startswith("          change")


def test_filters_of_the_command(fusec: Fusec, artifact: Path) -> None:  # noqa: F811
    rows = fusec("explain", artifact, "--site", "mul_*", "--json").json["targets"]["cpu"]
    assert [each["fusion"] for each in rows["decisions"]] == ["silu_mul"]
    assert rows["counts"]["add_rms_norm"] == {"fired": 1, "refused": 0}
    assert fusec("explain", artifact, "--refused").out == "nothing was refused in this model\n"
    shown = fusec("explain", artifact, "--fusion", "silu_mul").out
    assert "silu_mul, 1 site" in shown and "at mul_3" in shown


def test_two_targets_of_a_source(fusec: Fusec, archive: Path) -> None:  # noqa: F811
    shown = fusec("explain", archive, "--target", "gfx950", "--target", "cpu").out
    assert "linear_glu" in shown and "differs" in shown
