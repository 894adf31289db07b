"""The norm behind a sublayer and the residual connection that it is added to.

Fuses   residual + rms_norm(x, w)   into   norm_add(x, w, residual) {eps, weight_offset}

The normed rows are not rounded before they are added.

Leaves it alone when
  shape  the residual has another shape than x, so that one of them is widened
"""

from fusec.ir.ops.base import OpDef, arity
from fusec.rewrite import FusionPass, Op, Rejection, Var


def _infer(types, attrs):
    """x [..., N], weight [N], residual [..., N]: the type of x."""
    arity(types, 3)
    return (types[0],)


def _reference(arrays, attrs, types):
    x, weight, residual = arrays
    rms = ((x * x).mean(axis=-1, keepdims=True) + attrs["eps"]) ** 0.5
    return (residual + x / rms * (weight + attrs["weight_offset"]),)


NORM_ADD = OpDef("norm_add", _infer, _reference)


def _shape(match, target):
    """Guard: what is added has the shape of what is normed."""
    x, residual = (match.graph.type(match.values[name]) for name in ("x", "residual"))
    reason, hint = f"`{residual}` is added to the norm of `{x}`", "expand it before the sum"
    rejection = Rejection("shape", reason, at=match.root.name, hint=hint)
    return None if x.shape == residual.shape else rejection


class NormAdd(FusionPass):
    """One node, where `add_rms_norm` has not taken the sum for the norm that follows."""

    name = fusion = "norm_add"
    after = ("add_rms_norm",)
    before = ("linear_epilogue",)
    patterns = (Op("add", (Op("rms_norm", (Var("x"), Var("w")), name="norm"), Var("residual"))),)
    guards = (_shape,)

    def rewrite(self, match, target, build):
        """Build the node."""
        attrs = {name: match.nodes["norm"].attrs[name] for name in ("eps", "weight_offset")}
        inputs = [match.values[name] for name in ("x", "w", "residual")]
        return {match.root.output: build.value("norm_add", inputs, attrs)}
