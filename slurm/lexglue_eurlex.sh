#!/usr/bin/env bash
#SBATCH --job-name=lexglue_eurlex
#SBATCH --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8 --mem=128G --time=24:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# EUR-LEX of LexGLUE.
PLANT_CONFIG=${PLANT_CONFIG:-configs/lexglue_eurlex.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
