#!/usr/bin/env bash
# Makes the virtual environment, or does nothing if it is up to date. Sourced by the other scripts; sets PYTHON.
#
#   EXTRAS           extras of setup.cfg that the script needs, set before sourcing (default: those of the tests); what is there stays
#   SYNBOOST_VENV    where it lies (default: .venv beside setup.cfg)
#   SYNBOOST_PYTHON  the Python to make it with (default: the first of 3.10 or newer on the PATH)
set -euo pipefail
unset PYTHONDONTWRITEBYTECODE # which images of containers set: every process would compile what it imports again

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${SYNBOOST_VENV:-$ROOT/.venv}"
PYTHON="$VENV/bin/python"
EXTRAS="${EXTRAS:-experiments,lora,weights,example,video,dicom,listen,dicomweb,ray,export,demo,docs,dev}"

find_python() {
    local candidate
    for candidate in ${SYNBOOST_PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
        if "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "environment.sh: no Python of 3.10 or newer found; install one, or name it in SYNBOOST_PYTHON" >&2
    return 1
}

# What the installed environment depends on; a moved clone counts, since the package is installed from where it lies.
fingerprint() {
    echo "$ROOT $VENV $(cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum)"
}

# The extras that are needed and not installed yet, with commas between; .stamp has those that are, in its second line.
missing_extras() {
    local extra installed missing=""
    installed="$(sed -n 2p "$VENV/.stamp" 2>/dev/null || true)"
    for extra in ${EXTRAS//,/ }; do
        [[ ",$installed," == *",$extra,"* ]] || missing="${missing:+$missing,}$extra"
    done
    echo "$missing"
}

make_environment() {
    local base installed
    base="$(find_python)"
    if [[ -e "$VENV/.installing" ]]; then # ours, and interrupted: a half-written package would look installed
        rm -rf "$VENV"
    fi
    if [[ ! -x "$PYTHON" ]]; then
        mkdir -p "$VENV"
        touch "$VENV/.installing"
        "$base" -m venv "$VENV" || {
            echo "environment.sh: $base cannot make a virtual environment; install its venv module (python3-venv)" >&2
            return 1
        }
    fi
    installed="$(sed -n 2p "$VENV/.stamp" 2>/dev/null || true)"
    EXTRAS="${installed:+$installed,}$(missing_extras)"
    EXTRAS="${EXTRAS%,}"
    echo "Installing into $VENV, which takes a few minutes at most: torch (1 of 2) ..." >&2
    # torch first and by itself, so that pip's own settings decide which build of it comes.
    "$PYTHON" "$ROOT/scripts/install.py" -c "$ROOT/constraints.txt" torch
    echo "Installing the rest (2 of 2) ..." >&2
    "$PYTHON" "$ROOT/scripts/install.py" -c "$ROOT/constraints.txt" -e "$ROOT[$EXTRAS]"
    printf '%s\n%s\n' "$(fingerprint)" "$EXTRAS" >"$VENV/.stamp.new"
    mv "$VENV/.stamp.new" "$VENV/.stamp"
    rm -f "$VENV/.installing"
}

if [[ ! -x "$PYTHON" || -e "$VENV/.installing" || "$(sed -n 1p "$VENV/.stamp" 2>/dev/null)" != "$(fingerprint)" || -n "$(missing_extras)" ]]; then
    make_environment
fi
