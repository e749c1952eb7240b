r"""Trajectories of a teacher, to train on: walked, filtered, split, written.

  python -m r1router_jax.synthesize --kb=runs/kb --out=runs/synthesis \
      --few_shot \
      --teacher=openai:http://127.0.0.1:8000/v1#Qwen/Qwen2.5-VL-7B-Instruct

The teacher walks the routing loop with live retrieval.  In <out> come to lie

  trajectories.jsonl         every try, with all that was written and found
  grpo_dataset_train.jsonl   those that pass, in R1-Router's form and with what
  grpo_dataset_valid.jsonl   the teacher wrote; see data/synthesis.py
  pictures                   of their questions
  tfds                       the same as a TensorFlow Dataset
  summary.json               how many passed, and why others did not

A run that was killed takes up the tries that it finds, where teacher, prompts,
knowledge bases and settings are still the same, and ends with the same files.

Source: arxiv.org/abs/2505.22095 (R1-Router), whose teachers are asked once, at
temperature 1 and among 20 tokens, and pass by recall.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags, logging

from r1router_jax.common import cli, jsonl, progress, records
from r1router_jax.common import text as text_lib
from r1router_jax.common.images import BadImage
from r1router_jax.common.records import Question
from r1router_jax.common.row_files import Fault
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.policy import interface, openai_policy
from r1router_jax.protocol import templates
from r1router_jax.report import table
from r1router_jax.retrieval import retriever
from r1router_jax.retrieval.retriever import KnowledgeBase
from r1router_jax.routing import router
from r1router_jax.routing.baselines import few_shot as few_shot_lib
from r1router_jax.routing.baselines import registry
from r1router_jax.synthesis import output, selection
from r1router_jax.synthesis.output import Found

_TEACHER = flags.DEFINE_string(
  "teacher",
  "warm_start",
  "A policy's folder, id on the hub, the warm start "
  "that comes with the package, or a model elsewhere: "
  "openai:http://host:port/v1#model.",
)

_KB = flags.DEFINE_string(
  "kb",
  "runs/quickstart/kb",
  "Folder of the knowledge bases, as build_kb "
  "wrote it, or the place of each: text=http://host:port,image=DIR/image,"
  "table=DIR/table.",
  allow_override=True,
)

_OUT = flags.DEFINE_string(
  "out", None, "Where all is written.", allow_override=True
)

_BENCHMARK = flags.DEFINE_string(
  "benchmark",
  "georouter",
  "Whose questions are asked; 'jsonl' is a file of "
  "your own, see data/benchmarks.py.",
  allow_override=True,
)

_DATA = flags.DEFINE_string(
  "data",
  "",
  "Folder of the benchmark's files, or your own file.",
  allow_override=True,
)

_IMAGES = flags.DEFINE_string(
  "images", "", "Where the benchmark's pictures are.", allow_override=True
)

_SPLIT = flags.DEFINE_string(
  "split", "train", "Questions to ask.", allow_override=True
)

_QUESTIONS = flags.DEFINE_integer(
  "questions",
  0,
  "How many of them; 0 is all.",
  lower_bound=0,
  allow_override=True,
)

_TRIES = flags.DEFINE_integer(
  "tries",
  1,
  "How often a question is tried until one passes, at most.",
  lower_bound=1,
)

_FEW_SHOT = flags.DEFINE_bool(
  "few_shot",
  False,
  "Whether the teacher is shown examples, as one should "
  "be that was never trained to route.",
)

_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of the teacher.")

_TOP_K = flags.DEFINE_integer(
  "top_k", 20, "It draws among so many tokens; 0: all."
)

_TOP_P = flags.DEFINE_float(
  "top_p", 1.0, "It draws among tokens that together reach this."
)

_K = flags.DEFINE_integer(
  "k",
  1,
  "Passages that an answer reads; R1-Router's reads 5.",
  lower_bound=1,
  allow_override=True,
)

_MAX_STEPS = flags.DEFINE_integer(
  "max_steps",
  records.MAX_HOPS,
  "Rounds before the final answer.",
  lower_bound=1,
  upper_bound=records.MAX_HOPS,
  allow_override=True,
)

_VALID = flags.DEFINE_float(
  "valid",
  0.2,
  "Share of questions whose rows are held out.",
  lower_bound=0,
  upper_bound=1,
)

_FILTER = flags.DEFINE_enum(
  "filter",
  "exact",
  selection.METRICS,
  "What of the final answer is to be "
  "1; 'recall' is R1-Router's, and passes answers that say more.",
)

_KEEP_REPEATED = flags.DEFINE_bool(
  "keep_repeated",
  False,
  "Whether trajectories that repeat a sub-question "
  "are kept, as R1-Router's are.",
)

_SEED = flags.DEFINE_integer(
  "seed", 0, "Of all samples, and of the split.", allow_override=True
)


CHUNK = 64  # Questions that walk together, between two saves.


@dataclasses.dataclass(frozen=True)
class Settings:
  """What trajectories depend on, beside teacher, question and passages."""

  seed: int = 0
  temperature: float = 1.0
  top_k: int = 20
  top_p: float = 1.0
  k: int = 1
  max_steps: int = records.MAX_HOPS
  few_shot: bool = False

  def method(self) -> SamplingParams:
    """How the teacher's tokens are drawn."""
    return SamplingParams(self.temperature, self.top_k, self.top_p)


def walk(
  teacher: interface.Responder,
  kbs: Mapping[str, KnowledgeBase],
  questions: Sequence[Question],
  settings: Settings,
  rules: selection.Rules,
  out: pathlib.Path,
  *,
  tries: int = 1,
  label: Mapping[str, str],
  name: str = "teacher",
) -> list[Found]:
  """Has the teacher try each question until a try passes.

  Args:
    teacher: walks.
    kbs: by kind.
    questions: with accepted answers.
    settings: of the walks.
    rules: which tries pass.
    out: the folder of trajectories.jsonl, where tries are appended, and those
      that are there are kept; and of pictures.
    tries: per question, at most; each with other samples.
    label: fields that tell this teacher, with its prompts and knowledge bases,
      from any other.
    name: of the teacher, for readers.
  """
  label = dict(label) | dataclasses.asdict(settings)
  path = out / "trajectories.jsonl"
  out.mkdir(parents=True, exist_ok=True)
  known = _known(path, label, questions)
  groups = {q.id: selection.group(q) for q in questions}
  first = {}
  for question in questions:
    first.setdefault(groups[question.id], question)
  found = {
    q.id: Found(() if first[groups[q.id]] is q else (selection.DUPLICATE,))
    for q in questions
  }
  due = list(first.values())
  for number in range(tries):
    left = [q for q in due if (q.id, number) not in known]
    if len(left) < len(due):
      logging.info(
        "Try %d: %d of %d questions were tried earlier.",
        number + 1,
        len(due) - len(left),
        len(due),
      )
    key = jax.random.fold_in(jax.random.key(settings.seed), number)
    chunks = [left[i : i + CHUNK] for i in range(0, len(left), CHUNK)]
    title = f"try {number + 1} of {tries}, {CHUNK} questions each"
    for chunk in progress.progress(chunks, title) if chunks else ():
      start = time.perf_counter()
      new = _walk(teacher, kbs, chunk, settings, key)
      seconds = (time.perf_counter() - start) / len(chunk)
      jsonl.append(
        path,
        [
          dict(
            label,
            **tried.to_row(),
            teacher=name,
            number=number,
            seconds=seconds,
          )
          for tried in new
        ],
      )
      known |= {(t.trajectory.question.id, number): t for t in new}
    for question in due:
      about = dict(
        id=f"{question.id}/{number}",
        question_id=question.id,
        group=groups[question.id],
        teacher=dict(name=name, **label, number=number),
      )
      found[question.id] = _judged(
        found[question.id],
        known[question.id, number],
        rules,
        about,
        str(out / "pictures"),
      )
    due = [q for q in due if found[q.id].row is None]
  return [found[q.id] for q in questions]


def _walk(teacher, kbs, questions, settings, key) -> list[selection.Try]:
  """A try of each question."""
  calls = collections.defaultdict(list)

  def keep(step, group):
    (response,) = group
    calls[step.question.id].append(
      selection.Call(step.id, step.kind, response.text, len(response.tokens))
    )

  walked = router.route(
    teacher,
    kbs,
    questions,
    key,
    k=settings.k,
    max_steps=settings.max_steps,
    sampling=settings.method(),
    keep=keep,
    method=registry.METHODS[
      "few_shot" if settings.few_shot else registry.ROUTER
    ](0),
  )
  return [selection.Try(t, tuple(calls[t.question.id])) for t in walked]


def _known(
  path: pathlib.Path, label: Mapping[str, Any], questions: Sequence[Question]
) -> dict[tuple[str, int], selection.Try]:
  """The tries in the file, by question and number."""
  asked = {question.id: question for question in questions}
  if len(asked) < len(questions):
    twice, _ = collections.Counter(q.id for q in questions).most_common(1)[0]
    raise ValueError(f"Two questions have the id {twice!r}: give each its own.")
  same = lambda row, q: (
    q is not None and (row["question"], row["image"]) == (q.text, q.image)
  )
  return {
    (row["id"], row["number"]): selection.Try.from_row(row, asked[row["id"]])
    for row in jsonl.read(path)
    if label.items() <= row.items() and same(row, asked.get(row["id"]))
  }


def _judged(
  before: Found,
  tried: selection.Try,
  rules: selection.Rules,
  about: Mapping[str, Any],
  pictures: str,
) -> Found:
  """What is known of a question after one more try."""
  outcome, row = rules.outcome(tried), None
  if outcome == selection.KEPT:
    try:
      row = selection.row(rules.steps(tried), about, pictures)
    except (Fault, BadImage) as error:
      outcome = selection.NO_ROW
      logging.warning(
        "%s is no row: %s.",
        text_lib.clean(about["id"]),
        text_lib.clean(str(error.args[0]), 300),
      )
  return Found(
    (*before.outcomes, outcome), row, before.tokens + tried.trajectory.tokens
  )


def label_of(teacher: Any, kbs: Mapping[str, KnowledgeBase]) -> dict[str, str]:
  """What tells this teacher, as it is asked here, from any other."""
  digest = lambda text: hashlib.sha256(text.encode()).hexdigest()[:16]
  style = teacher.settings.style
  spelt = templates.STYLES[style], few_shot_lib.EXAMPLES
  return dict(
    fingerprint=openai_policy.fingerprint(teacher),
    prompts=f"{style} {digest(repr(spelt))}",
    kbs=digest(json.dumps([base.meta for base in kbs.values()])),
  )


def main(_) -> None:
  out = pathlib.Path(_OUT.value)
  questions = selection.questions_of(
    _BENCHMARK.value,
    _DATA.value,
    _IMAGES.value,
    _SPLIT.value,
    str(out / "unpacked"),
  )
  questions = questions[: _QUESTIONS.value or len(questions)]
  settings = Settings(
    _SEED.value,
    _TEMPERATURE.value,
    _TOP_K.value,
    _TOP_P.value,
    _K.value,
    _MAX_STEPS.value,
    _FEW_SHOT.value,
  )
  settings.method().validate()
  teacher = openai_policy.open_policy(_TEACHER.value)
  kbs = retriever.open_kbs(_KB.value)
  label = label_of(teacher, kbs)
  found = walk(
    teacher,
    kbs,
    questions,
    settings,
    selection.Rules(_FILTER.value, _KEEP_REPEATED.value, _MAX_STEPS.value),
    out,
    tries=_TRIES.value,
    label=label,
    name=_TEACHER.value,
  )
  summary = output.write(
    out,
    found,
    _SEED.value,
    _VALID.value,
    dict(label, teacher=_TEACHER.value, filter=_FILTER.value),
  )
  print(
    table.as_text(
      table.Table(
        ("outcome", "questions", "tries"),
        tuple(
          (name, *counts.values())
          for name, counts in summary["outcomes"].items()
        ),
      )
    )
  )
  rows, steps = summary["rows"], summary["steps"]
  if not sum(rows.values()):
    raise ValueError(
      f"None of {len(questions)} questions passed, see {out}/summary.json.  "
      "Take a better teacher, more --tries, or --filter=recall."
    )
  print(
    f"{rows['train']} trajectories of {steps['train']} steps to train on, "
    f"{rows['valid']} of {steps['valid']} held out.  Next:\n{_next(out)}"
  )


def _next(out: pathlib.Path) -> str:
  """The command that trains on what was made."""
  return (
    "  python -m r1router_jax.train --config=configs/sft.py:qwen2_5_0_5b \\\n"
    f"      --config.data.rows={out}/grpo_dataset_train.jsonl \\\n"
    f"      --config.data.images={out}/pictures --workdir=runs/taught"
  )


if __name__ == "__main__":
  flags.mark_flag_as_required("out")
  cli.run(main)
