"""Whether an artifact computes what its source does, and where it goes wrong if not.

`verification` runs the cases, `tolerances` says what is right, `compilation` repeats the front half
of a compilation, `rewrites` finds a pass that changes the meaning, `steps` a kernel that does,
`residual` gives a meaning to what onnxruntime runs.
"""

from __future__ import annotations

from fusec.verify.verification import Request, Verification, check_folder, verify

__all__ = ["Request", "Verification", "check_folder", "verify"]
