"""Translations of ONNX operators, by theme; importing this package enters them all."""

from fusec.frontend.onnx_ops import (
    attention,
    contrib,
    convolution,
    elementwise,
    indexing,
    integers,
    linear,
    normalisation,
    quantisation,
    reduction,
    sequence,
    shape,
)

__all__ = [
    "attention",
    "contrib",
    "convolution",
    "elementwise",
    "indexing",
    "integers",
    "linear",
    "normalisation",
    "quantisation",
    "reduction",
    "sequence",
    "shape",
]
