"""Kernels: one folder an operation, each with its records (`KERNELS`), sources and reference."""
