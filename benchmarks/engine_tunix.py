"""The sampler that google-tunix brings, with a cache of just the right size."""

import engine
import numpy as np
from flax import nnx
from tunix.generate import sampler
from tunix.models.qwen2 import model as qwen2


class Ids:
  """A tokenizer of texts that are ids already."""

  def encode(self, text, **_):
    return [int(word) for word in text.split()]

  def decode(self, ids, **_):
    return " ".join(map(str, ids))

  def bos_id(self):
    return 1

  def eos_id(self):
    return 2

  def pad_id(self):
    return 0


def model(case: dict) -> qwen2.Qwen2:
  return qwen2.Qwen2(
    qwen2.ModelConfig(
      num_layers=case["layers"],
      vocab_size=case["vocab"],
      embed_dim=case["hidden"],
      hidden_dim=case["mlp"],
      num_heads=case["heads"],
      head_dim=case["head_size"],
      num_kv_heads=case["kv_heads"],
      norm_eps=1e-6,
      rope_theta=1_000_000,
      use_tied_embedding=True,
    ),
    rngs=nnx.Rngs(0),
  )


def texts(case: dict) -> list[str]:
  rng = np.random.default_rng(0)
  ids = rng.integers(  # The sampler puts a token in front.
    10, case["vocab"], (case["prompts"], case["prompt"] - 1)
  )
  return [" ".join(map(str, row)) for row in ids]


def make(case):
  policy = model(case)
  repeated = [text for text in texts(case) for _ in range(case["group"])]
  samplers = {
    new: sampler.Sampler(
      policy,
      Ids(),
      sampler.CacheConfig(
        case["prompt"] + new,
        case["layers"],
        case["kv_heads"],
        case["head_size"],
      ),
    )
    for new in (1, case["new"])
  }

  def generate(new):
    out = samplers[new](
      repeated, new, max_prompt_length=case["prompt"], eos_tokens=[-1]
    )
    assert all(len(tokens) == new for tokens in out.tokens)

  return generate


if __name__ == "__main__":
  engine.sampler(make)
