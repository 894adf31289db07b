"""AITER, AMD's library of kernels for Instinct GPUs: what is known of its releases.

Names and signatures are in `aiter_manifest.json`, which `read_aiter` wrote from the tags of
github.com/ROCm/aiter.  What the functions can compute is stated where they are adapted, and comes
from the same tags: the functions' own checks, and the branches by length of a row in their kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fusec.kernels.external.manifest import Backend, Manifest, read_manifest

FINITE_MAX: Mapping[str, float] = {"gfx942": 240.0, "gfx950": 448.0}
"""What most functions scale the largest element to: the largest number of the 8-bit float.

`opus::finfo` in the C++ kernels and `torch.finfo` in front of the Triton ones."""

GATED_MAX: Mapping[str, float] = {"gfx942": 224.0, "gfx950": 448.0}
"""What `fused_rms_gated_fp8_group_quant` scales it to unless it is told otherwise."""

PACKED_MAX: Mapping[str, float] = {"gfx942": 6.0, "gfx950": 6.0}
"""What the largest element of a group of 4-bit floats is scaled to."""


LONGEST = 8192
"""Elements of a row that norms in C++ take; they have a branch for each length up to it."""

MULTIPLE = 4
"""Norms in C++ store whole words of 4 bytes: other rows would reach into the next one."""

ANY_FLOATS = ("bf16", "f16", "f32")
"""What Triton kernels read: they convert every element to f32."""


def backend_of(module: str) -> Backend:
    """What the functions of a module run: AITER keeps Triton kernels in a package of their own."""
    return "triton" if ".triton." in module else "hip"


AITER: Manifest = read_manifest(
    "aiter",
    distributions={"amd-aiter": "0.1.8", "aiter": "0.1.1"},
    backend_of=backend_of,
    file=Path(__file__).with_name("aiter_manifest.json"),
)
"""Every release with a tag."""
