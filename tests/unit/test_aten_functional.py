"""Writes in place become functional: views of views, shared memory, inputs and buffers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from aten_check import check, import_module

from fusec.diagnostics import UnsupportedError


class Function(torch.nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> object:
        return self.function(x, y)


def slice_of_slice(x: torch.Tensor, y: torch.Tensor) -> object:
    a = x * 1
    a[1:, 2:5][:, ::2] = y[:2, :2]
    return a


def earlier_views_see_later_writes(x: torch.Tensor, y: torch.Tensor) -> object:
    a = x + 0
    row, turned, flat = a[1], a.t(), a.view(-1)
    a.mul_(2)
    row.add_(1)
    turned[0].sub_(3)
    flat[-1] = 7.0
    return a, row * 1, turned * 1, flat * 1, (row, turned)


def clones_do_not(x: torch.Tensor, y: torch.Tensor) -> object:
    a = x + 0
    b = a.clone()
    c = a.transpose(0, 1).contiguous()
    d = a.transpose(0, 1).reshape(-1)
    a.zero_()
    return a, b, c, d


def contiguous_is_the_same_where_it_is(x: torch.Tensor, y: torch.Tensor) -> object:
    a = x + 0
    b, c, d = a.contiguous(), a.reshape(-1), a.to(torch.float32)
    a.fill_(2.5)
    d[0, 0] = 4.0
    return b * 1, c * 1, d * 1, a


def split_and_unbind(x: torch.Tensor, y: torch.Tensor) -> object:
    a = x + 0
    first, second = torch.split(a, [2, 3], dim=1)
    second.copy_(first[:, :1].expand(-1, 3))
    rows = a.unbind(0)
    rows[2].add_(rows[0])
    third = a.chunk(2, dim=1)
    third[1].div_(2)
    return a, first + second[:, :2], rows[1] * 1


def select_write(x: torch.Tensor, y: torch.Tensor) -> object:
    a = torch.zeros(3, 4, 5)
    a[:, 1] = x[:3]
    a[2, :, -1] = y[0, 0]
    a.select(0, -1)[0].add_(1)
    return a


def masked_and_indexed(x: torch.Tensor, y: torch.Tensor) -> object:
    a = x + 0
    a.masked_fill_(a > 0, -1.0)
    a[a < -1] = 9.0
    a[torch.tensor([0, 2]), torch.tensor([1, 3])] = y[0, :2]
    a.index_put_((torch.tensor([1, 1]),), y[:2, :1], accumulate=True)
    a.scatter_(1, torch.tensor([[0, 4], [3, 2]]), 5.0)
    a.scatter_add_(0, torch.tensor([[1, 1, 0]]), y[:1, :3])
    a.index_add_(0, torch.tensor([0]), y[:1].repeat(1, 2)[:, :5])
    a.index_copy_(1, torch.tensor([4]), y[:, :1])
    a.index_fill_(0, torch.tensor([1]), 0.5)
    return a


def diagonal_write(x: torch.Tensor, y: torch.Tensor) -> object:
    a = torch.zeros(5, 5)
    a.diagonal().copy_(x[0])
    a.diagonal(offset=-2).add_(y[:3, 0])
    return a, a.diagonal(1)


def empty_then_filled(x: torch.Tensor, y: torch.Tensor) -> object:
    a = x.new_empty((3, 9))
    a[:, :4] = y
    a[:, 4:] = x
    return a


def loop_of_rows(x: torch.Tensor, y: torch.Tensor) -> object:
    a = torch.tril(x[:, :3] @ y[:, :3].t(), diagonal=-1)
    for i in range(1, 3):
        row = a[..., i, :i].clone()
        sub = a[..., :i, :i].clone()
        a[..., i, :i] = row + (row.unsqueeze(-1) * sub).sum(-2)
    return a + torch.eye(3)


def dtype_is_kept(x: torch.Tensor, y: torch.Tensor) -> object:
    a = torch.arange(5)
    a += 2
    a.mul_(torch.tensor(3, dtype=torch.int32))
    flags = x > 0
    flags |= y[:, :1] > 0
    flags ^= True
    half = x.round().to(torch.float16)
    half += x.round()
    return a, flags, half.float()


def shape_changes_in_place(x: torch.Tensor, y: torch.Tensor) -> object:
    a = x + 0
    a.unsqueeze_(0)
    a.transpose_(1, 2)
    a.squeeze_(0)
    a.add_(1)
    return a


def activations_in_place(x: torch.Tensor, y: torch.Tensor) -> object:
    a = torch.nn.functional.relu(x + 0, inplace=True)
    b = torch.nn.functional.silu(y + 0, inplace=True)
    c = (x + 1).clamp_(-0.5, 0.5)
    return a, b, c.tanh_().exp_()


def complex_views(x: torch.Tensor, y: torch.Tensor) -> object:
    pairs = y[:, :2] * 1
    c = torch.view_as_complex(pairs)
    c.mul_(2j)
    c.real.add_(1)
    c.imag[0] = 7.0
    c[1:].mul_(3)
    mirrored = c.conj()
    c.add_(1)
    torch.view_as_real(c)[2].zero_()
    return pairs, torch.view_as_real(mirrored.conj_physical()), c.real * 1


def strided_and_flat_views(x: torch.Tensor, y: torch.Tensor) -> object:
    a = x + 0
    a.as_strided((2, 2), (5, 3)).mul_(3)
    a.as_strided((2,), (1,), 4)[1] = -1.0
    a.ravel()[1:3].fill_(9)
    torch.positive(a)[2].neg_()
    left, middle, _ = torch.hsplit(a, [1, 3])
    left.add_(middle[:, :1])
    torch.vsplit(a, [2])[1].sub_(1)
    return a


def input_is_written(x: torch.Tensor, y: torch.Tensor) -> object:
    x.add_(1)
    return x * 2, x.reshape(-1)[3]


FUNCTIONS = [
    slice_of_slice,
    earlier_views_see_later_writes,
    clones_do_not,
    contiguous_is_the_same_where_it_is,
    split_and_unbind,
    select_write,
    masked_and_indexed,
    diagonal_write,
    empty_then_filled,
    loop_of_rows,
    dtype_is_kept,
    shape_changes_in_place,
    activations_in_place,
    complex_views,
    strided_and_flat_views,
    input_is_written,
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_writes(function: Callable[..., object]) -> None:
    torch.manual_seed(1)
    check(Function(function), torch.randn(3, 5), torch.randn(3, 4))


def test_without_gradients() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> object:
        a = x + 0
        with torch.no_grad():
            b = a[1:]
            b.mul_(3)
        return a, b + y[:2, :1]

    check(Function(function), torch.randn(3, 5), torch.randn(3, 4))


class Counter(torch.nn.Module):
    count: torch.Tensor

    def __init__(self, returned: bool) -> None:
        super().__init__()
        self.returned = returned
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return x + self.count if self.returned else x + 1


def test_a_buffer_that_counts_is_dropped_with_a_note() -> None:
    notes: list[str] = []
    graph = import_module(Counter(False), (torch.randn(2, 3),), notes=notes)
    assert not graph.parameters
    assert notes == ["the model writes to its buffer `count`; nothing it returns reads it"]


def test_state_between_calls_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"keeps state in its .* `count`") as caught:
        import_module(Counter(True), (torch.randn(2, 3),))
    assert caught.value.hint is not None


def test_a_written_input_is_noted() -> None:
    notes: list[str] = []
    x = torch.randn(3, 5)
    import_module(Function(input_is_written), (x, torch.randn(3, 4)), notes=notes)
    assert notes == ["the model writes to its input `x`; the caller's array is kept"]


def test_a_buffer_may_be_overwritten() -> None:
    class Overwrite(torch.nn.Module):
        held: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("held", torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.held.copy_(x[0])
            return x * self.held

    graph = check(Overwrite(), torch.randn(2, 3))
    assert not graph.parameters


def out_argument(x: torch.Tensor, y: torch.Tensor) -> object:
    a = x + 0
    torch.add(x, 1, out=a)
    return a


def perhaps_a_view(x: torch.Tensor, y: torch.Tensor) -> object:
    a = x + 0
    b = torch.special.bessel_j0(a)
    b.add_(1)
    return a


def part_as_strided(x: torch.Tensor, y: torch.Tensor) -> object:
    return x[1].as_strided((2,), (1,), 0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (out_argument, r"`aten\.add\.out` writes into a tensor that it is given as `out`"),
        (perhaps_a_view, "cannot be told whether it is shared"),
        (part_as_strided, "`as_strided` of a part of a tensor"),
    ],
)
def test_writes_that_cannot_be_followed_are_refused(
    function: Callable[..., object], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        import_module(Function(function), (torch.randn(3, 5), torch.randn(3, 4)))
    assert caught.value.hint is not None


def test_an_operation_that_gives_nothing_back_is_refused() -> None:
    @torch.library.custom_op("fusec_tests::scale", mutates_args=("x",))
    def scale(x: torch.Tensor) -> None:
        x.mul_(2)

    def function(x: torch.Tensor, y: torch.Tensor) -> object:
        a = x + 0
        scale(a)
        return a

    with pytest.raises(UnsupportedError, match=r"fusec_tests\.scale\.default.* gives nothing back"):
        import_module(Function(function), (torch.randn(3, 5), torch.randn(3, 4)))


def test_checks_vanish() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> object:
        torch._assert_async(x.sum() == x.sum(), "never")
        torch._check(x.shape[0] > 1)  # type: ignore[no-untyped-call]
        return x * 2

    graph = check(Function(function), torch.randn(3, 5), torch.randn(3, 4))
    assert [node.op for node in graph.nodes()] == ["constant", "mul"]
