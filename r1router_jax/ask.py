r"""Answers one question, and prints everything that was done to answer it.

  python -m r1router_jax.ask --question="How many people live in Chad?"
  python -m r1router_jax.ask --question="Whose flag is this?" --image=flag.png
  python -m r1router_jax.ask --question="Who wrote Emma?" --method=few_shot \
      --policy=Qwen/Qwen2.5-VL-3B-Instruct

The knowledge bases are those of launch/quickstart.sh, unless --kb_dir names
others.
"""

import os
from collections.abc import Iterator

from absl import flags
from etils import epy

from r1router_jax.common import cli, shared_flags
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Answer, Malformed, Question, Trajectory
from r1router_jax.common.text import sanitize_text
from r1router_jax.protocol import format
from r1router_jax.retrieval import kb_meta

# Imported when used, so that wrong flags are answered before JAX is imported.
with epy.lazy_imports():
  from r1router_jax.policy import interface, policy_factory
  from r1router_jax.retrieval import knowledge_base, retriever
  from r1router_jax.routing import router, run_settings

# The question.
_QUESTION = flags.DEFINE_string("question", "", "The question to answer.")
_IMAGE = flags.DEFINE_string("image", "", "Image that the question is about.")
# What answers it.
_POLICY = shared_flags.define_flag("policy")
_KB_DIR = shared_flags.define_flag("kb_dir")
_METHOD = shared_flags.define_flag("method")
_SETTINGS = shared_flags.define_settings()


def main(_) -> None:
  """Answer the question of the flags, and print the trajectory."""
  text, image = _QUESTION.value.strip(), _IMAGE.value
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

  policy = policy_factory.open_policy(_POLICY.value)
  kbs = retriever.open_kbs(_KB_DIR.value)
  values = shared_flags.settings_values(_SETTINGS)
  settings = run_settings.RunSettings(_METHOD.value, **values)
  found = answer_question(policy, kbs, text, image, settings)
  print("\n".join(format_trajectory(found)))
  # A question that could not be read was not answered.
  unread = [fault for fault in found.faults if fault.startswith("input: ")]
  if unread:
    raise UserError(unread[0].removeprefix("input: "))


def answer_question(
  policy: "interface.PolicyInterface",
  kbs: "dict[str, knowledge_base.KnowledgeBase]",
  text: str,
  image: str,
  settings: "run_settings.RunSettings",
) -> Trajectory:
  """Return the trajectory of one question, about the image at a path or ""."""
  questions = [Question("question", text, image=image)]
  key, options = settings.random_key, settings.rollout_options()
  (found,) = router.run_routing(policy, kbs, questions, key, options)
  return found


def format_trajectory(trajectory: Trajectory) -> Iterator[str]:
  """Yield the lines of a trajectory for a terminal.

  Text of models and knowledge bases is not trusted: control characters are
  dropped.
  """
  question = trajectory.question
  yield f"Question   {sanitize_text(question.text)}"
  if question.image:
    yield f"Image      {sanitize_text(question.image)}"
  for number, done in enumerate(trajectory.rounds, 1):
    plan = done.plan
    yield ""
    yield f"Round {number}    {format.route_names(plan)}"
    if plan.thought:
      yield f"  thinks   {sanitize_text(plan.thought)}"
    yield f"  asks     {sanitize_text(plan.sub_question)}"
    # Passages may be pages long; their start tells which they are.
    for passage in done.passages:
      text = sanitize_text(passage.text, 300)
      yield f"  finds    [{passage.score:.2f}] {text}"
      yield f"           {sanitize_text(passage.id)}"
    yield f"  answers  {_format_answer(done.answer)}"
  yield ""
  # Faults explain answers that are missing or malformed.
  for fault in trajectory.faults:
    yield f"Fault      {sanitize_text(fault)}"
  yield f"Answer     {_format_answer(trajectory.final)}"


def _format_answer(answer: Answer | Malformed) -> str:
  """Return an answer on one line, with the reason if it is malformed."""
  text = answer.text
  if isinstance(answer, Malformed):
    text = f"{text}  (malformed: {answer.reason})".strip()
  return sanitize_text(text)


if __name__ == "__main__":
  cli.run(main)
