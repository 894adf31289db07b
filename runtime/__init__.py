"""Loads artifacts and runs them.  Needs the standard library and numpy, nothing else.

onnxruntime is imported when, and only when, an artifact has a residual part.
"""

from __future__ import annotations

from fusec.runtime.artifact import Artifact, TensorSpec, open_artifact
from fusec.runtime.layout import StepTime
from fusec.runtime.loader import load
from fusec.runtime.model import Model

__all__ = ["Artifact", "Model", "StepTime", "TensorSpec", "load", "open_artifact"]
