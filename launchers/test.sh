#!/usr/bin/env bash
# Sets everything up and runs every check: lint, types, shell scripts, all tests.
#
#   launchers/test.sh [OPTION ...]           options of pytest, such as -k decoder
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launchers/setup.sh dev sharded-cpu deepspeed
bin=${VENV:-.venv}/bin
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
if command -v shellcheck >/dev/null; then
  shellcheck -x launchers/*.sh slurm/*.sh .ci/run
fi
exec "$bin/python" -m pytest "$@"
