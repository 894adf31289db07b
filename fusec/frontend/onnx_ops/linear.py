"""Matrix products."""

from __future__ import annotations

from fusec import symbolic
from fusec.diagnostics import InputError
from fusec.frontend.onnx_ops.base import (
    MICROSOFT,
    Call,
    Context,
    NotCovered,
    Results,
    Value,
    operator,
)
from fusec.symbolic import Dim


@operator("MatMul")
def _matmul(ctx: Context, call: Call) -> Results:
    return product(ctx, call.operand(0), call.operand(1))


def product(ctx: Context, a: Value, b: Value) -> Value:
    """numpy's `a @ b`; with a matrix of the file on the right it is `linear`."""
    if a.rank == 0 or b.rank == 0:
        raise InputError("a `MatMul` has a scalar operand")
    ctx.require_equal(a.shape[-1], b.shape[-2 if b.rank > 1 else -1])
    if b.weight is not None and b.rank == 2 and a.weight is None and a.type.element.is_float:
        weight = ctx.transpose(b, (1, 0))
        return ctx.emit("linear", (a, weight))
    row, column = a.rank == 1, b.rank == 1
    left = ctx.reshape(a, (1, *a.shape)) if row else a
    right = ctx.reshape(b, (*b.shape, 1)) if column else b
    ctx.agree(left.shape[:-2], right.shape[:-2])
    result = ctx.emit("matmul", (left, right))
    shape: list[Dim] = list(result.shape)
    if column:
        del shape[-1]
    if row:
        del shape[-1 if column else -2]
    return ctx.reshape(result, shape)


@operator("Gemm")
def _gemm(ctx: Context, call: Call) -> Results:
    """alpha * a' * b' + beta * c."""
    a, b, c = call.operand(0), call.operand(1), call.optional(2)
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    if call.integer("transA", 0):
        a = ctx.transpose(a, (1, 0))
    rows = b if call.integer("transB", 0) else None
    plain = alpha == 1.0 and (c is None or beta == 1.0)
    if b.weight is not None and a.weight is None:
        weight = b if rows is not None else ctx.transpose(b, (1, 0))
        ctx.require_equal(a.shape[-1], weight.shape[-1])
        if plain and c is not None and c.shape == weight.shape[:1]:
            return ctx.emit("linear", (a, weight, c))
        result = ctx.emit("linear", (a, weight))
    else:
        right = ctx.transpose(b, (1, 0)) if rows is not None else b
        ctx.require_equal(a.shape[-1], right.shape[-2])
        result = ctx.emit("matmul", (a, right))
    if alpha != 1.0:
        result = ctx.elementwise("mul", result, ctx.scalar(alpha, result.dtype))
    if c is None or beta == 0.0:
        return result
    if beta != 1.0:
        c = ctx.elementwise("mul", c, ctx.scalar(beta, c.dtype))
    return ctx.elementwise("add", result, c)


@operator("FusedMatMul", domain=MICROSOFT)
def _fused_matmul(ctx: Context, call: Call) -> Results:
    a, b = call.operand(0), call.operand(1)
    if call.integer("transBatchA", 0) or call.integer("transBatchB", 0):
        raise NotCovered("`FusedMatMul` with batch axes in another place")
    if call.integer("transA", 0) and a.rank > 1:
        a = ctx.swap_last(a)
    if call.integer("transB", 0) and b.rank > 1:
        b = ctx.swap_last(b)
    result, alpha = product(ctx, a, b), call.number("alpha", 1.0)
    if alpha == 1.0:
        return result
    return ctx.elementwise("mul", result, ctx.scalar(alpha, result.dtype))


@operator("Einsum")
def _einsum(ctx: Context, call: Call) -> Results:
    equation = call.text("equation", "").replace(" ", "")
    operands = [call.operand(index) for index in range(len(call.inputs))]
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if "." in equation or not all(term.isalpha() or not term for term in terms):
        raise NotCovered(f"the equation `{equation}`")
    if not arrow:
        letters = sorted(set(left.replace(",", "")))
        right = "".join(letter for letter in letters if left.count(letter) == 1)
    if len(terms) != len(operands) or len(set(right)) != len(right):
        raise InputError(f"an `Einsum` has the impossible equation `{equation}`")
    for term, operand in zip(terms, operands, strict=True):
        if len(term) != operand.rank:
            raise InputError(f"`{equation}` does not fit an operand of rank {operand.rank}")
        if len(set(term)) != len(term):
            raise NotCovered(f"the diagonal in `{equation}`")
    term, value = terms[0], operands[0]
    for index in range(1, len(terms)):
        later = set(right).union(*terms[index + 1 :])
        term, value = _contract(ctx, term, value, terms[index], operands[index], later)
    return _ordered(ctx, term, value, right)


def _contract(
    ctx: Context, left: str, a: Value, right: str, b: Value, later: set[str]
) -> tuple[str, Value]:
    """One product of two operands, summed over what nobody needs later."""
    sizes = dict(zip(left, a.shape, strict=True))
    for letter, dim in zip(right, b.shape, strict=True):
        ctx.require_equal(sizes.setdefault(letter, dim), dim)
    left, a = _summed(ctx, left, a, later | set(right))
    right, b = _summed(ctx, right, b, later | set(left))
    shared = [letter for letter in left if letter in right]
    batch = [letter for letter in shared if letter in later]
    inner = [letter for letter in shared if letter not in later]
    rows = [letter for letter in left if letter not in shared]
    columns = [letter for letter in right if letter not in shared]

    def grouped(term: str, value: Value, groups: tuple[list[str], list[str]]) -> Value:
        order = [*batch, *groups[0], *groups[1]]
        value = ctx.transpose(value, [term.index(letter) for letter in order])
        flat = [symbolic.product([sizes[letter] for letter in group]) for group in groups]
        return ctx.reshape(value, (*(sizes[letter] for letter in batch), *flat))

    result = product(ctx, grouped(left, a, (rows, inner)), grouped(right, b, (inner, columns)))
    term = "".join((*batch, *rows, *columns))
    return term, ctx.reshape(result, [sizes[letter] for letter in term])


def _summed(ctx: Context, term: str, value: Value, needed: set[str]) -> tuple[str, Value]:
    axes = [axis for axis, letter in enumerate(term) if letter not in needed]
    if not axes:
        return term, value
    kept = "".join(letter for letter in term if letter in needed)
    return kept, ctx.reduce("reduce_sum", value, axes, False)


def _ordered(ctx: Context, term: str, value: Value, wanted: str) -> Value:
    term, value = _summed(ctx, term, value, set(wanted))
    if sorted(term) != sorted(wanted):
        raise InputError(f"an `Einsum` returns letters it has not: `{wanted}`")
    return ctx.transpose(value, [term.index(letter) for letter in wanted])
