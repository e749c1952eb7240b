"""The data that a run learns from: steps, packed rows of steps, or questions.

Some steps are left out, counted and named in the log: those whose prompt the
policy cannot read (too long, or with an image for a policy of texts), and those
whose gold answer has no token that is ever compared, so that no response to
them is rewarded.  A passage whose image cannot be read goes without the image,
which is counted and named, too.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

from absl import logging

from r1router_jax.common import images, row_files
from r1router_jax.common.records import KBS, Question, Step
from r1router_jax.data import benchmarks, georouter, gold_steps
from r1router_jax.data import r1_router_rows as rows_lib
from r1router_jax.data.tfds_datasets import Source
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.metrics import answers
from r1router_jax.policy.policy import Policy
from r1router_jax.retrieval import retriever
from r1router_jax.training import sequence_packing, sft_targets
from r1router_jax.training.config import RunConfig

TrainExample = Step | sequence_packing.PackedExample | Question
KnowledgeBases = Mapping[str, retriever.KnowledgeBase]
# Padded prompt tokens, number of images, padded response tokens of an example.
PaddedShape = tuple[int, ...]


def load_train_data(
  config: RunConfig, policy: Policy, kbs: KnowledgeBases
) -> tuple[Sequence[TrainExample], list[PaddedShape]]:
  """Load the examples of a run, with the shape that each is padded to.

  The knowledge bases give the passages; without any these are gold.  If the
  policy can learn from no example, the error is a UserError.
  """
  if config.is_online:
    # Prompts are not known before the policy has answered.
    questions = _load_questions(config, config.data.split)
    return questions, [()] * len(questions)
  steps, shapes = _load_gold_steps(config, policy, kbs, config.data.split)
  if config.sft and config.sft.packed_length:
    # Packed rows are of one shape.
    length = config.sft.packed_length
    packed = sequence_packing.pack_examples(policy, steps, length, config.seed)
    return packed, [()] * len(packed)
  return steps, shapes


def load_validation_steps(
  config: RunConfig, policy: Policy, kbs: KnowledgeBases
) -> list[Step]:
  """Load the gold steps that `config.validation` names."""
  return _load_gold_steps(config, policy, kbs, config.validation.split)[0]


def _load_gold_steps(
  config: RunConfig, policy: Policy, kbs: KnowledgeBases, split: str
) -> tuple[list[Step], list[PaddedShape]]:
  """Load the steps of a split of the dataset that `config.data` names."""
  data, name = config.data, f"{config.data.dataset}, {split}"
  if data.has_rows:
    where = data.dataset, split, config.seed, data.tfds_dir
    rows = rows_lib.load_dataset(*where, _rows_source(config))
    steps = (row.steps for row in rows)
  else:
    # Passages are searched for once, for all gold sub-questions.
    questions = _load_questions(config, split)
    retrieve = _make_gold_retriever(questions)
    if kbs:
      retrieve = retriever.make_retriever(kbs, data.passages)
    steps = gold_steps.make_gold_steps(questions, retrieve)
  chained = itertools.chain.from_iterable(steps)
  return filter_trainable(policy, chained, name)


def _load_questions(config: RunConfig, split: str) -> list[Question]:
  return benchmarks.load_benchmark(
    "georouter", split=split, tfds_dir=config.data.tfds_dir, seed=config.seed
  )


def _rows_source(config: RunConfig) -> Source | None:
  """Return the files that are prepared as a dataset, None if it is there."""
  if not config.data.train_files:
    return None
  files = dict(train=config.data.train_files)
  if config.validation.train_files:
    files["val"] = config.validation.train_files
  return rows_lib.make_source(files, config.data.images)


def _make_gold_retriever(questions: Sequence[Question]) -> gold_steps.Retrieve:
  """Return a retriever that always finds the passage with the answer."""
  loaded = itertools.chain(*map(georouter.load_passages, KBS))
  passages = {passage.id: passage for passage in loaded}
  # `make_gold_steps` asks once, for all hops of all questions in this order.
  hops = itertools.chain(*(question.hops for question in questions))
  found = [(passages[hop.evidence[0]],) for hop in hops]
  return lambda queries: found


def filter_trainable(
  policy: Policy, steps: Iterable[Step], source: str
) -> tuple[list[Step], list[PaddedShape]]:
  """Return the steps that `policy` can learn from, and their padded shapes.

  Messages name the steps' source; having none is a UserError.
  """
  processor, config = policy.processor, policy.config
  kept, shapes = [], []
  skipped, unread_images = row_files.SkipLog(source), []
  for step in steps:
    # 1. Steps that teach nothing, or cannot be read, are left out.
    if step.answers and not any(map(answers.reference_tokens, step.answers)):
      fault = f"the gold answer {step.answers[0]!r:.60} has no word"
      skipped(f"{step.id}: {fault}.  Give one, or leave the step out.")
      continue
    try:
      prompt = processor.encode(config.build_prompt(step))
    except (PromptTooLong, images.BadImage) as error:
      skipped(f"{step.id}: {error}")
      continue

    # 2. The shape, by which steps are batched.
    target = sft_targets.sft_target(step)
    response = processor.tokenizer.encode_response(target)
    length = processor.padded_length(prompt.ids)
    response_length = config.response_length(len(response))
    kept.append(step)
    shapes.append((length, len(prompt.images), response_length))
    unread_images += [f"{step.id}: {why}" for why in prompt.unread_images]
  # The log names the first step that was left out, and counts the others.
  skipped.finish(len(kept))
  if unread_images:
    logging.warning(
      f"{source}: {len(unread_images)} images of passages are left out, the "
      f"first of them of {unread_images[0]}"
    )
  return kept, shapes
