#!/usr/bin/env bash
# Style, types and the whole test suite; arguments go to pytest:
#   bash scripts/test.sh                        everything
#   bash scripts/test.sh tests/prompts -k age   some tests alone
# SYNBOOST_TEST_JOBS: tests at a time (default 3, one thread each: with two cores, as a third of the time of a test is waiting).
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

cd "$ROOT"
export OMP_NUM_THREADS=1
export GOMP_SPINCOUNT=5000 # where a test asks for more threads, as with Ray's actors, they must not spin
if (($# == 0)); then
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    "$PYTHON" -m mypy
fi
exec "$PYTHON" -m pytest -n "${SYNBOOST_TEST_JOBS:-3}" --dist loadfile --no-loadscope-reorder "$@" # a file has its fixtures once
