#!/usr/bin/env bash
# Install what the project needs: bash scripts/setup.sh [requirements file]
# Uses the active environment, or makes .venv in this repository with the Python of $PYTHON. Quick when nothing has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

REQUIREMENTS=${1:-requirements.txt}
ENVIRONMENT=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
# activate is written last: an environment whose making failed half-way has a python but no pip.
[ -n "$ENVIRONMENT" ] || [ ! -f .venv/bin/activate ] || ENVIRONMENT="$PWD/.venv"
if [ -n "$ENVIRONMENT" ]; then
    PYTHON="$ENVIRONMENT/bin/python"
else
    PYTHON=${PYTHON:-python3}
fi

# nuscenes-devkit wants numpy 1, which has no wheels for 3.13.
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || {
    case "$PYTHON" in
        "$PWD/.venv/bin/python") FIX="remove .venv and set PYTHON=/path/to/python3.11" ;;
        *) FIX="leave the active environment if there is one, and set PYTHON=/path/to/python3.11" ;;
    esac
    echo "error: $PYTHON is $("$PYTHON" --version 2>&1), needed is 3.11 or 3.12; $FIX" >&2
    exit 2
}
if [ -z "$ENVIRONMENT" ]; then
    "$PYTHON" -m venv .venv
    ENVIRONMENT="$PWD/.venv"
fi

# What was installed last, so that the second call does not ask pip again.
STAMP="$ENVIRONMENT/.map_detection_$(basename "$REQUIREMENTS")"
WANTED=$(cat requirements*.txt | cksum)
if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$WANTED" ]; then
    exit 0
fi
echo "installing $REQUIREMENTS into $ENVIRONMENT (a few GB the first time)"
"$ENVIRONMENT/bin/python" -m pip install --quiet --disable-pip-version-check -r "$REQUIREMENTS"
echo "$WANTED" > "$STAMP"
