#!/usr/bin/env bash
#SBATCH --job-name=icd10cm
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=1 --cpus-per-task=8 --mem=64G --time=06:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# All of ICD-10-CM, from terms alone.
PLANT_CONFIG=${PLANT_CONFIG:-configs/icd10cm.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
