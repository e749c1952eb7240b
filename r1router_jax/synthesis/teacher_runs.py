"""Has a teacher answer questions by the routing loop until a try is kept.

Every try is appended to a file as it is made, with what it depends on: the
teacher, its prompts, the knowledge bases, the settings.  A try that is in the
file is not made again.
"""

import collections
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging

from r1router_jax.common import resumable
from r1router_jax.common.images import BadImage
from r1router_jax.common.records import Question
from r1router_jax.common.row_files import RowError
from r1router_jax.common.text import sanitize_text
from r1router_jax.policy import policy_factory
from r1router_jax.policy.interface import PolicyInterface
from r1router_jax.protocol import templates
from r1router_jax.retrieval.knowledge_base import KnowledgeBase
from r1router_jax.routing import router, run_settings
from r1router_jax.routing.baselines import few_shot
from r1router_jax.routing.run_settings import RunSettings
from r1router_jax.synthesis import selection
from r1router_jax.synthesis.selection import QuestionOutcome, TeacherRun

# Names of fields today, and in older versions, whose tries are still found.
_OLD_FORMS = {
  r"\bmulti_route_system=": "several=",
  r"\broutes=\('(\w+)',\)": r"route='\1', also=()",
  r"\btruncated_tokens=": "cut=",
}

CHUNK = 64  # Questions that are answered together, between two saves.


def run_teacher(
  teacher: PolicyInterface,
  kbs: Mapping[str, KnowledgeBase],
  questions: Sequence[Question],
  settings: RunSettings,
  rules: selection.SelectionRules,
  workdir: pathlib.Path,
  *,
  max_tries: int = 1,
  label: Mapping[str, str],
  name: str = "teacher",
) -> list[QuestionOutcome]:
  """Have the teacher try each question, `max_tries` times, until a try passes.

  Tries are appended to trajectories.jsonl below `workdir` and resumed from it;
  images of kept questions are copied there.  No two questions have the same id.
  `label` is that of `teacher_label`, `name` the teacher's name for readers.
  """
  resumable.check_distinct_ids(questions)
  workdir.mkdir(parents=True, exist_ok=True)
  names = ("seed", "temperature", "top_k", "top_p", "k", "max_steps")
  label = dict(label) | {field: getattr(settings, field) for field in names}
  # The method has this name in saved rows.
  label["few_shot"] = settings.method == "few_shot"

  # 1. Of equal questions only the first is asked.
  groups = {q.id: selection.question_group(q) for q in questions}
  first = {}
  for question in questions:
    first.setdefault(groups[question.id], question)
  results = {q.id: QuestionOutcome((selection.DUPLICATE,)) for q in questions}
  results |= {q.id: QuestionOutcome(()) for q in first.values()}

  # 2. Try all questions, then those that did not pass, and so on.
  due, pictures = list(first.values()), str(workdir / "pictures")
  folders = [kb.image_folder for kb in kbs.values()]
  for number in range(max_tries):
    # Each try draws with another key; of a resumed try it is the same.
    key = jax.random.fold_in(jax.random.key(settings.seed), number)
    label["number"] = number
    runs = resumable.run_resumable(
      due,
      lambda chunk, key=key: _run_chunk(teacher, kbs, chunk, settings, key),
      to_row=lambda run: dict(run.to_row(), teacher=name),
      from_row=lambda *row: TeacherRun.from_row(*row, folders),
      row_kind=selection.TeacherRow,
      title=f"try {number + 1} of {max_tries}",
      label=label,
      path=workdir / "trajectories.jsonl",
      chunk_size=CHUNK,
    )
    for question in due:
      # Saved tries are judged again, so that rules may change between runs.
      run, _ = runs[question.id]
      about = dict(id=f"{question.id}/{number}", question_id=question.id)
      about |= dict(group=groups[question.id], teacher=dict(name=name, **label))
      result = results[question.id]
      results[question.id] = _add_run(result, run, rules, about, pictures)
    due = [q for q in due if results[q.id].row is None]
  return [results[q.id] for q in questions]


def _run_chunk(
  teacher: PolicyInterface,
  kbs: Mapping[str, KnowledgeBase],
  questions: Sequence[Question],
  settings: RunSettings,
  key: jax.Array,
) -> list[TeacherRun]:
  """Return one try of each question."""
  calls = collections.defaultdict(list)

  def keep_call(visited):
    # Rows hold the prompts of steps, and none shows an error.
    if visited.is_repair:
      return
    # The loop asks for one response to each prompt.
    step, (response,) = visited.step, visited.responses
    said = step.kind, response.text, len(response.tokens)
    calls[step.question.id].append(selection.TeacherCall(step.id, *said))

  options = settings.rollout_options(keep_call)
  found = router.run_routing(teacher, kbs, questions, key, options)
  return [TeacherRun(t, tuple(calls[t.question.id])) for t in found]


def _add_run(
  before: QuestionOutcome,
  run: TeacherRun,
  rules: selection.SelectionRules,
  about: Mapping[str, Any],
  image_folder: str,
) -> QuestionOutcome:
  """Return the result of a question after one more try."""
  outcome = rules.classify(run)
  row = None
  if outcome == selection.KEPT:
    try:
      row = selection.make_row(rules.make_steps(run), about, image_folder)
    except (RowError, BadImage) as error:
      outcome = selection.NO_ROW
      reason = sanitize_text(str(error.args[0]), 300)
      logging.warning("%s is no row: %s.", sanitize_text(about["id"]), reason)
  tokens = before.tokens + run.trajectory.tokens
  return QuestionOutcome((*before.outcomes, outcome), row, tokens)


def teacher_label(
  teacher: PolicyInterface, kbs: Mapping[str, KnowledgeBase]
) -> dict[str, str]:
  """Return fields that tell this teacher, as it is asked here, from others."""
  style = teacher.config.style
  # Templates and examples may change between versions of this package.
  prompts = repr((templates.STYLES[style], few_shot.EXAMPLES))
  for pattern, old_form in _OLD_FORMS.items():
    prompts = re.sub(pattern, old_form, prompts)
  return dict(
    fingerprint=policy_factory.fingerprint(teacher),
    prompts=f"{style} {run_settings.text_digest(prompts)}",
    kbs=run_settings.kbs_digest(kbs),
  )
