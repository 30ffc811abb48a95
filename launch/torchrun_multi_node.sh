#!/usr/bin/env bash
# Train on several machines with torchrun: start it on every machine, each with its own NODE_RANK.
#   MASTER_ADDR=node1 NODES=2 NODE_RANK=0 launch/torchrun_multi_node.sh deepspeed=zero2     # on node1
#   MASTER_ADDR=node1 NODES=2 NODE_RANK=1 launch/torchrun_multi_node.sh deepspeed=zero2     # on node2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-.venv/bin/python}"
RECIPE="${RECIPE:-llama_lora}"
NODES="${NODES:-2}"
NODE_RANK="${NODE_RANK:?give this machine its number, from 0: NODE_RANK=0 on the one that MASTER_ADDR names}"
MASTER_ADDR="${MASTER_ADDR:?give the name or address of the machine with NODE_RANK=0}"
MASTER_PORT="${MASTER_PORT:-29500}"
# Processes on each machine: one for each GPU.
GPUS="${GPUS:-$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)}"
export OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1

if [ "$GPUS" -lt 1 ]; then
  echo "error: no GPU found: set GPUS to a number of processes" >&2
  exit 2
fi
exec "$PYTHON" -m torch.distributed.run --nnodes "$NODES" --node_rank "$NODE_RANK" --nproc_per_node "$GPUS" \
  --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" -m safealign.train "+recipe=$RECIPE" "$@"
