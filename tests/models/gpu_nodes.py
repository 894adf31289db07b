"""Runs a program on the emulated device and holds every value against what its node means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fusec
from fusec.emulator import Emulator
from fusec.runtime.artifact import open_artifact
from fusec.verify.compilation import Given, read_again
from fusec.verify.steps import StepError, step_errors


class Watched:
    """A model folder, compiled, and what its program was made of."""

    def __init__(self, source: Path, artifact: Path, target: str) -> None:
        self.folder = source
        self.compiled = fusec.compile(source, artifact, target=target)
        self.device = Emulator.for_artifact(artifact, target)
        self.model = fusec.load(artifact, driver=self.device, graphs=False)
        opened = open_artifact(artifact)
        self.lowered = read_again(opened, target, source, Given(), lambda _: None).lower()

    def differences(self, inputs: Mapping[str, Any]) -> list[StepError]:
        """Run the model; every value, in the order in which launches make them."""
        return step_errors(self.lowered, self.model, inputs, "bf16")
