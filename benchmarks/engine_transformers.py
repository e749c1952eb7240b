"""`generate` of Hugging Face transformers, on PyTorch."""

import engine
import torch
import transformers


def model(case: dict) -> transformers.Qwen2ForCausalLM:
  torch.manual_seed(0)
  return transformers.Qwen2ForCausalLM(
    transformers.Qwen2Config(
      vocab_size=case["vocab"],
      hidden_size=case["hidden"],
      intermediate_size=case["mlp"],
      num_hidden_layers=case["layers"],
      num_attention_heads=case["heads"],
      num_key_value_heads=case["kv_heads"],
      tie_word_embeddings=True,
    )
  ).eval()


def prompts(case: dict) -> torch.Tensor:
  """Each as often as its group has members."""
  ids = torch.randint(10, case["vocab"], (case["prompts"], case["prompt"]))
  return ids.repeat_interleave(case["group"], 0)


def generate(
  policy: transformers.Qwen2ForCausalLM,
  ids: torch.Tensor,
  new: int,
  **method: object,
) -> torch.Tensor:
  with torch.no_grad():
    out = policy.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      max_new_tokens=new,
      min_new_tokens=new,
      eos_token_id=None,
      pad_token_id=0,
      **method,
    )
  assert out.shape[1] == ids.shape[1] + new
  return out


def make(case):
  policy, ids = model(case), prompts(case)
  return lambda new: generate(policy, ids, new, do_sample=False)


if __name__ == "__main__":
  engine.sampler(make)
