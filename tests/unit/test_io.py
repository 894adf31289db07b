"""Files of inputs and outputs: batches in order, bounded memory, and what files get wrong."""

from __future__ import annotations

import io
import json
import resource
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from executor_samples import embedding, spec
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from fusec.diagnostics import InputError, UsageError
from fusec.dtypes import bf16_to_f32, f32_to_bf16
from fusec.runtime import TensorSpec, load
from fusec.runtime.batches import Batching
from fusec.runtime.io import (
    BadRecord,
    Batch,
    Batches,
    RunSummary,
    open_writer,
    read_batches,
    run_batches,
)
from fusec.runtime.writing import json_text

Array = NDArray[np.generic]

SYMBOLS = {"batch": (1, 8), "seq": (1, 64)}
IDS = (spec("ids: i64[batch, seq]"),)
SUMS = (spec("sum: f32[batch]"), spec("ids2: i64[batch, seq]"))


class Doubler:
    """`sum` over `seq` and twice `ids`; refuses 13.  Remembers the sizes of its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def run(self, inputs: Mapping[str, object]) -> dict[str, Array]:
        ids = np.asarray(inputs["ids"])
        self.calls.append(ids.shape)
        if (ids == 13).any():
            raise InputError("the index 13 is out of range", at="%take", hint="look")
        return {"sum": ids.sum(1).astype(np.float32) / 8, "ids2": 2 * ids}


def read(
    path: Path,
    inputs: Sequence[TensorSpec] = IDS,
    outputs: Sequence[TensorSpec] = SUMS,
    batch_size: int | None = None,
    tokenizer: bytes | None = None,
) -> Batches:
    return read_batches(path, inputs, outputs, SYMBOLS, batch_size, tokenizer)


def run(
    source: Path, target: Path | None, batch_size: int | None = None
) -> tuple[RunSummary, Doubler, list[BadRecord]]:
    model, errors = Doubler(), list[BadRecord]()
    batches = read(source, batch_size=batch_size)
    seen: list[int] = []
    with open_writer(target, SUMS) as writer:
        summary = run_batches(
            model, batches, writer, on_error=errors.append, on_records=seen.append
        )
    assert sum(seen) == summary.records + summary.failed
    if batches.records is not None:
        assert summary.records + summary.failed <= batches.records
    return summary, model, errors


def jsonl(path: Path, *records: object) -> Path:
    lines = [item if isinstance(item, str) else json.dumps(item) for item in records]
    path.write_text("\n".join(lines) + "\n")
    return path


def arrays(path: Path, **values: NDArray[np.generic]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **values)  # type: ignore[arg-type]
    else:
        save_file(values, path)
    return path


def outputs_of(path: Path) -> dict[str, Array]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    return dict(load_file(path))


IDS_ARRAY = np.random.default_rng(0).integers(14, 99, (21, 5))


@pytest.mark.parametrize("source", [".npz", ".safetensors", ".jsonl"])
@pytest.mark.parametrize("target", [".npz", ".safetensors", ".jsonl"])
@pytest.mark.parametrize("batch_size", [None, 1, 4, 8])
def test_every_format_to_every_format(
    tmp_path: Path, source: str, target: str, batch_size: int | None
) -> None:
    given = tmp_path / f"in{source}"
    if source == ".jsonl":
        jsonl(given, *({"ids": row} for row in IDS_ARRAY.tolist()))
    else:
        arrays(given, ids=IDS_ARRAY)
    made = tmp_path / f"out{target}"
    summary, model, errors = run(given, made, batch_size)
    assert (summary.records, summary.failed, errors) == (21, 0, [])
    size = batch_size or 8
    assert [call[0] for call in model.calls] == [size] * (21 // size) + [21 % size] * (
        21 % size > 0
    )
    sums = IDS_ARRAY.sum(1).astype(np.float32) / 8
    if target == ".jsonl":
        rows = [json.loads(line) for line in made.read_text().splitlines()]
        assert rows == [
            {"sum": float(total), "ids2": ids}
            for total, ids in zip(sums, (2 * IDS_ARRAY).tolist(), strict=True)
        ]
    else:
        result = outputs_of(made)
        np.testing.assert_array_equal(result["sum"], sums)
        np.testing.assert_array_equal(result["ids2"], 2 * IDS_ARRAY)
        assert result["sum"].dtype == np.float32
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([given.name, made.name])


def test_a_real_model(tmp_path: Path) -> None:
    model = load(embedding(tmp_path))
    ids = np.random.default_rng(1).integers(0, 11, (30, 7))
    source = arrays(tmp_path / "in.npz", input_ids=ids)
    writer = open_writer(tmp_path / "out.npz", model.outputs)
    batches = read_batches(source, model.inputs, model.outputs, model.symbols)
    assert batches.records == 30
    assert run_batches(model, batches, writer) == RunSummary(30, 0)
    writer.close()
    table = np.arange(55, dtype=np.float32).reshape(11, 5)
    np.testing.assert_array_equal(outputs_of(tmp_path / "out.npz")["hidden"], 4 * table[ids])


# --- arrays ---------------------------------------------------------------------------------


def test_compressed_and_column_order(tmp_path: Path) -> None:
    for name, array in (("c", IDS_ARRAY), ("f", np.asfortranarray(IDS_ARRAY))):
        path = tmp_path / f"{name}.npz"
        np.savez_compressed(path, ids=array)
        batches = [item for item in read(path, batch_size=4) if isinstance(item, Batch)]
        np.testing.assert_array_equal(
            np.concatenate([batch.inputs["ids"] for batch in batches]), IDS_ARRAY
        )
        assert [batch.first for batch in batches] == [0, 4, 8, 12, 16, 20]


def test_batches_that_would_be_too_small() -> None:
    batching = Batching.of(IDS, SUMS, {"batch": (3, 8), "seq": (1, 9)}, 5)
    assert batching.split(11, 5) == [4, 4, 3]
    assert batching.split(10, 5) == [5, 5]
    assert batching.split(13, 5) == [5, 5, 3]
    assert batching.split(6, 5) == [3, 3]
    assert batching.split(2, 5) == [2]
    assert batching.split(0, 5) == [0]


def test_large_outputs_make_smaller_batches(tmp_path: Path) -> None:
    logits = (spec("logits: f32[batch, seq, 200000]"),)
    symbols = {"batch": (1, 64), "seq": (1, 4096)}
    ids = np.zeros((50, 20), np.int64)
    path = arrays(tmp_path / "in.npz", ids=ids)
    lines = jsonl(tmp_path / "in.jsonl", *({"ids": row} for row in ids.tolist()))
    for source in (path, lines):
        sizes = [
            item.records
            for item in read_batches(source, IDS, logits, symbols)
            if isinstance(item, Batch)
        ]
        assert sizes == [16, 16, 16, 2]
        asked = read_batches(source, IDS, logits, symbols, 50)
        assert [item.records for item in asked if isinstance(item, Batch)] == [50]
    batching = Batching.of(IDS, logits, {"batch": (4, 64), "seq": (1, 4096)}, None)
    assert batching.size_for({"seq": 1}) == 32
    assert batching.size_for({"seq": 4096}) == 4


def test_wrong_sizes_of_arrays_are_found_before_a_call(tmp_path: Path) -> None:
    path = arrays(tmp_path / "in.npz", ids=np.zeros((3, 65), np.int64))
    with pytest.raises(InputError, match="`seq` is 65") as caught:
        list(read(path))
    assert caught.value.at == str(path)
    path = arrays(tmp_path / "in.npz", ids=np.zeros((3, 6, 5), np.int64))
    with pytest.raises(InputError, match="must have 2 dims"):
        list(read(path))


def test_models_without_batches(tmp_path: Path) -> None:
    total = (spec("total: f32[]"),)
    path = arrays(tmp_path / "in.npz", ids=IDS_ARRAY)
    (batch,) = read(path, outputs=total)
    assert isinstance(batch, Batch)
    assert batch.inputs["ids"].shape == (21, 5)
    assert not batch.rows
    with pytest.raises(InputError, match="has no batches"):
        read(path, outputs=total, batch_size=4)
    for size in (0, 9, -1):
        with pytest.raises(InputError, match=r"was compiled for 1\.\.8"):
            read(path, batch_size=size)


def test_inputs_without_a_batch_go_to_every_batch(tmp_path: Path) -> None:
    inputs = (*IDS, spec("scale: f32[3]"))
    path = arrays(tmp_path / "in.npz", scale=np.ones(3, np.float32), ids=IDS_ARRAY)
    source = read(path, inputs)
    assert source.records == 21
    batches = [item for item in source if isinstance(item, Batch)]
    assert [batch.inputs["scale"].shape for batch in batches] == [(3,)] * 3
    assert [batch.records for batch in batches] == [8, 8, 5]


def test_bf16_inputs_and_outputs(tmp_path: Path) -> None:
    bits = np.array([[0x3F80, 0x4049], [0x7F80, 0x0001], [0xBF80, 0]], np.uint16)
    header = {"x": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [0, 12]}}
    text = json.dumps(header).encode()
    source = tmp_path / "in.safetensors"
    source.write_bytes(len(text).to_bytes(8, "little") + text + bits.tobytes())
    inputs, outputs = (spec("x: bf16[batch, 2]"),), (spec("y: bf16[batch, 2]"),)
    for suffix in (".npz", ".safetensors", ".jsonl"):
        writer = open_writer(tmp_path / f"out{suffix}", outputs)
        for batch in read(source, inputs, outputs, 2):
            assert isinstance(batch, Batch)
            assert batch.inputs["x"].dtype == np.float32
            writer.write(batch, {"y": batch.inputs["x"]})
        writer.close()
    wide = bf16_to_f32(bits)
    np.testing.assert_array_equal(outputs_of(tmp_path / "out.npz")["y"], wide)
    assert outputs_of(tmp_path / "out.npz")["y"].dtype == np.float32
    raw = (tmp_path / "out.safetensors").read_bytes()
    assert b'"BF16"' in raw
    assert raw.endswith(bits.tobytes())
    assert '{"y": [Infinity, 9.1835e-41]}' in (tmp_path / "out.jsonl").read_text()
    np.testing.assert_array_equal(f32_to_bf16(wide), bits)


def npz_of(path: Path, member: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
    return path


def npy(array: Array, header: str | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    data = file.getvalue()
    return data if header is None else data[:10] + header.encode().ljust(118) + data[128:]


def test_arrays_that_cannot_be_read(tmp_path: Path) -> None:
    good = npy(IDS_ARRAY)
    path = tmp_path / "in.npz"
    pickled = io.BytesIO()
    np.savez(pickled, ids=np.array([{}], object))
    cases: list[tuple[bytes, str]] = [
        (b"", "cannot read"),
        (b"hello" * 100, "cannot read"),
        (pickled.getvalue(), "Python objects"),
        (npz_of(path, "ids.npy", good[:-1]).read_bytes(), "too short"),
        (npz_of(path, "ids.npy", b"").read_bytes(), "cannot read the array `ids`"),
        (npz_of(path, "ids.npy", b"\x93NUMPY\x01\x00\xff\xff{").read_bytes(), "cannot read"),
        (npz_of(path, "ids.npy", npy(IDS_ARRAY, "{'descr':1}")).read_bytes(), "cannot read"),
        (npz_of(path, "other.npy", good).read_bytes(), "no input `other`"),
        (npz_of(path, "notes.txt", good).read_bytes(), "the input `ids` is missing"),
    ]
    hostile = "{'descr':'<i8','fortran_order':False,'shape':(-1,5)}"
    cases.append((npz_of(path, "ids.npy", npy(IDS_ARRAY, hostile)).read_bytes(), "array of num"))
    damaged = bytearray(npz_of(path, "ids.npy", good).read_bytes())
    damaged[300] ^= 1
    cases.append((bytes(damaged), "CRC"))
    for data, message in cases:
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            list(read(path))
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "missing.npz")
    with pytest.raises(InputError, match="cannot tell"):
        read(tmp_path / "in.csv")


def test_safetensors_that_cannot_be_read(tmp_path: Path) -> None:
    path = arrays(tmp_path / "in.safetensors", ids=IDS_ARRAY)
    good = path.read_bytes()
    for data in (b"", good[:-1], good + b"x", good[:3], b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(InputError, match="cannot read"):
            list(read(path))
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "missing.safetensors")


def test_rows_that_differ_in_number(tmp_path: Path) -> None:
    inputs = (*IDS, spec("mask: i64[batch, seq]"))
    path = arrays(tmp_path / "in.npz", ids=IDS_ARRAY, mask=IDS_ARRAY[:20])
    with pytest.raises(InputError, match="`batch` is 21 in the input `ids` but 20 in `mask`"):
        list(read(path, inputs))


def test_a_bad_batch_of_arrays_says_which(tmp_path: Path) -> None:
    bad = IDS_ARRAY.copy()
    bad[17, 2] = 13
    path = arrays(tmp_path / "in.npz", ids=bad)
    with pytest.raises(InputError, match="index 13") as caught:
        run(path, tmp_path / "out.npz")
    assert caught.value.at == f"{path}: records 16 to 20 at %take"


# --- records --------------------------------------------------------------------------------


def test_records_of_other_sizes_keep_their_order(tmp_path: Path) -> None:
    rows = [[20] * length for length in (3, 3, 5, 5, 5, 2, 3, 3)]
    path = jsonl(tmp_path / "in.jsonl", *({"ids": row} for row in rows))
    target = tmp_path / "out.jsonl"
    _, model, _ = run(path, target, 2)
    assert model.calls == [(2, 3), (2, 5), (1, 5), (1, 2), (2, 3)]
    made = [json.loads(line)["ids2"] for line in target.read_text().splitlines()]
    assert made == [[40] * len(row) for row in rows]
    run(path, tmp_path / "out.npz", 2)
    result = outputs_of(tmp_path / "out.npz")
    assert [result[f"ids2.{index}"].tolist() for index in range(8)] == made
    assert result["sum.3"].shape == ()


def test_bad_records_are_named_and_the_rest_is_done(tmp_path: Path) -> None:
    good = {"ids": [20, 21]}
    bad: list[tuple[object, str]] = [
        ("{not json", "not JSON"),
        ([1, 2], "must be an object"),
        ({"id": [1]}, "no input `id`"),
        ({}, "`ids` is missing"),
        ({"ids": [1.5]}, "must be i64"),
        ({"ids": [True]}, "must be i64"),
        ({"ids": "word"}, "must be i64"),
        ({"ids": [[1], [2, 3]]}, "not an array"),
        ({"ids": None}, "must be i64"),
        ({"ids": 3}, "must have 2 dims"),
        ({"ids": [[[1]]]}, "must have 2 dims"),
        ({"ids": []}, "`seq` is 0"),
        ({"ids": [1] * 65}, "`seq` is 65"),
        ({"ids": [1 << 70]}, "must be i64"),
        ({"ids": [13, 20]}, "index 13 is out of range"),
        ({"text": "hello"}, "has none"),
        ("[" * 100_000, "nested"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "not JSON"),
    ]
    records: list[object] = [good]
    for record, _ in bad:
        records += ["", record, good]
    path = jsonl(tmp_path / "in.jsonl", *records)
    summary, _, errors = run(path, tmp_path / "out.jsonl", 4)
    assert (summary.records, summary.failed) == (len(bad) + 1, len(bad))
    for index, ((_, message), found) in enumerate(zip(bad, errors, strict=True)):
        assert found.line == 3 * index + 3
        assert found.index == 2 * index + 1
        assert message in str(found.error)
        assert str(found.error.at).startswith(f"{path}:{found.line}")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * len(bad) + 1
    assert all(line == {"sum": 5.125, "ids2": [40, 42]} for line in lines[::2])
    assert [line["line"] for line in lines[1::2]] == [found.line for found in errors]
    run(path, tmp_path / "out.npz", 4)
    assert outputs_of(tmp_path / "out.npz")["sum"].shape == (len(bad) + 1,)


def test_one_bad_record_does_not_spoil_its_batch(tmp_path: Path) -> None:
    rows = [[20, 20], [13, 20], [21, 21], [22, 22]]
    path = jsonl(tmp_path / "in.jsonl", *({"ids": row} for row in rows))
    summary, model, errors = run(path, tmp_path / "out.jsonl", 4)
    assert (summary.records, summary.failed) == (3, 1)
    assert model.calls == [(4, 2), (1, 2), (1, 2), (1, 2), (1, 2)]
    assert [error.line for error in errors] == [2]
    assert errors[0].error.hint == "look"
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert ["error" in line for line in lines] == [False, True, False, False]


def test_fewer_records_than_the_model_takes_are_filled_up(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", *({"ids": [row, 20]} for row in (20, 13, 22)))
    model = Doubler()
    batches = read_batches(path, IDS, SUMS, {**SYMBOLS, "batch": (2, 8)})
    with open_writer(tmp_path / "out.jsonl", SUMS) as writer:
        summary = run_batches(model, batches, writer)
    assert (summary.records, summary.failed) == (2, 1)
    assert model.calls == [(3, 2), (2, 2), (2, 2), (2, 2)]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line.get("ids2") for line in lines] == [[40, 40], None, [44, 40]]


def test_records_that_are_batches_themselves(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", {"ids": [[20, 21], [22, 23]]}, {"ids": [20, 21]})
    _, model, _ = run(path, tmp_path / "out.jsonl")
    assert model.calls == [(2, 2), (1, 2)]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[0]["ids2"] == [[40, 42], [44, 46]]
    assert lines[1]["ids2"] == [40, 42]
    inputs = (*IDS, spec("mask: i64[batch, seq]"))
    mixed = jsonl(tmp_path / "mixed.jsonl", {"ids": [[1, 2]], "mask": [1, 2]})
    (item,) = read(mixed, inputs)
    assert isinstance(item, BadRecord)
    assert "some have none" in str(item.error)


def test_symbols_must_agree_in_a_record(tmp_path: Path) -> None:
    inputs = (*IDS, spec("mask: i64[batch, seq]"))
    path = jsonl(tmp_path / "in.jsonl", {"ids": [1, 2], "mask": [1, 2, 3]})
    (item,) = read(path, inputs)
    assert isinstance(item, BadRecord)
    assert "`seq` is 2 in the input `ids` but 3 in `mask`" in str(item.error)


def test_text_with_a_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"hello": 20, "world": 21, "?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(1)
    encoded = tokenizer.to_str().encode()
    inputs = (spec("input_ids: i64[batch, seq]"), spec("attention_mask: i64[batch, seq]"))
    outputs = (spec("y: f32[batch]"),)
    records: list[object] = [{"text": "hello world"}, {"text": "world hello"}, {"text": 3}]
    path = jsonl(tmp_path / "in.jsonl", *records, {"text": "hello", "attention_mask": [0]})
    first, bad, last = read(path, inputs, outputs, None, encoded)
    assert isinstance(first, Batch)
    assert first.inputs["input_ids"].tolist() == [[20, 21], [21, 20]]
    assert first.inputs["attention_mask"].tolist() == [[1, 1], [1, 1]]
    assert isinstance(bad, BadRecord)
    assert "must be a string" in str(bad.error)
    assert isinstance(last, Batch)
    assert last.inputs["attention_mask"].tolist() == [[0]]
    (other,) = read(jsonl(tmp_path / "b.jsonl", {"text": "x"}), IDS, SUMS, None, encoded)
    assert isinstance(other, BadRecord)
    assert "takes no text" in str(other.error)


def test_standard_input_and_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b'{"ids": [20, 30]}\n{"ids": [1.5]}'))
    monkeypatch.setattr(sys, "stdin", stdin)
    summary, _, (error,) = run(Path("-"), None)
    assert summary == RunSummary(1, 1)
    assert error.error.at == "standard input:2"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '{"sum": 6.25, "ids2": [40, 60]}'
    assert json.loads(lines[1])["line"] == 2


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Reading and writing 200 MB takes a few batches of memory."""
    import tracemalloc

    path = tmp_path / "in.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("ids.npy", "w", force_zip64=True) as f:
        header = {"descr": "<i8", "fortran_order": False, "shape": (400_000, 64)}
        np.lib.format.write_array_header_1_0(f, header)
        for _ in range(100):
            f.write(bytes(4000 * 64 * 8))
    tracemalloc.start()
    count = 0
    writer = open_writer(tmp_path / "out.npz", (spec("ids2: i64[batch, seq]"),))
    batching = {"batch": (1, 4000), "seq": (1, 64)}
    for batch in read_batches(path, IDS, SUMS, batching, 4000):
        assert isinstance(batch, Batch)
        writer.write(batch, {"ids2": batch.inputs["ids"]})
        count += batch.records
    writer.close()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 400_000
    assert peak < 20_000_000


# --- writing --------------------------------------------------------------------------------


def test_json_numbers_read_back_exactly() -> None:
    random = np.random.default_rng(0)
    for dtype in (np.float32, np.float16, np.float64):
        values = random.standard_normal((3, 0, 2)).astype(dtype)
        assert json.loads(json_text(values)) == [[], [], []]
        values = (random.standard_normal((5, 7)) * 10.0 ** random.integers(-4, 4, (5, 7))).astype(
            dtype
        )
        np.testing.assert_array_equal(np.array(json.loads(json_text(values)), dtype), values)
    special = np.array([np.nan, np.inf, -np.inf, 0.1], np.float32)
    assert json_text(special) == "[NaN, Infinity, -Infinity, 0.1]"
    assert json_text(np.array(3, np.int64)) == "3"
    assert json_text(np.array([[True], [False]])) == "[[true], [false]]"
    assert json_text(np.zeros((2, 0), np.int64)) == "[[], []]"
    assert json_text(np.zeros((0, 2), np.int64)) == "[]"


def test_output_files_are_deterministic_and_atomic(tmp_path: Path) -> None:
    path = arrays(tmp_path / "in.npz", ids=IDS_ARRAY)
    for suffix in (".npz", ".safetensors", ".jsonl"):
        made = tmp_path / f"out{suffix}"
        made.write_text("before")
        run(path, made)
        first = made.read_bytes()
        run(path, made)
        assert made.read_bytes() == first
        writer = open_writer(made, SUMS)
        writer.discard()
        assert made.read_bytes() == first
        with pytest.raises(InputError, match="cannot write"):
            open_writer(tmp_path / "missing" / f"out{suffix}", SUMS)
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(UsageError, match="cannot tell"):
        open_writer(tmp_path / "out.csv", SUMS)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".jsonl"])
def test_nothing_is_left_of_outputs_that_do_not_fit(suffix: str, tmp_path: Path) -> None:
    path = arrays(tmp_path / "in.npz", ids=IDS_ARRAY)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot write"):
            run(path, tmp_path / f"out{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_but_bad_records(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", "{", "}")
    for suffix in (".npz", ".safetensors", ".jsonl"):
        summary, _, errors = run(path, tmp_path / f"out{suffix}")
        assert summary == RunSummary(0, 2)
        assert [error.line for error in errors] == [1, 2]
    assert outputs_of(tmp_path / "out.npz") == {}
    assert outputs_of(tmp_path / "out.safetensors") == {}
