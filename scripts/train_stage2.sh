#!/usr/bin/env bash
# Train on one GPU, or on the CPU where there is none. Ground-truth caches that are missing are made first.
# Settings come from the environment, and flags of train_map_detection.py may follow, which win:
#   DATAROOT=/data/nuscenes BATCH_SIZE=2 bash scripts/train_stage2.sh --epochs 12
#   OUTPUT_DIR=outputs/first RESUME=auto SAVE_EVERY_STEPS=500 bash scripts/train_stage2.sh
# scripts/train_settings.sh lists the variables; paths count from the repository. TRAINING_GUIDE.md tells the rest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
. scripts/train_settings.sh

read_settings
make_missing_caches "$@"
# exec: a signal to this process is then one to the training, which saves before it ends.
exec python train_map_detection.py "${TRAIN_FLAGS[@]}" "$@"
