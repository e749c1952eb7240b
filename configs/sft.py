r"""Supervised warm start on gold steps of questions about invented countries.

  python -m r1router_jax.train --config=configs/sft.py:tiny --workdir=runs/sft

With seed 0, the variant `tiny` made the warm start that comes with the package.
`:overask` goes on from there for a minute, on targets of a teacher that does
not know when to stop.  `:smollm2` teaches SmolLM2 on a grammar of invented
domains (docs/domains.md), and `:qwen2_5_0_5b` reads R1-Router's rows.
"""

import pathlib
import runpy

import ml_collections as mlc

# Config files are loaded by path, and so is the one that they share.
_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name("base.py")))

# Sizes of the tiny policy.
_TINY_VISION = dict(
  **dict(hidden=64, mlp=128, layers=2, heads=4, full_blocks=(1,)),
  **dict(patch=14, temporal=2, merge=2, window=112),
)
_TINY_MODEL = dict(
  **dict(vocab=4096, hidden=256, mlp=768, layers=5, heads=8, kv_heads=8),
  **dict(mrope_section=(4, 6, 6), theta=1e6, eps=1e-6, tied=True),
  vision=_TINY_VISION,
)


def get_config(variant: str = "tiny") -> mlc.ConfigDict:
  """Return the run of a variant: "tiny" and others, or "smoke" for tests."""
  c = _BASE["base_config"]()
  c.algorithm = "sft"
  c.total_steps = 4500  # Updates.
  c.log_every = 20  # Updates between two lines of metrics.jsonl.
  c.checkpoint_every = 500  # Updates between two checkpoints.
  c.policy.update(start_from="", induction=True, word_vectors="minilm")
  c.policy.overrides = dict(  # All fields of policy/config.py's PolicyConfig.
    style="compact",
    model=_TINY_MODEL,
    prompt_tokens=(32, 48, 96, 160),  # Padded lengths of prompts.
    response_tokens=(24, 40, 72),  # Padded lengths of responses.
    min_pixels=84 * 84,
    max_pixels=84 * 84,
    decode_batch_size=64,  # Responses decoded at one time on one device.
  )
  c.data.update(questions="countries", generated=26_000)
  c.data.batch_size_per_device = 32  # Steps per update and data shard.
  c.matmul_precision = "bfloat16"
  c.sft = dict(
    recall_warmup_steps=250,  # First updates, on random look-up rows alone.
    recall_prob=0.08,  # Probability that a later update is on such rows.
    # Probability that a target asks again where the gold trace stops.
    overask_prob=0.0,
    packed_length=0,  # Tokens of a row of several texts; 0: one text a row.
  )
  c.optim = _BASE["base_optimizer"]()
  c.optim.update(
    name="muon", lr=1e-3, muon_lr=4e-3, warmup=20, final=0.05, b2=0.98
  )

  if variant == "overask":
    _set_overask(c)
  elif variant == "smoke":
    # A few seconds on a CPU: a small model, one shape to compile, two batches
    # of look-up rows, two of GeoRouter's own questions.
    c.total_steps = 4
    c.policy.word_vectors = ""
    c.policy.overrides.model.update(hidden=128, mlp=384, layers=4)
    c.policy.overrides.model.update(heads=4, kv_heads=4)
    c.policy.overrides.update(prompt_tokens=(160,), response_tokens=(48,))
    c.data.update(questions="", generated=0)
    c.matmul_precision = ""
    c.data.batch_size_per_device = 4
    c.sft.recall_warmup_steps = 2
    c.update(log_every=1, checkpoint_every=2)
  elif variant == "qwen2_5_0_5b":
    _set_published(c)
  elif variant == "smollm2":
    _set_smollm2(c)
  elif variant != "tiny":
    raise ValueError(
      f"No variant {variant!r} of sft: take 'tiny', 'overask', 'smollm2', "
      "'qwen2_5_0_5b' or 'smoke'."
    )
  return c


def _set_overask(c: mlc.ConfigDict) -> None:
  """Change the run to targets that ask too much, from the warm start on."""
  c.total_steps = 120
  c.policy.update(start_from="warm_start", induction=False, word_vectors="")
  c.data.generated = 3000
  # Those of configs/step_grpo.py, which goes on from here.
  c.policy.overrides = dict(prompt_tokens=(48, 96, 160), response_tokens=(72,))
  c.sft.update(recall_warmup_steps=0, recall_prob=0.0)
  c.sft.update(overask_prob=0.8)
  c.optim.update(lr=2e-4, muon_lr=8e-4)


def _set_smollm2(c: mlc.ConfigDict) -> None:
  """Change the run to SmolLM2-135M-Instruct on the grammar of domains."""
  c.total_steps = 3000
  c.policy.word_vectors = ""
  _BASE["set_smollm2"](c, start_from="smollm2_base")
  c.data.update(questions="domains", generated=6000)
  c.data.batch_size_per_device = 4  # Packed rows.
  c.sft.update(recall_warmup_steps=0, recall_prob=0.0)
  c.sft.packed_length = 384
  c.optim.update(name="adamw", lr=2e-3, muon_lr=0.0, b2=0.98, warmup=50)


def _set_published(c: mlc.ConfigDict) -> None:
  """Change the run to Qwen2.5-0.5B-Instruct on R1-Router's rows."""
  c.total_steps = 200
  c.policy.update(start_from="Qwen/Qwen2.5-0.5B-Instruct", induction=False)
  c.policy.word_vectors = ""
  c.data.update(questions="", generated=0)
  c.matmul_precision = ""
  c.policy.overrides = _BASE["qwen_overrides"](response_tokens=(64, 128, 256))
  c.data.train_files = "reference/grpo_dataset_train*.jsonl"
  c.data.batch_size_per_device = 8
  c.sft.update(recall_warmup_steps=0, recall_prob=0.0)
  c.sft.packed_length = 4608  # A longest prompt with a long response.
  c.optim.update(name="adamw", lr=1e-5, muon_lr=0.0, b2=0.999)
