#!/usr/bin/env bash
# The benchmark of this project's own figures: a training from scratch on 2,800 frames of synthetic towns, scored on
# towns that it has not seen. About an hour on two CPU cores, a process on each; a GPU is used only when asked for.
# Settings come from the environment; a run that was interrupted goes on when it is started again:
#   BENCHMARK_DIR=/tmp/b SEED=8 bash scripts/benchmark_world.sh
# On a GPU: DEVICE=cuda bash scripts/benchmark_world.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
. scripts/environment.sh

DIR=${BENCHMARK_DIR:-benchmark_world}   # everything goes here
SEED=${SEED:-7}                         # of the world and of the training
TRAIN_SCENES=${TRAIN_SCENES:-700}       # as many as nuScenes has
VAL_SCENES=${VAL_SCENES:-60}
SAMPLES_PER_SCENE=${SAMPLES_PER_SCENE:-4}
RUN="$DIR/run_seed$SEED"
export DEVICE=${DEVICE:-cpu} EPOCHS=${EPOCHS:-8} SEED RESUME=auto

. scripts/synthetic_run.sh
synthetic_run
