#!/usr/bin/env bash
# Times our sampler, or an iteration of Step-GRPO, beside those of transformers
# and google-tunix, each in an environment of its own, which this makes (about
# 2 GB); or our index beside faiss's.
#
#   launch/benchmark.sh [sampling] [ARGUMENTS of benchmarks/sampling.py]
#   launch/benchmark.sh train_step [ARGUMENTS of benchmarks/train_step.py]
#   launch/benchmark.sh retrieval [ARGUMENTS of benchmarks/retrieval.py]
#
# Leave the machine alone meanwhile.  All of sampling takes an hour or more; a
# case:
#   launch/benchmark.sh --shapes=0.5b --groups=8 --prompts=512 --new=32

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
[[ ${1:-} == --help || ${1:-} == -h ]] && usage
benchmark=sampling
if [[ ${1:-} =~ ^(sampling|train_step|retrieval)$ ]]; then
  benchmark=$1
  shift
fi

environment() {  # $1: its name; the rest: what pip installs.
  local place=$VENV-$1
  shift
  [[ -x $place/bin/python ]] || run "$VENV/bin/python" -m venv "$place"
  run "$place/bin/python" -m pip install --quiet --disable-pip-version-check \
    "$@"
}

set_up
if [[ $benchmark == retrieval ]]; then
  run "$VENV/bin/python" -m pip install --quiet faiss-cpu==1.15.1
else
  environment transformers torch==2.13.0 transformers==5.24.0
  environment tunix google-tunix==0.1.7 jax==0.10.2
  export TRANSFORMERS_PYTHON=$VENV-transformers/bin/python
  export TUNIX_PYTHON=$VENV-tunix/bin/python
fi
cd "$ROOT"
run python "benchmarks/$benchmark.py" "$@"
