r"""Answers one question, and prints all that is done for it, as it is done.

  python -m r1router_jax.ask --question="How many people live in Chad?"
  python -m r1router_jax.ask --question="Whose flag is this?" --image=flag.png
  python -m r1router_jax.ask --question="Who wrote Emma?" --method=few_shot \
      --policy=Qwen/Qwen2.5-VL-3B-Instruct

The knowledge bases are those of launch/quickstart.sh, unless --kb_dir names
others.
"""

import os
import time
from concurrent import futures

from absl import flags, logging
from etils import epy

from r1router_jax.common import cli, shared_flags
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Question
from r1router_jax.common.text import mend_text
from r1router_jax.retrieval import kb_meta

# Imported when used, so that wrong flags are answered before JAX is imported.
with epy.lazy_imports():
  from r1router_jax.common import http_client
  from r1router_jax.policy import image_questions, policy_factory
  from r1router_jax.report import terminal
  from r1router_jax.retrieval import retriever
  from r1router_jax.routing import router, run_settings

# The question.
_QUESTION = flags.DEFINE_string("question", "", "The question to answer.")
_IMAGE = flags.DEFINE_string("image", "", "Image that the question is about.")
# What answers it.
_POLICY = shared_flags.define_flag("policy")
_KB_DIR = shared_flags.define_flag("kb_dir")
_KB_ADDRESSES = shared_flags.define_flag("kb_addresses")
# Nobody knows the gold routes of a new question.
_METHODS = [name for name in shared_flags.METHODS if name != "oracle_route"]
_METHOD = shared_flags.define_flag("method", enum_values=_METHODS)
_SETTINGS = shared_flags.define_settings()


def main(_) -> None:
  """Answer the question of the flags, and print the trajectory."""
  # Python reads bytes that are not UTF-8 as halves of surrogate pairs.
  text = mend_text(_QUESTION.value, "--question").strip()
  image = _IMAGE.value
  if not text:
    raise UserError(
      'There is no question.  Ask one: --question="Whose flag is this?"'
    )
  # A missing image would otherwise only be found after minutes of loading.
  if image and not os.path.isfile(image):
    raise FileNotFoundError(f"--image={image} does not exist.")
  # Neither of these imports JAX.
  shared_flags.check_policy(_POLICY.value)
  kb_meta.check_kb_dir(_KB_DIR.value)

  # 1. Open policy and knowledge bases.  While these are read, the policy gets
  # ready for the first plan.
  logging.info("Opening %s and the knowledge bases.", _POLICY.value)
  start = time.monotonic()
  policy = policy_factory.open_policy(_POLICY.value)
  http_client.allow_addresses(_KB_ADDRESSES.value)
  question = Question("question", text, image=image)
  with futures.ThreadPoolExecutor(1) as pool:
    warming = pool.submit(policy_factory.warm_up, policy, question)
    kbs = retriever.open_kbs(_KB_DIR.value)
    warming.result()
  logging.info(
    "Opened in %.1f s.  Programs that no command has needed yet are compiled "
    "now, and kept.",
    time.monotonic() - start,
  )

  # 2. Answer, and print each part of it.
  if image and policy.config.image_marker:
    print(image_questions.CAPTIONS_ALONE)
  values = shared_flags.settings_values(_SETTINGS)
  settings = run_settings.RunSettings.for_policy(
    policy.config, _METHOD.value, **values
  )
  printer = terminal.TrajectoryPrinter(question)
  options = settings.rollout_options(on_part=printer.print_part)
  task = policy, kbs, [question], settings.random_key, options
  (found,) = router.run_routing(*task)
  printer.print_final(found)
  # A question that could not be read was not answered.
  unread = [fault for fault in found.faults if fault.startswith("input: ")]
  if unread:
    raise UserError(unread[0].removeprefix("input: "))


if __name__ == "__main__":
  cli.run(main)
