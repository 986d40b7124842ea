#!/usr/bin/env bash
#SBATCH --job-name=codiesp
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=1 --cpus-per-task=8 --mem=32G --time=02:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# CodiEsp, the English translation.
PLANT_CONFIG=${PLANT_CONFIG:-configs/codiesp.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
