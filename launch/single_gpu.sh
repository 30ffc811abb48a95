#!/usr/bin/env bash
# Train on one GPU (or on the CPU when there is none). Edit the lines below, or add overrides after the name:
#   launch/single_gpu.sh model=llama3_8b trainer.batch_size=4 trainer.gradient_accumulation=4
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-.venv/bin/python}"
RECIPE="${RECIPE:-llama_lora}"
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}"
export OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1

exec "$PYTHON" -m safealign.train "+recipe=$RECIPE" "$@"
