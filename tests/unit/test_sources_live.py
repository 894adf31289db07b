"""Live modules, exported programs and factories."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export import Dim

from fusec.diagnostics import InputError, UsageError
from fusec.frontend import load_source
from fusec.ir.graph import Graph
from fusec.ir.interpret import interpret


class Net(torch.nn.Module):
    """Two layers with dropout, and a mask as long as the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(6, 9)
        self.b = torch.nn.Linear(9, 4)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.drop(torch.relu(self.a(x)))
        return {"y": self.b(hidden) * mask.unsqueeze(-1), "n": mask.sum()}


class Capped(torch.nn.Module):
    """Refuses more than 20 rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] <= 20 else x * 3


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(4, 5, 6), "mask": torch.ones(4, 5)}


def _types(graph: Graph) -> list[str]:
    return [str(graph.type(value)) for value in graph.inputs]


def test_sizes_are_static_unless_named(inputs: dict[str, torch.Tensor]) -> None:
    source = load_source(Net(), example_inputs=inputs)
    assert source.kind == "module"
    assert _types(source.graph) == ["f32[4, 5, 6]", "f32[4, 5]"]


class Wrapper(torch.nn.Module):
    """Passes everything on, as PEFT's models do."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_module_that_passes_all_arguments_on(
    inputs: dict[str, torch.Tensor], by_name: bool
) -> None:
    given = inputs if by_name else tuple(inputs.values())
    source = load_source(Wrapper(Net()), example_inputs=given, dims={"batch": (1, 8)})
    assert list(source.graph.symbols) == ["batch"]


class Codes(torch.Tensor):
    """A weight of codes and scales, as quantised modules hold them."""

    codes: torch.Tensor
    scales: torch.Tensor

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scales: torch.Tensor) -> Codes:
        made: Codes = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scales.dtype)
        made.codes, made.scales = codes, scales
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scales"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, torch.Tensor], *about: object) -> Codes:
        return cls(inner["codes"], inner["scales"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scales)
        plain = [each.codes * each.scales if isinstance(each, cls) else each for each in args]
        return function(*plain, **(kwargs or {}))


@pytest.mark.parametrize("live", [False, True])
def test_weights_of_codes_and_scales(live: bool) -> None:
    module = torch.nn.Linear(6, 4).eval()
    codes = torch.randint(-128, 127, (4, 6), dtype=torch.int8)
    module.weight = torch.nn.Parameter(Codes(codes, torch.rand(4, 1)), requires_grad=False)
    x = torch.randn(3, 6)
    dims = {"batch": (1, 8)}
    held: Any = module
    if not live:
        held = torch.export.export(module, (x,), dynamic_shapes=({0: Dim("batch", max=8)},))
    source = load_source(held, example_inputs=x if live else None, dims=dims)
    assert "i8" in {weight.type.dtype for weight in source.graph.parameters.values()}
    (found,) = interpret(source.graph, {"input": x.numpy()}).values()
    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_named_sizes_are_shared_and_the_numbers_are_eager(
    inputs: dict[str, torch.Tensor],
) -> None:
    net = Net()
    source = load_source(net, example_inputs=inputs, dims={"batch": (1, 64), "seq": "1:8:"})
    assert net.training and net.drop.training  # as it was
    assert _types(source.graph) == ["f32[batch, seq, 6]", "f32[batch, seq]"]
    assert source.graph.symbols == {"batch": (1, 64), "seq": (1, None)}
    assert source.graph.output_names == ["y", "n"]
    x, mask = torch.randn(2, 7, 6), (torch.rand(2, 7) > 0.5).float()
    with torch.no_grad():
        expected = net.eval()(x, mask)
    found = interpret(source.graph, {"x": x.numpy(), "mask": mask.numpy()})
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-5, atol=1e-5)


def test_an_argument_may_have_the_name_of_a_weight() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = torch.nn.Parameter(torch.tensor([2.0, 3.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.x

    graph = load_source(Scaled(), example_inputs=torch.ones(4, 2)).graph
    assert graph.inputs == ["x"] and [each.name for each in graph.parameters.values()] == ["x"]
    (found,) = interpret(graph, {"x": np.ones((4, 2), np.float32)}).values()
    np.testing.assert_array_equal(found, np.tile([2, 3], (4, 1)))


def test_examples_of_size_one_are_repeated() -> None:
    given = {"x": torch.randn(1, 5, 6), "mask": torch.ones(1, 5)}
    graph = load_source(Net(), example_inputs=given, dims={"batch": "1:64"}).graph
    assert graph.symbols == {"batch": (1, 64)}
    assert _types(graph) == ["f32[batch, 5, 6]", "f32[batch, 5]"]


def test_dynamic_shapes_name_axes() -> None:
    shapes = {"x": {0: "rows", 1: Dim("cols", min=2, max=9)}, "mask": ("rows", "cols")}
    given = (torch.randn(3, 4, 6), torch.ones(3, 4))
    source = load_source(Net(), example_inputs=given, dynamic_shapes=shapes, dims={"rows": (1, 50)})
    assert _types(source.graph) == ["f32[rows, cols, 6]", "f32[rows, cols]"]
    assert source.graph.symbols == {"rows": (1, 50), "cols": (2, 9)}


def test_names_are_those_of_their_inputs_where_an_argument_is_a_constant() -> None:
    class Outer(torch.nn.Module):
        def forward(self, add: bool, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x[:, None] + y if add else x[:, None] * y

    given = (True, torch.ones(3), torch.ones(4))
    shapes = (None, {0: "rows"}, {0: "cols"})
    graph = load_source(Outer(), example_inputs=given, dynamic_shapes=shapes).graph
    assert _types(graph) == ["f32[rows]", "f32[cols]"]


class Pair(torch.nn.Module):
    """Takes two tensors in a tuple."""

    def forward(self, x: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return x * pair[0] + pair[1]


@pytest.mark.parametrize("pair", [None, (None, None), ({}, {}), ({0: None}, None)])
def test_a_container_may_have_no_dynamic_axes(pair: Any) -> None:
    given = (torch.ones(4, 3), (torch.ones(3), torch.ones(3)))
    shapes = ({0: "rows"}, pair)
    graph = load_source(Pair(), example_inputs=given, dynamic_shapes=shapes).graph
    assert _types(graph) == ["f32[rows, 3]", "f32[3]", "f32[3]"]


def test_a_program_may_have_sizes_that_are_multiples() -> None:
    class Halved(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, -1)

    rows = Dim("rows", min=2, max=9)
    program = torch.export.export(Halved(), (torch.ones(8),), dynamic_shapes=({0: 2 * rows},))
    graph = load_source(program).graph
    (half,) = graph.symbols
    assert _types(graph) == [f"f32[2*{half}]"]


def test_the_dtype_is_changed_in_a_copy(inputs: dict[str, torch.Tensor]) -> None:
    net = Net()
    halves = {name: value.bfloat16() for name, value in inputs.items()}
    graph = load_source(net, example_inputs=halves, dtype="bf16").graph
    assert _types(graph)[0].startswith("bf16")
    assert net.a.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs example inputs"),
        ({"example_inputs": torch.ones(2, 3, 6), "attention_mask": True}, "attention-mask"),
        ({"example_inputs": (torch.ones(2, 3, 6), torch.ones(2, 3)), "dims": {"z": 2}}, "`z`"),
        (
            {
                "example_inputs": (torch.ones(2, 3, 6), torch.ones(2, 3)),
                "dynamic_shapes": {"nope": {0: "a"}},
            },
            "`nope`",
        ),
        (
            {
                "example_inputs": (torch.ones(2, 3, 6), torch.ones(4, 3)),
                "dynamic_shapes": ({0: "a"}, {0: "a"}),
            },
            "`a` is 2 in one example input and 4 in another",
        ),
        (
            {
                "example_inputs": (torch.ones(2, 3, 6), torch.ones(2, 3)),
                "dynamic_shapes": ({0: "threads"}, {0: "threads"}),
            },
            "a size cannot be called `threads`",
        ),
        (
            {
                "example_inputs": (torch.ones(2, 3, 6), torch.ones(2, 3)),
                "dynamic_shapes": ({0: "my rows"}, None),
            },
            "a size cannot be called `my rows`",
        ),
        (
            {
                "example_inputs": (torch.ones(2, 3, 6), torch.ones(2, 3)),
                "dynamic_shapes": ({0: "größe"}, None),
            },
            "a size cannot be called `größe`",
        ),
        (
            {
                "example_inputs": (torch.ones(2, 3, 6), (torch.ones(2), torch.ones(2))),
                "dynamic_shapes": (None, ({0: "a"},)),
            },
            "does not fit an input of 2 parts",
        ),
        (
            {
                "example_inputs": (torch.ones(2, 3, 6), torch.ones(2, 3)),
                "dynamic_shapes": ({0: 2 * Dim("a")}, None),
            },
            r"`2\*a` is computed from a size",
        ),
        (
            {
                "example_inputs": (torch.ones(2, 3, 6), (torch.ones(2), torch.ones(2))),
                "dynamic_shapes": (None, ("a", "a")),
            },
            "`a` does not name the axes of an input",
        ),
    ],
)
def test_wrong_use_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_source(Net(), **options)


class Torn(torch.nn.Module):
    """Takes a way that depends on what is in x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x * 3


def test_a_refusal_of_torch_comes_without_its_graph(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"cannot export `Torn`: .*data-dependent") as refused:
        load_source(Torn(), example_inputs={"x": torch.ones(3)})
    assert "def forward" not in capfd.readouterr().err
    line = Torn.forward.__code__.co_firstlineno + 1
    assert refused.value.at == f"test_sources_live.py:{line}"
    assert refused.value.hint is not None and "mask" in refused.value.hint


class Kept:
    """A cache, of which torch does not know what it holds."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


class Keeping(torch.nn.Module):
    """Takes and returns a cache."""

    def forward(self, x: torch.Tensor, kept: Kept | None = None) -> tuple[torch.Tensor, Kept]:
        return (x if kept is None else x + kept.x), Kept(x)


@pytest.mark.parametrize("given", [{}, {"kept": Kept(torch.ones(3))}])
def test_a_cache_that_is_no_tensor_is_refused_with_the_way_to_wrap_it(given: Any) -> None:
    with pytest.raises(InputError, match="cannot export `Keeping`") as refused:
        load_source(Keeping(), example_inputs={"x": torch.ones(3), **given})
    assert refused.value.hint is not None and "takes and returns tensors" in refused.value.hint


def test_a_size_that_export_cuts_is_narrowed_and_reported() -> None:
    options: dict[str, Any] = {
        "example_inputs": torch.randn(10, 3),
        "dynamic_shapes": ({0: "rows"},),
    }
    source = load_source(Capped(), **options)
    assert source.graph.symbols["rows"][1] == 20
    assert any("does not keep `rows`" in note for note in source.notes)


def test_a_size_that_was_asked_for_is_not_cut() -> None:
    with pytest.raises(InputError, match=r"`rows` is asked for in 1\.\.50, but .* \d\.\.20"):
        load_source(
            Capped(),
            example_inputs=torch.randn(10, 3),
            dynamic_shapes=({0: "rows"},),
            dims={"rows": (1, 50)},
        )
    with pytest.raises(InputError, match="fixed the size `rows`"):
        load_source(
            Fixed(),
            example_inputs=torch.randn(4, 3),
            dynamic_shapes=({0: "rows"},),
            dims={"rows": (1, 50)},
        )


class Fixed(torch.nn.Module):
    """Turns a size into a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(4, 3) + int(x.shape[0])


def test_a_program_with_automatic_sizes_is_read_with_its_guards() -> None:
    program = torch.export.export(Capped(), (torch.randn(10, 3),), dynamic_shapes=({0: Dim.AUTO},))
    source = load_source(program)
    assert source.graph.symbols["batch"][1] == 20
    with pytest.raises(InputError, match="is asked for"):
        load_source(program, dims={"batch": (2, 30)})


class Flagged(Capped):
    """Takes a number besides the rows."""

    def forward(self, x: torch.Tensor, flag: bool = True) -> torch.Tensor:
        return super().forward(x) if flag else x


def test_guards_are_read_where_an_argument_is_a_constant(tmp_path: Path) -> None:
    given = (torch.randn(10, 3), True)
    program = torch.export.export(Flagged(), given, dynamic_shapes=({0: Dim.AUTO}, None))
    torch.export.save(program, tmp_path / "flagged.pt2")
    for source in (program, tmp_path / "flagged.pt2"):
        assert load_source(source).graph.symbols["batch"][1] == 20


def test_what_a_program_checks_when_it_runs_is_a_guard(tmp_path: Path) -> None:
    class Even(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.shape[0] % 2 == 0 else x * 3

    given = torch.randn(6, 3)
    live = load_source(Even(), example_inputs=given, dynamic_shapes=({0: "rows"},))
    assert _types(live.graph) == ["f32[6, 3]"]
    assert any("`rows`, but holds for 6: `Eq(Mod(" in note for note in live.notes)
    program = torch.export.export(
        Even(),
        (given,),
        dynamic_shapes=({0: Dim("rows")},),
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    torch.export.save(program, tmp_path / "even.pt2")
    assert _types(load_source(tmp_path / "even.pt2").graph) == ["f32[6, 3]"]


def test_sizes_that_a_range_decides_are_numbers() -> None:
    class Patches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            patches: torch.Tensor = self.conv(x).flatten(2)
            return patches if x.shape[2] // 2 == 8 else patches * 2

    module = Patches()
    given = torch.randn(2, 3, 16, 12)
    program = torch.export.export(module, (given,), dynamic_shapes=({2: Dim.AUTO, 3: Dim.AUTO},))
    graph = load_source(program).graph
    assert next(iter(graph.symbols.values())) == (16, 17)
    for size in ((16, 12), (17, 9)):
        x = torch.randn(2, 3, *size)
        (found,) = interpret(graph, {"x": x.numpy()}).values()
        np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_guards_of_arguments_without_a_name_are_read() -> None:
    class Product(torch.nn.Module):
        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            return given[0] * (2 if given[0].shape[0] * given[1].shape[0] <= 80 else 3)

    given = (torch.randn(10, 3), torch.randn(8, 3))
    shapes = (({0: Dim.AUTO}, {0: Dim.AUTO}),)
    source = load_source(torch.export.export(Product(), given, dynamic_shapes=shapes))
    rows, others = (most for _, most in source.graph.symbols.values())
    assert rows is not None and others is not None and rows * others <= 80


def test_unknown_operations_are_taken_apart() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.huber_loss(x, x * 2)

    graph = load_source(Odd(), example_inputs=torch.randn(3, 4)).graph
    assert not [node.op for node in graph.nodes() if node.op.startswith("aten.")]


def test_what_an_operation_is_taken_apart_into_is_taken_apart_too() -> None:
    class Warped(torch.nn.Module):
        def forward(self, x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.grid_sample(x, grid, align_corners=False)

    x, grid = torch.randn(2, 3, 5, 7), torch.rand(2, 4, 6, 2) * 2.4 - 1.2
    source = load_source(Warped(), example_inputs=(x, grid))
    assert not [node.op for node in source.graph.nodes() if node.op.startswith("aten.")]
    (found,) = interpret(source.graph, {"x": x.numpy(), "grid": grid.numpy()}).values()
    np.testing.assert_allclose(found, Warped()(x, grid).numpy(), rtol=1e-5, atol=1e-5)


def test_what_checks_its_own_result_is_left_whole() -> None:
    class Inverse(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = torch.linalg.inv(x)
            return found

    source = load_source(Inverse(), example_inputs=torch.eye(3) * 2)
    (node,) = source.graph.nodes()
    assert node.op in ("aten.linalg_inv.default", "aten.linalg_inv_ex.default")  # by PyTorch's age


def test_a_region_of_autocast_computes_in_what_it_says() -> None:
    class Mixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                low = x @ x.t()
            with torch.autocast("cpu", enabled=False):
                full = x @ x.t()
            return low, full

    graph = load_source(Mixed(), example_inputs=torch.randn(3, 4)).graph
    assert [graph.type(name).dtype for name in graph.outputs] == ["bf16", "f32"]


def test_numbers_in_code_keep_their_values_on_meta() -> None:
    class Numbers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.empty(4, device="meta"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x[:, [0, 2, 2, 1]] + torch.tensor(3.5, dtype=x.dtype, device=x.device)
            return y * torch.tensor([[1, 2, 3, 4]], device=x.device) + self.scale

    graph = load_source(Numbers(), example_inputs=torch.empty(2, 4, device="meta")).graph
    assert [weight.name for weight in graph.parameters.values()] == ["scale"]
    x, scale = np.random.default_rng(2).standard_normal((2, 2, 4)).astype(np.float32)
    (name,) = graph.parameters
    found = interpret(graph, {"x": x}, {name: scale[0]})["output"]
    expected = (x[:, [0, 2, 2, 1]] + 3.5) * np.array([[1, 2, 3, 4]]) + scale[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# --- factories ------------------------------------------------------------------------------


@pytest.fixture
def factories() -> Iterator[types.ModuleType]:
    module: Any = types.ModuleType("fusec_test_factories")
    pair = (torch.randn(4, 5, 6), torch.ones(4, 5))
    module.plain = Net
    module.with_inputs = lambda: (Net(), pair)
    module.with_shapes = lambda: (Net(), pair, ({0: "rows"}, {0: "rows"}))
    module.program = lambda: torch.export.export(Net().eval(), pair)
    module.number = 3
    module.made = Net()
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("with_inputs", "f32[4, 5, 6]"),
        ("with_shapes", "f32[rows, 5, 6]"),
        ("program", "f32[4, 5, 6]"),
    ],
)
def test_factories(name: str, first: str, factories: types.ModuleType) -> None:
    source = load_source(f"{factories.__name__}:{name}")
    assert source.name == f"{factories.__name__}:{name}"
    assert _types(source.graph)[0] == first


def test_factories_that_make_no_model(factories: types.ModuleType) -> None:
    with pytest.raises(InputError, match="gives a `int`, not a model"):
        load_source(f"{factories.__name__}:number")
    with pytest.raises(InputError, match="`Linear` is a class, not a model"):
        load_source(torch.nn.Linear)
    with pytest.raises(InputError, match="has no `absent`"):
        load_source(f"{factories.__name__}:absent")
    with pytest.raises(InputError, match="cannot import `fusec_no_such_module`"):
        load_source("fusec_no_such_module:make")
    with pytest.raises(UsageError, match="needs example inputs"):
        load_source(f"{factories.__name__}:plain")
