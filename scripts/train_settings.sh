# shellcheck shell=bash
# Sourced by train_stage2.sh and train_stage2_distributed.sh: what the environment says of a run, and its caches.
#
# Every flag of train_map_detection.py can be set by a variable of its name in capitals, --batch-size by BATCH_SIZE.
# One that is unset or empty leaves the flag's default. Switches such as --shard-llm take SHARD_LLM=1 (or 0).
# Flags behind the script's name win over the environment.

# These decide which caches the run reads, so both the caches and the training are told.
VERSION=${VERSION:-v1.0-trainval}
TRAIN_SPLIT=${TRAIN_SPLIT:-train}
VAL_SPLIT=${VAL_SPLIT:-val}
PC_RANGE=${PC_RANGE:-60x30}
GT_STYLE=${GT_STYLE:-maptr}

DATA_FLAGS="dataroot version gt-cache-train gt-cache-val train-split val-split gt-style pc-range num-workers mirror
    noisy-copies rotation zoom photometric"
MODEL_FLAGS="preset qformer-pretrained llm-path llm-quantization llm-layers llm-attention prompt without lora-rank lora-alpha"
TRAINING_FLAGS="epochs batch-size accumulation-steps lr-qformer lr-queries lr-decoder lr-lora weight-decay warmup-steps
    grad-clip segmentation-weight ema-decay precision device rank-timeout seed"
OUTPUT_FLAGS="output-dir log-interval save-interval save-every-steps keep-last eval-interval resume allow-changed"
SWITCHES="gradient-checkpointing prompt-context unfreeze-llm confirm-unfreeze-llm fp16 shard-llm compile tensorboard
    eval-untrained reshuffle"

# fail MESSAGE: end as the Python programs do when a setting cannot be meant.
fail() {
    echo "error: $1" >&2
    exit 2
}

# Fill TRAIN_FLAGS with what the environment sets.
read_settings() {
    local flag name size
    TRAIN_FLAGS=()
    for flag in $DATA_FLAGS $MODEL_FLAGS $TRAINING_FLAGS $OUTPUT_FLAGS; do
        name=${flag^^} name=${name//-/_}
        [ -z "${!name:-}" ] || TRAIN_FLAGS+=("--$flag=${!name}")
    done
    if [ -n "${IMAGE_SIZE:-}" ]; then  # two numbers: IMAGE_SIZE="168 336"
        read -ra size <<< "$IMAGE_SIZE"
        TRAIN_FLAGS+=(--image-size "${size[@]}")
    fi
    for flag in $SWITCHES; do
        name=${flag^^} name=${name//-/_}
        case "${!name:-0}" in
            0) ;;
            1) TRAIN_FLAGS+=("--$flag") ;;
            *) fail "$name ${!name}: must be 1 (on) or 0 (off)" ;;
        esac
    done
}

# default_cache SPLIT: print where the split's cache lies unless GT_CACHE_TRAIN or GT_CACHE_VAL says otherwise.
default_cache() {
    python -c '
import sys
from data.gt_cache import default_cache_path
from utils.errors import run_cli
from utils.files import default_dataroot
run_cli(lambda: print(default_cache_path(sys.argv[1] or default_dataroot(), *sys.argv[2:])))
' "${DATAROOT:-}" "$VERSION" "$1" "$PC_RANGE" "$GT_STYLE"
}

# make_missing_cache SPLIT PATH
make_missing_cache() {
    [ -e "$2" ] || python tools/generate_gt_cache.py ${DATAROOT:+--dataroot "$DATAROOT"} --version "$VERSION" \
        --split "$1" --pc-range "$PC_RANGE" --gt-style "$GT_STYLE" --num-workers "${NUM_WORKERS:-4}" --output "$2"
}

# make_missing_caches FLAGS: the two caches that the environment asks for. Where one of the flags behind the script's
# name decides on them, or asks for help, none is made: training then names the command for what is missing.
make_missing_caches() {
    local flag path
    for flag in "$@"; do
        case "$flag" in
            -h | --help | --dataroot* | --version* | --train-split* | --val-split* | --gt-* | --pc-range*) return 0 ;;
        esac
    done
    path=${GT_CACHE_TRAIN:-$(default_cache "$TRAIN_SPLIT")}
    make_missing_cache "$TRAIN_SPLIT" "$path"
    path=${GT_CACHE_VAL:-$(default_cache "$VAL_SPLIT")}
    make_missing_cache "$VAL_SPLIT" "$path"
}
