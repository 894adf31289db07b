"""The process that runs a source: `python -m fusec.bench.peer TASK`.

It answers with one line of JSON when it is ready, and one for each line that it reads: the number
of calls of a round, or `null`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusec.bench.peers import round_of
from fusec.bench.timing import warm_up
from fusec.diagnostics import FusecError
from fusec.frontend.eager import eager_source


def main() -> None:
    """Load the source, warm up, and time rounds until the input ends."""
    task: Mapping[str, Any] = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log

    def answer(document: Mapping[str, Any]) -> None:
        print(json.dumps(document), file=answers, flush=True)

    try:
        eager = eager_source(task["source"], task["outputs"], **task["options"])
        if eager.name.startswith("PyTorch"):
            import torch

            torch.set_num_threads(task["threads"] or 1)
        with np.load(task["file"], allow_pickle=False) as held:
            inputs = {name: held[name] for name in task["inputs"]}
        call = eager.timed(inputs, task["compiled"])
        warm_up(call, None)
    except FusecError as error:
        answer({"failed": str(error)})
        return
    answer({"name": eager.name + (", torch.compile" if task["compiled"] else "")})
    for line in sys.stdin:
        answer({"seconds": round_of(call, json.loads(line))})


if __name__ == "__main__":
    main()
