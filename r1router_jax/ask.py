r"""One question, and everything that was done to answer it.

  python -m r1router_jax.ask --question="How many people live in Chad?"
  python -m r1router_jax.ask --question="Whose flag is this?" --image=flag.png
  python -m r1router_jax.ask --question="Who wrote Emma?" --method=few_shot \
      --policy=Qwen/Qwen2.5-VL-3B-Instruct

Knowledge bases are those of launch/quickstart.sh, unless --kb says otherwise.
"""

import os
from collections.abc import Iterator

import jax
from absl import flags

from r1router_jax.common import cli
from r1router_jax.common import text as text_lib
from r1router_jax.common.records import Answer, Malformed, Question, Trajectory
from r1router_jax.policy import interface, openai_policy
from r1router_jax.protocol import format
from r1router_jax.retrieval import retriever
from r1router_jax.routing import router
from r1router_jax.routing.baselines import registry

_QUESTION = flags.DEFINE_string(
  "question", "", "What you want to know.", allow_override=True
)

_IMAGE = flags.DEFINE_string(
  "image", "", "A picture that the question is about.", allow_override=True
)

_POLICY = flags.DEFINE_string(
  "policy",
  "warm_start",
  "A policy's folder, the warm start that comes with "
  "the package, or a model elsewhere: openai:http://host:port/v1#model.",
  allow_override=True,
)

_KB = flags.DEFINE_string(
  "kb",
  "runs/quickstart/kb",
  "Folder of the knowledge bases, as build_kb "
  "wrote it, or the place of each: text=http://host:port,image=DIR/image,"
  "table=DIR/table.",
  allow_override=True,
)

_METHOD = flags.DEFINE_enum(
  "method",
  registry.ROUTER,
  registry.METHODS,
  "How it is answered; few_shot is "
  "for a policy that was never trained to route.",
  allow_override=True,
)

_SEED = flags.DEFINE_integer("seed", 0, "Of all samples.", allow_override=True)


def ask(
  trained: interface.Responder,
  kbs: dict[str, retriever.KnowledgeBase],
  text: str,
  image: str = "",
  seed: int = 0,
  method: str = registry.ROUTER,
) -> Trajectory:
  """The trajectory of one question."""
  found = router.route(
    trained,
    kbs,
    [Question("question", text, image=image)],
    jax.random.key(seed),
    method=registry.METHODS[method](seed),
  )
  return found[0]


def lines(trajectory: Trajectory) -> Iterator[str]:
  """The trajectory to be read in a terminal; untrusted text is cleaned."""
  clean = text_lib.clean
  question = trajectory.question
  yield f"Question   {clean(question.text)}"
  if question.image:
    yield f"Picture    {clean(question.image)}"
  for n, done in enumerate(trajectory.rounds, 1):
    plan = done.plan
    yield ""
    yield f"Round {n}    {format.route_names(plan)}"
    if plan.thought:
      yield f"  thinks   {clean(plan.thought)}"
    yield f"  asks     {clean(plan.sub_question)}"
    for passage in done.passages:
      yield f"  finds    [{passage.score:.2f}] {clean(passage.text, 300)}"
      yield f"           {clean(passage.id)}"
    yield f"  answers  {_answer(done.answer)}"
  yield ""
  for fault in trajectory.faults:
    yield f"Fault      {clean(fault)}"
  yield f"Answer     {_answer(trajectory.final)}"


def _answer(answer: Answer | Malformed) -> str:
  if isinstance(answer, Malformed):
    text = f"{answer.text}  (malformed: {answer.reason})"
    return text_lib.clean(text.strip())
  return text_lib.clean(answer.text)


def main(_) -> None:
  text, image = _QUESTION.value.strip(), _IMAGE.value
  if not text:
    raise ValueError(
      'There is no question.  Ask one: --question="Whose flag is this?"'
    )
  if image and not os.path.isfile(image):
    raise FileNotFoundError(f"--image={image} does not exist.")
  trained = openai_policy.open_policy(_POLICY.value)
  kbs = retriever.open_kbs(_KB.value)
  found = ask(trained, kbs, text, image, _SEED.value, _METHOD.value)
  print("\n".join(lines(found)))
  unread = [f for f in found.faults if f.startswith("input: ")]
  if unread:
    raise ValueError(unread[0].removeprefix("input: "))


if __name__ == "__main__":
  cli.run(main)
