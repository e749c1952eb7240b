"""Tells which questions with an image a policy without vision can answer.

Prompts of a policy that reads texts alone hold the text of its option
`image_marker` in the image's place, the image knowledge base is searched by the
image itself, and the policy reads the captions that are found.  That is no help
where the gold searches nothing: such a question needs vision, since only the
image itself has the answer.  Training leaves it and its steps out; evaluation
asks and scores it like any other.
"""

from collections.abc import Sequence

from absl import logging

from r1router_jax.common.records import Question, Step
from r1router_jax.policy.config import PromptOptions

# With a vision tower; for those whose policy has none.
VISION_POLICY = "Qwen/Qwen2.5-VL-3B-Instruct"

NEEDS_VISION = (
  "only the image itself has the answer, and this policy reads texts alone.  "
  f"Take one with vision, such as {VISION_POLICY}, or leave it out."
)

CAPTIONS_ALONE = (
  "This policy reads texts alone: it searches by the image, and reads the "
  "captions of the images found.  What no caption says needs a policy with "
  f"vision, such as {VISION_POLICY}."
)


def lacks_vision(options: PromptOptions, gold: Question | Step) -> bool:
  """Return whether the answer needs vision, and the policy has none.

  It does for a question with an image, or for a gold step of it, whose gold
  searches nothing.  A question without gold is taken to need none.
  """
  question = gold if isinstance(gold, Question) else gold.question
  if not options.image_marker or not question.image:
    return False
  if isinstance(gold, Question):
    return gold.hops == ()
  # Rows of trajectories have no hops, so that the step itself must tell.
  stops = gold.kind == "final" or gold.routes == ("none",)
  return stops and not gold.history


def log_lacking_vision(
  name: str, options: PromptOptions, questions: Sequence[Question]
) -> None:
  """Log how many questions need vision that the policy `name` lacks."""
  count = sum(lacks_vision(options, question) for question in questions)
  if count:
    logging.warning(
      f"{name} reads texts alone, and only the image itself has the answer to "
      f"{count:,} of {len(questions):,} questions, which are asked and scored "
      f"all the same.  A policy with vision is {VISION_POLICY}."
    )
