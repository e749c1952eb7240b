"""A teacher that answers from a script, and helpers to read what it made."""

import json

from r1router_jax.common.records import Answer, Plan, Question
from r1router_jax.data import r1_router_rows
from r1router_jax.protocol import format
from r1router_jax.routing.run_settings import RunSettings
from r1router_jax.synthesis import selection, teacher_runs
from tests import fakes

SETTINGS = RunSettings("r1_router", temperature=1.0, top_k=20, k=2)

PLACES = ("Chad", "Italy", "Peru", "Fiji", "Oman", "Cuba", "Iran", "Mali")


def plan(sub_question, *routes, thought="One\n thing."):
  # A line break that the training target does not have.
  text = format.render_plan(Plan(thought, sub_question, routes))
  return text.replace("</think>", "</think>\n")


def answer(text, thought="As it says."):
  return format.render_answer(Answer(thought, text))


def question(text, **fields):
  return Question(text, f"{text}, how many people?", ("18 million",), **fields)


def write_response(kind, prompt, temperature):
  """Does what the first word of the question names."""
  if kind == "plan":
    return write_plan(prompt, prompt.count("Sub-question"))
  if kind == "answer":
    return "no tags" if "babble" in prompt else answer("18 Million")
  # "Origin question: <word>, how many people?"
  word = prompt.split()[2].strip(",:")
  wrong = {"wrong": "17", "wordy": "It has 18 million"}
  return answer(wrong.get(word, "18 million"))


def write_plan(prompt, rounds):
  if "stuck" in prompt:
    return "no plan"
  if "twice" in prompt:
    # The second time it goes to another knowledge base, so that the loop asks.
    plans = plan("Who is it?", "text"), plan(" Who IS it?", "table")
    return (*plans, plan("None"))[rounds]
  if "same" in prompt:
    return plan("Who is it?", "text")
  if "thrice" in prompt:
    return plan(f"Who is {rounds}?", "text")
  if "bare" in prompt or rounds:
    return plan("None")
  return plan("How MANY people?", "table")


def run_teacher(
  workdir,
  *questions,
  script=write_response,
  teacher=None,
  kbs=None,
  settings=SETTINGS,
  rules=None,
  max_tries=1,
  label=None,
):
  """Returns the outcomes, and the number of prompts that a fake was asked."""
  teacher = teacher or fakes.ScriptedPolicy(script)
  results = teacher_runs.run_teacher(
    teacher,
    kbs or fakes.make_kbs(),
    questions,
    settings,
    rules or selection.SelectionRules(),
    workdir,
    max_tries=max_tries,
    label=label or dict(fingerprint="f", prompts="full 1", kbs="k"),
  )
  return results, sum(map(len, getattr(teacher, "prompts", ())))


def read_trajectories(workdir, side="train"):
  """Reads the rows of one side of the split as a trainer does."""
  path = str(workdir / f"grpo_dataset_{side}.jsonl")
  return list(r1_router_rows.load_rows(path, str(workdir / "pictures")))


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


class GoldTeacher(fakes.ScriptedPolicy):
  """Follows the gold trace of each question, which it knows by text and image.

  Args:
    questions: the questions that it knows.
  """

  def __init__(self, questions):
    super().__init__(None)
    self.known = {(q.text, q.image): q for q in questions}

  def generate(self, conversations, key, *args, **kwargs):
    images = iter([(*c.images, "")[0] for c in conversations])
    self.script = lambda kind, prompt, _: self.write(kind, prompt, next(images))
    return super().generate(conversations, key, *args, **kwargs)

  def write(self, kind, prompt, image):
    if kind == "answer":
      # An answer prompt shows the sub-question alone, so hops are searched.
      asked = prompt.rpartition("Question: ")[2]
      hops = [
        hop
        for (_, other), known in self.known.items()
        for hop in known.hops
        if hop.sub_question.lower() == asked and other == image
      ]
      return answer(hops[0].answers[0])
    text = prompt.split("\n")[0].removeprefix("Origin question: ")
    known = self.known[text, image]
    if kind == "final":
      return answer(known.answers[0])
    rounds = prompt.count("Sub-question")
    if rounds == len(known.hops):
      return plan("None")
    hop = known.hops[rounds]
    return plan(hop.sub_question, hop.routes[0])
