#!/usr/bin/env bash
# Submits a corpus as a chain: each stage a job of its own that starts once the one before has ended
# well; prepare and mig on CPU nodes (slurm/cpu.sh), the others with the corpus's own resources.
#
#   slurm/chain.sh slurm/mimicfull.sh [OPTION ...]     options of sbatch for rank, train, evaluate
#
# PLANT_CPU_PARTITION  partition of the CPU stages; the site's default without it
# PLANT_STAGES         the stages (default "prepare mig rank train evaluate"; an AWD-LSTM wants lm
#                      before rank)
# PLANT_SET and the others as in body.sh. Prints the number of each job.
set -euo pipefail
PLANT_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PLANT_HOME
if [[ ! -f ${1:-} ]]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
file=$1
shift
site=${PLANT_SITE:-$PLANT_HOME/slurm/site.env}
if [[ -f $site ]]; then
  # shellcheck source=slurm/site.env.example
  source "$site"
fi
name=$(basename "$file" .sh)
export PLANT_CONFIG=${PLANT_CONFIG:-configs/$name.yaml}

after=()
for stage in ${PLANT_STAGES:-prepare mig rank train evaluate}; do
  case $stage in
    prepare | mig)
      script=$PLANT_HOME/slurm/cpu.sh
      options=(${PLANT_CPU_PARTITION:+"--partition=$PLANT_CPU_PARTITION"})
      ;;
    *)
      script=$file
      options=("$@")
      ;;
  esac
  job=$(PLANT_COMMAND=$stage sbatch --parsable --job-name="$name-$stage" "${after[@]}" \
    "${options[@]}" "$script")
  # With several clusters the number is followed by the cluster's name.
  job=${job%%;*}
  echo "$stage $job"
  # A stage whose parent failed would wait for ever.
  after=("--dependency=afterok:$job" --kill-on-invalid-dep=yes)
done
