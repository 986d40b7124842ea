#!/usr/bin/env bash
#SBATCH --job-name=eurlex57k
#SBATCH --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=8 --mem=96G --time=12:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# EURLEX57K.
PLANT_CONFIG=${PLANT_CONFIG:-configs/eurlex57k.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
