#!/usr/bin/env bash
# From nothing to a trained router on a laptop's CPU: builds the knowledge bases
# of the GeoRouter world, trains a tiny policy, evaluates it, writes a report.
#
#   launch/quickstart.sh [--workdir=DIR] [--seed=N] [--from_scratch]
#
#   --workdir=DIR    where everything is written (default: runs/quickstart)
#   --seed=N         the seed of a run, which needs a directory of its own
#                    (default: 0)
#   --from_scratch   train the warm start too, for an hour, instead of taking
#                    the shipped one
#   --help           this text
#
# Run it again after an interruption: each command resumes where it stopped.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

RUN=$ROOT/runs/quickstart
SEED=0
SCRATCH=
for arg; do
  case $arg in
    --workdir=?*) RUN=$(absolute "${arg#*=}") ;;
    --seed=*[!0-9]* | --seed=) die "$arg: a seed is a whole number." ;;
    --seed=*) SEED=${arg#*=} ;;
    --from_scratch) SCRATCH=yes ;;
    --help | -h) usage ;;
    *) die "Unknown argument $arg; see --help." ;;
  esac
done

# A directory remembers the arguments of its run, so that runs never mix.
settings="seed=$SEED from_scratch=${SCRATCH:-no}"
if [[ -f $RUN/settings && $(<"$RUN/settings") != "$settings" ]]; then
  die "$RUN holds another run ($(<"$RUN/settings"), asked: $settings)." \
    "Give this one a directory of its own: --workdir=DIR"
fi
if [[ -f $RUN/done ]]; then
  say "This run is complete: $RUN/report.html (--workdir=DIR starts another)."
  exit 0
fi

set_up
cd "$ROOT"
mkdir -p "$RUN"
printf '%s' "$settings" >"$RUN/settings"

sft=(--config=configs/sft.py:tiny --config.seed="$SEED")
start=warm_start
run python -m r1router_jax.build_kb --kb_dir="$RUN/kb"
run python -m r1router_jax.train "${sft[@]}" --config.total_steps=0 \
  --config.data.generated=60 --workdir="$RUN/untrained"
if [[ $SCRATCH ]]; then
  start=$RUN/sft/policy
  run python -m r1router_jax.train "${sft[@]}" --workdir="$RUN/sft"
else
  say "Starting from the shipped warm start, which configs/sft.py:tiny made" \
    "(its figures: r1router_jax/data/files/warm_start/README.md)."
fi
say "Three kinds of the world's questions have no demonstrations.  Now the" \
  "policy learns them from their final answers alone."
run python -m r1router_jax.train --config=configs/step_grpo.py:compose \
  --config.seed="$SEED" --config.data.kb_dir="$RUN/kb" \
  --config.policy.start_from="$start" --workdir="$RUN/step_grpo"
policies=untrained=$RUN/untrained/policy,warm_start=$start
policies+=,step_grpo=$RUN/step_grpo/policy
run python -m r1router_jax.eval --kb_dir="$RUN/kb" --workdir="$RUN/eval" \
  --policy="$policies" \
  --curves="step_grpo=$RUN/step_grpo" --report="$RUN/report.html"

touch "$RUN/done"
say "Done.  Open $RUN/report.html"
