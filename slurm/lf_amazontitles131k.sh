#!/usr/bin/env bash
#SBATCH --job-name=lf_amazontitles131k
#SBATCH --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=8 --mem=128G --time=12:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# LF-AmazonTitles-131K.
PLANT_CONFIG=${PLANT_CONFIG:-configs/lf_amazontitles131k.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
