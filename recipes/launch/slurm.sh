#!/bin/bash
# Wan2.1-14B on 8 machines of 8 GPUs. Copy, set what your cluster wants (partition, account, modules), and `sbatch slurm.sh`.
#
# When the job is preempted or its time ends, SLURM sends SIGTERM five minutes earlier. `amd-plugin train` then writes a checkpoint
# after the step it is in and ends with 143; the job puts itself back into the queue, and `--resume auto` goes on from there.
#SBATCH --job-name=amd-wan21-14b
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
#SBATCH --output=slurm-%j.log
set -uo pipefail

RECIPE=${RECIPE:-wan21_14b_zero3}
OUTPUT=${OUTPUT:-runs/wan21_14b_zero3}
GPUS=${SLURM_GPUS_ON_NODE:-8}
# Every machine meets the others here. The port depends on the job, so that two jobs on one machine do not meet.
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=8

srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_NNODES" --nproc-per-node="$GPUS" \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$HEAD:$PORT" --max-restarts=0 \
    -m amd_plugin.cli train "$RECIPE" --output "$OUTPUT" --resume auto &
TRAINING=$!
PREEMPTED=0
# srun hands the signal on to torchrun, and that to every process.
trap 'PREEMPTED=1; kill -TERM "$TRAINING"' TERM
wait "$TRAINING"
STATUS=$?
# The trap ends the first wait; the processes still write their checkpoint.
while kill -0 "$TRAINING" 2>/dev/null; do
    wait "$TRAINING"
    STATUS=$?
done

if [ "$PREEMPTED" -eq 1 ] && [ "$STATUS" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$STATUS"
