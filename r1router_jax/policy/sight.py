"""What a policy that reads texts alone makes of questions with an image.

Its prompts hold the text of its option `image_marker` in the image's place, the
image knowledge base is searched by the image itself, and the policy reads the
captions that are found.  That is no help where the gold searches nothing: there
only eyes can tell.  Training leaves such questions and steps out; evaluation
asks them, and they count as they are answered.
"""

from collections.abc import Sequence

from absl import logging

from r1router_jax.common.records import Question, Step
from r1router_jax.policy.config import PromptOptions

# Sees images; for those whose policy does not.
SEEING_POLICY = "Qwen/Qwen2.5-VL-3B-Instruct"

UNSEEN = (
  "only eyes can tell, and this policy reads texts alone.  Take one that sees, "
  f"such as {SEEING_POLICY}, or leave it out."
)

CAPTIONS_ALONE = (
  "This policy reads texts alone: it searches by the image, and reads the "
  "captions of the images found.  What only eyes can tell wants a policy that "
  f"sees, such as {SEEING_POLICY}."
)


def lacks_eyes(options: PromptOptions, gold: Question | Step) -> bool:
  """Return whether only eyes can tell the answer, and the policy has none.

  That is so of a question with an image, or of a gold step of it, whose gold
  searches nothing.  A question without gold is given the benefit of the doubt.
  """
  question = gold if isinstance(gold, Question) else gold.question
  if not options.image_marker or not question.image:
    return False
  if isinstance(gold, Question):
    return gold.hops == ()
  # Rows of trajectories have no hops, so that the step itself must tell.
  stops = gold.kind == "final" or gold.routes == ("none",)
  return stops and not gold.history


def log_unseen(
  name: str, options: PromptOptions, questions: Sequence[Question]
) -> None:
  """Log how many of the questions a policy, called `name`, has no eyes for."""
  count = sum(lacks_eyes(options, question) for question in questions)
  if count:
    logging.warning(
      f"{name} reads texts alone, and only eyes can tell the answers to "
      f"{count:,} of {len(questions):,} questions, which are asked and scored "
      f"all the same.  A policy that sees is {SEEING_POLICY}."
    )
