#!/usr/bin/env bash
#SBATCH --job-name=mimicfew
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=1 --cpus-per-task=8 --mem=64G --time=08:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# MIMIC-III, few-shot codes.
PLANT_CONFIG=${PLANT_CONFIG:-configs/mimicfew.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
