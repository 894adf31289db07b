"""Rewriting a graph with ordered passes.

A pass looks for places (`Match`) where its pattern holds, asks its guards about each, and either
rewrites the place or records why not.  The parts:

* `pattern`: patterns are data.  `find` is a pure backtracking search from one node towards its
  operands; commutative operations are tried in both orders, and a variable that occurs twice must
  be the same value.
* `guard`: a guard reads a match and the target, and gives `None` or a `Rejection` with a stable
  code.  It never raises and never changes anything.
* `driver`: runs passes.  Two guards belong to the driver, so that no author can forget them: an
  inner value that is read outside the match refuses it (`escapes`), and so does a rewrite that
  would make the graph depend on itself (`cycle`).  A pass sweeps once over the nodes as they were
  when it began, so it ends; running it again rewrites nothing.
* `decisions`: what fired and what was refused, one record a site.  When a larger fusion takes a
  smaller one in, the record of the smaller one goes.
"""

from fusec.rewrite.decisions import Decision, DecisionLog
from fusec.rewrite.driver import FusionPass, Pass, run_pipeline
from fusec.rewrite.guard import Guard, Rejection
from fusec.rewrite.pattern import Match, Maybe, Number, Op, Pattern, Var, find
from fusec.rewrite.settings import DEFAULTS, QuantRequest, Settings

__all__ = [
    "DEFAULTS",
    "Decision",
    "DecisionLog",
    "FusionPass",
    "Guard",
    "Match",
    "Maybe",
    "Number",
    "Op",
    "Pass",
    "Pattern",
    "QuantRequest",
    "Rejection",
    "Settings",
    "Var",
    "find",
    "run_pipeline",
]
