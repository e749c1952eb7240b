#!/usr/bin/env bash
# From nothing to a trained router on a laptop's CPU: builds the knowledge bases
# of the GeoRouter world, trains a tiny policy, evaluates it, writes a report.
#
#   launch/quickstart.sh [--workdir=DIR] [--seed=N] [--from_scratch]
#
#   --workdir=DIR    where everything is written (default: runs/quickstart)
#   --seed=N         another run, in another directory (default: 0)
#   --from_scratch   train the warm start too, instead of taking the shipped one
#   --help           this text
#
# Run it again after an interruption: each command takes up what it finds.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

RUN=$ROOT/runs/quickstart
SEED=0
VARIANT=
for arg; do
  case $arg in
    --workdir=?*) RUN=$(absolute "${arg#*=}") ;;
    --seed=*[!0-9]* | --seed=) die "$arg: a seed is a whole number." ;;
    --seed=*) SEED=${arg#*=} ;;
    --from_scratch) VARIANT=:from_scratch ;;
    --help | -h) usage ;;
    *) die "Unknown argument $arg; see --help." ;;
  esac
done

# The arguments that made a directory stay with it.
settings="seed=$SEED variant=${VARIANT#:}"
if [[ -f $RUN/settings && $(<"$RUN/settings") != "$settings" ]]; then
  die "$RUN holds another run ($(<"$RUN/settings"), asked: $settings)." \
    "Give this one a directory of its own: --workdir=DIR"
fi
if [[ -f $RUN/done ]]; then
  say "This run is complete: $RUN/report.html (--workdir=DIR starts another)."
  exit 0
fi

set_up quickstart
cd "$ROOT"
mkdir -p "$RUN"
printf '%s' "$settings" >"$RUN/settings"

config=(--config="configs/quickstart.py$VARIANT" --config.seed="$SEED")
run python -m r1router_jax.build_kb --out="$RUN/kb"
run python -m r1router_jax.train "${config[@]}" --workdir="$RUN"
run python -m r1router_jax.eval "${config[@]}" --workdir="$RUN"

touch "$RUN/done"
say "Done.  Open $RUN/report.html"
