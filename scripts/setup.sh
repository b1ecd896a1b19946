#!/usr/bin/env bash
# Install what the project needs: bash scripts/setup.sh [requirements file]
# Uses the active virtual environment, or makes .venv beside this repository. Quick when nothing has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

REQUIREMENTS=${1:-requirements.txt}
PYTHON=${PYTHON:-python3}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$PYTHON" --version 2>&1): Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2
    exit 2
}
if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    # activate is written last: an environment whose making failed half-way has a python but no pip.
    [ -f .venv/bin/activate ] || "$PYTHON" -m venv .venv
    VIRTUAL_ENV="$PWD/.venv"
fi
ENVIRONMENT=${VIRTUAL_ENV:-$CONDA_PREFIX}

# What was installed last, so that the second call does not ask pip again.
STAMP="$ENVIRONMENT/.map_detection_$(basename "$REQUIREMENTS")"
WANTED=$(cat requirements*.txt | cksum)
if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$WANTED" ]; then
    exit 0
fi
echo "installing $REQUIREMENTS into $ENVIRONMENT (a few GB the first time)"
"$ENVIRONMENT/bin/python" -m pip install --quiet --disable-pip-version-check -r "$REQUIREMENTS"
echo "$WANTED" > "$STAMP"
