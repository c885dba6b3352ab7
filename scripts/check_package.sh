#!/usr/bin/env bash
# The three packages away from the source tree: builds the wheel, installs it in a new environment, makes a zip of each bundle with small
# random weights, and runs the unpacked zips with MONAI on phantom images. Every folder is new and removed afterwards.
#   bash scripts/check_package.sh
#   SYNBOOST_PYTHON    the Python to make the environment with (see environment.sh)
#   SYNBOOST_PACKAGES  folder of installed packages to take torch and the others from, instead of installing them anew
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
WORK="$(mktemp -d)"
trap 'rm -rf "$WORK"' EXIT
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
unset PYTHONPATH

"${SYNBOOST_PYTHON:-python3}" -m venv "$WORK/venv"
PYTHON="$WORK/venv/bin/python"
"$PYTHON" -m pip wheel -qq --no-deps -w "$WORK" "$ROOT"
if [[ -n "${SYNBOOST_PACKAGES:-}" ]]; then
    "$PYTHON" -c "import site, sys; open(site.getsitepackages()[0] + '/packages.pth', 'w').write(sys.argv[1] + '\n')" "$SYNBOOST_PACKAGES"
    "$PYTHON" -m pip install -qq --no-deps --ignore-installed "$WORK"/synboost_monai-*.whl
else
    "$PYTHON" -m pip install -qq -c "$ROOT/constraints.txt" torch
    "$PYTHON" -m pip install -qq -c "$ROOT/constraints.txt" "$WORK"/synboost_monai-*.whl
fi

cd "$WORK"
"$PYTHON" -c "import synboost_monai, sys; assert synboost_monai.__file__.startswith(sys.prefix), synboost_monai.__file__"
"$PYTHON" - <<'PYTHON'
import torch

from synboost_monai.networks import create_segmenter, create_semantic_diffusion_unet

torch.manual_seed(0)
torch.save(create_semantic_diffusion_unet("tiny", image_size=32).state_dict(), "echo_semantic_diffusion.pt")
for architecture in ("clipseg", "cris"):
    torch.save(create_segmenter(architecture, "tiny").state_dict(), f"echo_{architecture}.pt")
PYTHON
"$WORK/venv/bin/synboost" phantom phantom --num_patients 3 --image_height 64 --num_frames 2
"$WORK/venv/bin/synboost" prepare phantom data
for bundle in echo_semantic_diffusion echo_clipseg echo_cris; do
    "$WORK/venv/bin/synboost" package "$bundle" --checkpoint_path "$bundle.pt" --output "$bundle.zip" --preset tiny --image_size 32
    "$PYTHON" -m zipfile -e "$bundle.zip" unpacked
    options=(--device "\$torch.device('cpu')")
    if [[ "$bundle" == echo_semantic_diffusion ]]; then
        options+=(--limit 1 --num_variations 1 --num_inference_steps 2)
    fi
    (cd "unpacked/$bundle" && "$PYTHON" -m monai.bundle run --config_file configs/inference.yaml --bundle_root . \
        --dataset_dir "$WORK/data" --output_dir "$WORK/out/$bundle" "${options[@]}" >"$WORK/$bundle.log" 2>&1) || {
        tail -n 20 "$WORK/$bundle.log" >&2
        exit 1
    }
    written="$(find "$WORK/out/$bundle" -name '*.nii.gz' | wc -l)"
    if ((written == 0)); then
        echo "check_package.sh: $bundle wrote no image" >&2
        exit 1
    fi
    echo "$bundle: $written images written from its unpacked zip"
done
