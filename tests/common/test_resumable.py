"""Saved answers hold for the same question, and the same bytes of its image."""

import pytest

from r1router_jax.common import jsonl, resumable
from r1router_jax.common.records import Question

LABEL = dict(policy="p", seed=0)


def run(path, question, *, label=LABEL, faults=()):
  """Return the answer, and whether it was made now."""
  asked = []

  def answer(chunk):
    asked.extend(chunk)
    return [dict(id=q.id, question=q.text, faults=[*faults]) for q in chunk]

  options = dict(to_row=dict, from_row=lambda row, _: row, row_kind=dict)
  options |= dict(title="test", label=label, path=path, chunk_size=2)
  found = resumable.run_resumable([question], answer, **options)
  assert [*found] == [question.id]
  return bool(asked)


@pytest.fixture
def path(tmp_path):
  return tmp_path / "rows.jsonl"


@pytest.fixture
def image(tmp_path):
  image = tmp_path / "flag.png"
  image.write_bytes(b"red")
  return image


def test_saved_answer_is_taken_over(path, image):
  for question in (Question("a", "Who?"), Question("b", "?", image=str(image))):
    assert run(path, question)
    assert not run(path, question)
    assert run(path, question, label=dict(LABEL, seed=1))
    assert run(path, Question(question.id, "Where?", image=question.image))
  assert len(jsonl.read_rows(path)) == 6


def test_moved_image_is_the_same(path, image):
  assert run(path, Question("a", "Whose?", image=str(image)))
  moved = image.rename(image.with_name("other.png"))
  assert not run(path, Question("a", "Whose?", image=str(moved)))


@pytest.mark.parametrize("change", ["replaced", "added", "removed", "emptied"])
def test_answer_to_another_image_is_made_again(path, image, change, caplog):
  question = Question("a", "Whose flag?", image=str(image))
  if change == "added":
    image.unlink()
  assert run(path, question)
  if change == "removed":
    image.unlink()
  else:
    # As long as before, and as old as a copy may be.
    image.write_bytes(b"" if change == "emptied" else b"tan")
  with caplog.at_level("INFO"):
    assert run(path, question)
  assert "1 earlier answers are not taken over" in caplog.text
  assert not run(path, question)


def test_question_that_could_not_be_read_is_asked_again(path):
  question = Question("a", "Who?")
  assert run(path, question, faults=["input: too long"])
  assert run(path, question, faults=["plan: no tags"])
  assert not run(path, question)


def test_rows_of_older_versions_do_not_say_which_image(path, image):
  for question in (Question("a", "?"), Question("b", "?", image=str(image))):
    row = dict(LABEL, id=question.id, question="?", faults=[], seconds=1.0)
    jsonl.append_rows(path, [row])
    assert run(path, question) == bool(question.image)
