r"""Supervised warm start on gold steps of GeoRouter's training questions.

  python -m r1router_jax.train --config=configs/sft.py:tiny --workdir=runs/sft

This run, with seed 0, made the warm start that the package ships.  `:overask`
goes on from there for a minute, with demonstrations of a teacher that does not
know when to stop.  `:qwen2_5_0_5b` reads R1-Router's rows instead.
"""

import ml_collections as mlc


def get_config(variant: str = "tiny") -> mlc.ConfigDict:
  """The run for policy `variant`: "tiny" and others, or "smoke" for tests."""
  c = mlc.ConfigDict()
  c.seed = 0
  c.algorithm = "sft"
  c.total_steps = 2400
  c.mesh = dict(data=-1, fsdp=1, tensor=1)  # As in configs/step_grpo.py.
  c.rollout_mesh = dict(data=-1, tensor=1)  # Of validation.
  c.policy = dict(
    start_from="",  # A policy's folder, or "" for random weights.
    induction=True,  # Random weights that can copy; models/induction.py.
    lora=dict(rank=0, alpha=32.0, match="layers/[qkvo]$"),  # 0: no adapters.
    settings=dict(
      style="compact",
      model=dict(
        vocab=4096,
        hidden=128,
        mlp=384,
        layers=4,
        heads=4,
        kv_heads=4,
        mrope_section=(4, 6, 6),
        theta=1e6,
        eps=1e-6,
        tied=True,
        vision=dict(
          hidden=64,
          mlp=128,
          layers=2,
          heads=4,
          patch=14,
          temporal=2,
          merge=2,
          window=112,
          full_blocks=(1,),
        ),
      ),
      prompt_tokens=(32, 48, 96, 160),  # Padded lengths of prompts.
      response_tokens=(16, 24, 48),  # Padded lengths of responses.
      min_pixels=84 * 84,
      max_pixels=84 * 84,
      batch_rows=64,
    ),
  )  # Responses decoded at one time.
  c.trainable = ""  # Parameters that learn, as a regular expression.
  c.data = dict(
    split="train",
    rows="",  # Files of R1-Router's rows to take instead of
    # GeoRouter: paths or globs, with commas between.
    images="",  # The folder of their pictures.
    kb="",  # Built knowledge bases, or "" for gold evidence.
    passages=dict(text=1, image=1, table=1),  # Read per answer step.
    batch_rows=32,
  )  # Steps per update and device.
  c.sft = dict(
    recall_steps=300,  # First updates, on random look-up rows alone.
    recall_share=0.1,  # Chance that a later update is on such rows.
    rename=(0.9, 0.3),  # Chance of changed names, first and last.
    overask=0.0,  # Chance to ask again where the gold trace stops.
    side_by_side=0,
  )  # Tokens of a row of many texts; 0: one text a row.
  c.optim = dict(
    name="muon",
    lr=1e-3,
    muon_lr=4e-3,
    warmup=20,
    final=0.05,
    b2=0.98,
    weight_decay=0.01,
    clip_norm=1.0,
  )
  c.parallel = "pmap"  # "fsdp" splits weights over config.mesh.
  c.micro_rows = 0  # Rows of a backward pass and share; 0: all.
  c.max_skipped = 3  # Updates in a row whose loss is not finite, at most.
  c.validation = dict(  # On gold steps of held-out questions.
    every=0,  # Updates; 0 for never.
    split="val",
    rows="",  # As of config.data.
    steps=256,
  )  # At most so many.
  c.every = dict(
    log=20,
    checkpoint=500,  # In updates.
    trajectories=0,
  )  # Nothing is sampled here.
  c.wandb = ""  # A project of Weights & Biases that is told, too.

  if variant == "overask":
    c.total_steps = 120
    c.policy.update(start_from="warm_start", induction=False)
    c.policy.settings = dict(  # Those of configs/step_grpo.py.
      prompt_tokens=(48, 96, 160), response_tokens=(40,)
    )
    c.sft = dict(
      recall_steps=0,
      recall_share=0.0,
      rename=(0.5, 0.5),
      overask=0.8,
      side_by_side=0,
    )
    c.optim.update(lr=2e-4, muon_lr=8e-4)
  elif variant == "smoke":
    c.total_steps = 4
    c.policy.settings.update(prompt_tokens=(160,), response_tokens=(48,))
    c.data.batch_rows = 4
    c.sft.recall_steps = 2
    c.every.update(log=1, checkpoint=2)
  elif variant == "qwen2_5_0_5b":
    _published(c)
  elif variant != "tiny":
    raise ValueError(
      f"No variant {variant!r} of sft: take 'tiny', 'overask', "
      "'qwen2_5_0_5b' or 'smoke'."
    )
  return c


def _published(c: mlc.ConfigDict):
  """Qwen2.5-0.5B-Instruct on R1-Router's rows, as in configs/step_grpo.py."""
  c.total_steps = 200
  c.policy.update(start_from="Qwen/Qwen2.5-0.5B-Instruct", induction=False)
  c.policy.settings = dict(
    style="full",
    prompt_tokens=(1024, 2048, 4096),
    response_tokens=(64, 128, 256),
    compute=dict(dtype="bfloat16", remat="full", attention="auto"),
  )
  c.data.update(rows="reference/grpo_dataset_train*.jsonl", batch_rows=8)
  c.sft = dict(
    recall_steps=0,
    recall_share=0.0,
    rename=(0.0, 0.0),
    overask=0.0,
    side_by_side=4608,
  )  # A longest prompt with a long response.
  c.optim.update(name="adamw", lr=1e-5, muon_lr=0.0, b2=0.999)
