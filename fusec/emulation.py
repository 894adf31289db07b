"""Which emulated device a command asks for; it is imported only where one is."""

from __future__ import annotations

from fusec.runtime.artifact import Artifact
from fusec.runtime.driver import Driver


def emulated(artifact: Artifact, device: str) -> Driver | None:
    """The driver that `device` names as `emulator` or `emulator:TARGET`; `None` for another.

    Raises:
        ArtifactError: the artifact holds no code for that target.
        InputError: Triton is not installed.
    """
    kind, _, target = device.partition(":")
    if kind != "emulator":
        return None
    from fusec.emulator import Emulator

    return Emulator.for_artifact(artifact, target or None)
