"""The passes, in the order they run.  `README.md` has the rules for writing one."""

from __future__ import annotations

from fusec.rewrite import Pass

PIPELINE: tuple[type[Pass], ...] = ()
"""Every pass.  `after` of each one is checked against this order by a test."""
