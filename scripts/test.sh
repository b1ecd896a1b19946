#!/usr/bin/env bash
# Set up and run the tests: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh requirements-test.txt
. scripts/environment.sh

# A process for each core, up to four; a file's tests stay together, as they share what is slow to make. Tests that take
# times or a GPU run one after another.
CORES=$(nproc)
case "$*" in
    *performance* | *gpu*) ;;
    *) set -- --numprocesses "$((CORES < 4 ? CORES : 4))" --dist loadfile "$@" ;;
esac
ruff check .
python -m pytest "$@"
