#!/usr/bin/env bash
# Starts the program as several processes on one machine; accelerate.sh, deepspeed.sh and torchrun.sh
# are this with their own name.
#
#   launchers/start.sh LAUNCHER [--cpu N] [--stage NAME] CONFIG [OPTION ...]
#
# --cpu N        N processes on this machine's processor; without it, one on each visible GPU
# --stage NAME   one stage, or run (default) for all that are not up to date
# OPTION         options of `plant-dist run`, such as --set train.epochs=2
# PYTHON         the interpreter (default: that of VENV, or .venv)
#
# Leaves with the code of the program itself, above all 75 for "stopped and saved, run me again",
# which torchrun and its like turn into 1. If a rank failed, the words of the first are shown last.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-${VENV:-$root/.venv}/bin/python}

complain() {
  echo "launchers: $*" >&2
  exit 2
}

visible_gpus() {
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -cv '^$' || true
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true
  else
    echo 0
  fi
}

launcher=${1:?name a launcher: accelerate, deepspeed or torchrun}
shift
stage=run cpu='' config=''
while (($#)); do
  case $1 in
    --cpu) cpu=${2:-none} ;;
    --stage) stage=${2:-none} ;;
    *) break ;;
  esac
  shift $(($# > 1 ? 2 : 1))
done
config=${1:-}
[[ -f $config ]] || complain "${config:-nothing} is no config file; say $launcher.sh [--cpu N] FILE"
shift
if [[ -n $cpu ]]; then
  [[ $cpu =~ ^[1-9][0-9]*$ ]] || complain "--cpu $cpu: give the number of processes"
  processes=$cpu device=cpu
  # Without them, Accelerate and DeepSpeed look for GPUs.
  export ACCELERATE_USE_CPU=true DS_ACCELERATOR=cpu
  cores=$(nproc)
  # Processes that share cores must not each start a thread on all of them.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > cpu ? cores / cpu : 1))}
else
  processes=$(visible_gpus) device=cuda
  ((processes)) || complain "no GPU is visible; for N processes on the processor say --cpu N"
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
# How many times removed the ranks are from the process that is started here.
generations=1
case $launcher in
  torchrun)
    command=(torch.distributed.run --standalone --nproc-per-node "$processes" -m)
    ;;
  accelerate)
    command=(accelerate.commands.accelerate_cli launch --num_processes "$processes")
    command+=(--num_machines 1 --mixed_precision no --dynamo_backend no)
    # Its own `--cpu` silently starts one process: several are "multi_gpu", on a CPU as well.
    if ((processes > 1)); then command+=(--multi_gpu --main_process_port 0); fi
    command+=(-m)
    ;;
  deepspeed)
    "$python" -c 'import deepspeed' 2>/dev/null ||
      complain "deepspeed is not installed; run: launchers/setup.sh deepspeed"
    free_port='import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
    generations=2
    command=(deepspeed.launcher.runner --num_gpus "$processes" --no_local_rank)
    command+=(--master_port "$("$python" -c "$free_port")" --module)
    ;;
  *) complain "$launcher is no launcher; choose accelerate, deepspeed or torchrun" ;;
esac
# Refuses to train as another number of processes, or on another device, than was meant.
words=("$stage" --config "$config" --set "runtime.processes=$processes")
words+=(--set "runtime.device=$device" "$@")
# Of the options, those that name the run folder.
where=(--config "$config")
while (($#)); do
  case $1 in
    --set | --output) where+=("$1" "${2:-}") ;;
    --set=* | --output=*) where+=("$1") ;;
  esac
  shift
done

# A slip in the config is said once and with its own code, not by every rank among its launcher's words.
settings=()
for ((number = 2; number < ${#where[@]}; number++)); do
  case ${where[number]} in
    --set) settings+=(--set "${where[number + 1]:-}") ;;
    --set=*) settings+=("${where[number]}") ;;
  esac
done
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} "$python" -m plant_dist config "$config" "${settings[@]}" >/dev/null

# Asks the ranks themselves to save: on SIGTERM torchrun kills them after 30 seconds and DeepSpeed
# leaves them behind, of SIGUSR1 both die.
# shellcheck disable=SC2317 # called by a trap
ask_to_stop() {
  local pids=$child generation pid
  for ((generation = 0; generation < generations; generation++)); do
    local below=''
    for pid in $pids; do below+=" $(cat "/proc/$pid/task/$pid/children" 2>/dev/null)"; done
    pids=$below
  done
  # Without any (not started yet, or no /proc) the launcher is the one to ask.
  # shellcheck disable=SC2086 # words of a list
  kill -TERM ${pids:-} 2>/dev/null || kill -TERM "$child" 2>/dev/null || true
}

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONFAULTHANDLER=1
PLANT_LAUNCH=$(date +%Y%m%d-%H%M%S)-$$
export PLANT_LAUNCH
echo "launchers: $processes processes on $device, launch $PLANT_LAUNCH" >&2
"$python" -m "${command[@]}" plant_dist "${words[@]}" &
child=$! code=0
trap ask_to_stop TERM USR1
while kill -0 "$child" 2>/dev/null; do
  wait "$child" && code=0 || code=$?
done
if ((code)); then
  "$python" -m plant_dist status "${where[@]}" --ended "$code" && code=0 || code=$?
fi
exit "$code"
