#!/usr/bin/env bash
#SBATCH --job-name=plant-cpu
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=32 --mem=128G --time=12:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# One process on a CPU node, for the stages that need no GPU: PLANT_COMMAND=prepare or mig.
PLANT_CONFIG=${PLANT_CONFIG:?say which config: PLANT_CONFIG=configs/x.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
