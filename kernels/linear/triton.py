"""Records of the Triton kernel; its tiles are chosen by `tuning`, and how many rows there are."""

from __future__ import annotations

from fusec.dtypes import DTYPES
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, str_attr
from fusec.kernels.launch import Call, Launch, Storage
from fusec.kernels.triton_gemm import (
    Epilogue,
    Product,
    Tile,
    known,
    product_kernel,
    weight_refusal,
)
from fusec.kernels.triton_rows import FLOATS, is_divisible, row_count, row_stride
from fusec.kernels.tuning import ROWS_OF_TIERS, TIERS, Key, tile_for
from fusec.symbolic import Dim
from fusec.target import Family, Target

RAGGED_DEPTH: dict[Family, int] = {"amdgpu": 64, "nvidia": 32}
"""The depth of a tile at most where rows of the operands are not whole vectors: elements that are
moved one by one take a register and a mask each."""

ACTIVATIONS = {
    "none": 0,
    "silu": 1,
    "gelu": 2,
    "gelu_tanh": 3,
    "quick_gelu": 4,
    "relu": 5,
    "relu6": 6,
    "hardswish": 7,
}
"""Numbers of `activated` in `triton_kernel.py`."""

VECTOR_BYTES = 16
"""What a lane loads at a time where rows let it."""

NO_EPILOGUE = Epilogue()


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x, weight = map(graph.type, node.inputs[:2])
    if x.dtype not in FLOATS:
        return f"dtype: it computes {', '.join(FLOATS)}, not {x.dtype}"
    return weight_refusal(weight)


def _launch(call: Call) -> tuple[Launch, ...]:
    x, weight = call.inputs[:2]
    bias = call.inputs[2] if len(call.inputs) == 3 else None
    n, k = map(known, call.input_type(1).shape)
    return linear_launches(call, x, weight, bias, row_count(call.outputs[0]), n, k)


def activation_refusal(node: Node) -> str | None:
    """Why the activation of `node` is none that `activated` computes, if so."""
    activation = str_attr(node.attrs, "activation")
    if activation in ACTIVATIONS:
        return None
    return f"activation: it computes {', '.join(ACTIVATIONS)}, not {activation}"


def _supports_epilogue(graph: Graph, node: Node, target: Target) -> str | None:
    return activation_refusal(node) or _supports(graph, node, target)


def _launch_epilogue(call: Call) -> tuple[Launch, ...]:
    x, weight, *others = call.inputs
    has_bias, has_residual = (bool_attr(call.attrs, name) for name in ("has_bias", "has_residual"))
    epilogue = Epilogue(
        ACTIVATIONS[str_attr(call.attrs, "activation")], others[-1] if has_residual else None
    )
    bias = others[0] if has_bias else None
    n, k = map(known, call.input_type(1).shape)
    return linear_launches(call, x, weight, bias, row_count(call.outputs[0]), n, k, epilogue)


def linear_launches(
    call: Call,
    x: Storage,
    weight: Storage,
    bias: Storage | None,
    rows: Dim,
    n: int,
    k: int,
    epilogue: Epilogue = NO_EPILOGUE,
) -> tuple[Launch, ...]:
    """A product x [rows, k] @ weight [n, k].T + bias [n] of evenly spaced rows.

    Args:
        call: of which it is the first result.
        x: see above.
        weight: see above.
        bias: see above.
        rows: of x.
        n: rows of the weight.
        k: length of the rows.
        epilogue: what follows.
    """
    steps: dict[str, Dim] = {"x_stride": row_stride(x), "w_stride": row_stride(weight)}
    fixed = {
        name: step
        for name, step in steps.items()
        if isinstance(step, int) and (name == "w_stride" or not is_divisible(step))
    }
    product = Product(
        call,
        module="linear",
        function="linear_kernel",
        rows=rows,
        columns=n,
        length=k,
        operands={"x": x, "w": weight, **({} if bias is None else {"bias": bias})},
        strides={name: step for name, step in steps.items() if name not in fixed},
        constants=fixed,
        epilogue=epilogue,
    )
    vector = VECTOR_BYTES // DTYPES[x.dtype].itemsize
    is_ragged = any(
        step % vector if isinstance(step, int) else not is_divisible(step)
        for step in (k, *steps.values())
    )

    def tile(key: Key) -> Tile:
        found = tile_for(call.target, key)
        if not is_ragged:
            return found
        return found.for_ragged_rows(call.target.family).at_most(RAGGED_DEPTH[call.target.family])

    kernel = "linear.triton" if epilogue == NO_EPILOGUE else "linear_epilogue.triton"
    *tiles, many = (tile(Key(kernel, x.dtype, n, k, tier)) for tier in TIERS)
    return product.launches([*zip(ROWS_OF_TIERS, tiles, strict=True)], many)


LINEAR = product_kernel("linear", "triton", "linear", _supports, _launch)

LINEAR_EPILOGUE = product_kernel(
    "linear_epilogue", "triton", "linear", _supports_epilogue, _launch_epilogue
)
