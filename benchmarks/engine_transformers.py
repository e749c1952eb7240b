"""`generate` of Hugging Face transformers on PyTorch, as an engine."""

from collections.abc import Callable

import engine
import torch
import transformers


def make_model(case: dict) -> transformers.Qwen2ForCausalLM:
  """Return a Qwen2 with random weights."""
  torch.manual_seed(0)
  config = transformers.Qwen2Config(
    vocab_size=case["vocab"],
    hidden_size=case["hidden"],
    intermediate_size=case["mlp"],
    num_hidden_layers=case["layers"],
    num_attention_heads=case["heads"],
    num_key_value_heads=case["kv_heads"],
    tie_word_embeddings=True,
  )
  return transformers.Qwen2ForCausalLM(config).eval()


def make_prompts(case: dict) -> torch.Tensor:
  """Return random prompts, each repeated for every member of its group."""
  ids = torch.randint(10, case["vocab"], (case["prompts"], case["prompt"]))
  return ids.repeat_interleave(case["group"], 0)


def generate(
  model: transformers.Qwen2ForCausalLM,
  ids: torch.Tensor,
  new: int,
  **sampling: object,
) -> torch.Tensor:
  """Return prompts and responses of exactly `new` tokens each."""
  # Without an end token, all responses have the same length.
  with torch.no_grad():
    sequences = model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      max_new_tokens=new,
      min_new_tokens=new,
      eos_token_id=None,
      pad_token_id=0,
      **sampling,
    )
  assert sequences.shape[1] == ids.shape[1] + new
  return sequences


def make_generate(case: dict) -> Callable[[int], torch.Tensor]:
  """Return a function that greedily samples a number of tokens."""
  model, ids = make_model(case), make_prompts(case)
  return lambda new: generate(model, ids, new, do_sample=False)


if __name__ == "__main__":
  engine.time_sampler(make_generate)
