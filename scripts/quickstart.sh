#!/usr/bin/env bash
# From a bare machine to a picture of predicted maps: set-up, a synthetic nuScenes world, ground-truth caches,
# training from scratch, evaluation and a picture. About an hour on two CPU cores after the installation.
# Settings come from the environment: QUICKSTART_DIR=/tmp/q SEED=1 bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
. scripts/environment.sh

DIR=${QUICKSTART_DIR:-quickstart}       # everything goes here
SEED=${SEED:-0}                         # of the world and of the training
# Many short scenes: frames of one scene look alike, and streets not seen in training are what is asked for. More frames
# of a scene cost next to nothing to make.
TRAIN_SCENES=${TRAIN_SCENES:-700}
VAL_SCENES=${VAL_SCENES:-40}
SAMPLES_PER_SCENE=${SAMPLES_PER_SCENE:-4}
RUN="$DIR/run_$(date +%Y%m%d_%H%M%S)"
export EPOCHS=${EPOCHS:-8} SEED RESUME=

. scripts/synthetic_run.sh
synthetic_run
