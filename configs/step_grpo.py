r"""Step-GRPO on steps of GeoRouter's training questions, from a trained start.

  python -m r1router_jax.train --config=configs/step_grpo.py:tiny \
      --config.policy.start_from=runs/overask/policy \
      --config.data.kb=runs/kb --workdir=runs/step_grpo

Where the start overasks (configs/sft.py:overask), this teaches it to stop.
`:3b` and `:7b` are for python -m r1router_jax.plan.
"""

import ml_collections as mlc


def get_config(variant: str = "tiny") -> mlc.ConfigDict:
  """The run for policy `variant`: "tiny", or "smoke" for tests."""
  c = mlc.ConfigDict()
  c.seed = 0
  c.algorithm = "step_grpo"
  c.total_steps = 80
  # Parts over all devices; -1 takes those left.  `data` and `fsdp` split the
  # rows of a batch, `fsdp` and `tensor` weights, the latter in sampling, too.
  c.mesh = dict(data=-1, fsdp=1, tensor=1)
  c.rollout_mesh = dict(data=-1, tensor=1)
  c.policy = dict(
      start_from="warm_start",  # A policy's folder, or the shipped warm start.
      induction=False,
      lora=dict(rank=0, alpha=32.0, match="layers/[qkvo]$"),  # 0: no adapters.
      settings=dict(        # Changes to that policy's: few shapes to compile.
          prompt_tokens=(48, 96, 160), response_tokens=(40,)))
  c.trainable = ""        # Parameters that learn, as a regular expression.
  c.data = dict(
      split="train",
      kb="runs/kb",       # Where build_kb wrote the knowledge bases.
      passages=dict(text=1, image=1, table=1),  # Read per answer step.
      batch_rows=64)      # Steps per update and device.
  c.step_grpo = dict(
      group_size=8,       # Responses per step; advantages compare these.
      learn_rows=16,      # Of them at most so many, of unequal rewards, teach.
      temperature=1.0,
      clip_low=0.2, clip_high=0.28,  # Trust region of the ratio.
      reward="default",
      rename=0.5)         # Chance that a step's entities have other names.
  c.optim = dict(
      name="adamw", lr=1.5e-4, muon_lr=0.0, warmup=5, final=0.1,
      weight_decay=0.0, clip_norm=1.0)
  c.max_skipped = 3       # Updates in a row whose loss is not finite, at most.
  c.every = dict(log=5, checkpoint=50)  # In updates.

  if variant == "smoke":
    c.total_steps = 2
    c.policy.settings.update(prompt_tokens=(160,))
    c.data.batch_rows = 4
    c.step_grpo.update(group_size=2, learn_rows=4)
    c.every.update(log=1, checkpoint=1)
  elif variant in ("3b", "7b"):
    _published(c, variant)
  elif variant != "tiny":
    raise ValueError(f"No variant {variant!r} of step_grpo: take 'tiny', '3b', "
                     "'7b' or 'smoke'.")
  return c


def _published(c: mlc.ConfigDict, size: str):
  """Qwen2.5-VL at a published size, its weights split over a mesh."""
  c.total_steps = 300
  c.mesh.update(data=1, fsdp=-1)
  c.rollout_mesh.tensor = {"3b": 2, "7b": 4}[size]
  c.policy.start_from = f"Qwen/Qwen2.5-VL-{size.upper()}-Instruct"
  c.policy.settings = dict(
      style="full", model=size, prompt_tokens=(1024, 2048, 4096),
      response_tokens=(1024,), min_pixels=3136, max_pixels=1_003_520,
      batch_rows=8,
      compute=dict(dtype="bfloat16", remat="full", attention="auto"))
  c.data.batch_rows = 4   # Prompts that each part of `rollout_mesh.data` draws.
  c.step_grpo.update(learn_rows=1)
  c.optim.update(lr=1e-6, warmup=15, weight_decay=0.01)
