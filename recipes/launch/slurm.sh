#!/bin/bash
# Wan2.1-14B on 8 machines of 8 GPUs. Add the settings of your cluster below (partition, account, modules, environment). Then, in the
# folder that holds the recipe, which is read from there: `sbatch launch/slurm.sh`. docs/planning.md has what the machines need.
#
# Ten minutes before the time limit, SLURM sends SIGTERM to this script, which forwards it. `amd-plugin train` then writes a checkpoint
# after the current step and ends with exit code 143. The job requeues itself, and `--resume auto` continues from the checkpoint.
# srun starts the processes itself. Under torchrun they would be killed 30 seconds after the signal, in the middle of a step.
#SBATCH --job-name=amd-wan21-14b
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@600
#SBATCH --output=slurm-%j.log
set -uo pipefail

# The environment is on a file system that every machine sees, and so are the weights: compute nodes rarely reach the hub.
# source /path/to/venv/bin/activate
# export HF_HOME=/path/to/huggingface HF_HUB_OFFLINE=1
# export AMD_PLUGIN_CACHE=/path/to/amd-plugin-cache

export RECIPE=${RECIPE:-wan21_14b_zero3.yaml}
export OUTPUT=${OUTPUT:-runs/wan21_14b_zero3}
if [ ! -f "$RECIPE" ]; then
    echo "no $RECIPE in $PWD: submit from the folder of the recipe, or set RECIPE" >&2
    exit 2
fi
# The rendezvous is on the first machine. The port depends on the job, so that two jobs on one machine do not collide.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS=8

# The first process writes the checkpoint, so it must survive the end of the others. After 15 more minutes it counts as hanging.
srun --kill-on-bad-exit=0 --wait=900 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec python -m amd_plugin.cli train "$RECIPE" --output "$OUTPUT" --resume auto
' &
TRAINING=$!
trap 'kill -TERM "$TRAINING"' TERM
wait "$TRAINING"
STATUS=$?
# The trap ends the first wait, while the processes still write their checkpoint.
while kill -0 "$TRAINING" 2>/dev/null; do
    wait "$TRAINING"
    STATUS=$?
done

if [ "$STATUS" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$STATUS"
