"""The samples of PyTorch's own database of operators against eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from aten_check import check_graph
from torch import Tensor
from torch.utils import _pytree as pytree

from fusec.frontend.sources import load_source

pytest.importorskip("expecttest", reason="the database of PyTorch imports it")

SAMPLES = 5
"""Samples that are tried of an operator with a dtype."""

DTYPES = (torch.float32, torch.int64, torch.bool)

NAMES = """
abs acos acosh addmm addmv addbmm addcdiv addcmul aminmax asin asinh atan atan2 atanh baddbmm
bmm broadcast_tensors ceil chunk clamp clamp_max clamp_min constant_pad_nd copysign cos cosh
cross cumprod cumsum diag diag_embed diagonal diagonal_scatter diff div:floor_rounding
div:no_rounding_mode div:trunc_rounding dot einsum eq exp exp2 expand expm1 flip float_power
floor fmax fmin frac ge gt heaviside index_add index_copy index_fill index_put index_select
isclose isin isnan le lerp linspace log log10 log1p log2 logaddexp logical_and logical_not
logical_or lt masked_fill masked_scatter matmul max:binary max:reduction_no_dim maximum
meshgrid:variadic_tensors min:binary minimum mm mul mv nan_to_num nanquantile ne neg
nn.functional.adaptive_avg_pool2d nn.functional.conv1d nn.functional.conv2d
nn.functional.conv_transpose2d nn.functional.cosine_similarity nn.functional.elu
nn.functional.gelu nn.functional.glu nn.functional.group_norm nn.functional.hardswish
nn.functional.instance_norm nn.functional.interpolate:bicubic nn.functional.interpolate:bilinear
nn.functional.interpolate:nearest nn.functional.layer_norm nn.functional.leaky_relu
nn.functional.linear nn.functional.mish nn.functional.normalize nn.functional.pad:circular
nn.functional.pad:constant nn.functional.pad:reflect nn.functional.pad:replicate
nn.functional.pad:replicate_negative nn.functional.prelu nn.functional.relu
nn.functional.rms_norm nn.functional.silu nn.functional.softmin nn.functional.unfold outer
permute pow quantile reciprocal remainder reshape roll rot90 round rsqrt rsub scatter
scatter_add scatter_reduce:amax scatter_reduce:amin scatter_reduce:mean scatter_reduce:prod
scatter_reduce:sum select select_scatter sign signbit sin sinc sinh slice slice_scatter softmax
split sqrt square std_mean sub tan tanh trunc unflatten var_mean vdot __getitem__
linalg.vector_norm
""".split()


class Sample(torch.nn.Module):
    """An operator called as a sample says, with the tensors of the sample as inputs."""

    def __init__(self, operator: Callable[..., object], arguments: object) -> None:
        super().__init__()
        self.operator = operator
        leaves, self.spec = pytree.tree_flatten(arguments)
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.leaves = [... if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def forward(self, *tensors: Tensor) -> object:
        given = iter(tensors)
        leaves = [next(given) if leaf is ... else leaf for leaf in self.leaves]
        args, named = pytree.tree_unflatten(leaves, self.spec)
        return self.operator(*args, **named)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_samples(name: str) -> None:
    """`name` may have a variant after a colon."""
    from torch.testing._internal.common_methods_invocations import op_db

    base, _, variant = name.partition(":")
    found: list[Any] = [op for op in op_db if (op.name, op.variant_test_name) == (base, variant)]
    (operator,) = found
    for dtype in DTYPES:
        if not operator.supports_dtype(dtype, "cpu"):
            continue
        for sample in islice(operator.sample_inputs("cpu", dtype), SAMPLES):
            module = Sample(operator.op, ((sample.input, *sample.args), sample.kwargs))
            given = tuple(tensor.clone() for tensor in module.tensors)
            graph = load_source(module, example_inputs=given).graph
            check_graph(graph, module, module.tensors, tolerance=1e-4)
