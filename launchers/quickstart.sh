#!/usr/bin/env bash
# Sets everything up and runs the main job: ICD-10-CM, from raw text to an evaluated classifier.
#
#   launchers/quickstart.sh [OPTION ...]     options of `plant-dist run`, such as --set train.epochs=2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launchers/setup.sh
exec "${VENV:-.venv}/bin/plant-dist" run --config configs/quickstart.yaml "$@"
