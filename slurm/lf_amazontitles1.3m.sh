#!/usr/bin/env bash
#SBATCH --job-name=lf_amazontitles1.3m
#SBATCH --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --mem=768G --time=48:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# LF-AmazonTitles-1.3M.
PLANT_CONFIG=${PLANT_CONFIG:-configs/lf_amazontitles1.3m.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
