#!/usr/bin/env bash
#SBATCH --job-name=few_shot
#SBATCH --array=0-49%8
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=1 --cpus-per-task=8 --mem=64G --time=12:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%A_%a.log
# An array of 10 rows and 5 seeds: planted and unplanted on a few training documents, each
# in runs/NAME/few_shot/ROW/seedN.
PLANT_CONFIG=${PLANT_CONFIG:-configs/codiesp.yaml}
PLANT_SWEEP=${PLANT_SWEEP:-slurm/sweeps/few_shot.txt}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
