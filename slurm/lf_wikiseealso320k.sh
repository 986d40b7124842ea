#!/usr/bin/env bash
#SBATCH --job-name=lf_wikiseealso320k
#SBATCH --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8 --mem=384G --time=36:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# LF-WikiSeeAlso-320K.
PLANT_CONFIG=${PLANT_CONFIG:-configs/lf_wikiseealso320k.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
