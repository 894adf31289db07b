"""A source run as its own framework runs it: what `fusec verify` and `fusec bench` compare with."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import InputError, UnsupportedError
from fusec.frontend.sniff import UNPICKLED_UNDER_TRUST, Kind, sniff
from fusec.frontend.sources import is_factory, made_by_factory

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Eager:
    """A source that can be run.

    Attributes:
        name: of what runs it, with its version.
        run: takes an array for each input of the model, in their order, `bf16` as float32, and
            gives one for each output, by name.
        timed: takes the same, and whether to run the source as `torch.compile` makes it; gives a
            call that only runs it, on tensors that are ready.
    """

    name: str
    run: Callable[[Arrays], dict[str, NDArray[np.generic]]]
    timed: Callable[[Arrays, bool], Callable[[], object]]


def eager_source(
    source: Any,
    output_names: Sequence[str],
    *,
    dtype: str | None = None,
    adapter: str | Path | None = None,
    trust_pickle: bool = False,
    trust_remote_code: bool = False,
    example_inputs: Any = None,
) -> Eager:
    """The source, ready to be run eagerly on the CPU in its own dtype.

    Args:
        source: as for `load_source`.
        output_names: what the outputs are called, in the order in which the model gives them.
        dtype: of a model folder or module, as for `load_source`.
        adapter: of a model folder.
        trust_pickle: whether pickles may be loaded.
        trust_remote_code: whether code that comes with a model folder may be run.
        example_inputs: of a live module.

    Raises:
        InputError: it cannot be run here; the message says why.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if is_factory(str(source)):
            made, inputs, _ = made_by_factory(str(source))
            return _of_object(made, output_names, dtype, example_inputs or inputs)
        kind = sniff(path)
        if kind is Kind.FOLDER:
            beside = None if adapter is None else Path(adapter)
            return _of_folder(path, output_names, dtype, beside, trust_remote_code)
        if kind is Kind.ADAPTER:
            from fusec.frontend.adapter import base_of

            return _of_folder(base_of(path), output_names, dtype, path, trust_remote_code)
        if kind is Kind.ONNX:
            return _of_onnx(path)
        if kind is Kind.PT2:
            return _of_archive(path, output_names)
        if kind in UNPICKLED_UNDER_TRUST and trust_pickle:
            return _of_object(_unpickled(path), output_names, dtype, example_inputs)
        raise InputError(f"`{path}` is not a source that can be run")
    return _of_object(source, output_names, dtype, example_inputs)


def _of_folder(
    folder: Path,
    output_names: Sequence[str],
    dtype: str | None,
    adapter: Path | None,
    trust_remote_code: bool,
) -> Eager:
    from fusec.frontend.adapter import adapt
    from fusec.frontend.huggingface import load_model, read_config, require
    from fusec.frontend.safetensors_index import find_files
    from fusec.frontend.tensors import tensor_of

    require("transformers", "huggingface")
    if "quantization_config" in read_config(folder):
        raise UnsupportedError("its weights are quantised, which needs libraries of a GPU")
    if not list(find_files(folder)):
        raise InputError("the folder has no weights")
    model = load_model(folder, dtype, trust_remote_code)
    own = next(model.parameters()).dtype
    if adapter is not None:
        for name, weight in adapt(model, adapter).items():
            model.get_parameter(name).data = tensor_of(weight.load(), weight.type.dtype)

    def timed(inputs: Arrays, compiled: bool) -> Callable[[], object]:
        given = {name: _tensor(array, own) for name, array in inputs.items()}
        return _without_gradients(model, (), given, compiled)

    def run(inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        result: Any = timed(inputs, False)()
        return {name: _array(result[name]) for name in output_names}

    return Eager(_torch_name(), run, timed)


def _of_archive(path: Path, output_names: Sequence[str]) -> Eager:
    import torch

    with warnings.catch_warnings(), path.open("rb") as file:  # a name may be no UTF-8
        warnings.simplefilter("ignore")
        program = torch.export.load(file)
    return _of_object(program, output_names, None, None)


def _of_object(
    made: Any, output_names: Sequence[str], dtype: str | None, example_inputs: Any
) -> Eager:
    """A live module or an exported program; arrays take the place of its tensors in order."""
    import torch
    from torch.utils import _pytree as pytree

    module: Any
    if isinstance(made, torch.export.ExportedProgram):
        args, kwargs = made.example_inputs
        if args is None:
            raise UnsupportedError("the archive has no example inputs to tell how it is called")
        module = made.module()
    elif isinstance(made, torch.nn.Module):
        if example_inputs is None:
            raise UnsupportedError("the module has no example inputs to tell how it is called")
        if isinstance(example_inputs, Mapping):
            args, kwargs = (), dict(example_inputs)
        else:
            single = isinstance(example_inputs, torch.Tensor)
            args, kwargs = (example_inputs,) if single else tuple(example_inputs), {}
        module = made.eval()
        if dtype is not None:
            import copy

            from fusec.frontend.tensors import dtype_of

            module = copy.deepcopy(module).to(dtype_of(dtype))
    else:
        raise InputError(f"a `{type(made).__name__}` is not a model")
    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)

    def timed(inputs: Arrays, compiled: bool) -> Callable[[], object]:
        if len(inputs) != len(places):
            raise UnsupportedError(f"it takes {len(places)} tensors, the artifact {len(inputs)}")
        given = list(leaves)
        for place, array in zip(places, inputs.values(), strict=True):
            kind = leaves[place].dtype if dtype is None else own
            given[place] = _tensor(array, kind)
        called, named = pytree.tree_unflatten(given, spec)
        return _without_gradients(module, called, named, compiled)

    def run(inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        leaves = pytree.tree_leaves(timed(inputs, False)())
        found = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return dict(zip(output_names, map(_array, found), strict=True))

    return Eager(_torch_name(), run, timed)


def _of_onnx(path: Path) -> Eager:
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError("`onnxruntime` is not installed", hint="`pip install 'fusec[residual]'`")
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"onnxruntime opens no path that is not UTF-8, as `{path}`") from None
    import onnxruntime

    from fusec.runtime.onnx_part import error_types

    def loaded(fuses: bool) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if not fuses:  # as the file says it; fusions of 8-bit floats also make invalid models
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            return onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except error_types(onnxruntime) as error:
            reason = next(iter(str(error).splitlines()), "no reason given")
            raise InputError(f"onnxruntime refuses `{path}`: {reason[:300]}") from error

    plain = loaded(fuses=False)
    names = [output.name for output in plain.get_outputs()]

    def fed(inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        # by place: the artifact's names lack what is no part of an identifier, as in `onnx::x`
        own = [entry.name for entry in plain.get_inputs()]
        return dict(zip(own, inputs.values(), strict=True))

    def timed(inputs: Arrays, compiled: bool) -> Callable[[], object]:
        given, session = fed(inputs), loaded(fuses=True)
        return lambda: session.run(names, given)

    def run(inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        return dict(zip(names, plain.run(names, fed(inputs)), strict=True))

    return Eager(f"onnxruntime {onnxruntime.__version__}", run, timed)


def _without_gradients(
    module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], compiled: bool
) -> Callable[[], object]:
    import torch

    if compiled:
        module = torch.compile(module)

    def call() -> object:
        with torch.no_grad():
            return module(*args, **kwargs)

    return call


def _unpickled(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=False)


def _torch_name() -> str:
    import torch

    return f"PyTorch {torch.__version__.partition('+')[0]}"


def _tensor(array: NDArray[np.generic], dtype: Any) -> Any:
    import torch

    tensor = torch.from_numpy(np.array(array))
    floats = tensor.is_floating_point() and dtype is not None and dtype.is_floating_point
    return tensor.to(dtype) if floats else tensor


def _array(tensor: Any) -> NDArray[np.generic]:
    found: NDArray[np.generic] = (
        tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()
    )
    return found
