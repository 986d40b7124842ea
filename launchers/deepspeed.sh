#!/usr/bin/env bash
# Starts a process on each visible GPU, or N on the processor, with DeepSpeed's launcher.
#
#   launchers/deepspeed.sh [--cpu N] [--stage NAME] configs/x.yaml [OPTION ...]
#
# start.sh says what the words mean.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/start.sh" deepspeed "$@"
