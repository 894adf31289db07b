"""`fusec verify`: right artifacts pass, planted faults are caught and located."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample_models
import torch
import verify_models
from onnx_models import model_of, saved
from planted_fault import FAULTS, Fault, plant
from quantised_models import write_adapter
from test_cli import Fusec, fusec  # noqa: F401
from verify_models import HIDDEN

from fusec.emulator import host
from fusec.formats import encode_e8m0
from fusec.frontend.aten_ops import TABLE
from fusec.ir import Graph, quantise_weights
from fusec.kernels import sources
from fusec.rewrite.driver import Builder

SIZES = ("--dim", "batch=1,5")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return verify_models.export(tmp_path_factory.mktemp("verify") / "layers.pt2")


@pytest.fixture
def verified(fusec: Fusec, tmp_path: Path) -> Callable[..., Any]:  # noqa: F811
    """Compiles a source, and gives what `verify` says of the artifact."""

    def run(source: object, *options: str, device: str = "cpu", more: Iterable[object] = ()) -> Any:
        artifact, target = tmp_path / "m.fusec", device.rpartition(":")[2]
        made = fusec("compile", source, "--target", target, *options, "-o", artifact)
        assert made.code == 0, made.err
        words = (artifact, "--against", source, "--device", device, *SIZES)
        done = fusec("verify", *words, "--json", *more)
        assert done.code == {"right": 0, "wrong": 4}[done.json["verdict"]]
        return done.json

    return run


def plant_here(fault: Fault, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process compile the kernels of a copy that has a fault."""
    plant(fault, folder)
    kernels = folder / "fusec" / "kernels"
    monkeypatch.setattr(sources, "package_folder", lambda _: kernels)
    host.library.cache_clear()


# --- right ones -----------------------------------------------------------------------------


def test_a_right_artifact_passes(fusec: Fusec, archive: Path, tmp_path: Path) -> None:  # noqa: F811
    artifact, kept = tmp_path / "m.fusec", tmp_path / "kept"
    fusec("compile", archive, "--target", "cpu", "-o", artifact)
    done = fusec("verify", artifact, "--against", archive, "--save", kept)
    assert done.code == 0
    assert "y is right: rms " in done.out and "largest is right: share that differs 0" in done.out
    assert [line.split()[0] for line in done.out.splitlines() if "  y  " in line] == [
        *("batch=1", "batch=3", "batch=8")
    ]
    held = np.load(kept / "case-2.npz")
    assert held["x"].shape == held["output.y"].shape == held["exact.y"].shape == (3, 64)
    onto_itself = ("--input", kept / "case-2.npz", "--save", kept)
    assert fusec("verify", artifact, "--against", archive, *onto_itself).code == 2
    replay = ("--input", kept / "case-2.npz", "--json")
    again = fusec("verify", artifact, "--against", archive, *replay).json
    assert again["verdict"] == "right" and again["cases"][0]["sizes"] == {"batch": 3}
    assert again["reference"].startswith("PyTorch") and again["looked_at"] is None
    assert fusec("verify", artifact, "--against", archive, "--tol", "y=1e-12").code == 4


@pytest.mark.parametrize("options", [("--dtype", "bf16"), ("--quantize", "mxfp4")])
def test_a_factory_is_a_source(
    verified: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.syspath_prepend(str(Path(verify_models.__file__).parent))
    found = verified("verify_models:model", *options)
    assert found["verdict"] == "right" and found["dtype"] == {"bf16": "bf16"}.get(options[1], "f32")
    if options[0] == "--quantize":
        assert found["reference"] == "the quantised graph with each value rounded to f32"
        assert 0.01 < found["format_cost"]["y"] < 0.3
        assert found["looked_at"]["passes"] > 1 and found["looked_at"]["values"] > 10


def test_integers_that_were_misread_are_told(
    verified: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(verify_models.__file__).parent))
    assert verified("verify_models:codes")["verdict"] == "right"
    monkeypatch.setitem(TABLE, "aten.bitwise_not.default", lambda build, x: x)
    found = verified("verify_models:codes")
    assert found["verdict"] == "wrong"
    assert "differs from what fusec has read in 100% of the elements" in found["outputs"][0]["said"]


def test_an_onnx_model_is_held_against_onnxruntime(
    verified: Callable[..., Any], tmp_path: Path
) -> None:
    from onnx import helper

    weight = np.random.default_rng(0).standard_normal((24, 16)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    x = np.zeros((3, 24), np.float32)
    made = model_of(nodes, {"x": x}, ["y"], constants={"w": weight}, shapes={"x": ("batch", 24)})
    found = verified(saved(made, tmp_path))
    assert found["verdict"] == "right" and found["reference"].startswith("onnxruntime")


@pytest.mark.parametrize("options", [(), ("--quantize", "mxfp4")], ids=["plain", "mxfp4"])
def test_a_part_that_is_left_to_onnxruntime_means_what_it_makes_of_it(
    verified: Callable[..., Any], tmp_path: Path, options: tuple[str, ...]
) -> None:
    """In the graph as it was read, after each pass and at each step."""
    from onnx import helper

    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("LRN", ["x"], ["h"], size=3, alpha=0.1, beta=0.7),
        helper.make_node("MatMul", ["h", "w"], ["p"]),
        helper.make_node("Relu", ["p"], ["y"]),
    ]
    x, shapes = np.zeros((3, 4, 2, 64), np.float32), {"x": ("batch", 4, 2, 64)}
    made = model_of(nodes, {"x": x}, ["y"], constants={"w": weight}, shapes=shapes)
    found = verified(saved(made, tmp_path), *options)
    assert found["verdict"] == "right"
    assert (found["looked_at"] is not None) == bool(options)


def test_an_onnx_model_with_names_that_are_no_identifiers(
    verified: Callable[..., Any], tmp_path: Path
) -> None:
    """Such as TorchScript's exporter makes up, and TensorFlow's `input:0`."""
    from onnx import helper

    nodes = [helper.make_node("Sub", ["onnx::Sub_0", "b:0"], ["y:0"])]
    arrays = dict.fromkeys(("onnx::Sub_0", "b:0"), np.zeros((3, 24), np.float32))
    made = model_of(nodes, arrays, ["y:0"], shapes=dict.fromkeys(arrays, ("batch", 24)))
    found = verified(saved(made, tmp_path))
    assert found["verdict"] == "right" and found["reference"].startswith("onnxruntime")


def test_what_is_not_finite_stays_so(
    verified: Callable[..., Any], archive: Path, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    x[1, 3], x[2, 5] = np.nan, np.inf
    np.savez(tmp_path / "x.npz", x=x)
    found = verified(archive, more=("--input", tmp_path / "x.npz", "--dim", "batch=4"))
    assert found["verdict"] == "right"
    assert found["cases"][0]["outputs"]["y"]["nonfinite"] == 128


def test_weights_may_lie_elsewhere(fusec: Fusec, archive: Path, tmp_path: Path) -> None:  # noqa: F811
    artifact, weights = tmp_path / "m.fusec", tmp_path / "m.weights.safetensors"
    fusec("compile", archive, "--target", "cpu", "--weights", "external", "-o", artifact)
    words = ("verify", artifact, "--against", archive, *SIZES)
    assert fusec(*words).code == 0
    moved = weights.rename(tmp_path / "moved.safetensors")
    missing = fusec(*words)
    assert missing.code == 5 and "m.weights.safetensors" in missing.err
    assert fusec(*words, "--weights", moved).code == 0


@pytest.mark.slow
def test_an_adapter_beside_a_model(verified: Callable[..., Any], tmp_path: Path) -> None:
    base = sample_models.build("llama", tmp_path / "base", num_hidden_layers=1)
    layers = {"model.layers.0.self_attn.q_proj": (96, 96)}
    adapter = write_adapter(tmp_path / "adapter", Path("../base"), layers, 4)
    sizes = ("--dim", "batch=2", "--dim", "seq=5")
    beside = ("--adapter", adapter)
    assert verified(base, *beside, more=(*beside, *sizes))["verdict"] == "right"
    without = verified(base, *beside, more=sizes)
    assert without["verdict"] == "wrong" and without["source_changed"]


def test_a_program_for_a_gpu(
    verified: Callable[..., Any],
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = {"device": "emulator:gfx950", "more": ("--bisect",)}
    assert verified(archive, **gpu)["verdict"] == "right"
    swapped = Fault(
        "gate and up are swapped",
        "kernels/silu_mul/kernel.hip",
        "return gate * sigmoid(gate) * up;",
        "return up * sigmoid(up) * gate;",
    )
    plant_here(swapped, tmp_path / "tree", monkeypatch)
    found = verified(archive, **gpu)["bisect"]
    assert (found["kernel"], found["pass"]) == ("silu_mul.hip", "silu_mul")
    assert found["site"] == "layers.0.mlp"


# --- wrong ones -----------------------------------------------------------------------------

PLACES = {
    "eps": ("rms_norm.cpp", "layers.0.norm"),
    "gate": ("linear_glu.cpp", "layers.0.mlp"),
    "scale": ("mxfp4_linear.cpp", "layers.0.mlp.gate+up"),
}
"""The kernel and the site that are to be named."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_kernel_is_located(
    verified: Callable[..., Any],
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    plant_here(FAULTS[name], tmp_path / "tree", monkeypatch)
    options = ("--quantize", "mxfp4") if name == "scale" else ()
    found = verified(archive, *options, more=("--bisect",))["bisect"]
    assert found["kind"] == "kernel"
    assert (found["kernel"], found["site"]) == PLACES[name]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_swapped_join_of_projections_is_located(
    verified: Callable[..., Any], archive: Path, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    right = Graph.add

    def wrong(self: Graph, op: str, inputs: Any, attrs: Any = None, **more: Any) -> Any:
        """Gate and up are as wide: each becomes the other half of the joined product."""
        if op == "slice" and more["origin"].path.startswith(f"layers.{layer}."):
            start = HIDDEN - attrs["start"]
            attrs = {**attrs, "start": start, "stop": start + HIDDEN}
        return right(self, op, inputs, attrs, **more)

    monkeypatch.setattr(Graph, "add", wrong)
    found = verified(archive, more=("--bisect",))["bisect"]
    assert (found["kind"], found["pass"]) == ("rewrite", "merge_gate_up")
    assert found["site"] == f"layers.{layer}.mlp"


@pytest.mark.parametrize(("op", "site"), [("silu_mul", 0), ("silu_mul", 1), ("add_rms_norm", 1)])
def test_a_fault_in_a_pass_is_located(
    verified: Callable[..., Any],
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
    op: str,
    site: int,
) -> None:
    right, layer = Builder.node, f"layers.{site}."

    def wrong(self: Builder, made: str, inputs: Iterable[str], attrs: Any = None) -> Any:
        if made == op and self.root.origin.path.startswith(layer):
            if op == "silu_mul":
                inputs = reversed(tuple(inputs))
            else:
                attrs = {**attrs, "eps": 0.0}
        return right(self, made, inputs, attrs)

    monkeypatch.setattr(Builder, "node", wrong)
    found = verified(archive, more=("--bisect",))["bisect"]
    assert (found["kind"], found["pass"], found["fusion"]) == ("rewrite", op, op)
    assert found["site"].startswith(layer)


def test_scales_that_a_pass_got_wrong_are_located(
    verified: Callable[..., Any], archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise_weights, "encode_e8m0", lambda scales: encode_e8m0(2 * scales))
    found = verified(archive, "--quantize", "mxfp4", more=("--bisect",))["bisect"]
    assert (found["kind"], found["pass"]) == ("rewrite", "quantise")
    assert found["site"] == "layers.0.mlp.gate+up" and found["error"] > 0.9


def test_another_source_is_told(fusec: Fusec, archive: Path, tmp_path: Path) -> None:  # noqa: F811
    artifact = tmp_path / "m.fusec"
    fusec("compile", archive, "--target", "cpu", "-o", artifact)
    other = verify_models.export(tmp_path / "other.pt2", seed=1)
    done = fusec("verify", artifact, "--against", other, *SIZES)
    assert done.code == 4 and "is another one than the artifact was compiled from" in done.out
    assert "hint: name the source" in done.err
    none = fusec("verify", artifact, "--against", tmp_path / "none.pt2")
    assert none.code == 1 and "none.pt2" in none.err


@pytest.mark.parametrize(
    ("width", "name", "told"),
    [
        (32, "y", ("takes something else", "takes `x[*, 64]`", "takes `x[*, 32]`")),
        (64, "z", ("gives something else", "gives `y`, `largest`", "gives `z`, `largest`")),
    ],
)
def test_a_source_of_another_form_is_told(
    fusec: Fusec,  # noqa: F811
    archive: Path,
    tmp_path: Path,
    width: int,
    name: str,
    told: tuple[str, ...],
) -> None:
    class Other(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: 2 * x, "largest": x.argmax(-1)}

    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    made = torch.export.export(Other(), (torch.zeros(3, width),), dynamic_shapes=shapes)
    torch.export.save(made, tmp_path / "other.pt2")
    artifact = tmp_path / "m.fusec"
    fusec("compile", archive, "--target", "cpu", "-o", artifact)
    done = fusec("verify", artifact, "--against", tmp_path / "other.pt2", *SIZES)
    assert done.code == 1 and all(each in done.err for each in told)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dim", "rows=3"), "there is no size `rows`"),
        (("--dim", "batch=x"), "names no sizes"),
        (("--dim", "batch=3,10000"), "`--dim batch=10000`: the artifact was compiled for 1.."),
        (("--tol", "y=small"), "is no tolerance"),
        (("--tol", "y=nan"), "is no tolerance"),
        (("--tol", "y=-1"), "is no tolerance"),
        (("--tol", "logits=1e-3"), "there is no output `logits`"),
    ],
)
def test_what_makes_no_sense_is_told(
    fusec: Fusec,  # noqa: F811
    archive: Path,
    tmp_path: Path,
    words: tuple[str, str],
    message: str,
) -> None:
    artifact = tmp_path / "m.fusec"
    fusec("compile", archive, "--target", "cpu", "-o", artifact)
    done = fusec("verify", artifact, "--against", archive, *words)
    assert done.code == 2 and message in done.err
    assert "reading" not in done.err


def test_inputs_that_do_not_fit_are_told_before_the_source_is_read(
    fusec: Fusec,  # noqa: F811
    archive: Path,
    tmp_path: Path,
) -> None:
    artifact, inputs = tmp_path / "m.fusec", tmp_path / "x.npz"
    fusec("compile", archive, "--target", "cpu", "-o", artifact)
    zeros = np.zeros((2, 3), np.float32)
    np.savez(inputs, x=zeros, residual=zeros)
    done = fusec("verify", artifact, "--against", archive, "--input", inputs)
    assert done.code == 1 and f"--> {inputs}" in done.err
    assert "reading" not in done.err


# --- larger ones ----------------------------------------------------------------------------

MODELS = [
    ("qwen3_moe", "cpu", ("--dtype", "bf16")),
    ("qwen3_next", "cpu", ("--dtype", "bf16", "--quantize", "fp8-token")),
    ("deepseek_v3", "cpu", ("--quantize", "mxfp4")),
    ("deepseek_v3", "emulator:gfx942", ("--dtype", "bf16")),
    ("gpt_oss", "emulator:gfx942", ("--quantize", "mxfp4:experts", "--dtype", "bf16")),
    ("gpt_oss", "emulator:gfx950", ("--quantize", "mxfp4:experts", "--dtype", "bf16")),
]
WIDTHS: dict[str, dict[str, Any]] = {"gpt_oss": {"intermediate_size": 64}}
"""Experts of whole groups of 32: others are not quantised."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "device", "options"), MODELS)
def test_models_are_right_step_by_step(
    verified: Callable[..., Any], tmp_path: Path, name: str, device: str, options: tuple[str, ...]
) -> None:
    folder = sample_models.build(name, tmp_path / name, **WIDTHS.get(name, {}))
    found = verified(folder, *options, device=device, more=("--dim", "batch=2", "--dim", "seq=7"))
    assert found["verdict"] == "right"
    assert found["looked_at"]["values"] > 40
    assert (found["format_cost"] is not None) == ("--quantize" in options)


TRITON_FAULTS = {
    "eps": Fault("eps is ignored", "kernels/rms_norm/triton_kernel.py", "+ eps)", "+ 0 * eps)"),
    "scale": Fault(
        "each block has the scale of the one before it",
        "kernels/mxfp4_linear/triton_kernel.py",
        "p_w_scales = p_w_scale + o_n[:, None] * W_SCALE_STRIDE + o_group[None, :]",
        "p_w_scales = p_w_scale + o_n[:, None] * W_SCALE_STRIDE + tl.maximum(o_group - 1, 0)",
    ),
}
TRITON_PLACES = {
    "eps": ("rms_norm.triton", "layers.0.norm"),
    "scale": ("mxfp4_linear.triton_scaled", "layers.0.mlp.gate+up"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRITON_FAULTS)
def test_a_fault_in_a_triton_kernel_is_located(archive: Path, tmp_path: Path, name: str) -> None:
    plant(TRITON_FAULTS[name], tmp_path)

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "fusec", *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    artifact = tmp_path / "m.fusec"
    options = ("--quantize", "mxfp4") if name == "scale" else ()
    made = run("compile", archive, "--target", "gfx950", *options, "-o", artifact)
    assert made.returncode == 0, made.stderr
    words = ("--device", "emulator:gfx950", *SIZES, "--bisect", "--json")
    done = run("verify", artifact, "--against", archive, *words)
    assert done.returncode == 4, done.stderr
    found = json.loads(done.stdout)["bisect"]
    assert (found["kernel"], found["site"]) == TRITON_PLACES[name]
