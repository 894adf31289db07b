"""The main job from end to end: build a small Llama, compile it, look inside, run a batch.

Everything goes to a temporary folder; the commands printed are those that are run.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from models import build
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def fusec(*arguments: object) -> None:
    """Show a command, then run it."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ fusec {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "fusec", *words], check=True)


def main() -> None:
    """Run the sample; it fails if the logits are not PyTorch's."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        print(f"building a Llama with random weights in {work / 'llama'}")
        model, artifact = build("llama", work / "llama"), work / "llama.fusec"
        fusec("compile", model, "--target", "cpu", "-o", artifact)
        fusec("inspect", artifact)
        fusec("explain", artifact)

        tokens = np.random.default_rng(0).integers(3, 300, size=(2, 33))
        np.savez(work / "prompts.npz", input_ids=tokens)
        fusec("run", artifact, "--input", work / "prompts.npz", "--output", work / "logits.npz")

        logits = np.load(work / "logits.npz")["logits"]
        with torch.no_grad():
            eager = AutoModelForCausalLM.from_pretrained(model)
            wanted = eager(input_ids=torch.from_numpy(tokens)).logits.numpy()
    error = float(np.abs(logits - wanted).max() / np.abs(wanted).max())
    print(f"\nlargest difference from PyTorch: {error:.1e} of the largest logit")
    if not error <= TOLERANCE:
        sys.exit(f"that is more than {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
