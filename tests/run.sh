#!/usr/bin/env bash
# Sets up `.venv` and runs what every change must pass: lint, types and tests.
# Further arguments go to pytest: `bash tests/run.sh -m slow` runs the exhaustive tests.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable '.[dev]'

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# A process for each core; the tests of a file share what they compile.
.venv/bin/python -m pytest --numprocesses auto --dist loadfile "$@"
