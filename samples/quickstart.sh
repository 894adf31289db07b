#!/usr/bin/env bash
# Sets up `.venv`, then builds a small Llama, compiles it for this CPU, looks inside, runs a batch
# and compares the logits with PyTorch's.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable '.[all]'

exec .venv/bin/python samples/quickstart.py
