# shellcheck shell=bash
# Sourced by quickstart.sh and benchmark_world.sh: from nothing to a score and a picture on a synthetic world.
#
# They set DIR, SEED, TRAIN_SCENES, VAL_SCENES, SAMPLES_PER_SCENE and RUN, and export what train_settings.sh reads.

# Everything starts from random weights here, so all groups learn at one large rate.
export LR_QFORMER=${LR_QFORMER:-1.2e-3} LR_QUERIES=${LR_QUERIES:-1.2e-3} LR_DECODER=${LR_DECODER:-1.2e-3}
export WARMUP_STEPS=${WARMUP_STEPS:-50} PRESET=${PRESET:-tiny} MIRROR=${MIRROR:-0.5} EVAL_UNTRAINED=${EVAL_UNTRAINED:-1}

. scripts/signals.sh
VERSION=v1.0-trainval
WORLD="$DIR/world_seed${SEED}_${TRAIN_SCENES}+${VAL_SCENES}x${SAMPLES_PER_SCENE}"
TRAIN_CACHE="$WORLD/gt_cache/${VERSION}_train_60x30.safetensors"
VAL_CACHE="$WORLD/gt_cache/${VERSION}_val_60x30.safetensors"

# Batches of four: of two in each of two processes, which use CPU cores better than one process, or in one on a GPU.
DEVICE=${DEVICE:-$(python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
export DEVICE
if [ "$DEVICE" = cpu ]; then
    THREADS=$((($(nproc) + 1) / 2))
    [ "$THREADS" -le 4 ] || THREADS=4   # a network this small has no work for more
    export NPROC_PER_NODE=${NPROC_PER_NODE:-2} BATCH_SIZE=${BATCH_SIZE:-2} NUM_WORKERS=${NUM_WORKERS:-1}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$THREADS}
else
    export NPROC_PER_NODE=${NPROC_PER_NODE:-1} BATCH_SIZE=${BATCH_SIZE:-4} NUM_WORKERS=${NUM_WORKERS:-4}
fi

synthetic_run() {
    local split
    echo "== 1/5 a synthetic nuScenes world"
    [ -d "$WORLD/$VERSION" ] || python tools/make_synthetic_nuscenes.py --out "$WORLD" --version "$VERSION" \
        --seed "$SEED" --train-scenes "$TRAIN_SCENES" --val-scenes "$VAL_SCENES" \
        --samples-per-scene "$SAMPLES_PER_SCENE" --image-size 400x225

    echo "== 2/5 ground-truth caches"
    for split in train val; do
        python tools/generate_gt_cache.py --dataroot "$WORLD" --version "$VERSION" --split "$split" --num-workers 2 \
            --overwrite
    done

    echo "== 3/5 training, checkpoints in $RUN"
    DATAROOT="$WORLD" VERSION="$VERSION" PC_RANGE=60x30 GT_STYLE=maptr TRAIN_SPLIT=train VAL_SPLIT=val \
        GT_CACHE_TRAIN="$TRAIN_CACHE" GT_CACHE_VAL="$VAL_CACHE" OUTPUT_DIR="$RUN" \
        run_passing_signals bash scripts/train_stage2_distributed.sh

    echo "== 4/5 evaluation on streets never seen in training"
    python tools/evaluate.py --checkpoint "$RUN/final_model.pth" --gt-cache "$VAL_CACHE" --dataroot "$WORLD" \
        --json "$RUN/evaluation.json" --save-predictions "$RUN/predictions.json"

    echo "== 5/5 pictures"
    python tools/visualize.py --gt-cache "$VAL_CACHE" --dataroot "$WORLD" --predictions "$RUN/predictions.json" \
        --best-f1 "$RUN/evaluation.json" --median --output "$RUN/picture.png"
    python tools/visualize.py --gt-cache "$VAL_CACHE" --dataroot "$WORLD" --predictions "$RUN/predictions.json" \
        --best-f1 "$RUN/evaluation.json" --sheet random --count 6 --output "$RUN/sheet.png"

    python - "$RUN" <<'PYTHON'
import json, sys
run = sys.argv[1]
score = json.load(open(f"{run}/evaluation.json"))["mAP"]
records = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
untrained = [r["result"]["mAP"] for r in records if r["kind"] == "val" and r["epoch"] == 0]
beside = f" (the untrained model: {untrained[0]:.3f})" if untrained else ""
print(f"""
pictures     {run}/picture.png, the median frame; random ones: sheet.png
predictions  {run}/predictions.json
checkpoints  {run}/final_model.pth, best_model.pth
log          {run}/train.log, metrics.jsonl
held-out mAP {score:.3f}{beside}""")
PYTHON
}
