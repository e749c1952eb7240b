import subprocess
import sys

import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from r1router_jax import ask
from r1router_jax.common.records import Answer, Plan
from r1router_jax.protocol import format
from tests import fakes


def script(kind, prompt, temperature):
  if kind == "plan" and "Answer1" not in prompt:
    return format.render_plan(Plan("hm", "Who?\x1b[31m", "text"))
  if kind == "plan":
    return format.render_plan(Plan("", "None", "none"))
  if kind == "answer":
    return "no tags\u202e"
  return format.render_answer(Answer("", "Chad"))


def shown(**options):
  found = ask.ask(fakes.Scripted(script), fakes.kbs(), "Where?", **options)
  return list(ask.lines(found))


def test_the_trajectory_is_shown_and_clean():
  lines = shown()
  assert lines[:3] == ["Question   Where?", "", "Round 1    Text Retriever"]
  assert lines[3:6] == [
    "  thinks   hm",
    "  asks     Who?",
    "  finds    [1.00] text on Who?",
  ]
  assert lines[-1] == "Answer     Chad"
  assert lines[-2].startswith("Fault      answer: tags are none")
  assert "  answers  no tags (malformed: tags are none" in "\n".join(lines)
  assert all(line.isprintable() for line in lines)


def test_all_routes_are_shown():
  def two(kind, prompt, temperature):
    if kind == "plan" and "Answer1" not in prompt:
      return format.render_plan(Plan("", "Who?", "table", ("text",)))
    return script(kind, prompt, temperature)

  found = ask.ask(fakes.Scripted(two, routes=2), fakes.kbs(), "Where?")
  assert "Round 1    Table Retriever, Text Retriever" in ask.lines(found)


def test_any_method_answers():
  found = ask.ask(
    fakes.Scripted(lambda *of: "Lake Chad"),
    fakes.kbs(),
    "Where?",
    method="rag_text",
  )
  assert found.final.text == "Lake Chad" and len(found.rounds) == 1


def test_a_picture_that_cannot_be_read_is_said():
  lines = shown(image="missing.png")
  assert "Fault      input: missing.png does not exist." in lines
  assert lines[-1].startswith("Answer     (malformed: missing.png")


@pytest.fixture
def parsed():
  absl_flags.FLAGS.mark_as_parsed()
  yield
  absl_flags.FLAGS.unparse_flags()


@pytest.mark.parametrize(
  "flags, said",
  [
    (dict(question="  "), "There is no question"),
    (dict(question="Who?", image="no.png"), "--image=no.png does not exist"),
    (dict(question="Who?", policy="no/policy"), "no folder no/policy"),
  ],
)
def test_what_the_user_can_put_right(parsed, flags, said):
  with flagsaver.flagsaver(**flags):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
      ask.main([])


def test_exit_code_and_one_line():
  done = subprocess.run(
    [sys.executable, "-m", "r1router_jax.ask"], capture_output=True, text=True
  )
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith("ERROR: There is no question.")
  assert done.stderr.count("\n") == 1
