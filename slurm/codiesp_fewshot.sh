#!/usr/bin/env bash
#SBATCH --job-name=codiesp_fewshot
#SBATCH --array=0-49%8
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=1 --cpus-per-task=8 --mem=64G --time=12:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%A_%a.log
# An array of 50 runs, `plant-dist sweep --dry-run` lists them; the last to end completes the table.
export PLANT_COMMAND=${PLANT_COMMAND:-sweep} PLANT_CONFIG=${PLANT_CONFIG:-configs/codiesp_fewshot.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
