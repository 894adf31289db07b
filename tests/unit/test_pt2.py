"""Archives of `torch.export` are read as data: the same weights, nothing executed."""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export import Dim

from fusec import symbolic
from fusec.diagnostics import InputError, UsageError
from fusec.frontend import load_source
from fusec.frontend.pt2 import output_names, read_expression, read_pt2
from fusec.frontend.tensors import tensor_of
from fusec.ir import parse_graph, print_graph
from fusec.ir.interpret import interpret


class Many(torch.nn.Module):
    """Weights of many dtypes and layouts; inputs and outputs in containers."""

    flags: torch.Tensor
    scalar: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 5)
        self.tied = self.linear.weight
        self.turned = torch.nn.Parameter(torch.randn(7, 5).t())
        self.part = torch.nn.Parameter(torch.randn(11)[3:8])
        self.sixteen = torch.nn.Parameter(torch.randn(5).half())
        self.brain = torch.nn.Parameter(torch.randn(5).bfloat16())
        self.register_buffer("small", torch.randn(5).to(torch.float8_e4m3fn))
        self.register_buffer("count", torch.arange(5), persistent=False)
        self.register_buffer("flags", torch.tensor([True, False, True, True, False]))
        self.register_buffer("scalar", torch.tensor(2.5, dtype=torch.float64))

    def forward(
        self, x: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor], *, more: dict[str, Any]
    ) -> dict[str, Any]:
        y = self.linear(x) + torch.nn.functional.linear(x, self.tied)
        y = y * self.brain.float() + self.sixteen.float() + self.count
        y = torch.where(self.flags, y, y * self.scalar.float())
        z = torch.cat(pair, 0) @ self.turned
        return {"y": y, "z": (z, more["w"] + self.part.sum()), "n": pair[0].sum(1)}


def _inputs(batch: int = 3, rows: int = 4, others: int = 2) -> tuple[tuple[Any, ...], Any]:
    pair = (torch.randn(rows, 5), torch.randn(others, 5))
    return (torch.randn(batch, 6), pair), {"more": {"w": torch.randn(9)}}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    args, kwargs = _inputs()
    shapes = {
        "x": {0: Dim("b")},
        "pair": ({0: Dim("r", max=50)}, {0: Dim("o", min=2)}),
        "more": {"w": None},
    }
    program = torch.export.export(Many().eval(), args, kwargs, dynamic_shapes=shapes)
    path = tmp_path_factory.mktemp("pt2") / "many.pt2"
    _save(program, path)
    return path


def _save(program: Any, path: Path) -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it stores strided weights as they are
        torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_weights_are_those_of_torch(many: Path) -> None:
    archive = read_pt2(many)
    program = torch.export.load(many)
    held = {**program.state_dict, **program.constants}
    weights = [entry.weight for entry in archive.program.inputs if entry.kind == "weight"]
    assert len(weights) >= 10
    identities: dict[str, str] = {}
    for weight in weights:
        assert weight is not None
        expected = held[weight.name].detach()
        found = tensor_of(weight.load(), weight.type.dtype)
        assert found.dtype == expected.dtype
        assert torch.equal(found.float(), expected.float()), weight.name
        identities[weight.name] = weight.identity
    assert identities["tied"] == identities["linear.weight"]
    assert len(set(identities.values())) == len(identities) - 1


def test_the_graph_computes_what_the_program_does(many: Path) -> None:
    source = load_source(many)
    program = torch.export.load(many).module()
    args, kwargs = _inputs(batch=1, rows=7, others=5)
    expected = program(*args, **kwargs)
    inputs = [args[0], *args[1], kwargs["more"]["w"]]
    names = source.graph.inputs
    assert names == ["x", "pair_0", "pair_1", "more_w"]
    given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    found = interpret(source.graph, given)
    assert list(found) == ["y", "z_0", "z_1", "n"]
    flat = {"y": expected["y"], "z_0": expected["z"][0], "z_1": expected["z"][1]}
    for name, value in {**flat, "n": expected["n"]}.items():
        np.testing.assert_allclose(found[name], value.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_file_may_have_any_name(many: Path, tmp_path: Path) -> None:
    path = tmp_path / "7é 模型.pt2"
    shutil.copyfile(many, path)
    graph = load_source(path).graph
    assert print_graph(parse_graph(print_graph(graph))) == print_graph(graph)


def test_symbols_are_named_by_what_they_size(many: Path) -> None:
    symbols = load_source(many).graph.symbols
    assert symbols == {"batch": (1, None), "pair_0_0": (1, 50), "pair_1_0": (2, None)}
    narrow = load_source(many, dims={"batch": "1:4:8", "pair_0_0": 7}).graph
    assert narrow.symbols == {"batch": (1, 8), "pair_1_0": (2, None)}
    assert str(narrow.type("pair_0")) == "f32[7, 5]"


def test_a_range_that_the_archive_has_not_is_refused(many: Path) -> None:
    with pytest.raises(InputError, match=r"`pair_0_0` is asked for in 1..60, but .* 1..50"):
        load_source(many, dims={"pair_0_0": (1, 60)})
    with pytest.raises(UsageError, match="no dynamic size called `seq`"):
        load_source(many, dims={"seq": 4})
    with pytest.raises(UsageError, match="--dtype"):
        load_source(many, dtype="bf16")


# --- archives that lie ----------------------------------------------------------------------


def _rewritten(path: Path, to: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The archive with its members changed; `None` leaves one out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for info in old.infolist():
            data = change(info.filename.partition("/")[2], old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return to


def _with_json(path: Path, to: Path, name: str, edit: Callable[[Any], None]) -> Path:
    def change(member: str, data: bytes) -> bytes:
        if member != name:
            return data
        held = json.loads(data)
        edit(held)
        return json.dumps(held).encode()

    return _rewritten(path, to, change)


def _payload(trap: Path) -> str:
    return f"__import__('os').mkdir({str(trap)!r})"


def test_a_planted_size_expression_is_not_run(many: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    def edit(program: Any) -> None:
        for value in program["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = _payload(trap)

    path = _with_json(many, tmp_path / "bad.pt2", "models/model.json", edit)
    with pytest.raises(InputError, match="not an integer expression"):
        load_source(path)
    assert not trap.exists()


def test_a_planted_guard_is_not_run_and_promises_nothing(many: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    def edit(program: Any) -> None:
        program["guards_code"] = [f"L['x'].size()[0] > 0 and {_payload(trap)}"]

    path = _with_json(many, tmp_path / "bad.pt2", "models/model.json", edit)
    source = load_source(path)
    assert not trap.exists()
    assert "batch" not in source.graph.symbols  # fixed at the size that it was exported with
    assert str(source.graph.type("x")) == "f32[3, 6]"
    assert any("could not be read" in note for note in source.notes)


def test_planted_sample_inputs_are_left_alone(many: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(trap),)

    buffer = io.BytesIO()
    torch.save(Trap(), buffer)
    planted = buffer.getvalue()
    path = _rewritten(
        many,
        tmp_path / "bad.pt2",
        lambda name, data: planted if name.startswith("data/sample_inputs/") else data,
    )
    assert len(load_source(path).graph) > 5
    assert not trap.exists()


def _pickled(config: Any) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


def _out_of_file(config: Any) -> None:
    config["config"]["part"]["tensor_meta"]["storage_offset"]["as_int"] = 1 << 20


def _negative_stride(config: Any) -> None:
    config["config"]["part"]["tensor_meta"]["strides"][0]["as_int"] = -1


def _no_member(config: Any) -> None:
    config["config"]["part"]["path_name"] = "../../../etc/passwd"


def _other_shape(config: Any) -> None:
    config["config"]["part"]["tensor_meta"]["sizes"][0]["as_int"] = 2


def _no_entry(config: Any) -> None:
    del config["config"]["part"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_pickled, "is a pickled object"),
        (_out_of_file, "do not fit its shape"),
        (_negative_stride, "does not follow"),
        (_no_member, "has no `data/weights/"),
        (_other_shape, "two types"),
        (_no_entry, "no values for `part`"),
    ],
)
def test_weights_that_lie_are_refused(
    edit: Callable[[Any], None], message: str, many: Path, tmp_path: Path
) -> None:
    name = "data/weights/model_weights_config.json"
    path = _with_json(many, tmp_path / "bad.pt2", name, edit)
    with pytest.raises(InputError, match=message):
        load_source(path)


@pytest.mark.parametrize("major", [7, 9])
def test_other_schema_versions_are_refused(major: int, many: Path, tmp_path: Path) -> None:
    def edit(program: Any) -> None:
        program["schema_version"]["major"] = major

    path = _with_json(many, tmp_path / "bad.pt2", "models/model.json", edit)
    with pytest.raises(InputError, match=f"schema version {major}"):
        load_source(path)


def test_a_newer_minor_version_is_noted(many: Path, tmp_path: Path) -> None:
    def edit(program: Any) -> None:
        program["schema_version"]["minor"] = 99

    path = _with_json(many, tmp_path / "new.pt2", "models/model.json", edit)
    assert any("8.99" in note for note in load_source(path).notes)


@pytest.mark.parametrize(
    "edit",
    [
        lambda program: program.pop("graph_module"),
        lambda program: program["graph_module"]["graph"].update(nodes=3),
        lambda program: program["graph_module"]["graph"]["inputs"].pop(),
        lambda program: program["graph_module"]["signature"]["output_specs"].pop(),
        lambda program: program["graph_module"]["graph"]["nodes"][3].update(inputs=[{"arg": {}}]),
        lambda program: program["graph_module"]["graph"].update(tensor_values={}),
    ],
)
def test_a_program_off_the_schema_is_an_input_error(
    edit: Callable[[Any], None], many: Path, tmp_path: Path
) -> None:
    path = _with_json(many, tmp_path / "bad.pt2", "models/model.json", edit)
    with pytest.raises(InputError):
        load_source(path)


def test_compressed_members_are_refused(many: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt2"
    with zipfile.ZipFile(many) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(InputError, match="compressed"):
        load_source(path)


# --- limits that are only in the guards -----------------------------------------------------


class Blocks(torch.nn.Module):
    """Works in blocks of 64 rows; `torch.export` unrolls the loop."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[0] % 64))
        total = torch.zeros(())
        for start in range(0, padded.shape[0], 64):
            total = total + padded[start : start + 64].sum()
        return x + total


@pytest.mark.parametrize(("rows", "least", "most"), [(10, 1, 64), (100, 65, 128)])
def test_a_limit_in_the_guards_is_reported(
    rows: int, least: int, most: int, tmp_path: Path
) -> None:
    shapes = ({0: Dim.AUTO},)
    program = torch.export.export(Blocks(), (torch.randn(rows, 2),), dynamic_shapes=shapes)
    claimed = next(iter(program.range_constraints.values()))
    assert int(claimed.lower) <= 2 and claimed.upper > 1 << 40  # what it says of itself
    path = tmp_path / "blocks.pt2"
    _save(program, path)
    source = load_source(path)
    low, high = source.graph.symbols["batch"]
    assert low in (least, least + 1) and high in (most - 1, most)
    assert any("but holds for" in note for note in source.notes)
    rng = np.random.default_rng(0)
    for size in (low, high):
        x = rng.standard_normal((size, 2)).astype(np.float32)
        expected = Blocks()(torch.from_numpy(x)).numpy()
        found = interpret(source.graph, {"x": x})["output"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_size_that_was_fixed_in_silence_is_static(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.shape[0] == 4 else x * 3

    program = torch.export.export(Fixed(), (torch.randn(4),), dynamic_shapes=({0: Dim.AUTO},))
    path = tmp_path / "fixed.pt2"
    _save(program, path)
    graph = load_source(path).graph
    assert str(graph.type("x")) == "f32[4]"


# --- small grammars -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("Symbol('s0', positive=True, integer=True)", "s0"),
        ("Add(Symbol('s0', integer=True), Integer(-3))", "s0 - 3"),
        ("Mul(Integer(2), Symbol('a'), Symbol('b'))", "2*a*b"),
        ("Pow(Symbol('a'), Integer(2))", "a*a"),
        ("FloorDiv(Add(Symbol('a'), Integer(7)), Integer(8))", "(a + 7)//8"),
        ("Max(Integer(1), Mod(Symbol('a'), Integer(8)))", "max(1, a % 8)"),
        ("s0 + 2*s1", "s0 + 2*s1"),
        ("TruncToInt(Mul(Float('0.75', precision=53), ToFloat(Symbol('a'))))", "3*a//4"),
        ("FloorToInt(IntTrueDiv(Symbol('a'), Integer(3)))", "a//3"),
        (
            "CeilToInt(FloatTrueDiv(Add(ToFloat(Symbol('a')), Float('-0.5', precision=53)), "
            "Float('1.0', precision=53)))",
            "(2*a)//2",
        ),
    ],
)
def test_size_expressions(text: str, meaning: str) -> None:
    assert read_expression(text) == symbolic.parse_dim(meaning)


@pytest.mark.parametrize(
    "text",
    [
        "Symbol(__import__('os'))",
        "eval('1')",
        "Add(Symbol('a'), Integer(1)",
        "Pow(Symbol('a'), Integer(100))",
        "Rational(1, 2)",
        "Add(" * 200 + "Integer(1)" + ")" * 200,
        "().__class__",
        "Symbol('a b')",
        "Symbol('0.5')",
        "Float('0.5', precision=53)",
        "TruncToInt(Mul(Float('0.1', precision=53), ToFloat(Symbol('a'))))",  # 0.1 * 10 is rounded
        "TruncToInt(Mul(IntTrueDiv(Symbol('a'), Integer(3)), Float('3.0', precision=53)))",
        "TruncToInt(Add(ToFloat(Symbol('a')), Float('-8.5', precision=53)))",  # cut off upwards
        "FloorToInt(FloatTrueDiv(ToFloat(Symbol('a')), Float('-2.0', precision=53)))",
    ],
)
def test_other_text_is_not_a_size(text: str) -> None:
    assert read_expression(text) is None


def test_output_names_without_a_tree() -> None:
    assert output_names(None, 1) == ("output",)
    assert output_names("nonsense", 2) == ("output_0", "output_1")
