"""ATen matrix products and what is written with them."""

from __future__ import annotations

from collections.abc import Sequence

from fusec.frontend.aten_ops.base import (
    Builder,
    Complex,
    Number,
    Val,
    aten,
    broadcast_shape,
    numel,
)
from fusec.frontend.aten_ops.elementwise import conjugate, mul
from fusec.symbolic import Dim


@aten("linear")
def linear(build: Builder, x: Val, weight: Val, bias: Val | None = None) -> Val:
    if weight.rank == 1:
        y = build.reduce("reduce_sum", x * weight, (-1,))
        return y if bias is None else y + bias
    operands = (x, weight) if bias is None else (x, weight, bias)
    return build.emit("linear", *operands)


@aten("matmul", "mm", "bmm", "mv", "dot", both=True)
def matmul(build: Builder, a: Val | Complex, b: Val | Complex) -> Val | Complex:
    """numpy's rule; a vector counts as a row on the left and as a column on the right."""
    if isinstance(a, Complex) or isinstance(b, Complex):
        return _complex_matmul(build, a, b)
    left, right = a, b
    if a.rank == 1:
        left = build.unsqueeze(a, 0)
    if b.rank == 1:
        right = build.unsqueeze(b, 1)
    product = build.emit("matmul", left, right)
    if b.rank == 1:
        product = build.squeeze(product, -1)
    if a.rank == 1:
        product = build.squeeze(product, -1 if b.rank == 1 else -2)
    return product


def _complex_matmul(build: Builder, a: Val | Complex, b: Val | Complex) -> Complex:
    def product(x: Val, y: Val) -> Val:
        result = matmul(build, x, y)
        assert isinstance(result, Val)
        return result

    if isinstance(a, Val):
        assert isinstance(b, Complex)
        return Complex(product(a, b.real), product(a, b.imag))
    if isinstance(b, Val):
        return Complex(product(a.real, b), product(a.imag, b))
    real = product(a.real, b.real) - product(a.imag, b.imag)
    return Complex(real, product(a.real, b.imag) + product(a.imag, b.real))


@aten("vdot", both=True)
def _vdot(build: Builder, a: Val | Complex, b: Val | Complex) -> Val | Complex:
    return matmul(build, conjugate(a) if isinstance(a, Complex) else a, b)


def _plain(build: Builder, a: Val, b: Val) -> Val:
    result = matmul(build, a, b)
    assert isinstance(result, Val)
    return result


@aten("addmm", "baddbmm", "addmv")
def _addmm(build: Builder, x: Val, a: Val, b: Val, *, beta: Number = 1, alpha: Number = 1) -> Val:
    return _weighted(x, _plain(build, a, b), beta, alpha)


def _weighted(x: Val, product: Val, beta: Number, alpha: Number) -> Val:
    """`beta x + alpha product`; with a `beta` of 0, `x` is not read."""
    if alpha != 1:
        product = product * alpha
    if beta == 0:
        return product
    return (x if beta == 1 else x * beta) + product


@aten("addbmm")
def _addbmm(build: Builder, x: Val, a: Val, b: Val, *, beta: Number = 1, alpha: Number = 1) -> Val:
    product = build.reduce("reduce_sum", _plain(build, a, b), (0,))
    return _weighted(x, product, beta, alpha)


@aten("bmm.dtype", "mm.dtype")
def _bmm_dtype(build: Builder, a: Val, b: Val, out_dtype: str) -> Val:
    dtype = build.result().dtype
    return _plain(build, build.cast(a, dtype), build.cast(b, dtype))


@aten("outer", "ger")
def _outer(build: Builder, a: Val, b: Val) -> Val | Complex:
    return mul(build, build.unsqueeze(a, 1), b)


@aten("inner")
def _inner(build: Builder, a: Val, b: Val) -> Val:
    if not a.rank or not b.rank:
        return build.elementwise("mul", a, b)
    return tensordot(build, a, b, (a.rank - 1,), (b.rank - 1,))


@aten("kron")
def _kron(build: Builder, a: Val, b: Val) -> Val:
    rank = max(a.rank, b.rank)
    a = build.reshape(a, (1,) * (rank - a.rank) + a.shape)
    b = build.reshape(b, (1,) * (rank - b.rank) + b.shape)
    left: list[Dim] = []
    right: list[Dim] = []
    for i in range(rank):
        left += [a.shape[i], 1]
        right += [1, b.shape[i]]
    product = build.reshape(a, left) * build.reshape(b, right)
    return build.reshape(product, build.result().shape)


@aten("chain_matmul", "linalg_multi_dot")
def _chain(build: Builder, matrices: Sequence[Val]) -> Val:
    result = matrices[0]
    for matrix in matrices[1:]:
        result = _plain(build, result, matrix)
    return result


@aten("tensordot")
def _tensordot(
    build: Builder, a: Val, b: Val, dims_self: Sequence[int], dims_other: Sequence[int]
) -> Val:
    return tensordot(build, a, b, dims_self, dims_other)


def tensordot(build: Builder, a: Val, b: Val, a_axes: Sequence[int], b_axes: Sequence[int]) -> Val:
    """The product summed over pairs of axes."""
    a_axes = [a.axis(axis) for axis in a_axes]
    b_axes = [b.axis(axis) for axis in b_axes]
    a_rest = [axis for axis in range(a.rank) if axis not in a_axes]
    b_rest = [axis for axis in range(b.rank) if axis not in b_axes]
    inner = numel([a.shape[axis] for axis in a_axes])
    rows = [a.shape[axis] for axis in a_rest]
    columns = [b.shape[axis] for axis in b_rest]
    left = build.reshape(build.transpose(a, (*a_rest, *a_axes)), (numel(rows), inner))
    right = build.reshape(build.transpose(b, (*b_axes, *b_rest)), (inner, numel(columns)))
    return build.reshape(build.emit("matmul", left, right), (*rows, *columns))


@aten("cosine_similarity")
def _cosine(build: Builder, x: Val, y: Val, dim: int = 1, eps: float = 1e-8) -> Val:
    shape = broadcast_shape(x.shape, y.shape)

    def unit(v: Val) -> Val:
        v = build.expand(v, shape)
        length = build.emit("sqrt", build.reduce("reduce_sum", v * v, (dim,), True))
        return v / build.emit("clamp", length, min=eps, max=None)

    return build.reduce("reduce_sum", unit(x) * unit(y), (dim,))


@aten("cdist", "_cdist_forward")
def _cdist(build: Builder, x: Val, y: Val, p: float = 2, compute_mode: object = None) -> Val:
    gap = build.unsqueeze(x, x.rank - 1) - build.unsqueeze(y, y.rank - 2)
    if p == 1:
        return build.reduce("reduce_sum", build.emit("abs", gap), (-1,))
    if p != 2:
        raise build.unsupported(f"`cdist` with `p={p}`")
    return build.emit("sqrt", build.reduce("reduce_sum", gap * gap, (-1,)))


# --- einsum ---------------------------------------------------------------------------------


@aten("einsum")
def _einsum(build: Builder, equation: str, tensors: Sequence[Val], *, path: object = None) -> Val:
    text = equation.replace(" ", "")
    left, arrow, output = text.partition("->")
    terms = left.split(",")
    ranks = [x.rank - len(term.replace("...", "")) for x, term in zip(tensors, terms, strict=True)]
    widest = max((n for n, term in zip(ranks, terms, strict=True) if "..." in term), default=0)
    dots = "".join(chr(0x100 + i) for i in range(widest))
    filled = [
        term.replace("...", dots[widest - n :] if n else "")
        for n, term in zip(ranks, terms, strict=True)
    ]
    if arrow:
        output = output.replace("...", dots)
    else:
        letters = "".join(filled)
        once = sorted(c for c in set(letters) if letters.count(c) == 1 and c not in dots)
        output = dots + "".join(once)
    result, labels = _prepared(build, tensors[0], filled[0])
    for index in range(1, len(filled)):
        wanted = set(output).union(*filled[index + 1 :])
        other, names = _prepared(build, tensors[index], filled[index])
        result, labels = _contracted(build, result, labels, other, names, wanted)
    gone = [axis for axis, label in enumerate(labels) if label not in output]
    if gone:
        result = build.reduce("reduce_sum", result, gone)
        labels = "".join(label for label in labels if label in output)
    return build.transpose(result, [labels.index(label) for label in output])


def _prepared(build: Builder, x: Val, labels: str) -> tuple[Val, str]:
    """A label that is there twice takes the diagonal."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            a = labels.index(label)
            b = labels.index(label, a + 1)
            x = build.move(build.move(x, b, x.rank - 1), a, x.rank - 2)
            labels = "".join(c for i, c in enumerate(labels) if i not in (a, b)) + label
            place = build.iota(x.shape[-1])
            x = build.emit("index", x, place, place, axes=(x.rank - 2, x.rank - 1))
    return x, labels


def _contracted(
    build: Builder, a: Val, a_labels: str, b: Val, b_labels: str, wanted: set[str]
) -> tuple[Val, str]:
    """The product of two operands, summed over labels that nothing else wants."""
    for label in [label for label in a_labels if label not in b_labels and label not in wanted]:
        a = build.reduce("reduce_sum", a, (a_labels.index(label),))
        a_labels = a_labels.replace(label, "")
    for label in [label for label in b_labels if label not in a_labels and label not in wanted]:
        b = build.reduce("reduce_sum", b, (b_labels.index(label),))
        b_labels = b_labels.replace(label, "")
    shared = [label for label in a_labels if label in b_labels]
    for label in shared:  # a size of 1 broadcasts
        i, j = a_labels.index(label), b_labels.index(label)
        if a.shape[i] != b.shape[j]:
            size = b.shape[j] if a.shape[i] == 1 else a.shape[i]
            a = build.expand(a, (*a.shape[:i], size, *a.shape[i + 1 :]))
            b = build.expand(b, (*b.shape[:j], size, *b.shape[j + 1 :]))
    batch = [label for label in shared if label in wanted]
    inner = [label for label in shared if label not in wanted]
    rows = [label for label in a_labels if label not in shared]
    columns = [label for label in b_labels if label not in shared]
    if not inner:
        order = [*batch, *rows, *columns]
        left = build.transpose(a, [a_labels.index(label) for label in (*batch, *rows)])
        right = build.transpose(b, [b_labels.index(label) for label in (*batch, *columns)])
        left = build.reshape(left, (*left.shape, *(1,) * len(columns)))
        n = len(batch)
        right = build.reshape(right, (*right.shape[:n], *(1,) * len(rows), *right.shape[n:]))
        return build.emit("mul", left, right), "".join(order)
    size_a = {label: a.shape[i] for i, label in enumerate(a_labels)}
    size_b = {label: b.shape[i] for i, label in enumerate(b_labels)}
    lead = [size_a[label] for label in batch]
    depth = numel([size_a[label] for label in inner])
    left = build.transpose(a, [a_labels.index(label) for label in (*batch, *rows, *inner)])
    left = build.reshape(left, (*lead, numel([size_a[label] for label in rows]), depth))
    right = build.transpose(b, [b_labels.index(label) for label in (*batch, *inner, *columns)])
    right = build.reshape(right, (*lead, depth, numel([size_b[label] for label in columns])))
    product = build.emit("matmul", left, right)
    shape = (*lead, *(size_a[label] for label in rows), *(size_b[label] for label in columns))
    return build.reshape(product, shape), "".join((*batch, *rows, *columns))


# --- grouped and triangular -----------------------------------------------------------------


@aten("_grouped_mm")
def _grouped_mm(
    build: Builder, x: Val, weight: Val, offs: Val | None = None, bias: Val | None = None,
    out_dtype: str | None = None,
) -> Val:  # fmt: skip
    if x.rank == 3 and weight.rank == 3 and offs is None:
        product = build.emit("matmul", x, weight)
    elif x.rank == 2 and weight.rank == 3 and offs is not None:
        product = build.emit("grouped_mm", x, weight, build.cast(offs, "i32"))
    else:
        raise build.unsupported(f"`_grouped_mm` of `{x.type}` and `{weight.type}`")
    return product if bias is None else product + bias


@aten(".transformers.grouped_mm_fallback.default")
def _grouped_mm_fallback(build: Builder, x: Val, weight: Val, offs: Val) -> Val:
    return build.emit("grouped_mm", x, weight, build.cast(offs, "i32"))


@aten("linalg_solve_triangular")
def _solve_triangular(
    build: Builder, a: Val, b: Val, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Val:
    if not left:  # X A = B is A^T X^T = B^T
        a, b, upper = build.swap(a, -2, -1), build.swap(b, -2, -1), not upper
    result = build.emit("solve_triangular", a, b, upper=upper, unit_diagonal=unitriangular)
    return result if left else build.swap(result, -2, -1)


@aten("triangular_solve")
def _old_solve(
    build: Builder, b: Val, a: Val, upper: bool = True, transpose: bool = False,
    unitriangular: bool = False,
) -> tuple[Val, Val]:  # fmt: skip
    if transpose:
        a, upper = build.swap(a, -2, -1), not upper
    return build.emit("solve_triangular", a, b, upper=upper, unit_diagonal=unitriangular), a


@aten(".fusec.gated_delta_rule.default")
def _gated_delta_rule(
    build: Builder, q: Val, k: Val, v: Val, g: Val, beta: Val, scale: float,
    qk_l2_norm: bool = False, eps: float = 1e-6,
) -> Val:  # fmt: skip
    return build.emit(
        "gated_delta_rule", q, k, v, g, beta, scale=scale, qk_l2_norm=qk_l2_norm, eps=eps
    )


@aten(".fusec.selective_scan.default")
def _selective_scan(build: Builder, u: Val, dt: Val, a: Val, b: Val, c: Val) -> Val:
    return build.emit("selective_scan", u, dt, a, b, c)
