"""Kinds of files are told apart by content, and nothing in them is run."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from fusec.diagnostics import InputError
from fusec.frontend import load_source
from fusec.frontend.sniff import Kind, refusal, sniff


class Net(torch.nn.Module):
    """A module of this file, which a pickle names."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x)
        return result


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def _module(path: Path) -> None:
    torch.save(Net(), path)


def _state_dict(path: Path) -> None:
    torch.save(Net().state_dict(), path)


def _checkpoint(path: Path) -> None:
    torch.save({"model": Net().state_dict(), "step": 3, "lr": torch.ones(())}, path)


def _graph_module(path: Path) -> None:
    torch.save(torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU())), path)


def _program(path: Path) -> None:
    torch.save(torch.export.export(Net().eval(), (torch.ones(2, 4),)), path)


def _legacy(path: Path) -> None:
    torch.save(Net().state_dict(), path, _use_new_zipfile_serialization=False)


def _export(path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(torch.export.export(Net().eval(), (torch.ones(2, 4),)), file)


def _safetensors(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.ones(3, np.float32)}, path)


def _onnx(path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [value], [out])
    onnx.save(helper.make_model(graph), path)


def _zip(*names: str, comment: bytes = b"") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.comment = comment
            for name in names:
                archive.writestr(name, b"pt2" if name.endswith("format") else b"{}")

    return write


def _bytes(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (_module, Kind.PICKLED_MODULE),
        (_state_dict, Kind.STATE_DICT),
        (_checkpoint, Kind.STATE_DICT),
        (_graph_module, Kind.PICKLED_FX),
        (_program, Kind.PICKLED_PROGRAM),
        (_legacy, Kind.LEGACY),
        (_export, Kind.PT2),
        (_safetensors, Kind.SAFETENSORS),
        (_onnx, Kind.ONNX),
        (_zip("m/code/__torch__.py", "m/constants.pkl", "m/data.pkl"), Kind.TORCHSCRIPT),
        (_zip("m/archive_format", "m/data/aotinductor/model/a.so"), Kind.AOTINDUCTOR),
        (_zip("serialized_exported_program.json", "version"), Kind.OLD_EXPORT),
        (_zip("manifest.json", "program/cpu.json"), Kind.ARTIFACT),
        (_zip("manifest.json", "program/cpu.json", comment=b"sha256:00"), Kind.ARTIFACT),
        (_zip("a.txt", "b.txt"), Kind.ZIP),
        (_bytes(b"GGUF\x03\0\0\0"), Kind.GGUF),
        (_bytes(b"\x80\x04\x95\x00"), Kind.PICKLED),
        (_bytes(b"hello, world"), Kind.UNKNOWN),
    ],
)
def test_kind_is_told_by_content(write: Callable[[Path], None], kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"  # the name says nothing
    write(path)
    assert sniff(path) is kind


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.PT2, Kind.ONNX)])
def test_a_refusal_says_what_it_is_and_what_to_do(kind: Kind, tmp_path: Path) -> None:
    error = refusal(kind, tmp_path / "model.pt")
    assert kind.value in str(error)
    assert error.hint
    pickled = kind in (Kind.PICKLED_MODULE, Kind.TORCHSCRIPT, Kind.LEGACY)
    assert ("--trust-pickle" in error.hint) >= pickled
    if pickled or kind is Kind.STATE_DICT:
        assert "torch.export.save(torch.export.export(model.eval()" in error.hint


@pytest.mark.parametrize("whole", [True, False])
def test_a_pickle_is_not_run(whole: bool, tmp_path: Path) -> None:
    path, trap = tmp_path / "model.pt", tmp_path / "trap"
    held: object = Trap(trap) if whole else {"weight": torch.ones(2), "x": Trap(trap)}
    torch.save(held, path)
    with pytest.raises(InputError):
        load_source(path)
    assert not trap.exists()


def test_state_dict_is_refused_even_when_trusted(tmp_path: Path) -> None:
    _state_dict(tmp_path / "model.pt")
    with pytest.raises(InputError, match="weights without a model"):
        load_source(tmp_path / "model.pt", trust_pickle=True)


def test_a_trusted_pickle_is_exported(tmp_path: Path) -> None:
    _module(tmp_path / "model.pt")
    source = load_source(tmp_path / "model.pt", trust_pickle=True, example_inputs=torch.ones(2, 4))
    assert source.kind == "module"
    assert [str(source.graph.type(value)) for value in source.graph.outputs] == ["f32[2, 3]"]


def test_torchscript_is_refused_and_converted_when_trusted(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script: Any = torch.jit.trace(Net().eval(), torch.ones(2, 4))  # type: ignore[no-untyped-call]
        script.save(str(path))
    with pytest.raises(InputError, match="TorchScript"):
        load_source(path)
    source = load_source(path, trust_pickle=True, example_inputs=torch.ones(2, 4))
    assert len(source.graph.outputs) == 1


def test_missing_empty_and_bare_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        load_source(tmp_path / "absent.pt2")
    with pytest.raises(InputError) as caught:
        load_source("some-lab/Some-Model-1.5B")
    assert "`hf download some-lab/Some-Model-1.5B --local-dir Some-Model-1.5B`" in str(
        caught.value.hint
    )
    config = tmp_path / "model" / "config.json"
    config.parent.mkdir()
    config.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="no known kind") as caught:
        load_source(config)
    assert caught.value.hint == f"name the folder that holds it: `{config.parent}`"
    (tmp_path / "empty.pt2").touch()
    with pytest.raises(InputError, match="is empty"):
        load_source(tmp_path / "empty.pt2")
    with pytest.raises(InputError, match="has no `config"):
        load_source(tmp_path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.97, 0.999])
def test_a_cut_off_archive_is_said_to_be_one(keep: float, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Net().eval(), (torch.ones(2, 4),)), buffer)
    data = buffer.getvalue()
    path = tmp_path / "model.pt2"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match="cut off or damaged"):
        load_source(path)


def test_members_that_share_a_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("m/archive_format", b"pt2")
        archive.writestr("m/models/model.json", b"{}")
        archive.writestr("m/models/model.json", b"{}")
    with pytest.raises(InputError, match="one name"):
        load_source(path)
