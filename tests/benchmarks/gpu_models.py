"""Blocks of models at true widths on an NVIDIA GPU, beside PyTorch eager and `torch.compile`.

    python tests/benchmarks/gpu_models.py [--only llama] [--no-compile] [--markdown FILE]

The blocks have the geometry of Llama-3.1-8B, Qwen3-Next-80B-A3B, DeepSeek-V3 and gpt-oss, with few
layers, a vocabulary of 2,048 so that it is the layers that count, and fewer experts where all of
them would not fit beside PyTorch's (`--experts` sets how many).  Weights are random: in bf16, and
quantised as the models are published.  PyTorch computes with the dequantised weights in bf16.

Each is compiled as `fusec compile --target sm_90` does, for a batch of 1 to 64 of 1 to 2048 tokens,
and runs as a prefill of 4 x 2048 tokens and as a step of 1, 8 and 64 sequences of one token,
without a cache of keys and values.  Results are compared with those of eager before anything is
timed: the median over all tokens of the error of a token's logits, in the root mean square, for one
token that a router sends elsewhere is far off and says nothing.

A time is the median over many runs of the time between two events of the device, with a buffer
larger than its cache written before each, so launches are in the stream before the first event.
For fusec the events stand around the replay of the graph that the executor has captured: inputs
are on the device already, outputs stay there, and nothing is copied from or to the host.  For
PyTorch they stand around the call of the model, inputs and outputs on the device;
`max-autotune` replays graphs, too.

*roofline* is the larger of two times: weights and logits over the bandwidth of a copy that is
measured in the same process, and operations over the peak rate of the device's data sheet
(`--peak` in TFLOP/s sets another).  Of experts those count that random routing would choose.

With `max-autotune` for every block and shape this takes long: `--only` and `--no-compile` are for
calls of less than ten minutes.  `--smoke` needs no GPU: it builds everything at 1/16 of the width,
and compiles it.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "samples"))

from models import random_model
from quantised_models import LAYOUTS, NOT_QUANTISED, true_config

import fusec
from fusec.diagnostics import UnsupportedError
from fusec.runtime import Model
from fusec.runtime.devices import open_driver
from fusec.runtime.driver import Driver

VOCABULARY = 2048
EXPERTS = {"qwen3_next": 128, "deepseek_v3": 64, "gpt_oss": 32}
"""Experts of a layer; 512, 256 and 128 are published (and 32 for gpt-oss-20b)."""

EXPERT_SETTING = {
    "qwen3_next": "num_experts",
    "deepseek_v3": "n_routed_experts",
    "gpt_oss": "num_local_experts",
}
SHIPPED = {
    "llama": "fp8-token",
    "qwen3_next": "fp8-block",
    "deepseek_v3": "fp8-block",
    "gpt_oss": "mxfp4",
}
"""How each model is published quantised, by names of `quantised_models.LAYOUTS`."""

SHAPES = ((4, 2048), (1, 1), (8, 1), (64, 1))
DIMS = ("batch=1:4:64", "seq=1:2048:2048")

TOLERANCES = {"bf16": 0.1, "fp8-token": 0.3, "fp8-block": 0.3, "mxfp4": 0.1}
"""Of the median error of a token.  Eager in bf16 is 0.015 to 0.025 from eager in f32 at 1/16 of the
width, and more experts to choose from make that more.  fp8 layers also quantise what they multiply.
"""

PEAKS = {"bf16": 989e12, "fp8-token": 1979e12, "fp8-block": 1979e12, "mxfp4": 989e12}
"""Operations a second without sparsity: H100 SXM and H200 data sheets.  mxfp4 is multiplied as bf16
on sm_90."""

FLUSHED = 256 << 20
"""Bytes that are written before each run; the second-level cache has 50 MB."""

WIDTHS = (
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "q_lora_rank",
    "kv_lora_rank",
)
COUNTS = (
    "num_attention_heads",
    "num_key_value_heads",
    "linear_num_key_heads",
    "linear_num_value_heads",
)
NARROWED = 16
"""What `--smoke` divides widths and counts of heads by."""

BLOCK = 128
GROUP = 32
FP8_MAX = 448.0
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Case:
    """A block of a model.

    Attributes:
        name: a name in `quantised_models.TRUE_SIZES`.
        weights: `bf16`, or a name in `quantised_models.LAYOUTS`.
        config: the contents of `config.json`, not quantised.
    """

    name: str
    weights: str
    config: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name} {self.weights}"


def cases(only: str, experts: int | None, *, smoke: bool) -> Iterator[Case]:
    """Every block whose name begins with `only`, in bf16 and as it is published."""
    for name, layout in SHIPPED.items():
        settings: dict[str, Any] = {"vocab_size": VOCABULARY}
        settings |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        if name == "deepseek_v3":
            settings["num_hidden_layers"] = 2
        if name in EXPERTS:
            settings[EXPERT_SETTING[name]] = 16 if smoke else experts or EXPERTS[name]
        config = true_config(name, None, **settings)
        if smoke:
            config = narrowed(config)
        for weights in ("bf16", layout):
            case = Case(name, weights, config)
            if str(case).startswith(only):
                yield case


def narrowed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same with small widths, in whole blocks of 64, and few heads."""
    small = dict(config)
    for name in WIDTHS:
        if config.get(name):
            small[name] = -(-config[name] // NARROWED // 64) * 64
    for name in COUNTS:
        if name in config:
            small[name] = max(1, config[name] // NARROWED)
    return small


# --- building -------------------------------------------------------------------------------


@dataclass
class Built:
    """A block on disk.

    Attributes:
        folder: of transformers, which fusec compiles.
        reference: the same with dequantised weights, which PyTorch runs.
        bytes: that are stored of each weight, by the name of the tensor it is part of.
    """

    folder: Path
    reference: Path
    bytes: dict[str, int] = field(default_factory=dict)


def build(case: Case, work: Path, device: str) -> Built:
    """Write the folders of a block, its weights made on `device`."""
    plain = work / "plain"
    model_class = getattr(transformers, case.config["architectures"][0])
    unset = ("architectures", "model_type", "torch_dtype")
    settings = {name: value for name, value in case.config.items() if name not in unset}
    with torch.device(device):
        model = random_model(model_class, model_class.config_class(**settings), "bfloat16")
    model.save_pretrained(plain, max_shard_size="1000GB")  # type: ignore[operator]
    del model
    built = Built(plain, plain)
    if case.weights != "bf16":
        built = Built(work / "quantised", work / "dequantised")
        quantise(plain, built, case.weights, device)
    for name, tensor in load_file(built.folder / "model.safetensors").items():
        built.bytes[name] = tensor.nbytes
    return built


def quantise(plain: Path, built: Built, layout: str, device: str) -> None:
    """Write the quantised folder, and one with the values that its weights have.

    `quantised_models.quantise_folder` writes the same on the host, where it takes minutes for the
    weights of these widths.
    """
    held = LAYOUTS[layout]
    stored: dict[str, torch.Tensor] = {}
    values: dict[str, torch.Tensor] = {}
    left_alone: list[str] = []
    for name, tensor in load_file(plain / "model.safetensors").items():
        short = name.removesuffix(".weight")
        if held.weights.fullmatch(name):
            parts, exact = QUANTISERS[layout](tensor.to(device).float())
            stored |= {short + end: part.contiguous().cpu() for end, part in parts.items()}
            values[name] = exact.to(torch.bfloat16).contiguous().cpu()
        else:
            stored[name] = values[name] = tensor
            left_alone += [short] if tensor.ndim == 2 and short != name else []
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    quantisation = {**held.config}
    quantisation[NOT_QUANTISED[quantisation["quant_method"]]] = left_alone
    for folder, tensors, more in (
        (built.folder, stored, {"quantization_config": quantisation}),
        (built.reference, values, {}),
    ):
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        text = json.dumps({**config, **more}, indent=2)
        (folder / "config.json").write_text(text, encoding="utf-8")


Quantised = tuple[dict[str, torch.Tensor], torch.Tensor]
"""What is stored, by what is added to the name of the weight, and the values that it has."""


def fp8_by_block(weight: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, ...]:
    """Codes [N, K], a scale f32 for each block, and the values [N, K]."""
    height, width = weight.shape
    missing = (0, -width % columns, 0, -height % rows)
    padded = torch.nn.functional.pad(weight, missing)
    counts = padded.shape[0] // rows, padded.shape[1] // columns
    blocks = padded.reshape(counts[0], rows, counts[1], columns)
    scale = (blocks.abs().amax((1, 3)) / FP8_MAX).clamp_min(1e-12)
    if columns == width:
        scale = scale.bfloat16().float()
    wide = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[:height, :width]
    codes = (weight / wide).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return codes, scale, codes.float() * wide


def deepseek(weight: torch.Tensor) -> Quantised:
    codes, scale, values = fp8_by_block(weight, BLOCK, BLOCK)
    return {".weight": codes, ".weight_scale_inv": scale}, values


def by_channel(weight: torch.Tensor) -> Quantised:
    codes, scale, values = fp8_by_block(weight, 1, weight.shape[1])
    return {".weight": codes, ".weight_scale": scale.bfloat16()}, values


def gpt_oss(weight: torch.Tensor) -> Quantised:
    """Experts [E, K, N] as codes two a byte [E, N, K/32, 16] and scales [E, N, K/32]."""
    rows = weight.transpose(1, 2).contiguous()
    groups = rows.reshape(*rows.shape[:2], -1, GROUP)
    largest = groups.abs().amax(-1, keepdim=True).clamp_min(2.0**-100)
    exponent = largest.log2().floor() - 2
    scaled = (groups / exponent.exp2()).clamp(-E2M1[-1], E2M1[-1])
    held = torch.tensor(E2M1, device=weight.device)
    code = torch.bucketize(scaled.abs(), (held[1:] + held[:-1]) / 2)
    values = torch.where(scaled < 0, -held[code], held[code]) * exponent.exp2()
    nibble = (code + 8 * (scaled < 0)).to(torch.uint8)
    blocks = nibble[..., ::2] | (nibble[..., 1::2] << 4)
    scales = (exponent.squeeze(-1) + 127).to(torch.uint8)
    return {"_blocks": blocks, "_scales": scales}, values.reshape(rows.shape).transpose(1, 2)


QUANTISERS: dict[str, Callable[[torch.Tensor], Quantised]] = {
    "fp8-token": by_channel,
    "fp8-block": deepseek,
    "mxfp4": gpt_oss,
}


def eager_model(folder: Path, device: str) -> torch.nn.Module:
    """What PyTorch runs."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = getattr(transformers, config["architectures"][0])
    model = kind.from_pretrained(folder, dtype="auto").to(device).eval()
    model.config.use_cache = False
    return cast(torch.nn.Module, model)


# --- the roofline ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a run has to do at least.

    Attributes:
        operations: multiplications and additions.
        bytes: that are read or written.
    """

    operations: float
    bytes: float

    def seconds(self, peak: float, bandwidth: float) -> float:
        """The least time that it takes a device."""
        return max(self.operations / peak, self.bytes / bandwidth)


def work(case: Case, built: Built, elements: Mapping[str, int], shape: tuple[int, int]) -> Work:
    """What a run of `shape` has to do at least.

    Args:
        case: the block.
        built: its folders.
        elements: of each matrix of weights, by its name in the reference folder.
        shape: batch and tokens.
    """
    config, tokens = case.config, shape[0] * shape[1]
    experts = config.get(EXPERT_SETTING.get(case.name, ""), 1)
    share = config.get("num_experts_per_tok", 1) / experts
    touched = 1 - (1 - share) ** tokens
    operations = attention_operations(config, *shape)
    for name, count in elements.items():
        if "embed_tokens" not in name:
            operations += 2 * tokens * count * (share if ".experts." in name else 1)
    moved = sum(
        size * (touched if ".experts." in name else 1)
        for name, size in built.bytes.items()
        if "embed_tokens" not in name
    )
    row = config["hidden_size"] * 2
    return Work(operations, moved + tokens * (row + config["vocab_size"] * 2))


def attention_operations(config: Mapping[str, Any], batch: int, length: int) -> float:
    """Operations of the layers whose tokens attend to those before; half of a causal mask."""
    keys = config.get("qk_nope_head_dim", 0) + config.get("qk_rope_head_dim", 0)
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    width = keys + config["v_head_dim"] if keys else 2 * head
    layers = config["num_hidden_layers"]
    kinds = config.get("layer_types", ["full_attention"] * layers)
    if "full_attention_interval" in config:
        kinds = ["full_attention"] * (layers // config["full_attention_interval"])
    total = 0.0
    for kind in kinds:
        window = length if kind == "full_attention" else min(length, config["sliding_window"])
        pairs = window * length - window * (window - 1) / 2
        total += 2 * batch * config["num_attention_heads"] * pairs * width
    return total


def matrix_elements(model: torch.nn.Module) -> dict[str, int]:
    """Elements of every matrix of a model, by its name."""
    return {name: each.numel() for name, each in model.named_parameters() if each.ndim > 1}


# --- running --------------------------------------------------------------------------------


class Watched:
    """A driver that remembers which graphs the last run has replayed."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.replays: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.driver, name)

    def replay(self, graph: int, stream: int) -> None:
        """Do all launches of a graph."""
        self.replays.append((graph, stream))
        self.driver.replay(graph, stream)


class FusecTimer:
    """Times the replay of what a model has captured."""

    def __init__(self, driver: Watched) -> None:
        self.driver = driver
        self.begin, self.end = driver.event(), driver.event()
        self.flushed = driver.allocate(FLUSHED, "what clears the cache")

    def milliseconds(self, runs: int) -> float:
        """The median time of what the last run has replayed, with a cold cache."""
        graphs = list(self.driver.replays)
        assert graphs, "the last run has replayed no graph"
        driver, stream = self.driver.driver, graphs[0][1]
        times = []
        for _ in range(runs):
            driver.fill(self.flushed, 0, FLUSHED, stream)
            driver.record(self.begin, stream)
            for graph, _ in graphs:
                driver.replay(graph, stream)
            driver.record(self.end, stream)
            driver.wait(self.end)
            times.append(driver.elapsed_ms(self.begin, self.end))
        return statistics.median(times[len(times) // 4 :])


def torch_milliseconds(function: Callable[[], object], runs: int) -> float:
    """The median time of `function`, with a cold cache."""
    flushed = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    times: list[float] = []
    for _ in range(runs):
        flushed.zero_()
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[len(times) // 4 :])


def copy_bandwidth() -> float:
    """Bytes read and written in a second by a device-to-device copy of 512 MB."""
    source = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / torch_milliseconds(lambda: target.copy_(source), 20) * 1e3


def token_error(got: np.ndarray[Any, Any], wanted: torch.Tensor) -> float:
    """The median over tokens of the error of a token's logits, in the root mean square."""
    want = wanted.double().cpu().numpy().reshape(-1, wanted.shape[-1])
    error = np.asarray(got, np.float64).reshape(want.shape) - want
    each = np.sqrt(np.square(error).mean(-1) / np.square(want).mean(-1))
    assert np.isfinite(each).all(), "the logits are not all numbers"
    return float(np.median(each))


@contextmanager
def folder_of(keep: Path | None) -> Iterator[Path]:
    """A folder to work in, removed at the end."""
    with tempfile.TemporaryDirectory(dir=keep) as work:
        yield Path(work)


def compile_block(built: Built, target: Path, tuning: Sequence[Path]) -> Any:
    """What `fusec compile` makes of a block."""
    asked: dict[str, Any] = {"dims": DIMS, "tuning": tuning} if tuning else {"dims": DIMS}
    return fusec.compile(built.folder, target, target="sm_90", weights="external", **asked)


def run_case(case: Case, given: argparse.Namespace, work_in: Path, copy: float) -> list[str]:
    """The rows of a block."""
    built = build(case, work_in, "cuda")
    began = time.perf_counter()
    compiled = compile_block(built, work_in / "block.fusec", given.tuning)
    seconds = time.perf_counter() - began
    launches = compiled.document["targets"][0]["launches"]
    print(f"{case}: compiled in {seconds:.1f} s, {launches} launches", file=sys.stderr, flush=True)
    eager = eager_model(built.reference, "cuda")
    elements = matrix_elements(eager)
    driver = Watched(open_driver("cuda", 0))
    lines = []
    try:
        with fusec.load(compiled.path, verify=False, driver=cast(Driver, driver)) as model:
            timer = FusecTimer(driver)
            for shape in SHAPES:
                least = work(case, built, elements, shape)
                lines.append(row(case, given, model, timer, eager, shape, least, copy))
                print(lines[-1], flush=True)
    finally:
        driver.close()
    return lines


def row(
    case: Case,
    given: argparse.Namespace,
    model: Model,
    timer: FusecTimer,
    eager: torch.nn.Module,
    shape: tuple[int, int],
    least: Work,
    copy: float,
) -> str:
    """Check and time one shape."""
    ids = np.random.default_rng(0).integers(3, VOCABULARY, shape)
    on_device = torch.from_numpy(ids).to(next(eager.parameters()).device)

    def run_eager() -> torch.Tensor:
        with torch.no_grad():
            return cast(torch.Tensor, eager(input_ids=on_device, use_cache=False).logits)

    for _ in range(3):  # plainly, captured, and replayed alone
        timer.driver.replays.clear()
        result = model(input_ids=ids)["logits"]
    error = token_error(result, run_eager())
    assert error < TOLERANCES[case.weights], f"{case} {shape}: the error of a token is {error:.3f}"
    ours = timer.milliseconds(given.runs)
    theirs = torch_milliseconds(run_eager, given.runs)
    compiled = float("nan")
    if not given.no_compile:
        torch._dynamo.reset()
        function = torch.compile(eager, mode="max-autotune", dynamic=False)

        def run_compiled() -> object:
            with torch.no_grad():
                return function(input_ids=on_device, use_cache=False).logits

        for _ in range(3):
            run_compiled()
        compiled = torch_milliseconds(run_compiled, given.runs)
    if given.profile:
        print(profile_text(model, {"input_ids": ids}), file=sys.stderr, flush=True)
    peak = PEAKS[case.weights] if given.peak is None else given.peak * 1e12
    bound = least.seconds(peak, copy) * 1e3
    return (
        f"| {case.name} | {case.weights} | {shape[0]} x {shape[1]} | {ours * 1e3:.0f} us | "
        f"{theirs / ours:.2f} | {compiled / ours:.2f} | {bound / ours:.2f} | {error:.4f} |"
    )


def profile_text(model: Model, inputs: Mapping[str, object]) -> str:
    """The time of each kernel, all launches of it together, longest first."""
    _, times = model.profile(inputs)
    total: dict[tuple[str, str], list[float]] = {}
    for each in times:
        total.setdefault((each.kernel, each.op), []).append(each.seconds)
    lines = ["| kernel | operation | launches | us |", "|---|---|---|---|"]
    for (kernel, op), seconds in sorted(total.items(), key=lambda item: -sum(item[1])):
        lines.append(f"| {kernel} | {op} | {len(seconds)} | {sum(seconds) * 1e6:.1f} |")
    return "\n".join(lines)


HEADER = (
    "| block | weights | shape | fusec | eager / fusec | compiled / fusec | roofline / fusec "
    "| error |",
    "|---|---|---|---|---|---|---|---|",
)


def heading(copy: float) -> str:
    """What it was measured on."""
    import triton

    return (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, "
        f"transformers {transformers.__version__}, fusec {fusec.__version__}, "
        f"copy {copy / 1e9:.0f} GB/s"
    )


def smoke(case: Case, given: argparse.Namespace, work_in: Path) -> str:
    """Build a narrow block on the host and compile it; a line about it."""
    built = build(case, work_in, "cpu")
    elements = matrix_elements(eager_model(built.reference, "cpu"))
    least = work(case, built, elements, SHAPES[0])
    compiled = compile_block(built, work_in / "block.fusec", given.tuning)
    (target,) = compiled.document["targets"]
    return (
        f"| {case.name} | {case.weights} | {target['launches']} launches | "
        f"{least.operations / 1e9:.2f} GFLOP | {least.bytes / 1e6:.2f} MB |"
    )


def arguments() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="blocks that begin with this: `llama bf16`")
    parser.add_argument("--no-compile", action="store_true", help="leave `torch.compile` out")
    parser.add_argument("--experts", type=int, help="of a layer, instead of those that fit")
    parser.add_argument("--peak", type=float, help="TFLOP/s, instead of the data sheet's")
    parser.add_argument("--runs", type=int, default=40, help="that a median is taken of")
    parser.add_argument("--profile", action="store_true", help="print the time of each kernel")
    parser.add_argument("--tuning", type=Path, action="append", default=[], help="a table of tiles")
    parser.add_argument("--folder", type=Path, help="where to keep weights meanwhile")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--smoke", action="store_true", help="narrow blocks, compiled only")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Run the blocks that were asked for."""
    given = arguments().parse_args(words)
    transformers.utils.logging.disable_progress_bar()
    copy = 0.0 if given.smoke else copy_bandwidth()
    lines = [] if given.smoke else [heading(copy), "", *HEADER]
    print("\n".join(lines), flush=True)
    for case in cases(given.only, given.experts, smoke=given.smoke):
        with folder_of(given.folder) as work_in:
            try:
                if given.smoke:
                    lines.append(smoke(case, given, work_in))
                    print(lines[-1], flush=True)
                else:
                    lines += run_case(case, given, work_in, copy)
            except UnsupportedError as error:
                lines.append(f"| {case.name} | {case.weights} | not compiled: {error} |")
                print(lines[-1], flush=True)
        gc.collect()
        if not given.smoke:
            torch.cuda.empty_cache()
    if given.markdown is not None:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
