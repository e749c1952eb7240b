#!/usr/bin/env bash
# Writes docs/plan.md: the memory that 3B and 7B need on each chip of three TPUs,
# compiled without a TPU.  Takes about an hour on two cores.
#
#   launch/plan.sh [--help]

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

for arg; do
  case $arg in
    --help | -h) usage ;;
    *) die "Unknown argument $arg; see --help." ;;
  esac
done

set_up tpu
cd "$ROOT"
{
  cat <<'HEAD'
# Memory per chip

The memory that Step-GRPO on Qwen2.5-VL needs on each chip, vision tower included;
every parameter is trained, in float32 with AdamW.  `launch/plan.sh` writes this
page.  For other batches, lengths and meshes see
`python -m r1router_jax.train_compile --help`.
HEAD
  for size in 3b 7b; do
    printf '\n## %s\n\n' "$size"
    run python -m r1router_jax.train_compile --config="configs/step_grpo.py:$size" \
      --topology=v5e:2x4,v5e:4x4,v6e:4x4
  done
} >docs/plan.md.partial
mv docs/plan.md.partial docs/plan.md
say "Wrote docs/plan.md."
