#!/usr/bin/env bash
#SBATCH --job-name=r1router
#SBATCH --requeue
#SBATCH --open-mode=append
# Trains on GPUs under SLURM, one process per GPU.  Submit it from the root of
# the repository, on a file system that all nodes share:
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 \
#     launch/slurm.sh --config=configs/step_grpo.py --workdir=/shared/run1
#
# Everything after the script's name goes to r1router_jax.train.  The processes
# find each other through SLURM.  A job that is requeued resumes.

set -euo pipefail
# SLURM runs a copy of this file, so the repository is where `sbatch` was called.
source "${SLURM_SUBMIT_DIR:-.}/launch/_env.sh"

case ${1:---help} in --help | -h) usage ;; esac
[[ ${SLURM_NTASKS:-} ]] || die "Submit this with sbatch; see --help."

set_up cuda
cd "$ROOT"
run srun --kill-on-bad-exit=1 python -m r1router_jax.train "$@"
