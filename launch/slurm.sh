#!/usr/bin/env bash
#SBATCH --job-name=r1router
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
# Trains on GPUs under SLURM, one process per GPU.  Submit it from any folder,
# on a file system that all nodes share:
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 \
#     launch/slurm.sh --config=configs/step_grpo.py --workdir=/shared/run1
#
# Everything after the script's name goes to r1router_jax.train, which runs in
# the root of the repository.  The processes find each other through SLURM.
# Five minutes before the time limit the run saves its state and ends with code
# 42.  A job that is requeued, or submitted again, resumes.

set -euo pipefail
# SLURM runs a copy of this file; its record of the job names the original.
folder=$(dirname "${BASH_SOURCE[0]}")
if [[ ! -f $folder/_env.sh ]]; then
  folder=$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null |
    sed -n 's|^ *Command=\(.*/launch\)/slurm\.sh.*|\1|p') || folder=
  [[ $folder ]] || folder=${SLURM_SUBMIT_DIR:-.}/launch
fi
if [[ ! -f $folder/_env.sh ]]; then
  echo "$folder/_env.sh does not exist.  Submit launch/slurm.sh of a checkout" \
    "that the nodes share, from the checkout's root." >&2
  exit 2
fi
# shellcheck source=launch/_env.sh
source "$folder/_env.sh"

case ${1:---help} in --help | -h) usage ;; esac
[[ ${SLURM_NTASKS:-} ]] || die "Submit this with sbatch; see --help."

set_up cuda
cd "$ROOT"
run srun --kill-on-bad-exit=1 python -m r1router_jax.train "$@"
