#!/usr/bin/env bash
# The whole chain on a small phantom data set, from label maps to a report, in about ten minutes on two cores, after the installation:
#   bash scripts/quickstart.sh                        -> runs/quickstart/report.html
#   bash scripts/quickstart.sh --dataset PATH         the same chain on a CAMUS folder
#   bash scripts/quickstart.sh --output DIR           somewhere else
# Called again it goes on where it stopped: finished stages are not done again.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

output=(--output "$ROOT/runs/quickstart")
for argument in "$@"; do
    case "$argument" in --output | --output=*) output=() ;; esac
done
exec "$PYTHON" -m synboost_monai experiment quickstart ${output[@]+"${output[@]}"} "$@"
