"""`generate` of Hugging Face transformers, on PyTorch."""

import engine
import torch
import transformers


def make(case):
  torch.manual_seed(0)
  model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
      vocab_size=case["vocab"], hidden_size=case["hidden"],
      intermediate_size=case["mlp"], num_hidden_layers=case["layers"],
      num_attention_heads=case["heads"], num_key_value_heads=case["kv_heads"],
      tie_word_embeddings=True)).eval()
  ids = torch.randint(10, case["vocab"], (case["prompts"], case["prompt"]))
  ids = ids.repeat_interleave(case["group"], 0)

  def generate(new):
    with torch.inference_mode():
      out = model.generate(
          ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
          min_new_tokens=new, do_sample=False, eos_token_id=None,
          pad_token_id=0)
    assert out.shape[1] == case["prompt"] + new

  return generate


engine.main(make)
