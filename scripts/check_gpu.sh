#!/usr/bin/env bash
# Checks a machine with a GPU in eight minutes at most: equality with the CPU, generated code, speed, memory; no network, no data.
# Takes the environment that is there: a machine that is lent for minutes cannot install. Arguments go to check_gpu.py.
#
#   SYNBOOST_PYTHON   the Python with torch, monai and this package's other libraries (default: that of .venv, else python3)
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${SYNBOOST_PYTHON:-$ROOT/.venv/bin/python}"
[[ -x "$PYTHON" ]] || PYTHON="$(command -v python3)"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "$PYTHON" "$ROOT/scripts/check_gpu.py" "$@"
