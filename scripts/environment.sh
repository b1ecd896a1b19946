# shellcheck shell=bash
# Sourced by the other scripts: go to the repository, use its environment, tell OpenMP to wait politely.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ] && [ -f .venv/bin/activate ]; then
    . .venv/bin/activate
fi
# Threads that spin while they wait make a busy machine up to ten times slower. On a quiet one, where a process has
# several threads, GOMP_SPINCOUNT=100000 before a script's name makes steps on the CPU quicker, by a third for two threads.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
# Keep freed memory instead of giving it back to the system after each tensor (glibc): between nothing and a sixth of a
# step on the CPU, by machine.
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-100000000000}
export MALLOC_TOP_PAD_=${MALLOC_TOP_PAD_:-268435456}
export HF_HUB_DISABLE_TELEMETRY=${HF_HUB_DISABLE_TELEMETRY:-1}
