#!/usr/bin/env bash
# The one body of every file in slurm/, which sources it after its lines of resources.
#
# Outside a job it submits that file, with the account and partition of site.env. Inside, it starts
# one process a task with srun, asks them to save when time runs out, requeues, and says how it went.
#
# PLANT_CONFIG         the config; each file names its own
# PLANT_SET            settings in words, such as "train.epochs=5 seed=3" (no spaces within one)
# PLANT_COMMAND        a stage, run (default) for all that are not up to date, or sweep, of which a task
#                      of an array makes one run
# PLANT_OUTPUT         run folder (default runs/NAME in PLANT_WORK)
# PLANT_STAGE=1        copy the prepared dataset to each node's own disk first
# PLANT_MAX_RESTARTS   give up after so many requeues (default 100)
# What a site sets once stands in site.env.example.
set -euo pipefail
PLANT_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PLANT_HOME

say() { echo "$(date +%FT%T) job ${SLURM_JOB_ID:-none}: $*"; }

read_site() {
  local site=${PLANT_SITE:-$PLANT_HOME/slurm/site.env}
  if [[ -f $site ]]; then
    # shellcheck source=slurm/site.env.example
    source "$site"
  fi
}

# One row of a sweep for each seed: the array's index counts seeds first, then rows.
choose_row() {
  local seeds=${PLANT_SEEDS:-5} base=$run rows label settings
  mapfile -t rows < <(grep -v '^ *\(#\|$\)' "$PLANT_HOME/$PLANT_SWEEP")
  local index=$((SLURM_ARRAY_TASK_ID / seeds)) seed=$((SLURM_ARRAY_TASK_ID % seeds))
  if ((index >= ${#rows[@]})); then
    say "no row $index in $PLANT_SWEEP, which has ${#rows[@]}, with $seeds seeds"
    exit 2
  fi
  read -r label settings <<<"${rows[index]}"
  PLANT_SET="${PLANT_SET:-} $settings seed=$seed"
  run=$base/$(basename "$PLANT_SWEEP" .txt)/$label/seed$seed
  mkdir -p "$run"
  # What a finished run of all documents has made is not made again where it still fits: artifacts
  # are replaced whole, never written into, so that linking the files is safe.
  local artifact
  for artifact in dataset gains ranker; do
    if [[ -d $base/$artifact && ! -e $run/$artifact ]]; then
      cp -al "$base/$artifact" "$run/$artifact" || rm -rf "${run:?}/$artifact"
    fi
  done
}

choose_device() {
  if [[ ${PLANT_DEVICE:-} == cpu || -z ${SLURM_GPUS_ON_NODE:-} ]]; then
    # Without it, Accelerate looks for GPUs and joins no processes without them.
    export ACCELERATE_USE_CPU=true
    words+=(--set runtime.device=cpu)
  else
    # By name, so that a node whose driver is broken fails and does not train on its processor.
    words+=(--set runtime.device=cuda)
  fi
  export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
}

# Where ranks meet: the job's first node, at a port that follows from the job.
choose_rendezvous() {
  local first
  read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  if ! getent hosts "$first" >/dev/null; then
    # A node need not bear a name that the others can look up; SLURM knows its address.
    first=$(scontrol -o show node "$first" | sed 's/.* NodeAddr=\([^ ]*\) .*/\1/')
  fi
  export MASTER_ADDR=${PLANT_MASTER:-$first}
  export MASTER_PORT=${PLANT_PORT:-$((15000 + (SLURM_JOB_ID + 101 * restarts) % 15000))}
  if [[ -n ${PLANT_INTERFACE:-} ]]; then
    export NCCL_SOCKET_IFNAME=$PLANT_INTERFACE GLOO_SOCKET_IFNAME=$PLANT_INTERFACE
  fi
  export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
}

# The time is nearly up, or the job makes room for another: ranks finish their step and save.
# shellcheck disable=SC2317 # called by traps
ask_to_stop() {
  asked=$1
  say "SIG$1: the ranks are asked to save and stop"
  # srun hands it on to every task.
  kill -USR1 "$step" 2>/dev/null || true
}

# False where a node of the job is gone, which SLURM itself may notice only minutes later.
all_nodes_answer() {
  timeout 60 srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1 true
}

requeue() {
  local state
  state=$(scontrol -o show job "$SLURM_JOB_ID" | sed 's/.* JobState=\([A-Z_]*\).*/\1/')
  if ((restarts >= ${PLANT_MAX_RESTARTS:-100})); then
    say "stopped after $restarts restarts, which is all that PLANT_MAX_RESTARTS allows"
    exit 75
  fi
  # A job that its owner cancelled must not come back.
  if [[ $state != RUNNING ]]; then
    say "not requeued: its state is $state"
    exit 75
  fi
  say "requeued; it goes on from its last checkpoint"
  # SLURM may end this script before it could end itself.
  scontrol requeue "$SLURM_JOB_ID" || exit 75
  exit 0
}

read_site
if [[ -z ${SLURM_JOB_ID:-} ]]; then
  exec sbatch "$@" "$0"
fi

for module in ${PLANT_MODULES:-}; do
  # Module systems read variables that are not set.
  set +u
  module load "$module"
  set -u
done
[[ $PLANT_CONFIG == /* ]] || PLANT_CONFIG=$PLANT_HOME/$PLANT_CONFIG
cd "${PLANT_WORK:-$PLANT_HOME}"
run=${PLANT_OUTPUT:-runs/$(basename "$PLANT_CONFIG" .yaml)}
restarts=${SLURM_RESTART_COUNT:-0}
if [[ -n ${PLANT_SWEEP:-} ]]; then choose_row; fi

export PLANT_LAUNCH=slurm-$SLURM_JOB_ID.$restarts
export PLANT_LOGS=$run/logs/$PLANT_LAUNCH
mkdir -p "$PLANT_LOGS"
read -ra container <<<"${PLANT_CONTAINER:-}"
program=("${container[@]}" "${PLANT_PYTHON:-$PLANT_HOME/.venv/bin/python}" -m plant_dist)
export PYTHONPATH=$PLANT_HOME${PYTHONPATH:+:$PYTHONPATH}
# A crash in compiled code leaves the Python lines that led there.
export PYTHONFAULTHANDLER=1

ranks=${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES}
words=("${PLANT_COMMAND:-run}" --config "$PLANT_CONFIG" --output "$run")
# Refuses to train as another number of processes than SLURM was asked for.
words+=(--set "runtime.processes=$ranks")
choose_device
choose_rendezvous
if [[ ${PLANT_STAGE:-} == 1 ]]; then
  local_disk=${PLANT_LOCAL_DISK:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/plant-$SLURM_JOB_ID
  words+=(--set "runtime.local_disk=$local_disk")
fi
# Split by words without looking for files: a value may hold brackets.
read -ra settings <<<"${PLANT_SET:-}"
for setting in "${settings[@]}"; do words+=(--set "$setting"); done
# A task of an array makes one run of a sweep.
if [[ ${PLANT_COMMAND:-} == sweep && -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  words+=(--index "$SLURM_ARRAY_TASK_ID")
fi
words+=("$@")

say "$ranks processes on $SLURM_JOB_NODELIST, restart $restarts, meeting at $MASTER_ADDR:$MASTER_PORT"
say "TensorBoard: tensorboard --logdir $(realpath "$run")/tensorboard"
say "logs by rank: $(realpath "$PLANT_LOGS")"

asked=
trap 'ask_to_stop USR1' USR1
trap 'ask_to_stop TERM' TERM
# One process a task and no launcher between, so that signals and exit codes pass as they are. GPUs of
# a node stay visible to all its ranks, which NCCL needs to move data between them directly.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --cpu-bind="${PLANT_CPU_BIND:-cores}" \
  --gpu-bind=none bash "$PLANT_HOME/slurm/task.sh" "${program[@]}" "${words[@]}" &
step=$!
code=0
# A trap ends `wait` early; what counts is the step's own end.
while kill -0 "$step" 2>/dev/null; do
  wait "$step" && code=0 || code=$?
done

if [[ -n ${local_disk:-} ]]; then
  srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 rm -rf "$local_disk" || true
fi
if ((code == 0)); then
  say "${PLANT_COMMAND:-run} ended well"
  exit 0
fi
# The ranks' own records know better than srun, which has the highest code of all.
"${program[@]}" status "$run" --ended "$code" && code=0 || code=$?
# Asked in a stage that has nothing to save, ranks die of the signal; the stage begins anew.
if ((code == 75)) || { [[ -n $asked ]] && ((code > 128)); }; then requeue; fi
# 137: a rank ended without a word; 7: all have lost another.
if ((code == 137 || code == 7)) && ! all_nodes_answer; then
  say "a node does not answer"
  requeue
fi
say "${PLANT_COMMAND:-run} failed with code $code"
exit "$code"
