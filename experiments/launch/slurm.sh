#!/usr/bin/env bash
# Slurm: `sbatch experiments/launch/slurm.sh` from the repository, which all nodes see, with its virtual environment in
# .venv. Edit the lines marked EDIT. The same command on the same workdir resumes.
#SBATCH --job-name=fmjax
#SBATCH --nodes=2               # EDIT
#SBATCH --ntasks-per-node=8     # EDIT: one process a GPU; or 1, a process that has all GPUs of its node
#SBATCH --gpus-per-node=8       # EDIT. Not --gpus-per-task, by which processes no longer see each other's GPUs
#SBATCH --cpus-per-task=8       # EDIT
#SBATCH --time=24:00:00         # EDIT
#SBATCH --signal=TERM@180       # three minutes before the end: all save and leave
#SBATCH --requeue               # after a preemption or the failure of a node the job starts again, and resumes
#SBATCH --open-mode=append
set -euo pipefail

CONFIG=configs/llama2_7b.py         # EDIT
WORKDIR=$SLURM_SUBMIT_DIR/runs/$SLURM_JOB_NAME   # EDIT: on a file system that all nodes share

cd "$SLURM_SUBMIT_DIR"
source .venv/bin/activate
export FMJAX_CACHE=${FMJAX_CACHE:-$SLURM_SUBMIT_DIR/runs/cache}  # prepared data and compiled programs, shared too

# When one process ends, the others do within seconds, by themselves; this is for what they cannot notice.
srun --kill-on-bad-exit=1 python -m fmjax.train --config="$CONFIG" --workdir="$WORKDIR"
