#!/usr/bin/env bash
#SBATCH --job-name=debian_tags
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=1 --cpus-per-task=8 --mem=64G --time=04:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# debtags out of apt's lists, which nodes need as well: set data.path to a copy of them.
PLANT_CONFIG=${PLANT_CONFIG:-configs/debian_tags.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
