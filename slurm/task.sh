#!/usr/bin/env bash
# One rank: SLURM's variables become those that torch and Accelerate read. Started by body.sh's srun.
set -euo pipefail
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
# Rank 0 speaks in the job's output; what the others print would only repeat it.
if ((RANK > 0)); then exec >>"$PLANT_LOGS/rank-$RANK.out" 2>&1; fi
exec "$@"
