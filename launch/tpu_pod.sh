#!/usr/bin/env bash
# Trains on every worker of a Cloud TPU VM (a pod or a single host).
#
#   launch/tpu_pod.sh NAME ZONE [ARGUMENTS OF r1router_jax.train...]
#
#   launch/tpu_pod.sh my-pod us-east5-a \
#     --config=configs/step_grpo.py --workdir=gs://my-bucket/run1
#
# Copies the last commit (no uncommitted changes) to ~/r1router_jax of each
# worker, installs it there, and starts the same command on all; the processes
# find each other through the TPU's metadata.  `gcloud` must be logged in, and
# the workdir must be a bucket.  The run ends with this connection: start it in
# tmux, and again to resume.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

case ${1:---help} in --help | -h) usage ;; esac
[[ $# -ge 2 ]] || die "NAME and ZONE are needed; see --help."
name=$1
zone=$2
[[ $name != -* ]] || die "NAME comes before all arguments, and is no $name."
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] ||
  die "ZONE comes second, such as us-east5-a, and is no $zone; see --help."
shift 2

archive=$(mktemp -d)/r1router_jax.tgz
trap 'rm -r "$(dirname "$archive")"' EXIT
git -C "$ROOT" archive --format=tgz --prefix=r1router_jax/ HEAD >"$archive"

train=$(printf '%q ' python -m r1router_jax.train "$@")
worker="set -euo pipefail
tar -xzf r1router_jax.tgz
source r1router_jax/launch/_env.sh
set_up tpu
cd \"\$ROOT\"
run $train"

tpu=(gcloud compute tpus tpu-vm)
run "${tpu[@]}" scp "$archive" "$name:" --zone="$zone" --worker=all
# Quoted once more, for the login shell of the worker.
run "${tpu[@]}" ssh "$name" --zone="$zone" --worker=all \
  --command="bash -c $(printf '%q' "$worker")"
