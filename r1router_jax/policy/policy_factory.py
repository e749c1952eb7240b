"""Opens a policy by its name, and tells policies apart."""

import jax

from r1router_jax.common.images import BadImage
from r1router_jax.common.records import Question, Step
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.models import hf_checkpoint, safetensors_io
from r1router_jax.policy import config as config_lib
from r1router_jax.policy import openai_client
from r1router_jax.policy import policy as policy_lib
from r1router_jax.policy.openai_policy import OpenAIPolicy
from r1router_jax.policy.policy import Policy


def open_policy(name: str) -> Policy | OpenAIPolicy:
  """Open a policy by the name of a checkpoint, or at an address.

  See `policy.load` and, for "openai:http://..", `openai_client.ChatClient`.
  """
  if name.startswith(openai_client.PREFIX):
    return OpenAIPolicy(name)
  return policy_lib.load(name)


def warm_up(opened: Policy | OpenAIPolicy, question: Question) -> None:
  """Do what the first response about a question waits for, in this process.

  The tokenizer is read, weights get the layout of sampling, and programs for
  prompts as long as the question's are traced and compiled.
  """
  if isinstance(opened, OpenAIPolicy):
    return
  prompt = opened.config.build_prompt(Step("", "plan", question))
  try:
    opened.generate([prompt], jax.random.key(0))
  except (BadImage, PromptTooLong):
    pass  # The routing loop leaves the question out, with this fault.


def fingerprint(opened: Policy | OpenAIPolicy) -> str:
  """Return a text that tells a policy's weights and options from others'.

  At an address only the model's name is known: if the server changes the
  weights behind it, the fingerprint stays the same.
  """
  # Digests of the weights, unless they are on another machine.
  if isinstance(opened, OpenAIPolicy):
    parts = [openai_client.PREFIX + opened.model]
  else:
    files = hf_checkpoint.list_weight_files(opened.source)
    parts = [safetensors_io.fingerprint(path) for path in files]
  # Results on disk are found again by this text, so that options keep the names
  # that they had when the first results were written.
  old_names = {new: old for old, new in config_lib.OLD_KEYS.items()}
  for name, value in opened.config.enabled_extensions().items():
    parts.append(f"{old_names.get(name, name)}={value}")
  return " ".join(parts)
