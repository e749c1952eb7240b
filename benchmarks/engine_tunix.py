"""The sampler of google-tunix as an engine, with a cache of the right size."""

from collections.abc import Callable

import engine
import numpy as np
from flax import nnx
from tunix.generate import sampler
from tunix.models.qwen2 import model as qwen2


class IdTokenizer:
  """A tokenizer of texts that are numbers: the ids of their tokens."""

  # Methods that google-tunix calls.

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


def make_model(case: dict) -> qwen2.Qwen2:
  """Return a Qwen2 with random weights."""
  config = qwen2.ModelConfig(
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
  )
  return qwen2.Qwen2(config, rngs=nnx.Rngs(0))


def make_prompts(case: dict) -> list[str]:
  """Return random prompts as texts for `IdTokenizer`."""
  # One token less than a prompt has: the sampler puts a token in front.
  shape = case["prompts"], case["prompt"] - 1
  ids = np.random.default_rng(0).integers(10, case["vocab"], shape)
  return [" ".join(map(str, row)) for row in ids]


def make_generate(case: dict) -> Callable[[int], None]:
  """Return a function that greedily samples a number of tokens."""
  model = make_model(case)
  prompts = [text for text in make_prompts(case) for _ in range(case["group"])]
  # A sampler for each length, since its cache has a fixed size.
  samplers = {
    new: sampler.Sampler(
      model,
      IdTokenizer(),
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
    # No token has the id -1, which would end a response.
    out = samplers[new](
      prompts, new, max_prompt_length=case["prompt"], eos_tokens=[-1]
    )
    assert all(len(tokens) == new for tokens in out.tokens)

  return generate


if __name__ == "__main__":
  engine.time_sampler(make_generate)
