r"""Step-GRPO on steps of GeoRouter's training questions, from a trained start.

  python -m r1router_jax.train --config=configs/step_grpo.py:tiny \
      --config.policy.start_from=runs/overask/policy \
      --config.data.kb=runs/kb --workdir=runs/step_grpo

Where the start overasks (configs/sft.py:overask), this teaches it to stop.

`:qwen2_5_0_5b` takes a published policy of texts and R1-Router's rows to one
GPU.  `:3b`, `:7b` and `:reference`, the 7b with R1-Router's own values, are for
python -m r1router_jax.train_compile.
"""

import ml_collections as mlc


def get_config(variant: str = "tiny") -> mlc.ConfigDict:
  """The run for policy `variant`: "tiny" and others, or "smoke" for tests."""
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
    settings=dict(  # Changes to that policy's: few shapes to compile.
      prompt_tokens=(48, 96, 160), response_tokens=(40,)
    ),
  )
  c.trainable = ""  # Parameters that learn, as a regular expression.
  c.data = dict(
    split="train",
    rows="",  # Files of R1-Router's rows to take instead of
    # GeoRouter: paths or globs, with commas between.
    images="",  # The folder of their pictures.
    kb="runs/kb",  # Where build_kb wrote the knowledge bases; or
    # "text=http://host:port,image=DIR,table=DIR".
    passages=dict(text=1, image=1, table=1),  # Read per answer step.
    batch_rows=64,
  )  # Steps per update and device.
  c.step_grpo = dict(
    rollouts="offline",  # On gold trajectories; "online" on the policy's own.
    loop="host",  # That drives online rollouts; "halves" search while
    # others draw, "fused" runs on the device alone.
    group_size=8,  # Responses per step; advantages compare these.
    learn_rows=16,  # Steps per update; unequal rewards come first.
    minibatches=1,  # Updates per iteration.
    refill=0,  # Draws more, so often, where too few groups teach.
    temperature=1.0,
    normalise="std1",  # Of rewards: "std1", "std0" or "none".
    loss=dict(
      clip_low=0.2,
      clip_high=0.28,  # Trust region of the ratio.
      aggregate="token_mean",  # Or "sequence_mean", "fixed_length".
      kl="k3",
      kl_coef=0.0,  # Divergence from the start; k1, k2 or k3.
      entropy_coef=0.0,
    ),  # Bonus.
    reward="default",  # Or "reference", or your own, "module:function".
    search_cost=0.0,  # Taken from a plan's reward for each search.
    rename=0.5,
  )  # Chance that a step's entities have other names.
  c.optim = dict(
    name="adamw",
    lr=1.5e-4,
    muon_lr=0.0,
    warmup=5,
    final=0.1,
    b2=0.98,
    weight_decay=0.0,
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
    log=5,
    checkpoint=50,  # In updates.
    trajectories=5,
  )  # Some of what is sampled; 0 for never.
  c.wandb = ""  # A project of Weights & Biases that is told, too.

  if variant == "smoke":
    c.total_steps = 2
    c.policy.settings.update(prompt_tokens=(160,))
    c.data.batch_rows = 4
    c.step_grpo.update(group_size=2, learn_rows=4)
    c.every.update(log=1, checkpoint=1, trajectories=1)
  elif variant in ("3b", "7b"):
    _published(c, variant)
  elif variant == "reference":
    _published(c, "7b")
    _reference(c)
  elif variant == "qwen2_5_0_5b":
    _one_gpu(c)
  elif variant != "tiny":
    raise ValueError(
      f"No variant {variant!r} of step_grpo: take 'tiny', "
      "'qwen2_5_0_5b', '3b', '7b', 'reference' or 'smoke'."
    )
  return c


def _published(c: mlc.ConfigDict, size: str):
  """Qwen2.5-VL at a published size, its weights split over a mesh."""
  c.total_steps = 300
  c.parallel = "fsdp"
  c.mesh.update(data=1, fsdp=-1)
  c.rollout_mesh.tensor = {"3b": 2, "7b": 4}[size]
  c.policy.start_from = f"Qwen/Qwen2.5-VL-{size.upper()}-Instruct"
  c.policy.settings = dict(
    style="full",
    model=size,
    prompt_tokens=(1024, 2048, 4096),
    response_tokens=(1024,),
    min_pixels=3136,
    max_pixels=1_003_520,
    batch_rows=8,
    compute=dict(dtype="bfloat16", remat="full", attention="auto"),
  )
  c.data.batch_rows = 4  # Prompts that each part of `rollout_mesh.data` draws.
  c.step_grpo.update(learn_rows=1, rename=0.0)
  c.optim.update(lr=1e-6, warmup=15, weight_decay=0.01)


def _reference(c: mlc.ConfigDict):
  """What R1-Router ran, as far as its files say: 14 epochs of 3,030 steps."""
  c.total_steps = 330
  c.data.update(
    rows="reference/grpo_dataset_train*.jsonl",
    images="reference/images",
    batch_rows=16,
  )
  c.step_grpo.update(group_size=5, learn_rows=16, reward="reference")
  c.step_grpo.loss.update(
    clip_high=0.2, aggregate="sequence_mean", entropy_coef=1e-3
  )
  c.micro_rows = 1
  c.optim.update(warmup=0, final=1.0, b2=0.999)


def _one_gpu(c: mlc.ConfigDict):
  """Qwen2.5-0.5B-Instruct, meant for a GPU of 24 GB or more.

  Weights, gradients and moments are 9 GB of it, by count; no GPU has run it.
  It reads texts alone, so that rows with pictures are left out.
  """
  c.total_steps = 300
  c.policy.start_from = "Qwen/Qwen2.5-0.5B-Instruct"
  c.policy.settings = dict(
    style="full",
    prompt_tokens=(1024, 2048, 4096),
    response_tokens=(256,),
    batch_rows=64,
    compute=dict(dtype="bfloat16", remat="full", attention="auto"),
  )
  c.data.update(rows="reference/grpo_dataset_train*.jsonl", batch_rows=16)
  c.step_grpo.update(learn_rows=4, rename=0.0)
  c.optim.update(lr=1e-6, warmup=15, b2=0.999, weight_decay=0.01)
