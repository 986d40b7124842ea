#!/usr/bin/env bash
#SBATCH --job-name=amazontitles3m
#SBATCH --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --mem=512G --time=48:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# AmazonTitles-3M.
PLANT_CONFIG=${PLANT_CONFIG:-configs/amazontitles3m.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
