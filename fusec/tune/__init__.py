"""Measures tiles on a device: products of a program, their candidates, and how long each takes."""

from fusec.tune.candidates import Candidate, compile_candidates
from fusec.tune.measure import Measured, Settings, Timer, measure, table_rows
from fusec.tune.products import TUNED, Product, products_of

__all__ = [
    "TUNED",
    "Candidate",
    "Measured",
    "Product",
    "Settings",
    "Timer",
    "compile_candidates",
    "measure",
    "products_of",
    "table_rows",
]
