"""Where the time of an artifact goes, and how far it is from what the machine gives.

`measured` times an artifact on a device that is here, step by step, beside what the machine gives;
`predicted` works out, from data sheets alone, what a device that is not here would need at least.
Both give the document of `fusec bench --json`.
"""

from fusec.bench.measured import Request, measure
from fusec.bench.predicted import predict
from fusec.bench.text import bench_text

__all__ = ["Request", "bench_text", "measure", "predict"]
