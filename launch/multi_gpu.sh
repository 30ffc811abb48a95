#!/usr/bin/env bash
# Train on every GPU of one machine. Edit the lines below, or add overrides after the name:
#   launch/multi_gpu.sh model=llama3_8b deepspeed=zero2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-.venv/bin/python}"
RECIPE="${RECIPE:-llama_lora}"
# Processes: one for each GPU.
GPUS="${GPUS:-$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)}"
export OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1

if [ "$GPUS" -lt 1 ]; then
  echo "error: no GPU found: use launch/single_gpu.sh, or set GPUS to a number of processes" >&2
  exit 2
fi
exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$GPUS" \
  -m safealign.train "+recipe=$RECIPE" "$@"
