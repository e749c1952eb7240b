"""The command that writes invented domains, and what reads its files."""

import filecmp
import json
import shlex

import pytest

from r1router_jax.common.records import KBS
from r1router_jax.data import question_files
from r1router_jax.retrieval.corpora import user_files
from tests.commands import run_command

FLAGS = ("--domains=2", "--questions=30", "--seed=0")


def write(folder, *flags):
  done = run_command("make_domains", f"--workdir={folder}", *FLAGS, *flags)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("my domains")
  return folder, write(folder)


def read_passages(folder, kb):
  lines = (folder / f"{kb}.jsonl").read_bytes().splitlines()
  parts = [user_files.to_passages(kb, line, str(folder)) for line in lines]
  # A row is one passage, whose id is that of the row.
  return {passage.id: passage for _, (passage,) in parts}


def test_questions_and_passages_are_read_by_other_commands(written):
  folder, _ = written
  rows = question_files.read_questions(str(folder / "questions.jsonl"))
  questions = [row for _, row in question_files.check_images(rows)]
  passages = {}
  for kb in KBS:
    passages |= read_passages(folder, kb)
  assert len(questions) == 30
  assert any(question.image for question in questions)
  for question in questions:
    for hop in question.hops:
      assert all(passages[name].kb in hop.routes for name in hop.evidence)


def test_questions_show_another_drawing_than_the_knowledge_base(written):
  folder, _ = written
  shown = sorted((folder / "question_pictures").iterdir())
  assert shown
  for path in shown:
    own = folder / "pictures" / path.name
    assert own.read_bytes() != path.read_bytes()


def test_page_shows_passages_and_questions(written):
  folder, _ = written
  page = (folder / "domains.html").read_text()
  row = json.loads((folder / "questions.jsonl").read_text().splitlines()[0])
  assert row["id"] in page and row["family"] in page
  assert page.count("data:image/png") >= len(
    list((folder / "pictures").iterdir())
  )
  assert page.count("<article>") == 30 and "[sep]" not in page


def test_next_commands_are_printed(written):
  folder, printed = written
  # As a shell reads them; the folder's name has a space.
  _, *builds, evaluation = map(shlex.split, printed.strip().splitlines())
  for kb, words in zip(KBS, builds, strict=True):
    assert words[-2:] == [f"--kind={kb}", f"--source={folder / kb}.jsonl"]
  assert f"--data={folder / 'questions.jsonl'}" in evaluation


def test_same_flags_write_the_same_files(written, tmp_path):
  folder, _ = written
  # The first picture is of an earlier run, the second is not of this command.
  pictures = tmp_path / "pictures"
  pictures.mkdir()
  for name in ("99-image-0.png", "own.png"):
    (pictures / name).touch()
  write(tmp_path)
  drawn = {path.name for path in (folder / "pictures").iterdir()}
  assert {path.name for path in pictures.iterdir()} == drawn | {"own.png"}
  names = [*(f"{kb}.jsonl" for kb in KBS), "questions.jsonl", "domains.html"]
  assert filecmp.cmpfiles(folder, tmp_path, names, shallow=False)[0] == names


def test_halves_are_of_other_words(written, tmp_path):
  folder, _ = written
  write(tmp_path, "--half=train")
  texts = [
    {json.loads(line)["question"] for line in path.read_text().splitlines()}
    for path in (folder / "questions.jsonl", tmp_path / "questions.jsonl")
  ]
  assert not texts[0] & texts[1]


@pytest.mark.parametrize(
  "flag, wanted",
  [
    ("--half=dev", "train|test"),
    ("--seed=-1", "[0, 4294967295]"),
    ("--workdir=gs://bucket/domains", "give a local folder"),
  ],
)
def test_wrong_flag_is_one_line(flag, wanted):
  done = run_command("make_domains", flag)
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert wanted in line
