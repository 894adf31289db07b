"""The front half of a compilation, repeated from what an artifact records of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantised_models import write_adapter
from sample_models import build

import fusec
from fusec.diagnostics import InputError, UsageError
from fusec.frontend.eager import eager_source
from fusec.runtime.artifact import Artifact, open_artifact
from fusec.verify.compilation import Compilation, Given, read_again

LAYERS = {"model.layers.0.self_attn.q_proj": (96, 96)}

pytestmark = pytest.mark.usefixtures("quiet_progress")


def again(artifact: Artifact, source: object, given: Given | None = None) -> Compilation:
    target = artifact.manifest.targets[0].target
    return read_again(artifact, target, source, given or Given(), lambda _: None)


def compiled(source: object, path: Path, **options: Any) -> Artifact:
    return open_artifact(fusec.compile(source, path, **options).path)


def floats(outputs: Mapping[str, Any]) -> Any:
    return np.asarray(outputs["logits"], np.float64)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("again") / "linear.pt2"
    module = torch.nn.Sequential(torch.nn.Linear(48, 64), torch.nn.LayerNorm(64)).eval()
    batch = torch.export.Dim("batch", min=1, max=512)
    program = torch.export.export(
        module, (torch.randn(4, 48),), dynamic_shapes=({0: batch},), strict=False
    )
    torch.export.save(program, path)
    return path


@pytest.mark.parametrize("dim", ["batch=1:8:64", "batch=:16", "batch=5", None])
def test_sizes_of_an_archive(archive: Path, tmp_path: Path, dim: str | None) -> None:
    dims = () if dim is None else (dim,)
    artifact = compiled(archive, tmp_path / "m.fusec", target="x86-64-v3", dims=dims)
    repeated = again(artifact, archive)
    assert not repeated.changed
    assert repeated.lower().steps


def test_another_source_is_told(archive: Path, tmp_path: Path) -> None:
    artifact = compiled(archive, tmp_path / "m.fusec", target="x86-64-v3", dims=("batch=1:64",))
    module = torch.nn.Linear(48, 64).eval()
    other = again(
        artifact,
        module,
        Given(example_inputs=(torch.randn(4, 48),), dynamic_shapes=({0: "batch"},)),
    )
    assert other.changed
    with pytest.raises(InputError, match="cannot be repeated") as error:
        other.lower()
    assert "another one than the artifact was compiled from" in error.value.detail[0]


def test_tables_of_tiles(archive: Path, tmp_path: Path) -> None:
    row = {"kernel": "linear.triton", "dtype": "f32", "n": 64, "k": 48, "tier": "few"}
    tile = {"rows": 16, "columns": 64, "depth": 64, "warps": 4, "stages": 2, "group": 8}
    row |= {"tile": tile | {"options": {}, "constants": {}}, "device": "none", "microseconds": 1.0}
    tables = [tmp_path / name for name in ("table.json", "other.json")]
    for path, more in zip(tables, ({}, {"made": {"on": "another day"}}), strict=True):
        document = {"schema": "fusec.tuning/1", "arch": "gfx950", "rows": [row], **more}
        path.write_text(json.dumps(document))
    tuned = compiled(archive, tmp_path / "m.fusec", target="gfx950", tuning=[tables[0]])
    assert again(tuned, archive, Given(tuning=(tables[0],))).lower().steps
    for given, message in (
        ((), "was compiled with a table of tiles"),
        ((tables[1],), "was compiled with another table of tiles"),
    ):
        repeated = again(tuned, archive, Given(tuning=given))
        with pytest.raises(UsageError, match=message):
            repeated.lower()


def test_a_model_with_an_adapter_runs_eagerly(tmp_path: Path) -> None:
    base = build("llama", tmp_path / "base", num_hidden_layers=1)
    adapter = write_adapter(tmp_path / "adapter", Path("../base"), LAYERS, 4)
    artifact = compiled(
        base, tmp_path / "m.fusec", target="x86-64-v3", adapter=adapter, dims=("batch=2", "seq=5")
    )
    tokens = {"input_ids": np.arange(10).reshape(2, 5)}
    wanted = floats(fusec.load(artifact.path).run(dict(tokens)))
    without = floats(eager_source(base, ["logits"]).run(tokens))
    assert np.abs(without - wanted).max() > 1e-2
    for source, given in ((base, adapter), (adapter, None)):
        got = floats(eager_source(source, ["logits"], adapter=given).run(tokens))
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
        assert not again(artifact, source, Given(adapter=given)).changed
    assert again(artifact, base).changed
