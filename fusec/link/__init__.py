"""Linking: compiles what lowering wrote, checks every symbol, and writes the artifact."""
