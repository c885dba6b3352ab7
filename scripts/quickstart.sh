#!/usr/bin/env bash
# The whole chain on a small phantom data set, from label maps to a report, in about six minutes on two cores, installation included:
#   bash scripts/quickstart.sh                        -> runs/first_echo.png, runs/quickstart/report.html
#   bash scripts/quickstart.sh --dataset PATH         the same chain on a CAMUS folder
#   bash scripts/quickstart.sh --output DIR           somewhere else
# Called again it goes on where it stopped: finished stages are not done again.
EXTRAS=experiments,weights,example
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

output=(--output "$ROOT/runs/quickstart")
for argument in "$@"; do
    case "$argument" in --output | --output=*) output=() ;; esac
done
# First a real heart: a public clip, and what the weights that ship find in it.
first="$ROOT/runs/first_echo.png"
if [[ ! -e "$first" ]]; then
    "$PYTHON" "$ROOT/scripts/pictures.py" clip example "$first"
fi
echo "a real echocardiogram, segmented by the weights that ship: $first"
exec "$PYTHON" -m synboost_monai experiment quickstart ${output[@]+"${output[@]}"} "$@"
