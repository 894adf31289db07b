"""How long it takes to load a model and run its first batch, beside transformers.

    python tests/benchmarks/cpu_loading.py [--gigabytes 1] [--threads 2] [--rounds 5] [--folder DIR]

Builds a Llama of random bf16 weights of the given size, saves it as a Hugging Face folder, compiles
that, and then starts a new process for each measurement, in turn: `fusec.load` and the first
batch, and `AutoModelForCausalLM.from_pretrained` and the first batch.  Importing is taken apart.
Files are in the page cache, except in the rows that say so: for those their pages are dropped
before each process starts, which needs no rights.  Prints a Markdown table of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SEQUENCE = 16
WIDTH, INNER, HEADS, KEY_HEADS, WORDS = 2048, 5632, 16, 4, 32000
PARTS = ("import", "load", "first", "second")

FUSEC = """
import json, sys, time
begin = time.perf_counter()
import numpy
import fusec.runtime
imported = time.perf_counter()
options = json.loads(sys.argv[2])
model = fusec.load(sys.argv[1], threads=int(sys.argv[3]), **options)
loaded = time.perf_counter()
ids = numpy.arange(int(sys.argv[4]))[None]
model(input_ids=ids)
first = time.perf_counter()
model(input_ids=ids)
second = time.perf_counter()
"""
TRANSFORMERS = """
import json, sys, time
begin = time.perf_counter()
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
imported = time.perf_counter()
torch.set_num_threads(int(sys.argv[3]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
loaded = time.perf_counter()
ids = torch.arange(int(sys.argv[4]))[None]
with torch.inference_mode():
    model(input_ids=ids)
    first = time.perf_counter()
    model(input_ids=ids)
    second = time.perf_counter()
"""
REPORT = """
times = (begin, imported, loaded, first, second)
print(json.dumps([after - before for before, after in zip(times, times[1:])]))
"""
ROWS: dict[str, tuple[str, dict[str, bool], bool]] = {
    "transformers": (TRANSFORMERS, {}, False),
    "fusec": (FUSEC, {}, False),
    "fusec, `verify=False`": (FUSEC, {"verify": False}, False),
    "fusec, `huge_pages=True`": (FUSEC, {"huge_pages": True}, False),
    "transformers, file not cached": (TRANSFORMERS, {}, True),
    "fusec, file not cached": (FUSEC, {}, True),
}
"""What runs, with which options of `fusec.load`, and whether its file is dropped from the cache."""


def build(folder: Path, gigabytes: float) -> tuple[Path, Path]:
    """A model folder, and what `fusec compile` makes of it."""
    import torch
    import transformers

    import fusec

    layer = WIDTH * (WIDTH * 2 + 2 * WIDTH * KEY_HEADS // HEADS + 3 * INNER)
    layers = max(1, round((gigabytes * 5e8 - 2 * WORDS * WIDTH) / layer))
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=4096,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    source, artifact = folder / "model", folder / "model.fusec"
    transformers.LlamaForCausalLM(config).save_pretrained(source, max_shard_size="100GB")
    fusec.compile(source, artifact, target="cpu")
    return source, artifact


def prepare(path: Path, *, cached: bool) -> None:
    """Bring a file, or the files of a folder, into the page cache or out of it."""
    for file in path.iterdir() if path.is_dir() else [path]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            if not cached:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while cached and opened.read(1 << 22):
                pass


def measure(code: str, path: Path, options: dict[str, bool], threads: int) -> list[float]:
    """Seconds of each of `PARTS` in a new process."""
    arguments = [str(path), json.dumps(options), str(threads), str(SEQUENCE)]
    command = [sys.executable, "-c", code + REPORT, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def table(seconds: dict[str, list[list[float]]]) -> str:
    """Medians, and how often the sums of each row go into those of transformers."""
    lines = [
        "| | import | load | first batch | second batch | load and first batch | ratio "
        "| with import | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    sums = {
        name: [statistics.median(sum(each[begin:3]) for each in rounds) for begin in (1, 0)]
        for name, rounds in seconds.items()
    }
    for name, rounds in seconds.items():
        cells = [statistics.median(each[part] for each in rounds) for part in range(len(PARTS))]
        peer = "transformers, file not cached" if ROWS[name][2] else "transformers"
        words = [f"{cell:.3f} s" for cell in cells]
        for ours, theirs in zip(sums[name], sums[peer], strict=True):
            words += [f"{ours:.3f} s", f"{theirs / ours:.1f}"]
        lines.append(f"| {name} | {' | '.join(words)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the model here, and use what is there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        source, artifact = folder / "model", folder / "model.fusec"
        if not artifact.exists():
            folder.mkdir(parents=True, exist_ok=True)
            source, artifact = build(folder, given.gigabytes)
        seconds: dict[str, list[list[float]]] = {name: [] for name in ROWS}
        for _ in range(given.rounds):
            for name, (code, options, cold) in ROWS.items():
                path = source if code is TRANSFORMERS else artifact
                prepare(path, cached=not cold)
                seconds[name].append(measure(code, path, options, given.threads))
    print(f"{artifact.name} on {given.threads} threads, medians of {given.rounds} rounds\n")
    print(table(seconds))


if __name__ == "__main__":
    main()
