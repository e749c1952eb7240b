"""The data that a run learns from: steps, packed rows of steps, or questions.

Some steps are left out, counted and named in the log: those whose prompt the
policy cannot read (too long, or with an image for a policy of texts without
`image_marker`), those that need vision, for a policy with it, and those whose
gold answer has no token that is ever compared, so that no response to them is
rewarded.  So are such questions of `config.data.questions`.  A passage
whose image cannot be read goes without the image, which is counted and named,
too.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from absl import logging

from r1router_jax.common import images, progress, row_files
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Question, Step
from r1router_jax.data import benchmarks, georouter, gold_steps, question_files
from r1router_jax.data import r1_router_rows as rows_lib
from r1router_jax.data.countries import steps as country_steps
from r1router_jax.data.domains import steps as domain_steps
from r1router_jax.data.tfds_datasets import Source
from r1router_jax.inputs.processor import EncodedPrompt
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.metrics import answers
from r1router_jax.policy import image_questions
from r1router_jax.policy.policy import Policy
from r1router_jax.retrieval import retriever
from r1router_jax.training import sequence_packing, sft_targets
from r1router_jax.training.config import COUNTRIES, RunConfig

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
  data = config.data
  if config.is_online:
    questions = _load_questions(config, data.questions, data.split, data.share)
    if config.step_grpo.credit == "step":
      _check_hops(questions)
    # GeoRouter's are all readable, but some only to a policy that sees.
    if data.questions or policy.config.image_marker:
      source = data.questions or "georouter"
      questions = filter_readable(policy, questions, source)
    # Other prompts are not known before the policy has answered.
    return questions, [()] * len(questions)
  scope = data.split, data.share
  steps, shapes = _load_gold_steps(config, policy, kbs, *scope)
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
  # No more questions of the grammar are made than steps are answered.
  count = min(config.data.generated, config.validation.steps)
  data = msgspec.structs.replace(config.data, generated=count)
  config = msgspec.structs.replace(config, data=data)
  return _load_gold_steps(config, policy, kbs, config.validation.split)[0]


def load_held_out(config: RunConfig) -> list[Question]:
  """Load the questions that `config.validation` names."""
  place, split = config.validation.questions, config.validation.split
  if question_files.is_file_name(place):
    # A file of its own is held out as a whole, unless it is sliced.
    split = re.sub(r"^\w+", question_files.SPLIT, split)
  return _load_questions(config, place or config.data.questions, split)


def _load_gold_steps(
  config: RunConfig,
  policy: Policy,
  kbs: KnowledgeBases,
  split: str,
  share: float = 1.0,
) -> tuple[list[Step], list[PaddedShape]]:
  """Load the steps of a split of the data that `config.data` names."""
  data = config.data
  name = f"{data.questions or data.dataset}, {split}"
  if data.has_rows:
    where = data.dataset, split, config.seed, data.tfds_dir
    rows = rows_lib.load_dataset(*where, _rows_source(config))
    steps = (row.steps for row in rows)
  elif data.is_invented:
    make_steps = domain_steps.make_steps
    if data.questions == COUNTRIES:
      make_steps = country_steps.make_steps
    made = make_steps(split, data.generated, config.seed)
    steps = progress.show_progress(made, data.questions, total=data.generated)
  else:
    # Passages are searched for once, for all gold sub-questions.
    questions = _load_questions(config, data.questions, split, share)
    _check_hops(questions)
    if kbs:
      retrieve = retriever.make_retriever(kbs, data.passages)
    else:
      retrieve = _make_gold_retriever(questions)
    steps = gold_steps.make_gold_steps(questions, retrieve)
  chained = itertools.chain.from_iterable(steps)
  return filter_trainable(policy, chained, name)


def _load_questions(
  config: RunConfig, place: str, split: str, share: float = 1.0
) -> list[Question]:
  """Load a share of the questions of a split, of the families that are wanted.

  The place is a file, the name of a benchmark, or "" for GeoRouter.  A split or
  a family that is not there raises UserError.
  """
  data, seed = config.data, config.seed
  # 1. The split.
  if question_files.is_file_name(place):
    questions = question_files.load_questions(place, data.images, split, seed)
  elif place not in ("", "georouter") and not split.startswith("test"):
    raise UserError(
      f"{place} has no split {split!r}: it is the one split test.  Take that "
      "or slices of it, such as test[:90%] to learn from and test[90%:]."
    )
  else:
    questions = benchmarks.load_benchmark(
      place or "georouter", split=split, tfds_dir=data.tfds_dir, seed=seed
    )

  # 2. Some families of it, and a random share of these.
  where = f"config.data.families: {place or 'georouter'}, {split},"
  questions = benchmarks.choose_families(questions, data.families, where)
  if share < 1:
    order = np.random.default_rng(seed).permutation(len(questions))
    chosen = np.sort(order[: max(1, round(share * len(questions)))])
    questions = [questions[row] for row in chosen]
  return questions


def _check_hops(questions: Sequence[Question]) -> None:
  """Raise UserError if the gold rounds of a question are unknown."""
  unknown = [question.id for question in questions if question.hops is None]
  if unknown:
    raise UserError(
      f"{len(unknown):,} of {len(questions):,} questions have no gold hops, "
      f"the first is {unknown[0]}, and this run learns from gold steps.  Give "
      'each its "hops", or learn from answers alone: take '
      "configs/step_grpo.py:answers."
    )


def filter_readable(
  policy: Policy, questions: Sequence[Question], source: str
) -> list[Question]:
  """Return the questions that `policy` can read and be rewarded for.

  Messages name the questions' source; having none is a UserError.
  """
  skipped, kept = row_files.SkipLog(source), []
  # With images this takes a while.
  for question in progress.show_progress(questions, "first prompts"):
    try:
      encode_first_prompt(policy, question)
      kept.append(question)
    except UserError as error:
      skipped(f"{question.id}: {error}")
  skipped.finish(len(kept))
  return kept


def encode_first_prompt(policy: Policy, question: Question) -> EncodedPrompt:
  """Encode the prompt of the first plan for a question.

  Raises:
    UserError: if the prompt is too long, its image cannot be read, the question
      needs vision that the policy lacks, or no answer to it would ever be
      rewarded.
  """
  # An interval tells by itself which answers are right.
  words = map(answers.reference_tokens, question.answers)
  if not question.interval and not any(words):
    fault = f"the gold answer {question.answers[0]!r:.60} has no word"
    raise UserError(f"{fault}.  Give one, or leave the question out.")
  if image_questions.lacks_vision(policy.config, question):
    raise UserError(image_questions.NEEDS_VISION)
  step = Step(f"{question.id}/0", "plan", question)
  return policy.processor.encode(policy.config.build_prompt(step))


def digest_examples(examples: Sequence[TrainExample]) -> str:
  """Return a digest of what examples say and show, which may be packed.

  Ids stay the same when a file or a knowledge base is changed.
  """
  digest = hashlib.sha256()
  # Examples may share an image, which is read once.
  digest_image = functools.cache(_digest_image)
  for each in (x for some in examples for x in getattr(some, "steps", [some])):
    said = dataclasses.asdict(each)
    # Other machines have other folders, and round scores in other ways.
    question = said.get("question", said)
    question["image"] = digest_image(question["image"])
    for passage in said.get("passages", ()):
      passage["image"] = digest_image(passage["image"])
      del passage["score"]
    digest.update(repr(said).encode())
  return digest.hexdigest()


def check_disjoint(
  examples: Sequence[TrainExample], held_out: Sequence[TrainExample]
) -> None:
  """Raise UserError if the same questions are learnt from and held out."""
  learnt = {q.id for q in itertools.chain(*map(_questions_of, examples))}
  kept = {q.id for q in itertools.chain(*map(_questions_of, held_out))}
  if both := sorted(kept & learnt):
    raise UserError(
      f"{len(both):,} of {len(kept):,} held-out questions are learnt from, "
      f"too, the first is {both[0]}: take slices that do not overlap, such as "
      "config.data.split='train[:90%]' and "
      "config.validation.split='train[90%:]', or the grammar's 'train' and "
      "'val'."
    )


def _questions_of(example: TrainExample) -> list[Question]:
  if isinstance(example, Question):
    return [example]
  steps = [example] if isinstance(example, Step) else example.steps
  return [step.question for step in steps]


def _digest_image(path: str) -> str:
  # The grammar draws none, and a policy of texts may do without them.
  if not os.path.exists(path):
    return path
  return hashlib.sha256(images.read_image_bytes(path)).hexdigest()


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
  kept, shapes, longest = [], [], config.response_tokens[-1]
  skipped, unread_images, cut = row_files.SkipLog(source), [], []
  for step in steps:
    # 1. Steps that teach nothing, or cannot be read, are left out.
    if step.answers and not any(map(answers.reference_tokens, step.answers)):
      fault = f"the gold answer {step.answers[0]!r:.60} has no word"
      skipped(f"{step.id}: {fault}.  Give one, or leave the step out.")
      continue
    if image_questions.lacks_vision(config, step):
      skipped(f"{step.id}: {image_questions.NEEDS_VISION}")
      continue
    try:
      prompt = processor.encode(config.build_prompt(step))
    except (PromptTooLong, images.BadImage) as error:
      skipped(f"{step.id}: {error}")
      continue

    # 2. The shape, by which steps are batched.
    target = sft_targets.sft_target(step)
    response = policy.encode_target(target)
    length = processor.padded_length(prompt.ids)
    response_length = config.response_length(len(response))
    kept.append(step)
    shapes.append((length, len(prompt.images), response_length))
    unread_images += [f"{step.id}: {why}" for why in prompt.unread_images]
    if len(response) > longest:
      cut.append(f"{step.id}, of {len(response)}")
  # The log names the first step that was left out, and counts the others.
  skipped.finish(len(kept))
  if unread_images:
    logging.warning(
      f"{source}: {len(unread_images)} images of passages are left out, the "
      f"first of them of {unread_images[0]}"
    )
  if cut:
    logging.warning(
      f"{source}: {len(cut)} gold responses have more than {longest} tokens, "
      f"the first is {cut[0]}: if rows are not packed, their ends are not "
      "learnt.  Raise the last of config.policy.overrides.response_tokens."
    )
  return kept, shapes
