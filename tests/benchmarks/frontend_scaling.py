"""How long the frontend and the passes take on full-size models, against `torch.export` itself.

    python tests/benchmarks/frontend_scaling.py [MODEL=LAYERS,LAYERS,... ...]

Builds DeepSeek-V3 and gpt-oss-120b in their full sizes, with fewer or all of their layers, on the
meta device, and takes each through the frontend and every pass, each in a process of its own.
Prints a Markdown table.  Times are of the processor and of one thread, so a busy machine changes
them little.  Peak memory is of the process, with what importing PyTorch takes listed apart.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

POINTS = {"deepseek_v3": (4, 8, 16, 32, 61), "gpt_oss_120b": (4, 8, 16, 36)}
TARGET = "x86-64-v4"


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement.

    Attributes:
        model: which model.
        layers: of it.
        parameters: numbers in its weights.
        nodes: of the graph that the frontend gives.
        left: of the graph after all passes.
        build: seconds in which transformers builds the model on the meta device.
        export: seconds of `torch.export`.
        frontend: seconds of everything else up to the graph.
        passes: seconds of all passes.
        imported: bytes of memory once everything is imported.
        peak: bytes of memory at most.
        attention: how often attention was recognised.
    """

    model: str
    layers: int
    parameters: int
    nodes: int
    left: int
    build: float
    export: float
    frontend: float
    passes: float
    imported: int
    peak: int
    attention: int

    @property
    def ratio(self) -> float:
        """All that fusec adds, relative to the export."""
        return (self.build + self.frontend + self.passes) / self.export

    @property
    def microseconds(self) -> float:
        """Of frontend and passes, for a node."""
        return 1e6 * (self.frontend + self.passes) / self.nodes


def configuration(model: str, layers: int) -> Any:
    """The configuration of a model; the defaults of transformers are those of the full size."""
    import transformers

    if model == "deepseek_v3":
        return transformers.DeepseekV3Config(
            num_hidden_layers=layers, architectures=["DeepseekV3ForCausalLM"], dtype="bfloat16"
        )
    return transformers.GptOssConfig(
        num_hidden_layers=layers,
        num_local_experts=128,
        architectures=["GptOssForCausalLM"],
        dtype="bfloat16",
    )


class Clock:
    """Processor time spent inside of functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, name: str) -> None:
        """Count the time of every call of `owner.name`."""
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.process_time() - begin
                self.seconds[name] = self.seconds.get(name, 0.0) + spent

        setattr(owner, name, timed)


def peak_memory() -> int:
    """Bytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def measure(model: str, layers: int) -> Point:
    """Take one model through the frontend and the passes, in this process."""
    import torch
    import transformers.models.deepseek_v3.modeling_deepseek_v3
    import transformers.models.gpt_oss.modeling_gpt_oss  # noqa: F401

    import fusec.frontend.delta_rule
    import fusec.frontend.exported
    import fusec.frontend.live  # noqa: F401
    from fusec.frontend import huggingface
    from fusec.frontend.sources import load_source
    from fusec.options import selected_passes
    from fusec.rewrite import DecisionLog, run_pipeline
    from fusec.target import target_named

    imported = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        configuration(model, layers).save_pretrained(folder)
        clock = Clock()
        clock.watch(torch.export, "export")
        clock.watch(huggingface, "prepare_folder")
        begin = time.process_time()
        source = load_source(folder)
        total = time.process_time() - begin
    graph = source.graph
    nodes = len(graph)
    parameters = sum(
        weight.nbytes // graph.type(name).element.itemsize
        for name, weight in graph.parameters.items()
    )
    log = DecisionLog(source.decisions)
    begin = time.process_time()
    run_pipeline(selected_passes(()), graph, target_named(TARGET), log)
    passes = time.process_time() - begin
    export, build = clock.seconds["export"], clock.seconds["prepare_folder"]
    return Point(
        model,
        layers,
        parameters,
        nodes,
        len(graph),
        build,
        export,
        total - export - build,
        passes,
        imported,
        peak_memory(),
        log.fired()["attention"],
    )


def measured_apart(model: str, layers: int) -> Point:
    """`measure` in a process of its own, with one thread."""
    command = [sys.executable, "-W", "ignore", __file__, "--point", model, str(layers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{model} with {layers} layers failed:\n{done.stderr}")
    return Point(**json.loads(done.stdout.splitlines()[-1]))


def row(point: Point) -> str:
    """A line of the table."""
    cells = [
        point.model,
        point.layers,
        f"{point.parameters / 1e9:.0f}",
        f"{point.nodes:,}",
        f"{point.left:,}",
        f"{point.export:.2f}",
        f"{point.build:.2f}",
        f"{point.frontend:.2f}",
        f"{point.passes:.2f}",
        f"{point.ratio:.2f}",
        f"{point.microseconds:.0f}",
        f"{point.imported / 1e6:.0f}",
        f"{point.peak / 1e6:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


HEADER = (
    "model",
    "layers",
    "parameters, 10^9",
    "nodes",
    "after passes",
    "`torch.export`, s",
    "build, s",
    "frontend, s",
    "passes, s",
    "all but export / export",
    "us a node",
    "memory imported, MB",
    "at most, MB",
)


def environment() -> str:
    """What it was measured on."""
    import importlib.metadata

    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "fusec")
    )
    processor = found[1] if found else platform.machine()
    return f"{processor}, Python {platform.python_version()}, {versions}"


def main(arguments: list[str]) -> None:
    """Measure every point and print the table as it grows."""
    if arguments[:1] == ["--point"]:
        print(json.dumps(asdict(measure(arguments[1], int(arguments[2])))))
        return
    points = dict(POINTS)
    if arguments:
        split = (argument.partition("=") for argument in arguments)
        points = {name: tuple(map(int, layers.split(","))) for name, _, layers in split}
    print(f"{time.strftime('%Y-%m-%d')}, {environment()}\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    for model, counts in points.items():
        for layers in counts:
            print(row(measured_apart(model, layers)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
