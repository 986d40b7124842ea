#!/usr/bin/env bash
#SBATCH --job-name=mimicfifty
#SBATCH --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=8 --mem=128G --time=08:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# MIMIC-III, the 50 most frequent codes.
PLANT_CONFIG=${PLANT_CONFIG:-configs/mimicfifty.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
