"""Numbers computed from sizes, where the export's expression is not a size itself."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from fusec import symbolic
from fusec.frontend.aten_ops.base import Builder, SymFloat, Val
from fusec.symbolic import Expr

_INTEGERS: dict[str, Callable[..., Any]] = {
    "_operator.add": operator.add,
    "_operator.sub": operator.sub,
    "_operator.mul": operator.mul,
    "_operator.neg": lambda x: 0 - x,
    "_operator.floordiv": symbolic.floor_divide,
    "_operator.mod": symbolic.modulo,
    "torch.sym_max": symbolic.maximum,
    "torch.sym_min": symbolic.minimum,
    "builtins.max": symbolic.maximum,
    "builtins.min": symbolic.minimum,
}
_NUMBERS: dict[str, Callable[..., Any]] = {
    **_INTEGERS,
    "_operator.floordiv": operator.floordiv,
    "_operator.mod": operator.mod,
    "_operator.truediv": operator.truediv,
    "_operator.pow": operator.pow,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_float": float,
    "torch.sym_sqrt": math.sqrt,
    "torch._sym_sqrt": math.sqrt,
    "math.sqrt": math.sqrt,
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
    "builtins.round": round,
}
_FLOAT_OPS = {
    "_operator.add": "add",
    "_operator.sub": "sub",
    "_operator.mul": "mul",
    "_operator.truediv": "div",
    "_operator.pow": "pow",
    "_operator.neg": "neg",
    "torch.sym_max": "maximum",
    "torch.sym_min": "minimum",
    "torch._sym_sqrt": "sqrt",
    "torch.sym_sqrt": "sqrt",
    "math.sqrt": "sqrt",
}


def compute(build: Builder, target: str, args: Sequence[object]) -> Any:
    """The result of a call on numbers: a size, a float, a node that computes a float, or `None`.

    Flags give `None`: only checks read them.
    """
    if all(isinstance(value, int | Expr) and not isinstance(value, bool) for value in args):
        if target in _INTEGERS:
            return _INTEGERS[target](*args)
        if target == "_operator.pow" and isinstance(args[1], int) and 0 <= args[1] <= 8:
            return symbolic.product([args[0]] * args[1])  # type: ignore[list-item]
    if all(isinstance(value, int | float) for value in args) and target in _NUMBERS:
        return _NUMBERS[target](*args)
    if target == "torch.sym_float" and isinstance(args[0], int | Expr):
        return SymFloat(build.scalar(args[0], "f64"))
    if target == "torch.sym_float" and isinstance(args[0], SymFloat):
        return args[0]
    if target in _FLOAT_OPS and all(isinstance(x, int | float | Expr | SymFloat) for x in args):
        return SymFloat(build.emit(_FLOAT_OPS[target], *(_float(build, x) for x in args)))
    return None


def _float(build: Builder, value: object) -> Val:
    if isinstance(value, SymFloat):
        return value.value
    assert isinstance(value, int | float | Expr)
    return build.scalar(value, "f64")
