"""A process of `peers.py`: it builds a workload, compiles it, or runs it as one peer.

    python peer_worker.py build|fusec|onnx FOLDER WORKLOAD [--smoke] [--target ARCH]
    python peer_worker.py run FOLDER WORKLOAD [--smoke] --peer NAME --threads N

`run` answers on standard output, one JSON object a line: when it is ready, with its error against
float64, and then for each line `SECONDS CALLS` of standard input the times of as many calls.  The
line `pin CPU,CPU` puts all of its threads on these processors.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from peer_runners import ARTIFACT, PEERS, Runner, Task, export_onnx
from peer_workloads import Workload, compute_experts, reference, relative_error, seeded, workloads

BUILT, WANTED = "workload.pt", "reference.pt"
WARM_UP = 2
MILLI = 1e3


def build(workload: Workload, folder: Path) -> None:
    """Make the module and its inputs, and what they give in float64."""
    module, inputs = seeded(workload)
    torch.save((module, inputs), folder / BUILT)
    torch.save(reference(module, inputs), folder / WANTED)


def task_of(workload: Workload, folder: Path, threads: int) -> Task:
    """The task with the module that `build` made; its weights are mapped, not read."""
    module, inputs = torch.load(folder / BUILT, weights_only=False, mmap=True)
    return Task(workload, folder, module, inputs, threads)


def compile_artifact(task: Task, target: str) -> None:
    """Write the artifact of fusec, as `fusec compile` does."""
    import fusec

    compute_experts(task.module, "grouped_mm")  # as for a model folder; a loop has no graph
    fusec.compile(
        task.module,
        task.folder / ARTIFACT,
        target=target,
        example_inputs=task.inputs,
        quantize=task.workload.quantize,
        fp32_precision=task.workload.precision,
    )


def run(task: Task, peer: str, answers: TextIO) -> None:
    """Compile the workload, say how far its results are off, and run it when told to."""
    begin = time.perf_counter()
    torch.set_num_threads(task.threads)
    torch.set_float32_matmul_precision(task.workload.precision)
    runner = PEERS[peer].make(task)
    for _ in range(WARM_UP):
        result = runner.call()
    wanted = torch.load(task.folder / WANTED)
    ready = {
        "error": relative_error(runner.tensors(result), wanted),
        "setup": time.perf_counter() - begin,
        "note": runner.note,
    }
    del wanted, result
    _answer(answers, ready)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "pin":
            _pin({int(word) for word in words[1].split(",")})
            _answer(answers, {"pinned": words[1]})
        else:
            _answer(answers, _timed(runner, float(words[0]), int(words[1])))


def _pin(processors: set[int]) -> None:
    """Put every thread of this process on `processors`; those made later follow."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), processors)


def _timed(runner: Runner, seconds: float, most: int) -> dict[str, list[float]]:
    """Milliseconds of calls one after the other: by the clock, and of all threads' processors.

    Args:
        runner: what is called.
        seconds: after which no further call begins; there is always one.
        most: calls.
    """
    wall: list[float] = []
    processor: list[float] = []
    end = time.perf_counter() + seconds
    while not wall or (len(wall) < most and time.perf_counter() < end):
        before, begin = time.process_time(), time.perf_counter()
        runner.call()
        wall.append(MILLI * (time.perf_counter() - begin))
        processor.append(MILLI * (time.process_time() - before))
    return {"wall": wall, "processor": processor}


def _answer(answers: TextIO, document: dict[str, Any]) -> None:
    print(json.dumps(document), file=answers, flush=True)


def main() -> None:
    """Do one step; an exception is the reason that the coordinator reads from the log."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=["build", "fusec", "onnx", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("workload")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--peer", default="fusec")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    (workload,) = (each for each in workloads(given.smoke) if each.name == given.workload)
    with torch.no_grad():
        if given.step == "build":
            build(workload, given.folder)
            return
        task = task_of(workload, given.folder, given.threads)
        if given.step == "fusec":
            compile_artifact(task, given.target)
        elif given.step == "onnx":
            export_onnx(task)
        else:
            run(task, given.peer, answers)


if __name__ == "__main__":
    main()
