"""What help and man pages say of each command beside its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Example:
    """A command as it is typed, and what it does."""

    command: str
    about: str


@dataclass(frozen=True, slots=True)
class Page:
    """The page of a command.

    Attributes:
        purpose: one sentence, the first of the command's docstring.
        examples: of calls; a test parses each one.
        codes: exit codes beside those that every command has; an empty text is the one of
            `EXIT_CODES`.
        see_also: other commands; the empty name is `fusec`.
    """

    purpose: str
    examples: tuple[Example, ...] = ()
    codes: Mapping[int, str] = field(default_factory=dict)
    see_also: tuple[str, ...] = ()


EXIT_CODES: Mapping[int, str] = {
    0: "Done.",
    1: "The input is at fault: the source, the data, or an operation that a target cannot run.",
    2: "The command was called wrongly.",
    3: "A `--require` was not met.",
    4: "`verify` found a mismatch.",
    5: "The artifact is corrupt or does not fit this device, or its code failed there.",
    6: "There is no such device, or no driver for it.",
    70: "A bug in fusec; `--debug` shows where.",
    130: "Interrupted.",
    141: "What read its output has ended, as `head` does.",
    143: "Terminated.",
}

ROOT = Page(
    "Compile a model ahead of time for AMD Instinct GPUs and the CPU, and run it.",
    examples=(
        Example("fusec compile model.pt2 --target gfx950", "Make `model.fusec` for an MI355X."),
        Example("fusec explain model.fusec", "Tell what was fused, what was not, and why."),
        Example(
            "fusec run model.fusec --input rows.npz --output results.npz --device hip:0",
            "Run it on the first AMD GPU.",
        ),
        Example("fusec help compile", "Show all options of a command with examples."),
    ),
    codes={code: "" for code in EXIT_CODES},
)

COMMANDS: Mapping[str, Page] = {
    "compile": Page(
        "Compile a model for one or more targets; needs no GPU.",
        examples=(
            Example(
                "fusec compile model.pt2 --target gfx950 --target cpu",
                "Write `model.fusec` with code for an MI355X and for this host.",
            ),
            Example(
                "fusec compile ./Qwen3-0.6B --target mi300x --dim seq=1:512:4096 -o qwen.fusec",
                "Compile a model folder for sequences of up to 4096 tokens.",
            ),
            Example(
                "fusec compile ./gpt-oss-20b --target gfx950 --require 'moe_mxfp4_native>=24'",
                "Fail with exit code 3 unless all 24 layers use the native mxfp4 kernels.",
            ),
            Example(
                "fusec compile ./model --target gfx950 --quantize fp8-block --weights external",
                "Bring linears into fp8 by blocks; keep the weights beside the artifact.",
            ),
            Example(
                "fusec compile model.pt2 --target gfx950 --stop-after add_rms_norm --dump-ir ir",
                "Write the graphs up to that pass, with what each one changed, and no artifact.",
            ),
        ),
        codes={1: "", 3: "", 6: "`cpu` is asked for, and this CPU is none that fusec knows."},
        see_also=("explain", "inspect", "run", "list", "doctor"),
    ),
    "inspect": Page(
        "Show what is in an artifact; nothing of it is executed.",
        examples=(
            Example("fusec inspect model.fusec", "Show inputs, outputs, fusions and memory."),
            Example("fusec inspect model.fusec --kernels", "List kernels with their registers."),
            Example(
                "fusec inspect model.fusec --json | jq '.targets[].launches'",
                "Give a script the number of launches on each target.",
            ),
            Example("fusec inspect model.fusec --graph > model.fir", "Keep the rewritten graph."),
        ),
        codes={1: "", 5: "The artifact is corrupt, or of another version."},
        see_also=("explain", "diff", "run"),
    ),
    "explain": Page(
        "Tell why each fusion fired or was refused.",
        examples=(
            Example("fusec explain model.fusec", "Tell it of an artifact."),
            Example(
                "fusec explain ./model --target gfx950 --target gfx942",
                "Compare two targets without compiling.",
            ),
            Example(
                "fusec explain ./model --target gfx950 --quantize fp8-block --refused",
                "List what is refused, why, and what to change.",
            ),
            Example(
                "fusec explain model.fusec --site '*.layers.3.mlp*'",
                "Tell all that was decided in one place.",
            ),
        ),
        codes={1: "", 5: "The artifact is corrupt, or has no such target."},
        see_also=("compile", "inspect", "list"),
    ),
    "run": Page(
        "Run batches of inputs through an artifact, in order.",
        examples=(
            Example("fusec run model.fusec --input rows.npz --output y.npz", "Run on the CPU."),
            Example(
                "fusec run model.fusec --input rows.jsonl --device hip:0 > y.jsonl",
                "Run records on the first AMD GPU.",
            ),
            Example(
                "fusec run model.fusec --input x.npz --output y.npz --device emulator:gfx950",
                "Check the program of a GPU on the CPU.",
            ),
        ),
        codes={1: "Records are at fault; the others were done.", 5: "", 6: ""},
        see_also=("compile", "inspect", "doctor"),
    ),
    "verify": Page(
        "Compare an artifact with its source on the same inputs.",
        examples=(
            Example("fusec verify model.fusec --against ./model", "Compare at several sizes."),
            Example(
                "fusec verify model.fusec --against ./model --device emulator:gfx950 --bisect",
                "Check a GPU program on the CPU, and find the kernel that is wrong.",
            ),
            Example(
                "fusec verify model.fusec --against ./model --tol logits=1e-3 --save cases",
                "Set a tolerance, and keep inputs and outputs.",
            ),
        ),
        codes={1: "", 4: "An output is not what the source gives.", 5: "", 6: ""},
        see_also=("run", "diff", "bench"),
    ),
    "bench": Page(
        "Time an artifact and each of its steps beside the limits of the machine.",
        examples=(
            Example("fusec bench model.fusec", "Say where the time goes."),
            Example(
                "fusec bench model.fusec --dim batch=1 --dim seq=512 --against ./model",
                "Take turns with the source, eagerly and with `torch.compile`.",
            ),
            Example(
                "fusec bench model.fusec --target mi325x",
                "Predict the least time on a GPU that is not here.",
            ),
        ),
        codes={1: "", 5: "", 6: ""},
        see_also=("run", "inspect", "tune"),
    ),
    "diff": Page(
        "Show what differs from one artifact to another.",
        examples=(
            Example("fusec diff before.fusec after.fusec", "Say what a change gained and lost."),
            Example("fusec diff a.fusec b.fusec --json", "Say it to a script."),
        ),
        codes={
            0: "Nothing differs.",
            1: "Something differs, or an artifact cannot be read.",
            5: "",
        },
        see_also=("inspect", "explain"),
    ),
    "tune": Page(
        "Measure the tiles of a model's matrix products on a device.",
        examples=(
            Example(
                "fusec tune model.fusec --device hip:0 -o tiles.json",
                "Write a table for `fusec compile --tuning tiles.json`.",
            ),
            Example(
                "fusec tune ./model --device cuda:0 --kernel linear.triton --json",
                "Measure the products of one kernel.",
            ),
        ),
        codes={1: "", 5: "", 6: ""},
        see_also=("compile",),
    ),
    "list": Page(
        "List the targets, the passes in order, or the kernels.",
        examples=(
            Example("fusec list targets", "Name the architectures and their products."),
            Example("fusec list passes --json", "Give a script what `--disable` takes."),
        ),
        see_also=("compile", "doctor"),
    ),
    "doctor": Page(
        "Say what this machine can do, and what to install for the rest.",
        examples=(
            Example("fusec doctor", "Look at everything."),
            Example(
                "fusec doctor --target gfx950 --need compile",
                "Fail with exit code 6 unless this machine can compile for it.",
            ),
            Example("fusec doctor --json", "Give a script the same."),
        ),
        codes={6: "A target of `--target` is not ready for what `--need` says."},
        see_also=("list", "compile"),
    ),
    "completion": Page(
        "Print a script that completes commands, options and names in a shell.",
        examples=(
            Example(
                "fusec completion bash > ~/.local/share/bash-completion/completions/fusec",
                "Install it for bash.",
            ),
            Example(
                "fusec completion zsh > ~/.zsh/completions/_fusec",
                "Install it for zsh, in a folder of `fpath`.",
            ),
            Example(
                "fusec completion fish > ~/.config/fish/completions/fusec.fish",
                "Install it for fish.",
            ),
        ),
        see_also=("",),
    ),
    "help": Page(
        "Show the help of a command.",
        examples=(
            Example("fusec help compile", "Show what `fusec compile --help` shows."),
            Example("fusec help compile --man | man -l -", "Read it as a man page."),
        ),
        see_also=("",),
    ),
}
"""The page of each command; the command is `register` of the module of that name."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Make artifacts": ("compile", "tune"),
    "Look into them": ("explain", "inspect", "diff"),
    "Run them": ("run", "verify", "bench"),
    "This installation": ("doctor", "list", "completion", "help"),
}
"""The order of commands in the help."""
