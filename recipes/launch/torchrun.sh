#!/bin/bash
# Wan2.1-14B without a job scheduler: the same command on every machine, where HEAD is the name of any one of them.
#
#   HEAD=node0 MACHINES=8 bash launch/torchrun.sh
#
# It trains the recipe in the folder above this file, and keeps the run there, in runs/. Edit that recipe; RECIPE names another.
# To stop with a checkpoint, send SIGTERM to the processes themselves: torchrun kills them after 30 seconds by default.
set -euo pipefail
cd "$(dirname "$0")/.."

torchrun --nnodes="${MACHINES:-8}" --nproc-per-node="${GPUS:-8}" \
    --rdzv-id="${JOB:-amd-wan21-14b}" --rdzv-backend=c10d --rdzv-endpoint="${HEAD:?name of one machine}:${PORT:-29500}" \
    -m amd_plugin.cli train "${RECIPE:-wan21_14b_zero3.yaml}" --output "${OUTPUT:-runs/wan21_14b_zero3}" --resume auto
