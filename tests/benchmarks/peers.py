"""fusec beside every other way to run the same program on the CPU.

    python tests/benchmarks/peers.py [--only llama] [--threads 1,2] [--markdown FILE] [--json FILE]

Each workload is built once, with random weights.  fusec runs it through an artifact that
`fusec.compile` wrote and `fusec.load` loads; the peers that are installed run it as their own
compilers leave it.  Every peer is a process of its own, with as many threads and processors as are
asked for; the coordinator lets one at a time run, in rounds, so that what else the machine does
falls on all alike.  A time is the median over the rounds of the median of a round, beside the least
of all.  The error is that of all outputs against the same program in float64: the largest, in the
root mean square, relative to the output's.

A peer that is not installed is listed as such.  One that dies or cannot compile a workload is
listed with its reason, and the rest goes on.  Results are written after each workload; with the
same `--json FILE` later calls add theirs, so that `--only` can split a table into short calls.

`--smoke` runs everything at tiny sizes: it shows that it works, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from peer_process import Step, Worker
from peer_runners import ARTIFACT, ONNX, PEERS
from peer_table import Result, core_of, markdown, measured
from peer_workloads import Workload, workloads

NEEDS_ONNX = ("onnxruntime", "iree")


def arguments() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(description="fusec beside other compilers, on the CPU")
    parser.add_argument("--only", default="", help="prefixes of workloads, with commas")
    parser.add_argument("--peers", default=",".join(PEERS), help="names, with commas")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of calls, for a peer")
    parser.add_argument("--setup", type=float, default=300.0, help="seconds to compile in")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    parser.add_argument("--cpus", help="processors to run on, with commas")
    parser.add_argument("--target", default="cpu", help="of the artifacts")
    parser.add_argument("--markdown", type=Path, help="the table; also printed")
    parser.add_argument("--json", type=Path, help="all results, added to")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--list", action="store_true", help="only name the workloads")
    return parser


def processors(most: int, named: str | None) -> list[int]:
    """Processors to run on, each on a core of its own as far as there are as many.

    Args:
        most: how many.
        named: those to take, with commas, instead of the first that this process may use.
    """
    if named is not None:
        return [int(word) for word in named.split(",")][:most]
    cores: dict[str, int] = {}
    usable = sorted(os.sched_getaffinity(0))
    for number in usable:
        cores.setdefault(core_of(number), number)
    first = list(cores.values())
    return [*first, *(number for number in usable if number not in first)][:most]


class Cell:
    """One workload with all peers, at every number of threads.

    Attributes:
        results: what was found out, one for each peer and number of threads.
    """

    def __init__(self, workload: Workload, given: argparse.Namespace, folder: Path) -> None:
        self.workload, self.given, self.folder = workload, given, folder
        self.results: list[Result] = []

    def run(self, peers: Sequence[str], threads: Sequence[int]) -> None:
        """Build it, compile it for every peer, and time all of them."""
        why = self._prepare(peers)
        workers = [Worker(peer, count, why.get(peer)) for count in threads for peer in peers]
        with ThreadPoolExecutor(self.given.jobs) as pool:
            list(pool.map(self._start, workers))
        try:
            for count in threads:
                self._time([each for each in workers if each.threads == count], count)
        finally:
            for worker in workers:
                worker.close()
        self.results = [each.result(self.workload) for each in workers]

    def _prepare(self, peers: Sequence[str]) -> dict[str, str]:
        """Do what is done once, and say for which peers it failed, and why."""
        if reason := self._step("build").failed:
            return dict.fromkeys(peers, f"not built: {reason}")
        why: dict[str, str] = {}
        if "fusec" in peers and (reason := self._step("fusec", ARTIFACT).failed):
            why["fusec"] = reason
        wanting = [peer for peer in NEEDS_ONNX if peer in peers and not PEERS[peer].missing()]
        if wanting and (reason := self._step("onnx", ONNX).failed):
            why |= dict.fromkeys(wanting, f"no ONNX file: {reason}")
        return why

    def _step(self, name: str, *made: str) -> Step:
        step = Step(name, self.folder, self._options(), self.given.setup)
        lacking = [each for each in made if not (self.folder / each).exists()]
        if lacking and not step.failed:
            raise AssertionError(f"`{name}` made no {lacking[0]}")
        return step

    def _start(self, worker: Worker) -> None:
        if worker.failed is None:
            worker.start(self.folder, self._options(), self.given.setup)

    def _options(self) -> list[str]:
        smoke = ["--smoke"] if self.given.smoke else []
        return [self.workload.name, "--target", self.given.target, *smoke]

    def _time(self, workers: Sequence[Worker], threads: int) -> None:
        chosen = processors(threads, self.given.cpus)
        for worker in workers:
            worker.pin(chosen)
        seconds = self.given.seconds / self.given.rounds
        for _ in range(self.given.rounds):
            for worker in workers:
                worker.visit(seconds)


def main(words: Sequence[str] | None = None) -> None:
    """Time what is asked for."""
    given = arguments().parse_args(words)
    prefixes = tuple(given.only.split(","))
    chosen = [each for each in workloads(given.smoke) if each.name.startswith(prefixes)]
    if given.list:
        print("\n".join(each.name for each in chosen))
        return
    asked = given.peers.split(",")
    absent = {peer: PEERS[peer].missing() for peer in asked if PEERS[peer].missing()}
    results = _earlier(given.json)
    for workload in chosen:
        peers = [
            peer
            for peer in asked
            if peer not in absent and workload.name.startswith(PEERS[peer].workloads)
        ]
        folder = Path(tempfile.mkdtemp(prefix="fusec-peers-"))
        try:
            cell = Cell(workload, given, folder)
            cell.run(peers, [int(word) for word in given.threads.split(",")])
        finally:
            shutil.rmtree(folder)
        results |= {each.key: each for each in cell.results}
        _write(given, results, absent)
        print(measured(cell.results), file=sys.stderr, flush=True)
    print(markdown(list(results.values()), absent))


def _earlier(path: Path | None) -> dict[tuple[str, int, str], Result]:
    """The results that are in the file already."""
    if path is None or not path.exists():
        return {}
    found = [Result(**document) for document in json.loads(path.read_text())]
    return {each.key: each for each in found}


def _write(
    given: argparse.Namespace,
    results: Mapping[tuple[str, int, str], Result],
    absent: Mapping[str, Sequence[str]],
) -> None:
    every = list(results.values())
    if given.json is not None:
        given.json.write_text(json.dumps([each.as_json() for each in every], indent=1) + "\n")
    if given.markdown is not None:
        given.markdown.write_text(markdown(every, absent))


if __name__ == "__main__":
    main()
