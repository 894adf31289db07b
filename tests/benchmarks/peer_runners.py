"""How each peer of `peers.py` compiles a module and calls it.

A maker takes what it is to compile and gives a `Runner`.  It imports its library itself, so that a
worker holds no other; whatever it raises is the reason that the table gives.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from numpy.typing import NDArray
from peer_workloads import Workload, compute_experts, experts_of, outputs_of
from torch import Tensor, nn

Array = NDArray[np.generic]

ARTIFACT, ONNX = "workload.fusec", "workload.onnx"

STORED = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8}
"""What numpy gets in place of types that it lacks."""

FUSEC_TYPES = {"bf16": torch.bfloat16, "f8e4m3fn": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Task:
    """What a worker is to run.

    Attributes:
        workload: what it is.
        folder: with the artifact and the ONNX file, and where a peer may write.
        module: with its weights.
        inputs: by name.
        threads: to compute with.
    """

    workload: Workload
    folder: Path
    module: nn.Module
    inputs: dict[str, Tensor]
    threads: int


@dataclass(frozen=True)
class Runner:
    """A compiled workload.

    Attributes:
        call: runs it once; this is what is timed.
        tensors: of what `call` gives.
        note: on how it was compiled.
    """

    call: Callable[[], Any]
    tensors: Callable[[Any], list[Tensor]]
    note: str = ""


@dataclass(frozen=True)
class Peer:
    """A way to run a workload.

    Attributes:
        make: compiles it.
        packages: that have to be installed; of alternatives, with `|` between, one.
        workloads: prefixes of the names of those it is for.
    """

    make: Callable[[Task], Runner]
    packages: tuple[str, ...] = ("torch",)
    workloads: tuple[str, ...] = ("",)

    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [each for each in self.packages if not any(map(_installed, each.split("|")))]


def _installed(name: str) -> bool:
    parent = name.rpartition(".")[0]
    return (not parent or _installed(parent)) and importlib.util.find_spec(name) is not None


def stored(tensor: Tensor) -> Array:
    """The tensor as numpy holds it: bf16 as `uint16`, 8-bit floats as `uint8`."""
    kind = STORED.get(tensor.dtype)
    array: Array = (tensor if kind is None else tensor.view(kind)).numpy()
    return array


def _fusec(task: Task) -> Runner:
    import fusec

    model = fusec.load(task.folder / ARTIFACT, threads=task.threads, huge_pages=True)
    arrays = {name: stored(tensor) for name, tensor in task.inputs.items()}
    kinds = [FUSEC_TYPES.get(spec.dtype) for spec in model.outputs]

    def tensors(result: Mapping[str, Array]) -> list[Tensor]:
        found = [torch.from_numpy(each) for each in result.values()]
        return [t if k is None else t.view(k) for t, k in zip(found, kinds, strict=True)]

    return Runner(lambda: model.run_stored(arrays), tensors, model.target)


def _eager(task: Task) -> Runner:
    best = _fastest_experts(task, ("eager", "grouped_mm"))
    return Runner(lambda: task.module(**task.inputs), outputs_of, best)


def _fastest_experts(task: Task, implementations: tuple[str, ...]) -> str:
    """Choose the fastest way to compute routed experts; nothing where there are none.

    `batched_mm` is no candidate: it copies the experts of every token, 26 GB for 1024 of them.

    Raises:
        RuntimeError: none works.
    """
    if not experts_of(task.module):
        return ""
    times: dict[str, float] = {}
    reasons: list[str] = []
    for name in implementations:
        compute_experts(task.module, name)
        try:
            task.module(**task.inputs)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            # What PyTorch lacks for this dtype; the reasons are given where nothing is left.
            reasons.append(f"{name}: {error}")
            continue
        begin = time.perf_counter()
        task.module(**task.inputs)
        times[name] = time.perf_counter() - begin
    if not times:
        raise RuntimeError("; ".join(reasons))
    best = min(times, key=times.__getitem__)
    compute_experts(task.module, best)
    return f"experts: {best}"


def _compiled(task: Task) -> Runner:
    best = _fastest_experts(task, ("grouped_mm", "eager"))
    compiled = torch.compile(task.module, dynamic=False)
    return Runner(lambda: compiled(**task.inputs), outputs_of, best)


def _frozen(task: Task) -> Runner:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return _compiled(task)


def _aoti(task: Task) -> Runner:
    best = _fastest_experts(task, ("grouped_mm", "eager"))
    exported = torch.export.export(task.module, (), kwargs=task.inputs, strict=False)
    path = str(task.folder / f"aoti{task.threads}.pt2")
    torch._inductor.aoti_compile_and_package(exported, package_path=path)
    package = torch._inductor.aoti_load_package(path)
    return Runner(lambda: package(**task.inputs), outputs_of, best)


def _prepacked(task: Task) -> Runner:
    """oneDNN's own packing of one weight, as freezing does it, without a graph around."""
    (weight,) = task.module.parameters()
    (x,) = task.inputs.values()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.data, x.shape[0])
    linear = torch.ops.mkldnn._linear_pointwise

    def call() -> Tensor:
        out: Tensor = linear(x, packed, None, "none", [], "")
        return out

    return Runner(call, outputs_of)


def export_onnx(task: Task) -> None:
    """Write the ONNX file that onnxruntime and IREE read."""
    compute_experts(task.module, "batched_mm")
    program = torch.onnx.export(
        task.module, (), kwargs=task.inputs, dynamo=True, opset_version=20, optimize=True
    )
    assert program is not None
    program.save(str(task.folder / ONNX), external_data=True)


def _onnx_file(task: Task) -> Path:
    path = task.folder / ONNX
    if not path.exists():
        raise RuntimeError("there is no ONNX file: " + (task.folder / "onnx.txt").read_text())
    return path


def _onnxruntime(task: Task) -> Runner:
    import onnxruntime
    from onnxruntime import OrtValue

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(_onnx_file(task)), options, providers=["CPUExecutionProvider"]
    )
    bfloat16 = 16
    names = [each.name for each in session.get_inputs()]
    values = {
        name: OrtValue.ortvalue_from_numpy_with_onnx_type(stored(tensor), bfloat16)
        if tensor.dtype == torch.bfloat16
        else OrtValue.ortvalue_from_numpy(stored(tensor))
        for name, tensor in zip(names, task.inputs.values(), strict=True)
    }

    def call() -> list[Any]:
        found: list[Any] = session.run_with_ort_values(None, values)
        return found

    def tensors(result: list[Any]) -> list[Tensor]:
        return [
            torch.utils.dlpack.from_dlpack(each._ortvalue)
            if "float8" in each.data_type() or "bfloat16" in each.data_type()
            else torch.from_numpy(each.numpy())
            for each in result
        ]

    return Runner(call, tensors)


def _openvino(task: Task) -> Runner:
    import openvino

    is_bf16 = task.workload.dtype == "bf16"
    as_is = task.workload.name.startswith("ops/")  # bandwidth counts: keep the operands' own type
    module, inputs = task.module, task.inputs
    if not as_is:
        module = module.float()
        inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
    compute_experts(module, "batched_mm")
    exported = torch.export.export(module, (), kwargs=inputs, strict=False)
    model = openvino.convert_model(exported.run_decompositions())
    settings = {
        "INFERENCE_NUM_THREADS": task.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if is_bf16 else "f32",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    for place, tensor in enumerate(inputs.values()):
        array = stored(tensor)
        given = (
            openvino.Tensor(array, tensor.shape, openvino.Type.bf16)
            if tensor.dtype == torch.bfloat16
            else openvino.Tensor(array)
        )
        request.set_input_tensor(place, given)

    def call() -> None:
        request.start_async()  # `infer` would copy the results
        request.wait()

    def tensors(_: object) -> list[Tensor]:
        found = [request.get_output_tensor(place) for place in range(len(model.outputs))]
        return [_from_openvino(each) for each in found]

    note = "as it is" if as_is else "an f32 model with a hint" if is_bf16 else ""
    return Runner(call, tensors, note)


def _from_openvino(tensor: Any) -> Tensor:
    kinds = {"bf16": torch.bfloat16, "f8e4m3": torch.float8_e4m3fn}
    kind = kinds.get(tensor.element_type.get_type_name())
    if kind is None:
        return torch.from_numpy(tensor.data.copy())
    raw = torch.frombuffer(bytearray(tensor.data.tobytes()), dtype=kind)
    return raw.reshape(tuple(tensor.shape))


def _iree(task: Task) -> Runner:
    from iree import runtime

    source, binary = task.folder / "iree.mlir", task.folder / f"iree{task.threads}.vmfb"
    tools = [sys.executable, "-m", "iree.compiler.tools.import_onnx"]
    _ran([*tools, str(_onnx_file(task)), "-o", str(source)])
    from iree.compiler.tools import binaries

    command = [binaries.find_tool("iree-compile"), str(source), "-o", str(binary)]
    flags = ["--iree-hal-target-backends=llvm-cpu", "--iree-llvmcpu-target-cpu=host"]
    _ran([*command, *flags, "--iree-opt-level=O3"])
    runtime.flags.parse_flags(f"--task_topology_group_count={task.threads}")
    config = runtime.Config("local-task")
    loaded = runtime.VmModule.mmap(config.vm_instance, str(binary))
    module = runtime.load_vm_module(loaded, config)
    (name,) = (each for each in loaded.function_names if "$" not in each and "__" not in each)
    arrays = [
        runtime.asdevicearray(config.device, stored(tensor)) for tensor in task.inputs.values()
    ]
    function = module[name]

    def tensors(result: Any) -> list[Tensor]:
        found = result if isinstance(result, tuple | list) else [result]
        return [torch.from_numpy(np.array(each.to_host())) for each in found]

    return Runner(lambda: function(*arrays), tensors)


def _ran(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it failed"]
        raise RuntimeError(lines[0][-300:])


def _ggml(task: Task) -> Runner:
    from peer_ggml import Mxfp4Linear

    (weight,) = task.module.parameters()
    (x,) = task.inputs.values()
    linear = Mxfp4Linear(weight.detach().float().numpy(), x.float().numpy(), task.threads)
    return Runner(linear, lambda array: [torch.from_numpy(array)], linear.note)


PEERS: Mapping[str, Peer] = {
    "fusec": Peer(_fusec, ("numpy",)),
    "eager": Peer(_eager),
    "compile": Peer(_compiled),
    "freezing": Peer(_frozen),
    "aoti": Peer(_aoti),
    "onednn": Peer(_prepacked, workloads=("mxfp4/",)),
    "onnxruntime": Peer(_onnxruntime, ("onnxruntime", "onnx", "onnxscript")),
    "openvino": Peer(_openvino, ("openvino",)),
    "iree": Peer(_iree, ("iree.compiler", "iree.runtime", "onnx", "onnxscript")),
    "llama.cpp": Peer(_ggml, ("libggml|llama_cpp",), workloads=("mxfp4/",)),
}
"""By name, in the order of the table."""

TITLES = {
    "fusec": "fusec",
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "freezing": "torch.compile, frozen",
    "aoti": "AOTInductor",
    "onednn": "oneDNN, prepacked",
    "onnxruntime": "onnxruntime",
    "openvino": "OpenVINO",
    "iree": "IREE",
    "llama.cpp": "llama.cpp (ggml)",
}
