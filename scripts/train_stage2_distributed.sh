#!/usr/bin/env bash
# Train on several GPUs of one machine or several, by torchrun; settings and flags as for train_stage2.sh.
#   DATAROOT=/data/nuscenes OUTPUT_DIR=outputs/first bash scripts/train_stage2_distributed.sh
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 ... bash scripts/train_stage2_distributed.sh      (on the first machine)
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=node0 ... bash scripts/train_stage2_distributed.sh      (on the second)
# The exit code is torchrun's, 1 for whatever went wrong; after SIGTERM 143, SIGINT 130, SIGHUP 129.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
. scripts/train_settings.sh
. scripts/signals.sh

NNODES=${NNODES:-1}                 # machines
NODE_RANK=${NODE_RANK:-0}           # which of them this is, from 0
MASTER_ADDR=${MASTER_ADDR:-}        # name or address of machine 0, which the others reach it by
MASTER_PORT=${MASTER_PORT:-29500}   # a free port of it; one machine alone finds a free one itself
MAX_RESTARTS=${MAX_RESTARTS:-0}     # how often torchrun starts all ranks again, from the newest checkpoint
NPROC_PER_NODE=${NPROC_PER_NODE:-}  # ranks on this machine; empty: one for each GPU, one where there is none
# Seconds that ranks get to save after a signal, before torchrun kills them (its default is 30).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}

# Check MAX_RESTARTS against the flags behind the script's name: a restart has to find what its predecessor saved.
prepare_restarts() {
    local flag
    [ "$MAX_RESTARTS" != 0 ] || return 0
    [ -n "${OUTPUT_DIR:-}" ] || fail "MAX_RESTARTS $MAX_RESTARTS: a restart looks for checkpoints in OUTPUT_DIR; set it"
    RESUME=${RESUME:-auto}
    for flag in "$@"; do
        case "$flag" in
            --resume* | --output-dir*) fail "MAX_RESTARTS $MAX_RESTARTS: give $flag as a variable instead" ;;
        esac
    done
    [ "$RESUME" = auto ] || fail "RESUME $RESUME: with MAX_RESTARTS each restart would go back there; take auto"
}

prepare_restarts "$@"
if [ "$NNODES" != 1 ] && [ -z "$MASTER_ADDR" ]; then
    fail "NNODES $NNODES: the machines meet at MASTER_ADDR; set it to the first one's name"
fi
read_settings
[ "$NODE_RANK" != 0 ] || make_missing_caches "$@"  # the others wait for this one
[ "${DEVICE:-}" != cpu ] || NPROC_PER_NODE=${NPROC_PER_NODE:-1}
NPROC_PER_NODE=${NPROC_PER_NODE:-$(python -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
LAUNCH=(--nproc-per-node "$NPROC_PER_NODE" --max-restarts "$MAX_RESTARTS")
if [ "$NNODES" = 1 ]; then
    LAUNCH+=(--standalone --local-addr 127.0.0.1)
    # A store for each start: in a shared one restarted ranks find addresses of the dead (pytorch/pytorch#135712).
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
else
    LAUNCH+=(--nnodes "$NNODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT")
    LAUNCH+=(--rdzv-conf timeout=7200)  # seconds: machine 0 may be making caches before it comes
fi

# torchrun would end the run at a hang-up even where nohup had it ignored; versions without this setting still do.
[ -z "$(trap -p HUP)" ] || export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGQUIT
# torchrun ends with 1 whatever a signal did, so this process waits beside it and says which one came.
run_passing_signals torchrun "${LAUNCH[@]}" train_map_detection.py "${TRAIN_FLAGS[@]}" "$@"
