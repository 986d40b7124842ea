#!/usr/bin/env bash
#SBATCH --job-name=lf_wikititles500k
#SBATCH --nodes=1 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --mem=512G --time=36:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# LF-WikiTitles-500K.
PLANT_CONFIG=${PLANT_CONFIG:-configs/lf_wikititles500k.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
