#!/usr/bin/env bash
# Style, types and the whole test suite; arguments go to pytest:
#   bash scripts/test.sh                        everything
#   bash scripts/test.sh tests/prompts -k age   some tests alone
# SYNBOOST_TEST_JOBS: tests at a time (default 3, one thread each: with two cores, as a third of the time of a test is waiting).
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

cd "$ROOT"
export OMP_NUM_THREADS=1
types=""
if (($# == 0)); then
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    types="$(mktemp)" # mypy runs beside the tests, which wait for each other now and then
    "$PYTHON" -m mypy >"$types" 2>&1 &
    mypy=$!
    trap 'kill "$mypy" 2>/dev/null || true; rm -f "$types"' EXIT
fi
status=0
"$PYTHON" -m pytest -n "${SYNBOOST_TEST_JOBS:-3}" --dist loadfile --no-loadscope-reorder "$@" || status=$? # a file has its fixtures once
if [[ -n "$types" ]]; then
    wait "$mypy" || status=1
    cat "$types"
fi
exit "$status"
