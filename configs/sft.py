r"""Supervised warm start on gold steps of GeoRouter's training questions.

  python -m r1router_jax.train --config=configs/sft.py:tiny --workdir=runs/sft

This run, with seed 0, made the warm start that the package ships.  `:overask`
goes on from there for a minute, with demonstrations of a teacher that does not
know when to stop.
"""

import ml_collections as mlc


def get_config(variant: str = "tiny") -> mlc.ConfigDict:
  """The run for policy `variant`: "tiny", "overask", or "smoke" for tests."""
  c = mlc.ConfigDict()
  c.seed = 0
  c.algorithm = "sft"
  c.total_steps = 2400
  c.mesh = dict(data=-1, fsdp=1, tensor=1)  # As in configs/step_grpo.py.
  c.policy = dict(
      start_from="",      # A policy's folder, or "" for random weights.
      induction=True,     # Random weights that can copy; models/induction.py.
      lora=dict(rank=0, alpha=32.0, match="layers/[qkvo]$"),  # 0: no adapters.
      settings=dict(
          style="compact",
          model=dict(
              vocab=4096, hidden=128, mlp=384, layers=4, heads=4, kv_heads=4,
              mrope_section=(4, 6, 6), theta=1e6, eps=1e-6, tied=True,
              vision=dict(hidden=64, mlp=128, layers=2, heads=4, patch=14,
                          temporal=2, merge=2, window=112, full_blocks=(1,))),
          prompt_tokens=(32, 48, 96, 160),  # Padded lengths of prompts.
          response_tokens=(16, 24, 48),     # Padded lengths of responses.
          min_pixels=84 * 84, max_pixels=84 * 84,
          batch_rows=64))     # Responses decoded at one time.
  c.trainable = ""        # Parameters that learn, as a regular expression.
  c.data = dict(
      split="train",
      kb="",              # Built knowledge bases, or "" for gold evidence.
      passages=dict(text=1, image=1, table=1),  # Read per answer step.
      batch_rows=32)      # Steps per update and device.
  c.sft = dict(
      recall_steps=300,   # First updates, on random look-up rows alone.
      recall_share=0.1,   # Chance that a later update is on such rows.
      rename=(0.9, 0.3),  # Chance of changed names, first and last.
      overask=0.0)        # Chance to ask again where the gold trace stops.
  c.optim = dict(
      name="muon", lr=1e-3, muon_lr=4e-3, warmup=20, final=0.05,
      weight_decay=0.01, clip_norm=1.0)
  c.max_skipped = 3       # Updates in a row whose loss is not finite, at most.
  c.every = dict(log=20, checkpoint=500)  # In updates.

  if variant == "overask":
    c.total_steps = 120
    c.policy.update(start_from="warm_start", induction=False)
    c.policy.settings = dict(  # Those of configs/step_grpo.py.
        prompt_tokens=(48, 96, 160), response_tokens=(40,))
    c.sft = dict(
        recall_steps=0, recall_share=0.0, rename=(0.5, 0.5), overask=0.8)
    c.optim.update(lr=2e-4, muon_lr=8e-4)
  elif variant == "smoke":
    c.total_steps = 4
    c.policy.settings.update(prompt_tokens=(160,), response_tokens=(48,))
    c.data.batch_rows = 4
    c.sft.recall_steps = 2
    c.every.update(log=1, checkpoint=2)
  elif variant != "tiny":
    raise ValueError(
        f"No variant {variant!r} of sft: take 'tiny', 'overask' or 'smoke'.")
  return c
