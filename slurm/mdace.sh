#!/usr/bin/env bash
#SBATCH --job-name=mdace
#SBATCH --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8 --mem=256G --time=24:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# MIMIC-III with the evidence of MDACE: mimicfull, and what coders marked beside it.
PLANT_CONFIG=${PLANT_CONFIG:-configs/mdace.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
