#!/usr/bin/env bash
# Trains the weights that ship with a segmenter again, from nothing: on simulated hearts alone, without anybody's image or label map.
#   bash scripts/rebuild_weights.sh echo_cris runs/rebuilt       an hour and a half on two cores; the same bits on the same machine
# OUT gets model.pt (half precision), model.json and calibration.json, as they lie in bundles/BUNDLE/models. Called again it goes on.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

bundle="${1:?expected a bundle, echo_cris or echo_clipseg}"
out="${2:?expected a folder to write to}"
export OMP_NUM_THREADS=1 # the bits depend on the number of threads; the other core draws hearts
# glibc keeps freed memory, which makes a step an eighth faster
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

synboost() { "$PYTHON" -m synboost_monai "$@"; }

mkdir -p "$out"
if [[ ! -e "$out/training/model.pt" || -e "$out/training/resume.ckpt" ]]; then
    synboost run "$bundle" train_simulated --image_size 96 --max_epochs 60 --output_dir "$out/training"
fi
[[ -e "$out/model.pt" ]] || synboost weights convert "$out/training/model.pt" "$out/model.pt" --dtype float16 --licence "Apache-2.0"
synboost simulate "$out/hearts" --num_images 600 --seed 20261202
if [[ ! -e "$out/calibration.json" ]]; then
    # real images are harder than hearts of the simulator: of them 14 of 100 then go to review (chosen on the 40 training patients)
    synboost run "$bundle" calibrate --dataset_dir "$out/hearts" --section training --checkpoint_path "$out/model.pt" \
        --review_share 0.07 --output_dir "$out"
fi
