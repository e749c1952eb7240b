"""Questions about populations, and a scripted policy that answers them."""

import pathlib
import tempfile

from r1router_jax.common.records import Answer, Hop, Plan, Question
from r1router_jax.evaluation import runner
from r1router_jax.protocol import format
from r1router_jax.routing.run_settings import RunSettings
from tests import fakes

QUESTIONS = [
  Question(
    f"q/{n}",
    f"How many people live in {place}?",
    (str(n),),
    family=f"f{n % 2}",
    hops=(Hop(f"People of {place}?", ("table",), (str(n),)),),
  )
  for n, place in enumerate(("Chad", "Italy", "Peru", "Fiji", "Oman"))
]


def write_response(kind, prompt, temperature):
  """Routes every question right, and answers the first three right."""
  if kind == "plan":
    if "Sub-question1" in prompt:
      return format.render_plan(Plan("t", "None", ()))
    return format.render_plan(Plan("t", prompt.split()[-1], ("table",)))
  # Fiji and Oman are unknown to it.
  places = ("chad?", "italy?", "peru?")
  known = [n for n, place in enumerate(places) if place in prompt.lower()]
  return format.render_answer(Answer("t", str(*known[:1]) or "unknown"))


def evaluate(
  path="", policy="p", method="r1_router", questions=QUESTIONS, **options
):
  """Returns the result of a method, and the number of prompts it took."""
  # A fresh policy, so that the prompts of this call alone are counted.
  fake = fakes.ScriptedPolicy(write_response)
  result = runner.evaluate_method(
    fake,
    fakes.make_kbs() | dict(table=fakes.PicturedKB("table")),
    questions,
    RunSettings(method),
    # Most tests need no file afterwards.
    path=path or pathlib.Path(tempfile.mkdtemp()) / "predictions.jsonl",
    label=dict(policy=policy, weights="w"),
    chunk_size=2,
    **options,
  )
  return result, sum(map(len, fake.prompts))
