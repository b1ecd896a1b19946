#!/usr/bin/env bash
# Train on one GPU (or on the CPU where there is none). Every setting can come from the environment, and further
# flags of train_map_detection.py may follow:
#   DATAROOT=/data/nuscenes BATCH_SIZE=2 bash scripts/train_stage2.sh --resume outputs/<run>/checkpoint_epoch_3.pth
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATAROOT=${DATAROOT:-${NUSCENES_DATAROOT:-data/nuscenes}}
VERSION=${VERSION:-v1.0-trainval}
PRESET=${PRESET:-base}
LLM_PATH=${LLM_PATH:-}                  # empty: what the preset says
EPOCHS=${EPOCHS:-24}
BATCH_SIZE=${BATCH_SIZE:-4}
NUM_WORKERS=${NUM_WORKERS:-4}
LR_QFORMER=${LR_QFORMER:-1e-5}
LR_QUERIES=${LR_QUERIES:-1e-4}
LR_DECODER=${LR_DECODER:-1e-4}
WEIGHT_DECAY=${WEIGHT_DECAY:-0.01}
WARMUP_STEPS=${WARMUP_STEPS:-500}
GRAD_CLIP=${GRAD_CLIP:-0.1}
OUTPUT_DIR=${OUTPUT_DIR:-}              # empty: outputs/map_detection_stage2_YYYYMMDD_HHMMSS
SEED=${SEED:-0}

python train_map_detection.py \
    --dataroot "$DATAROOT" --version "$VERSION" \
    --preset "$PRESET" ${LLM_PATH:+--llm-path "$LLM_PATH"} \
    --epochs "$EPOCHS" --batch-size "$BATCH_SIZE" --num-workers "$NUM_WORKERS" \
    --lr-qformer "$LR_QFORMER" --lr-queries "$LR_QUERIES" --lr-decoder "$LR_DECODER" \
    --weight-decay "$WEIGHT_DECAY" --warmup-steps "$WARMUP_STEPS" --grad-clip "$GRAD_CLIP" \
    --seed "$SEED" ${OUTPUT_DIR:+--output-dir "$OUTPUT_DIR"} "$@"
