#!/usr/bin/env bash
# Train on several machines that a hostfile names, with DeepSpeed's launcher. Flags come before the overrides.
# With ssh from the first machine to all others, started once, there:
#   HOSTFILE=hosts launch/multi_node.sh model=llama3_8b deepspeed=zero3
# Without ssh, started on every machine with its own number (its place in the hostfile, from 0):
#   HOSTFILE=hosts launch/multi_node.sh --no_ssh --node_rank 1 model=llama3_8b deepspeed=zero3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-.venv/bin/python}"
DEEPSPEED="${DEEPSPEED:-$(dirname "$PYTHON")/deepspeed}"
RECIPE="${RECIPE:-llama_lora}"
# One line for each machine: name slots=GPUS
HOSTFILE="${HOSTFILE:-hostfile}"
MASTER_PORT="${MASTER_PORT:-29500}"
export OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1

flags=()
node_rank=()
while [ "$#" -gt 0 ] && [ "${1#--}" != "$1" ]; do
  if [ "$1" = --node_rank ]; then
    node_rank=("${2:-}")
    flags+=("$1" "${2:-}")
    shift
  else
    flags+=("$1")
  fi
  shift
done

# Says what is wrong with the hostfile, or names its first machine, where rank 0 runs.
first="$("$PYTHON" -m safealign.ranks.hostfile "$HOSTFILE" ${node_rank[@]+"${node_rank[@]}"})"
exec "$DEEPSPEED" --hostfile "$HOSTFILE" --master_addr "${MASTER_ADDR:-$first}" --master_port "$MASTER_PORT" \
  ${flags[@]+"${flags[@]}"} --module safealign.train "+recipe=$RECIPE" "$@"
