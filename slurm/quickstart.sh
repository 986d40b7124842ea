#!/usr/bin/env bash
#SBATCH --job-name=quickstart
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=4 --mem=16G --time=01:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# Three chapters of ICD-10-CM, on processors: try your site's settings with it first.
PLANT_CONFIG=${PLANT_CONFIG:-configs/quickstart.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
