r"""Checks a file of questions before a policy learns from it.

  python -m r1router_jax.check_questions --data=shop.csv --kb_dir=runs/kb

It prints how many rows can be used and why others cannot, the families, the
lengths in tokens and which questions the policy cannot read, and, with
--kb_dir, whether an accepted answer stands in a passage of a knowledge base at
all.  data/question_files.py says what a row is.

Training leaves a row out that cannot be used, and a question that the policy
cannot read.  Here such a one is an error with --strict: the exit code is 2.
Without, it is 2 only if the file cannot be read or nothing of it can be used.
An answer that is in no knowledge base is never an error.
"""

import collections
from collections.abc import Sequence

from absl import flags
from etils import epy

from r1router_jax.common import cli, row_files, shared_flags
from r1router_jax.common.checkpoint_folder import locate_checkpoint
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Question
from r1router_jax.common.row_files import RejectedRow, RowError
from r1router_jax.common.text import sanitize_text
from r1router_jax.data import question_files
from r1router_jax.retrieval import kb_meta, kb_versions

# Imported when used, so that wrong flags are answered before JAX is imported.
with epy.lazy_imports():
  import numpy as np

  from r1router_jax.common import progress
  from r1router_jax.data import answer_coverage
  from r1router_jax.policy import config as policy_config
  from r1router_jax.policy import policy as policy_lib
  from r1router_jax.report import table
  from r1router_jax.retrieval import local_kb
  from r1router_jax.training import train_data

_DATA = shared_flags.define_flag(
  "data", default=None, help="File of your questions."
)
_IMAGES = shared_flags.define_flag(
  "images", help="Folder of the questions' images; by default that of --data."
)
_POLICY = shared_flags.define_flag(
  "policy",
  help="The policy that is to read them: a folder, a model's id on the Hugging "
  "Face hub, or warm_start.",
)
_KB_DIR = shared_flags.define_flag(
  "kb_dir",
  default="",
  help="Folder of the knowledge bases in which answers are looked for, as "
  "build_kb wrote it; by default none is.",
)
_STRICT = flags.DEFINE_bool(
  "strict", False, "Whether a row that training leaves out is an error."
)


def main(_) -> None:
  """Print what training would make of the questions."""
  # 1. Flags, before anything large is imported.
  question_files.check_file(_DATA.value)
  _check_policy(_POLICY.value)
  passage_folders = _check_kbs(_KB_DIR.value) if _KB_DIR.value else {}

  # 2. The rows.
  rows = list(question_files.read_questions(_DATA.value, _IMAGES.value))
  if any(isinstance(row, Question) and row.image for _, row in rows):
    shown = progress.show_progress(rows, "images")
    rows = list(question_files.check_images(shown))
  questions = [row for _, row in rows if isinstance(row, Question)]
  _print_rows(rows, questions)

  # 3. What the policy reads of them, and what the knowledge bases know.
  readable = _print_lengths(questions) if questions else []
  if questions and passage_folders:
    _print_coverage(questions, passage_folders)
  left_out = len(rows) - len(readable)
  if not readable or (left_out and _STRICT.value):
    raise UserError(
      f"{_DATA.value}: training would leave out {left_out:,} of {len(rows):,} "
      "rows.  The lines above say why, and what to do."
    )


def _check_policy(place: str) -> None:
  """Raise an error, with the cure, unless a policy has a tokenizer here."""
  if place.startswith("openai:"):
    raise UserError(
      f"--policy={place}: tokens are counted by a policy's own tokenizer, and "
      "a served one is out of reach.  Name a folder, or warm_start."
    )
  shared_flags.check_policy(place)


def _check_kbs(kb_dir: str) -> dict[str, str]:
  """Return the folder of each knowledge base, whose passages can be read."""
  kb_meta.check_kb_dir(kb_dir)
  places = kb_meta.kb_places(kb_dir)
  if served := [place for place in places.values() if "://" in place]:
    raise UserError(
      f"--kb_dir={kb_dir}: all passages are read here, and a server only "
      f"searches them.  Name a folder in place of {served[0]}."
    )
  return places


def _print_rows(
  rows: Sequence[tuple[str, Question | RowError]],
  questions: Sequence[Question],
) -> None:
  """Print how many rows are good, the faults of others, and the families."""
  print(f"{_DATA.value}: {len(rows):,} rows, {len(questions):,} can be used.")
  faults = collections.defaultdict(list)
  for where, row in rows:
    if isinstance(row, RowError):
      rejected = RejectedRow(where, *row.args)
      faults[rejected.kind].append(rejected)
  for kind in faults.values():
    _print_few("left out", kind)
  counts = collections.Counter(question.family for question in questions)
  families = ", ".join(f"{name} {n:,}" for name, n in counts.most_common())
  print(f"Families: {sanitize_text(families)}.")
  hops = sum(question.hops is not None for question in questions)
  images = sum(bool(question.image) for question in questions)
  print(f"With an image: {images:,}.  With gold hops: {hops:,}.")


def _print_lengths(questions: Sequence[Question]) -> list[Question]:
  """Print lengths in tokens; return the questions that the policy reads."""
  folder = locate_checkpoint(_POLICY.value)
  # Weights are not needed.
  path = policy_config.find_tokenizer(folder)
  policy = policy_lib.Policy(policy_config.read_config(folder), path, {})
  encode = policy.processor.tokenizer.encode_response
  lengths, readable, faults = collections.defaultdict(list), [], []
  for question in progress.show_progress(questions, "prompts"):
    # The end of a response is no token of its text.
    lengths["question"].append(len(encode(question.text)) - 1)
    lengths["answer"].append(len(encode(question.answers[0])) - 1)
    try:
      prompt = train_data.encode_first_prompt(policy, question)
      lengths["first prompt"].append(len(prompt.ids))
      readable.append(question)
    except UserError as error:
      faults.append(f"{question.id}: {error}")
  rows = [
    (name, *np.quantile(of, (0, 0.5, 0.95, 1), method="higher").tolist())
    for name, of in lengths.items()
  ]
  columns = ("tokens", "min", "median", "95 %", "max")
  print(table.format_table(table.Table(columns, tuple(rows))))
  room = policy.config.prompt_tokens[-1], policy.config.response_tokens[-1]
  print("{} reads {:,} tokens and writes {:,}.".format(_POLICY.value, *room))
  if faults:
    _print_few("unreadable", faults)
  return readable


def _print_coverage(
  questions: Sequence[Question], folders: dict[str, str]
) -> None:
  """Print how many questions have an answer in each knowledge base."""
  answered, rows = set(), []
  for kind, folder in folders.items():
    version = kb_versions.version_folder(folder)
    passages = local_kb.PassageFile(version, kind)
    shown = progress.show_progress(passages, f"answers in {kind}")
    texts = (passage.text for passage in shown)
    found = answer_coverage.find_answered(questions, texts)
    answered |= found
    rows.append((kind, len(passages), len(found)))
  rows.append(("any", sum(count for _, count, _ in rows), len(answered)))
  columns = ("knowledge base", "passages", "answered")
  print(table.format_table(table.Table(columns, tuple(rows))))
  missing = [
    f"{question.id}: {question.answers[0]!r:.60}."
    for question in questions
    if question.id not in answered
  ]
  if missing:
    _print_few("in none", missing)


def _print_few(title: str, things: Sequence[object]) -> None:
  """Print the number of things and the first few of them, one a line."""
  print(f"{len(things):,} {title}:")
  for each in things[: row_files.MAX_WARNINGS]:
    print(f"  {sanitize_text(str(each), 600)}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["data"])
  cli.run(main)
