#!/usr/bin/env bash
# From a bare machine to a picture of predicted maps: set-up, a synthetic nuScenes world, ground-truth caches,
# training from scratch, evaluation and a picture. 10 to 17 minutes on two CPU cores after the installation.
# Settings come from the environment: QUICKSTART_DIR=/tmp/q SEED=1 bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
. scripts/environment.sh

DIR=${QUICKSTART_DIR:-quickstart}       # everything goes here
SEED=${SEED:-0}                         # of the world and of the training
# Many short scenes: frames of one scene look alike, and streets not seen in training are what is asked for.
TRAIN_SCENES=${TRAIN_SCENES:-250}
VAL_SCENES=${VAL_SCENES:-40}
SAMPLES_PER_SCENE=${SAMPLES_PER_SCENE:-2}
export EPOCHS=${EPOCHS:-8} BATCH_SIZE=${BATCH_SIZE:-4} NUM_WORKERS=${NUM_WORKERS:-2}
# Everything starts from random weights here, so all groups learn at one large rate.
export LR_QFORMER=${LR_QFORMER:-1.2e-3} LR_QUERIES=${LR_QUERIES:-1.2e-3} LR_DECODER=${LR_DECODER:-1.2e-3}
export WARMUP_STEPS=${WARMUP_STEPS:-50} PRESET=${PRESET:-tiny} SEED

VERSION=v1.0-trainval
WORLD="$DIR/world_seed${SEED}_${TRAIN_SCENES}+${VAL_SCENES}x${SAMPLES_PER_SCENE}"
RUN="$DIR/run_$(date +%Y%m%d_%H%M%S)"
TRAIN_CACHE="$WORLD/gt_cache/${VERSION}_train_60x30.safetensors"
VAL_CACHE="$WORLD/gt_cache/${VERSION}_val_60x30.safetensors"

echo "== 1/5 a synthetic nuScenes world"
[ -d "$WORLD/$VERSION" ] || python tools/make_synthetic_nuscenes.py --out "$WORLD" --version "$VERSION" --seed "$SEED" \
    --train-scenes "$TRAIN_SCENES" --val-scenes "$VAL_SCENES" --samples-per-scene "$SAMPLES_PER_SCENE" \
    --image-size 400x225

echo "== 2/5 ground-truth caches"
for split in train val; do
    python tools/generate_gt_cache.py --dataroot "$WORLD" --version "$VERSION" --split "$split" --num-workers 2 --overwrite
done

echo "== 3/5 training, checkpoints in $RUN"
DATAROOT="$WORLD" VERSION="$VERSION" PC_RANGE=60x30 GT_STYLE=maptr TRAIN_SPLIT=train VAL_SPLIT=val \
    OUTPUT_DIR="$RUN" RESUME="" bash scripts/train_stage2.sh \
    --gt-cache-train "$TRAIN_CACHE" --gt-cache-val "$VAL_CACHE" --mirror 0.5 \
    --eval-untrained --eval-interval 2 --save-interval 2

echo "== 4/5 evaluation of the best checkpoint on streets never seen in training"
python tools/evaluate.py --checkpoint "$RUN/best_model.pth" --gt-cache "$VAL_CACHE" --dataroot "$WORLD" \
    --json "$RUN/evaluation.json" --save-predictions "$RUN/predictions.json"

echo "== 5/5 picture"
python tools/visualize.py --gt-cache "$VAL_CACHE" --dataroot "$WORLD" --predictions "$RUN/predictions.json" \
    --index "$((VAL_SCENES * SAMPLES_PER_SCENE / 2))" --output "$RUN/picture.png"

python - "$RUN" <<'PYTHON'
import json, sys
run = sys.argv[1]
score = json.load(open(f"{run}/evaluation.json"))["mAP"]
records = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
untrained = next(r for r in records if r["kind"] == "val" and r["epoch"] == 0)["result"]["mAP"]
print(f"""
picture      {run}/picture.png
predictions  {run}/predictions.json
checkpoints  {run}/best_model.pth, final_model.pth
log          {run}/train.log, metrics.jsonl
held-out mAP {score:.3f} (the untrained model: {untrained:.3f})""")
PYTHON
