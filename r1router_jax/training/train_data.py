"""What a run learns from: steps of trajectories, rows of them, or questions.

Left out, counted and named are steps whose prompt the policy cannot read (too
long, or with a picture for a policy of texts), and answers whose gold has no
token that is ever compared: whatever is written there earns nothing.  A passage
whose picture cannot be read goes without it, which is counted and named, too.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import ml_collections as mlc
import numpy as np
from absl import logging

from r1router_jax.common import images, row_files
from r1router_jax.common.records import KBS, Question, Step
from r1router_jax.data import georouter, gold_steps, r1_router_rows
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.metrics import answers
from r1router_jax.policy.policy import Policy
from r1router_jax.retrieval import retriever
from r1router_jax.training import sequence_packing, sft_targets

Row = Step | sequence_packing.Row | Question

# Of what an update sees at a time: padded prompt, pictures, padded response.
Shape = tuple[int, ...]


def of_run(
  config: mlc.ConfigDict,
  policy: Policy,
  kbs: Mapping[str, retriever.KnowledgeBase],
  online: bool,
) -> tuple[Sequence[Row], list[Shape]]:
  """What a config names, with the shape that each is padded to.

  Args:
    config: of the run.
    policy: what is trained.
    kbs: where passages are from, or none for gold ones.
    online: whether the policy walks by itself.

  Raises:
    ValueError: where nothing is left, or options do not go together.
  """
  if online:
    if config.data.rows:
      raise ValueError(
        "config.data.rows are recorded trajectories, and online rollouts are "
        "the policy's own: set config.step_grpo.rollouts to 'offline'."
      )
    questions = georouter.questions(config.data.split)
    return questions, [()] * len(questions)
  if config.data.rows and np.any(config[config.algorithm].rename):
    raise ValueError(
      f"config.{config.algorithm}.rename is "
      f"{config[config.algorithm].rename}, but only GeoRouter's names are "
      "known: with config.data.rows set it to 0 (of sft to (0.0, 0.0))."
    )
  steps, shapes = _gold(config, policy, kbs, config.data)
  if config.algorithm == "sft" and config.sft.side_by_side:
    filled = sequence_packing.rows(
      policy, steps, config.sft.side_by_side, config.seed
    )
    return filled, [()] * len(filled)
  return steps, shapes


def held_out(
  config: mlc.ConfigDict,
  policy: Policy,
  kbs: Mapping[str, retriever.KnowledgeBase],
) -> list[Step]:
  """The gold steps of `config.validation`."""
  return _gold(config, policy, kbs, config.validation)[0]


def _gold(
  config: mlc.ConfigDict,
  policy: Policy,
  kbs: Mapping[str, retriever.KnowledgeBase],
  source: mlc.ConfigDict,
) -> tuple[list[Step], list[Shape]]:
  """The steps of `source`: R1-Router's rows, or a split of GeoRouter."""
  if source.rows:
    published = r1_router_rows.load(source.rows, config.data.images)
    return choose(
      policy, itertools.chain(*(row.steps for row in published)), source.rows
    )
  questions = georouter.questions(source.split)
  retrieve = (
    retriever.retriever(kbs, config.data.passages)
    if kbs
    else _gold_evidence(questions)
  )
  return choose(
    policy,
    itertools.chain(*gold_steps.gold_steps(questions, retrieve)),
    f"GeoRouter's split {source.split}",
  )


def _gold_evidence(questions: Sequence[Question]) -> gold_steps.Retrieve:
  """A retriever that always finds the passage that holds the answer."""
  known = {
    passage.id: passage for kb in KBS for passage in georouter.passages(kb)
  }
  found = [
    (known[hop.evidence[0]],) for question in questions for hop in question.hops
  ]
  return lambda asked: found


def choose(
  policy: Policy, steps: Iterable[Step], source: str
) -> tuple[list[Step], list[Shape]]:
  """The steps that `policy` can learn from, with what each is padded to.

  Args:
    policy: what is trained.
    steps: of any questions.
    source: where they are from, for messages.

  Raises:
    ValueError: where there are none.
  """
  packer, settings = policy.packer, policy.settings
  kept, shapes, skipped = [], [], row_files.Skipped(source)
  unread = []
  for step in steps:
    if step.answers and not any(map(answers.tokens, step.answers)):
      skipped(
        row_files.BadRow(
          step.id,
          f"the gold answer {step.answers[0]!r:.60} has no word",
          "Give one, or leave the step out",
        )
      )
      continue
    try:
      prompt = packer.encode(settings.conversation(step))
    except (PromptTooLong, images.BadImage) as error:
      skipped(f"{step.id}: {error}")
      continue
    response = packer.tokenizer.encode_response(sft_targets.demonstration(step))
    kept.append(step)
    unread += [f"{step.id}: {reason}" for reason in prompt.unread]
    shapes.append(
      (
        packer.length(prompt.ids),
        len(prompt.pictures),
        settings.response_length(len(response)),
      )
    )
  skipped.end(len(kept))
  if unread:
    logging.warning(
      "%s: %d pictures of passages are left out, the first of them of %s",
      source,
      len(unread),
      unread[0],
    )
  return kept, shapes
