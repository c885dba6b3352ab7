#!/usr/bin/env bash
# Makes the environment that MONAI Label needs, or does nothing if it is up to date: `synboost label` runs from it.
# An environment of its own, since MONAI Label wants numpy 1 and pydicom 2, which setup.cfg refuses: the package comes without its list here.
# An interrupted installation goes on after torch, its longest part.
#
#   bash scripts/setup_label.sh            makes it
#   bash scripts/setup_label.sh --check    and then checks a real server in it: scripts/check_label.py, with the arguments that follow
#
#   SYNBOOST_LABEL_VENV     where it lies (default: .venv_label beside setup.cfg)
#   SYNBOOST_LABEL_PYTHON   the Python to make it with (default: the first of 3.11, 3.10, 3.12 on the PATH)
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${SYNBOOST_LABEL_VENV:-$ROOT/.venv_label}"
PYTHON="$VENV/bin/python"
REQUIREMENTS="$ROOT/scripts/label_requirements.txt"
RELEASE=0.8.5 # of MONAI Label, the newest; synboost_monai/serving/label/versions.py asks for it

find_python() {
    local candidate
    for candidate in ${SYNBOOST_LABEL_PYTHON:-python3.11 python3.10 python3.12 python3 python}; do
        # MONAI Label imports cgi and distutils, which newer ones do not have
        if "$candidate" -c 'import sys; raise SystemExit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "setup_label.sh: no Python of 3.10, 3.11 or 3.12 found; install one, or name it in SYNBOOST_LABEL_PYTHON" >&2
    return 1
}

# What the installed environment depends on; a moved clone counts, since the package is installed from where it lies.
fingerprint() {
    echo "$ROOT $VENV"
    cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" "$ROOT/constraints.txt" "$REQUIREMENTS" | cksum
}

# The project's pins and its requirements, without those of packages that the requirements of MONAI Label pin themselves.
write_constraints() {
    local pinned
    pinned="$(sed -nE 's/^([A-Za-z0-9._-]+)==.*/\1/p' "$REQUIREMENTS" | paste -sd '|' -)"
    grep -viE "^(${pinned:-none})==" "$ROOT/constraints.txt" >"$VENV/constraints.txt"
    grep -E '^[A-Za-z0-9._-]+==' "$REQUIREMENTS" >>"$VENV/constraints.txt"
    sed -n '/^install_requires =/,/^$/s/^    //p' "$ROOT/setup.cfg" | grep -viE "^(${pinned:-none})[^A-Za-z0-9._-]" >"$VENV/requirements.txt"
}

install() {
    "$PYTHON" "$ROOT/scripts/install.py" "$@"
}

# The guard of `synboost label` stands in for what a newer MONAI Label may mend; as soon as an index has one, the release is raised.
tell_of_newer_release() {
    local newest
    newest="$("$PYTHON" -m pip index versions monailabel 2>/dev/null | sed -nE '1s/^monailabel \(([^)]+)\).*/\1/p' || true)"
    if [[ -n "$newest" && "$newest" != "$RELEASE" ]]; then
        echo "setup_label.sh: MONAI Label $newest is out, and $RELEASE has known faults that its guard keeps out: try it with" \
            "scripts/check_label.py, and raise RELEASE here and MONAILABEL_VERSION in synboost_monai/serving/label/versions.py" >&2
    fi
}

# Takes out what an interrupted installation left, but for torch if that is whole: a half-written package would look installed.
clean_up() {
    local package
    if [[ ! -e "$VENV/.torch" ]]; then
        rm -rf "$VENV"
        return
    fi
    for package in "$VENV"/lib/python*/site-packages/*; do
        grep -qxF "$(basename "$package")" "$VENV/.torch" || rm -rf "$package"
    done
}

make_environment() {
    local base
    base="$(find_python)"
    if [[ -e "$VENV/.installing" ]]; then # so it is ours
        clean_up
    fi
    if [[ ! -x "$PYTHON" ]]; then
        mkdir -p "$VENV"
        touch "$VENV/.installing"
        "$base" -m venv "$VENV" || {
            echo "setup_label.sh: $base cannot make a virtual environment; install its venv module (python3-venv)" >&2
            return 1
        }
    fi
    write_constraints
    echo "Installing into $VENV, which takes a few minutes at most: torch (1 of 3) ..." >&2
    install -c "$VENV/constraints.txt" torch # first and by itself, so that pip's own settings decide which build of it comes
    if [[ ! -e "$VENV/.torch" && -e "$VENV/.installing" ]]; then
        ls "$(dirname "$VENV"/lib/python*/site-packages/torch)" >"$VENV/.torch.new"
        mv "$VENV/.torch.new" "$VENV/.torch"
    fi
    echo "Installing what SynBoost and MONAI Label need (2 of 3) ..." >&2
    install -c "$VENV/constraints.txt" -r "$REQUIREMENTS" -r "$VENV/requirements.txt"
    echo "Installing SynBoost and MONAI Label (3 of 3) ..." >&2
    # Without their own requirements: torchvision, SAM 2 and others that bundles do not use, and a jsonschema too old for the rest.
    # By pip: uv does not find the data in MONAI Label's wheel, whose folder of them is not named as the wheel.
    "$PYTHON" -m pip install -qq --no-deps "monailabel==$RELEASE" "pydicom-seg==0.4.1" -e "$ROOT"
    "$PYTHON" -c 'from synboost_monai.serving.label.versions import check_versions; check_versions()'
    tell_of_newer_release
    fingerprint >"$VENV/.stamp.new"
    mv "$VENV/.stamp.new" "$VENV/.stamp"
    rm -f "$VENV/.installing" "$VENV/.torch"
}

if [[ ! -x "$PYTHON" || -e "$VENV/.installing" || "$(cat "$VENV/.stamp" 2>/dev/null)" != "$(fingerprint)" ]]; then
    make_environment
fi
if [[ "${1:-}" == --check ]]; then
    exec "$PYTHON" "$ROOT/scripts/check_label.py" "${@:2}"
fi
echo "ready: $VENV/bin/synboost label STUDIES --bundle echo_cris --checkpoint_path model.pt"
