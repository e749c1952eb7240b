#!/usr/bin/env bash
# Compares our sampler, or an iteration of Step-GRPO, with those of transformers
# and google-tunix; or our index with faiss's; or loads our server.  The others
# get environments of their own, which this script makes (about 2 GB).
#
#   launch/benchmark.sh [sampling] [ARGUMENTS of benchmarks/sampling.py]
#   launch/benchmark.sh train_step [ARGUMENTS of benchmarks/train_step.py]
#   launch/benchmark.sh retrieval [ARGUMENTS of benchmarks/retrieval.py]
#   launch/benchmark.sh serve [ARGUMENTS of benchmarks/serve.py]
#
# Leave the machine alone meanwhile.  All cases of sampling take an hour or more;
# for one case:
#   launch/benchmark.sh --shapes=0.5b --groups=8 --prompts=512 --new=32

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
[[ ${1:-} == --help || ${1:-} == -h ]] && usage
benchmark=sampling
if [[ ${1:-} =~ ^(sampling|train_step|retrieval|serve)$ ]]; then
  benchmark=$1
  shift
fi

# Makes the environment $1, and installs the other arguments with pip.
make_environment() {
  local place=$VENV-$1
  shift
  [[ -x $place/bin/python ]] || run "$VENV/bin/python" -m venv "$place"
  run "$place/bin/python" -m pip install --quiet --disable-pip-version-check \
    "$@"
}

set_up
if [[ $benchmark == retrieval ]]; then
  run "$VENV/bin/python" -m pip install --quiet faiss-cpu==1.15.1
elif [[ $benchmark != serve ]]; then
  # Each has its own environment, as their requirements need not fit together.
  make_environment transformers torch==2.13.0 transformers==5.24.0
  make_environment tunix google-tunix==0.1.7 jax==0.10.2
  export TRANSFORMERS_PYTHON=$VENV-transformers/bin/python
  export TUNIX_PYTHON=$VENV-tunix/bin/python
fi
cd "$ROOT"
run python "benchmarks/$benchmark.py" "$@"
