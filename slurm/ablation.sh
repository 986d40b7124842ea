#!/usr/bin/env bash
#SBATCH --job-name=ablation
#SBATCH --array=0-134%8
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=1 --cpus-per-task=8 --mem=64G --time=12:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%A_%a.log
# An array of 27 rows and 5 seeds: every part of the method against its absence, each
# in runs/NAME/ablation/ROW/seedN.
PLANT_CONFIG=${PLANT_CONFIG:-configs/codiesp.yaml}
PLANT_SWEEP=${PLANT_SWEEP:-slurm/sweeps/ablation.txt}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
