#!/usr/bin/env bash
#SBATCH --job-name=wordnet_database
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=1 --cpus-per-task=8 --mem=64G --time=06:00:00
#SBATCH --requeue --signal=B:USR1@180 --open-mode=append --output=%x-%j.log
# WordNet from its database: `plant-dist fetch wordnet` first, and data.path=data/wordnet.
PLANT_CONFIG=${PLANT_CONFIG:-configs/wordnet_database.yaml}
source "${PLANT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm/body.sh"
