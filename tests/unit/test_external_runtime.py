"""A library's function is checked against its recorded signature once, when it is loaded."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from external_sites import NORM, SAMPLES, TWO_NORMS, Sample, call_of

from fusec.diagnostics import ArtifactError
from fusec.ir import OPS
from fusec.ir.types import Attr
from fusec.kernels.external.call import ExternalCall
from fusec.kernels.external.provider import parse_provider, records
from fusec.kernels.launch import Launch
from fusec.runtime.documents import Field
from fusec.runtime.errors import LibraryError, MalformedError
from fusec.runtime.external import (
    ExternalFunction,
    ExternalSpec,
    live_signature,
    load_external,
    read_external,
)
from fusec.signatures import parse_signature
from fusec.target import target_named

ROWS = 5
NORM_SOURCE = """
import torch

def _norm(x, weight, eps):
    wide = x.double()
    root = torch.sqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return (wide / root * weight.double()).to(x.dtype)
"""
OLD = """
def fused_qk_rmsnorm(q, q_weight, q_eps, k, k_weight, k_eps):
    return _norm(q, q_weight, q_eps), _norm(k, k_weight, k_eps)
"""
NEW = """
def _fused_qk_rmsnorm(q_out, q, q_weight, q_eps, k_out, k, k_weight, k_eps):
    q_out.copy_(_norm(q, q_weight, q_eps))
    k_out.copy_(_norm(k, k_weight, k_eps))
    return q_out, k_out
"""
NAMESAKE = """
def fused_qk_rmsnorm(
    q_out_quantized=None, q_out_scale=None, q=None, q_weight=None, q_epsilon=1e-6,
    q_out_unquantized=None, k_out=None, q_res_out=None, k=None, k_weight=None, k_epsilon=None,
    q_residual=None, gemma_norm=False, quant_type=0, group_size=None, transpose_scale=False,
):
    raise AssertionError("this is another kernel")
"""
TWO_NORMS_MODULE = "aiter.ops.fused_qk_norm_rope_cache_quant"


@dataclass
class Library:
    """A package that stands for AITER, on the path."""

    folder: Path
    modules: dict[str, str] = field(default_factory=dict)

    def install(self, version: str, modules: dict[str, str], name: str = "amd-aiter") -> None:
        """Write the package and, unless `version` is empty, the record that it is installed."""
        for module, source in modules.items():
            parts = module.split(".")
            for depth in range(1, len(parts)):
                package = self.folder.joinpath(*parts[:depth])
                package.mkdir(exist_ok=True)
                (package / "__init__.py").touch()
            self.folder.joinpath(*parts).with_suffix(".py").write_text(textwrap.dedent(source))
        if version:
            record = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
            record.mkdir()
            (record / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            )


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    monkeypatch.syspath_prepend(str(tmp_path))
    forget_library()
    yield Library(tmp_path)
    forget_library()


def forget_library() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "aiter"]:
        del sys.modules[name]


def compiled(
    release: str, function: str = "fused_qk_rmsnorm", name: str = "dual_rms_norm"
) -> tuple[Launch, ExternalCall]:
    """The call that a compilation for a release of AITER gives."""
    return compiled_for(release, function, SAMPLES[name])


def compiled_for(release: str, function: str, sample: Sample) -> tuple[Launch, ExternalCall]:
    graph, node = sample.node()
    name = f"{node.op}.aiter.{function}"
    held = records(parse_provider(f"aiter=={release}"))
    kernel = next(each for each in held if each.name == name)
    target = target_named("gfx950")
    assert kernel.supports(graph, node, target) is None
    (launch,) = kernel.launches(call_of(graph, node, target))
    assert isinstance(launch.code, ExternalCall)
    return launch, launch.code


def spec_of(external: ExternalCall) -> ExternalSpec:
    return read_external(Field(external.document(), "program/gfx950.json"))


def refused(external: ExternalCall) -> LibraryError:
    with pytest.raises(LibraryError) as caught:
        load_external(spec_of(external))
    assert caught.value.exit_code == 5
    assert caught.value.at == "program/gfx950.json"
    assert caught.value.hint is not None and "--provider aiter==" in caught.value.hint
    return caught.value


# --- both sides of the rename ---------------------------------------------------------------


def two_norms(external: ExternalFunction, operands: list[torch.Tensor]) -> None:
    """Run it on fresh operands and compare with the reference in double precision."""
    external.run(operands, lambda name: name)
    arrays = [operand.double().numpy() for operand in operands[:4]]
    types = [operands[index].dtype for index in (0, 2)]
    wanted = OPS["dual_rms_norm"].reference(arrays, TWO_NORMS, ())
    for result, expected, dtype in zip(operands[4:], wanted, types, strict=True):
        assert result.dtype == dtype
        np.testing.assert_allclose(result.double().numpy(), expected, rtol=1 / 128, atol=1e-6)
        assert not np.allclose(result.double().numpy(), 2 * expected, rtol=1 / 16)


def operands_of(lengths: tuple[int, int] = (24, 7)) -> list[torch.Tensor]:
    """Strided halves of one projection, two weights, and results full of NaN."""
    projected = torch.randn(ROWS, sum(lengths) + 3).bfloat16()
    q, k = projected[:, : lengths[0]], projected[:, lengths[0] : sum(lengths)]
    weights = [torch.randn(length).bfloat16() for length in lengths]
    results = [torch.full((ROWS, length), float("nan")).bfloat16() for length in lengths]
    return [q, weights[0], k, weights[1], *results]


@pytest.mark.parametrize(("release", "source"), (("0.1.13", OLD), ("0.1.14", NEW)))
def test_each_form_is_loaded_and_called_in_its_way(
    library: Library, release: str, source: str
) -> None:
    library.install(release, {TWO_NORMS_MODULE: NORM_SOURCE + source})
    two_norms(load_external(spec_of(compiled(release)[1])), operands_of())


def test_the_rename_is_found_out_at_load(library: Library) -> None:
    library.install("0.1.13", {TWO_NORMS_MODULE: NORM_SOURCE + NEW})
    error = refused(compiled("0.1.13")[1])
    assert str(error) == f"aiter has no `{TWO_NORMS_MODULE}:fused_qk_rmsnorm`"


def test_the_namesake_is_not_called(library: Library) -> None:
    library.install("0.1.13", {TWO_NORMS_MODULE: NAMESAKE})
    error = refused(compiled("0.1.13")[1])
    assert str(error).endswith("is not the function this was compiled for")
    expected, found = error.detail
    assert expected.startswith(
        "aiter 0.1.13: (q: Tensor, q_weight: Tensor, q_eps: float, k: Tensor"
    )
    assert found.startswith("installed: (q_out_quantized=None, q_out_scale=None, q=None")


def test_a_later_release_of_the_same_form_will_do(library: Library) -> None:
    library.install("0.1.20+rocm7.1", {TWO_NORMS_MODULE: NORM_SOURCE + NEW})
    load_external(spec_of(compiled("0.1.14")[1]))


@pytest.mark.parametrize("installed", ("0.1.13", "0.1.21", "0.1.15.dev4"))
def test_a_release_that_is_not_known_to_have_the_form(library: Library, installed: str) -> None:
    library.install(installed, {TWO_NORMS_MODULE: NORM_SOURCE + NEW})
    error = refused(compiled("0.1.14")[1])
    assert f"is not known in amd-aiter {installed}, which is installed" in str(error)
    assert error.hint is not None and "pip install amd-aiter==0.1.14" in error.hint


def test_a_library_that_is_not_installed(library: Library) -> None:
    library.install("", {TWO_NORMS_MODULE: NORM_SOURCE + NEW})
    error = refused(compiled("0.1.14")[1])
    assert str(error) == "a part of this model runs on aiter 0.1.14, which is not installed"


def test_a_module_that_is_not_there(library: Library) -> None:
    library.install("0.1.14", {"aiter.ops.rmsnorm": ""})
    error = refused(compiled("0.1.14")[1])
    assert str(error) == f"`{TWO_NORMS_MODULE}` cannot be imported"
    assert error.detail[0].startswith("ModuleNotFoundError: No module named")


def test_a_library_that_fails_while_it_is_imported(library: Library) -> None:
    library.install("0.1.14", {TWO_NORMS_MODULE: "raise RuntimeError('no such GPU')"})
    assert refused(compiled("0.1.14")[1]).detail == ("RuntimeError: no such GPU",)


@pytest.mark.parametrize(
    "change",
    (
        ("q_out, q,", "q, q_out,"),
        ("k_eps):", "k_eps, stream):"),
        ("k_eps):", "k_eps, stream=None):"),
        ("k_eps):", "k_epsilon):"),
        ("k_eps):", "k_eps=1e-6):"),
        ("k_weight, k_eps):", "k_weight, *, k_eps):"),
        ("k_weight, k_eps):", "k_weight, **k_eps):"),
    ),
)
def test_any_other_signature_is_refused(library: Library, change: tuple[str, str]) -> None:
    source = NEW.replace(*change)
    assert source != NEW
    library.install("0.1.14", {TWO_NORMS_MODULE: NORM_SOURCE + source})
    assert "is not the function this was compiled for" in str(refused(compiled("0.1.14")[1]))


@pytest.mark.parametrize(("default", "taken"), (("0", True), ("1", False), ("None", False)))
def test_defaults_are_part_of_it(library: Library, default: str, taken: bool) -> None:
    source = (
        "def rmsnorm2d_fwd(input, weight, epsilon, use_model_sensitive_rmsnorm="
        f"{default}): return input"
    )
    library.install("0.1.11", {"aiter.ops.rmsnorm": source})
    external = compiled("0.1.11", "rmsnorm2d_fwd", "rms_norm")[1]
    if taken:
        load_external(spec_of(external))
    else:
        refused(external)


def test_a_default_that_the_source_calls_by_name_is_any(library: Library) -> None:
    module = "aiter.ops.triton.activation"
    source = "def act_mul_and_fp8_group_quant(x, activation, group_size, dtype_quant=object()): ..."
    library.install("0.1.14", {module: source})
    external = compiled("0.1.14", "act_mul_and_fp8_group_quant", "silu_mul_quant")[1]
    load_external(spec_of(external))


# --- wrappers -------------------------------------------------------------------------------


def test_wrappers_that_say_what_they_wrap_are_looked_through(library: Library) -> None:
    wrapped = """
    import functools

    def logged(function):
        @functools.wraps(function)
        def wrapper(*args, custom_build_args={}, **kwargs):
            return function(*args, **kwargs)
        return wrapper

    @logged
    """
    source = NORM_SOURCE + textwrap.dedent(wrapped) + NEW.lstrip()
    library.install("0.1.14", {TWO_NORMS_MODULE: source})
    two_norms(load_external(spec_of(compiled("0.1.14")[1])), operands_of())


OPERATOR = """
import torch

library = torch.library.Library("aiter", "FRAGMENT")
library.define("{name}({schema}) -> ()")

def {name}(*args, **kwargs):
    return getattr(torch.ops.aiter, "{name}")(*args, **kwargs)
"""
ADD_RMSNORM = "Tensor(a!) out, Tensor(b!) input, Tensor residual_in, Tensor(c!) residual_out, "


@pytest.mark.parametrize(
    ("schema", "taken"),
    (
        (ADD_RMSNORM + "Tensor weight, float epsilon", True),
        (ADD_RMSNORM + "Tensor weight, float epsilon, bool gemma_norm=False", False),
        (ADD_RMSNORM + "Tensor weight, float eps", False),
        ("Tensor dummy, " + ADD_RMSNORM + "Tensor weight, float epsilon", True),
    ),
)
def test_an_operator_of_torch_states_the_signature_that_its_wrapper_hides(
    library: Library, schema: str, taken: bool
) -> None:
    source = OPERATOR.format(name="add_rmsnorm", schema=schema)
    library.install("0.1.14", {"aiter.ops.rmsnorm": source})
    external = compiled("0.1.14", "add_rmsnorm", "add_rms_norm")[1]
    assert external.operator == "aiter::add_rmsnorm"
    try:
        if taken:
            load_external(spec_of(external))
        else:
            assert refused(external).detail[1].startswith("installed: (out: Tensor, input: Tensor")
    finally:
        sys.modules["aiter.ops.rmsnorm"].library._destroy()


def test_a_wrapper_that_nothing_is_known_of_is_refused(library: Library) -> None:
    source = "def add_rmsnorm(*args, **kwargs): ..."
    library.install("0.1.14", {"aiter.ops.rmsnorm": source})
    error = refused(compiled("0.1.14", "add_rmsnorm", "add_rms_norm")[1])
    assert error.detail[1] == "installed: (*args, **kwargs)"


def test_native_code_without_a_signature_is_refused() -> None:
    assert live_signature(vars, "") == parse_signature("(*args, **kwargs)")


# --- results --------------------------------------------------------------------------------


def quantised_source(result: str) -> str:
    parameters = (
        "inp1, inp1_weight, inp1_epsilon, inp1_scale, inp2=None, inp2_weight=None,"
        " inp2_epsilon=None, dtype_quant=None, res1=None, output_unquantized_inp1=False,"
        " rmsnorm_convert_to_inp1_type=False"
    )
    return f"""
    import torch

    def fused_rms_fp8_per_tensor_static_quant({parameters}):
        total = inp1 + res1
        normed = torch.nn.functional.rms_norm(total.float(), total.shape[-1:], None, inp1_epsilon)
        normed = normed * inp1_weight
        codes = (normed / inp1_scale).clamp(-448, 448).to(dtype_quant)
        return {result}
    """


def test_what_is_returned_is_copied_to_its_place(library: Library) -> None:
    module = "aiter.ops.triton.quant.fused_fp8_quant"
    library.install("0.1.14", {module: quantised_source("codes, None, None, total")})
    function = "fused_rms_fp8_per_tensor_static_quant"
    external = compiled("0.1.14", function, "add_rms_norm_quant/tensor")[1]
    x, residual, weight = torch.randn(ROWS, 16), torch.randn(ROWS, 16), torch.randn(16)
    codes = torch.full((ROWS, 16), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)
    total = torch.full((ROWS, 16), float("nan"))
    scale = torch.tensor([0.02])
    load_external(spec_of(external)).run(
        [x, residual, weight, scale, codes, total],
        {"f8e4m3fn": torch.float8_e4m3fn}.__getitem__,
    )
    wanted = OPS["add_rms_norm"].reference(
        [x.double().numpy(), residual.double().numpy(), weight.double().numpy()], NORM, ()
    )
    assert torch.equal(total, x + residual)
    held = codes.double().numpy() * 0.02
    np.testing.assert_allclose(held, wanted[0].clip(-8.96, 8.96), rtol=1 / 15, atol=1e-4)


def test_scales_are_copied_in_the_order_of_memory() -> None:
    """Column scales come back seen as [rows, groups], and lie as [groups, rows]."""
    lying = torch.arange(6.0)
    spec = spec_of(replace(compiled("0.1.13")[1], arguments=(), returned=(None, 0)))
    function: Callable[..., Any] = lambda: ((None, lying.view(3, 2)),)  # noqa: E731
    place = torch.full((2, 3), float("nan"))
    ExternalFunction(spec, function).run([place], lambda name: name)
    assert torch.equal(place, lying.view(2, 3))


def test_another_number_of_results_is_an_error(library: Library) -> None:
    source = "def fused_qk_rmsnorm(q, q_weight, q_eps, k, k_weight, k_eps): return q"
    library.install("0.1.13", {TWO_NORMS_MODULE: source})
    external = load_external(spec_of(compiled("0.1.13")[1]))
    with pytest.raises(LibraryError, match="returned 1 values, not 2"):
        external.run(operands_of(), lambda name: name)


# --- documents ------------------------------------------------------------------------------


def test_a_call_survives_its_document() -> None:
    external = compiled("0.1.14")[1]
    spec = spec_of(external)
    for name in ("library", "version", "versions", "distributions", "module", "function"):
        assert getattr(spec, name) == getattr(external, name)
    assert (spec.signature, spec.operator) == (external.signature, external.operator)
    assert spec.arguments == tuple((a.name, a.given, a.value) for a in external.arguments)
    assert spec.returned == external.returned


@pytest.mark.parametrize(
    ("key", "value"),
    (
        ("library", "os"),
        ("module", "os"),
        ("module", "aiterate.ops"),
        ("module", "aiter.ops;import os"),
        ("module", 3),
        ("function", "a b"),
        ("signature", "(q, q_weight"),
        ("signature", "(): import os\n"),
        ("distributions", []),
        ("versions", "0.1.14"),
        ("arguments", [["q", "operand"]]),
        ("arguments", [["stream", "operand", 0]]),
        ("arguments", [["q", "operand", -1]]),
        ("arguments", [["q", "environment", 0]]),
        ("arguments", [["q", "value", {}]]),
        ("arguments", [["q", "dtype", 1]]),
        ("returned", ["q"]),
        ("operator", None),
    ),
)
def test_other_documents_are_refused(key: str, value: Attr) -> None:
    document = {**compiled("0.1.14")[1].document(), key: value}
    with pytest.raises(MalformedError) as caught:
        read_external(Field(document, "program/gfx950.json"))
    assert caught.value.exit_code == 5


def test_the_error_is_one_of_the_artifact() -> None:
    assert issubclass(LibraryError, ArtifactError)


def test_nothing_is_imported_until_a_function_is_loaded() -> None:
    code = "import sys, fusec.runtime.external; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "aiter", "triton", "fusec.kernels", "fusec.ir", "networkx"}
