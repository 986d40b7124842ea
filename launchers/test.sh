#!/usr/bin/env bash
# Sets everything up and runs every check: lint, types, shell scripts, all tests.
#
#   launchers/test.sh [OPTION ...]           options of pytest, such as -k decoder, or -n 0 --pdb
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
# A worker for each core, up to four, and whole files at a time, whose tests share what they make;
# each worker would otherwise want all cores for itself.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$bin/python" -m pytest -n logical --maxprocesses 4 --dist loadfile "$@"
