r"""Writes invented domains, their questions and pictures, to look at and use.

  python -m r1router_jax.make_domains --workdir=runs/domains

The folder then holds what `build_kb` and `eval` read, and a page to look at:

  questions.jsonl     questions with answers, gold hops and evidence
  text.jsonl, table.jsonl, image.jsonl  passages, tables, captions of pictures
  pictures/           the pictures of image.jsonl
  question_pictures/  other drawings of the same things, which questions show
  domains.html        all of it, domain by domain

Two runs with the same flags write the same files; pictures of an earlier run
with other flags are deleted.  No domain is one that training on the grammar
draws; --half=test has words that it never has.
docs/domains.md says what the grammar makes.
"""

import dataclasses
import json
import pathlib
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags
from etils import epy

from r1router_jax.common import cli, files, progress, shared_flags
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Passage, Question
from r1router_jax.data.domains import lexicon as lexicon_lib

# Imported when used, since they take seconds.
with epy.lazy_imports():
  from r1router_jax.data.domains import drawing
  from r1router_jax.data.domains import world as world_lib
  from r1router_jax.report import domains_page

_WORKDIR = shared_flags.define_flag(
  "workdir", default="runs/domains", help="Folder to write to."
)
_HALF = flags.DEFINE_enum(
  "half",
  "test",
  lexicon_lib.HALVES,
  "The half of the grammar whose words are used: that which policies are "
  "trained on, or that which tests them.",
)
_DOMAINS = flags.DEFINE_integer(
  "domains", 12, "Number of domains to draw.", lower_bound=1
)
_QUESTIONS = shared_flags.define_flag(
  "questions",
  default=300,
  help="Number of questions, which are spread evenly over the domains.",
  lower_bound=1,
)
_SEED = shared_flags.define_flag("seed")


def main(_) -> None:
  """Write all files, and print what to do with them."""
  if "://" in _WORKDIR.value:
    raise UserError(
      f"--workdir={_WORKDIR.value} is in a bucket, and pictures are written to "
      "disks alone: give a local folder, and copy it there."
    )
  root = pathlib.Path(_WORKDIR.value)
  sizes = _DOMAINS.value, _QUESTIONS.value
  world = world_lib.make_world(_HALF.value, *sizes, _SEED.value)
  # 1. Pictures.
  for folder in ("pictures", "question_pictures"):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for path in (root / folder).glob("[0-9]*-image-[0-9]*.png"):
      path.unlink()
  shown = [
    _draw_domain(world.lexicon, member, root)
    for member in progress.show_progress(world.domains, "draw")
  ]

  # 2. Passages and questions.
  told = []  # Few domains may have no picture.
  for kb in KBS:
    passages = [each for domain in shown for each in domain.passages[kb]]
    told += [kb] if passages else []
    _write_rows(root / f"{kb}.jsonl", (_passage_row(x, root) for x in passages))
  questions = [each for domain in shown for each in domain.questions]
  rows = (_question_row(x, root) for x in questions)
  _write_rows(root / "questions.jsonl", rows)

  # 3. The page, and how to go on.
  title = f"Invented domains: {_HALF.value} half, seed {_SEED.value}"
  domains_page.write_page(root / "domains.html", title, shown)
  print(f"{root / 'domains.html'} shows all of it.  Go on with:")
  kb_dir = f"--kb_dir={root / 'kb'}"
  for kb in told:
    source = f"--source={root / kb}.jsonl"
    _print_command("build_kb", kb_dir, f"--kind={kb}", source)
  _print_command(
    "eval",
    f"--workdir={root / 'eval'}",
    kb_dir,
    "--benchmark=jsonl",
    f"--data={root / 'questions.jsonl'}",
    "--nostep_rewards",
  )


def _print_command(name: str, *given: str) -> None:
  """Print a command as a shell takes it."""
  print(shlex.join(["python", "-m", f"r1router_jax.{name}", *given]))


def _draw_domain(
  lexicon: lexicon_lib.Lexicon,
  member: "world_lib.WorldDomain",
  root: pathlib.Path,
) -> "domains_page.ShownDomain":
  """Draw the pictures of a domain; return it with the paths of these."""
  documents = member.documents

  def draw(passage_id: str, folder: str, variant: int) -> str:
    thing = documents.pictures[passage_id]
    path = root / folder / f"{passage_id.replace('/', '-')}.png"
    drawing.draw_picture(lexicon.visuals, thing, variant).save(path)
    return str(path)

  images = {name: draw(name, "pictures", 0) for name in documents.pictures}
  asked = {trace.picture for trace in member.traces if trace.picture}
  others = {name: draw(name, "question_pictures", 1) for name in sorted(asked)}
  passages = {
    kb: [dataclasses.replace(x, image=images.get(x.id, "")) for x in of_kb]
    for kb, of_kb in documents.passages.items()
  }
  questions = [
    dataclasses.replace(trace.question, image=others.get(trace.picture, ""))
    for trace in member.traces
  ]
  kinds = ", ".join(group.kind.many for group in member.domain.groups)
  title = f"{member.domain.place}: {kinds}"
  return domains_page.ShownDomain(title, passages, questions)


def _passage_row(passage: Passage, root: pathlib.Path) -> dict[str, Any]:
  # Whole, so that no passage is cut in two and ids stay as they are.
  row = dict(id=passage.id, text=passage.text, whole=True)
  return row | _image_field(passage.image, root)


def _question_row(question: Question, root: pathlib.Path) -> dict[str, Any]:
  row = dict(
    id=question.id,
    question=question.text,
    answers=question.answers,
    family=question.family,
    hops=[dataclasses.asdict(hop) for hop in question.hops],
  )
  return row | _image_field(question.image, root)


def _image_field(path: str, root: pathlib.Path) -> dict[str, str]:
  """Return the field of a row's image, which is named relative to its file."""
  if not path:
    return {}
  return dict(image=pathlib.Path(path).relative_to(root).as_posix())


def _write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
  with files.atomic_write(path, "w") as file:
    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
  cli.run(main)
