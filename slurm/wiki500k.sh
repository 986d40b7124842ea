#!/usr/bin/env bash
#SBATCH --job-name=wiki500k
#SBATCH --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --mem=768G --time=72:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# Wiki-500K.
PLANT_CONFIG=${PLANT_CONFIG:-configs/wiki500k.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
