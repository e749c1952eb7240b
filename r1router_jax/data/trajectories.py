"""Gold trajectories, cut into the steps that training is made of.

A question of n hops becomes n plan and n answer steps, a plan that stops, and
the final step.  With `MAX_HOPS` hops the rounds are used up, and no plan is
asked to stop (as in R1-Router's own rows, arxiv.org/abs/2505.22095).

R1-Router publishes trajectories as rows of rendered prompts,

  {"images": [path], "steps": [
    {"step_type": "ret", "system": .., "problem": "Origin question: ..<image>",
     "answer": {"query": "who ..?", "retriever": ["text retriever"]}},
    {"step_type": "ans", "system": .., "problem": .., "answer": "text"}, ..,
    {"step_type": "ans", "system": .., "problem": .., "answer": ["gold", ..]}]}

which `from_reference` reads back into steps, and `to_reference` writes.  Ours
may keep what the teacher wrote, thoughts and all, as "response" of a step.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from r1router_jax import conversations, prompts, protocol
from r1router_jax.inputs.rows import Fault
from r1router_jax.records import KBS, Malformed, Passage, Question, Step

MAX_HOPS = 3  # Rounds that the loop allows.

_STYLE = "full"  # What the published rows are written in.
_FULL = prompts.STYLES[_STYLE]
_IMAGE = "<image>"  # Ends a problem that has a picture.
_ROUTES = {name.lower(): route
           for route, name in protocol.ROUTE_NAMES.items()}
_KBS = {tag: kb for kb, tag in _FULL.tags.items()}
_PASSAGE = re.compile(
    r"(?s)(ter|tir|tar)-\d+: (.*?)\n(?=(?:ter|tir|tar)-\d+: |\Z)")

# [(knowledge base, sub-question, picture), ...] -> the passages of each.
Retrieve = Callable[
    [Sequence[tuple[str, str, str]]], Sequence[tuple[Passage, ...]]]


def gold_steps(
    questions: Sequence[Question], retrieve: Retrieve
) -> list[list[Step]]:
  """The steps of each question's gold trajectory.

  Args:
    questions: with their gold hops.
    retrieve: called once, with all sub-questions in order.
  """
  found = iter(retrieve([
      (hop.routes[0], hop.sub_question, question.image)
      for question in questions for hop in question.hops]))
  return [
      _steps(question, [next(found) for _ in question.hops])
      for question in questions]


def _steps(
    question: Question, found: Sequence[tuple[Passage, ...]]
) -> list[Step]:
  steps, history = [], ()

  def add(kind, **of):
    steps.append(Step(
        f"{question.id}/{len(steps)}", kind, question, history, **of))

  for hop, passages in zip(question.hops, found, strict=True):
    add("plan", sub_question=hop.sub_question, routes=hop.routes)
    add("answer", sub_question=hop.sub_question, answers=hop.answers,
        passages=tuple(passages))
    history += ((hop.sub_question, hop.answers[0]),)
  if len(question.hops) < MAX_HOPS:
    add("plan", sub_question=protocol.NONE, routes=("none",))
  add("final", answers=question.answers)
  return steps


def to_reference(steps: Sequence[Step]) -> dict[str, Any]:
  """The published form of one trajectory.

  An answer step keeps one accepted answer, its first; ids and scores of
  passages have no place there, and thoughts only in a teacher's response.
  """
  image = steps[0].question.image
  rows = []
  for step in steps:
    prompt = protocol.step_conversation(step, style=_STYLE)
    rows.append(dict(
        step_type="ret" if step.kind == "plan" else "ans",
        problem=_problem(prompt), system=prompt.system,
        answer=_reference_answer(step)))
    if step.response:
      rows[-1]["response"] = step.response
  return dict(images=[image] if image else [], steps=rows)


def from_reference(
    row: dict[str, Any], name: str, pictures: str | None = None
) -> list[Step]:
  """The steps of one published trajectory.

  Args:
    row: as published.
    name: the question's id, of which rows have none.
    pictures: the folder where its picture now lies, since rows hold the
      absolute paths of their authors' machine; None keeps the path.

  Raises:
    ValueError: where a step is not what the steps before it lead to.
    Fault: where the teacher's response is not of the protocol, or says other
      than the step's "answer".
  """
  image = (row["images"] or [""])[0]
  if image and pictures is not None:
    image = os.path.join(pictures, os.path.basename(image))
  text = row["steps"][0]["problem"].removesuffix(_IMAGE)
  text = text.removeprefix(_FULL.question.split("{}")[0]).partition("\n")[0]
  question = Question(name, text, tuple(row["steps"][-1]["answer"]), image)
  steps, history = [], ()
  for at, of in enumerate(row["steps"]):
    last = steps[-1] if steps else None
    step = _reference_step(of, f"{name}/{at}", question, history, last)
    if response := of.get("response", ""):
      step = _told(step, response)
    _check(step, of["problem"])
    if step.kind == "answer":
      history += ((step.sub_question, step.answers[0]),)
    steps.append(step)
  return steps


def _problem(prompt: conversations.Conversation) -> str:
  return "".join(_IMAGE if segment.source == "picture" else segment.text
                 for segment in prompt.user)


def _reference_answer(step: Step) -> Any:
  if step.kind == "plan":
    names = [protocol.ROUTE_NAMES[route].lower() for route in step.routes]
    return dict(query=step.sub_question.lower(), retriever=names)
  return step.answers[0] if step.kind == "answer" else list(step.answers)


def _reference_step(of, step_id, question, history, last: Step | None) -> Step:
  answer = of["answer"]
  if of["step_type"] == "ret":
    if unknown := set(answer["retriever"]) - set(_ROUTES):
      raise ValueError(f"Step {step_id} names the retrievers {unknown}; known: "
                       f"{', '.join(_ROUTES)}.")
    return Step(
        step_id, "plan", question, history,
        sub_question=_stopping(answer["query"]),
        routes=tuple(_ROUTES[name] for name in answer["retriever"]))
  if isinstance(answer, list):
    return Step(step_id, "final", question, history, answers=tuple(answer))
  if last is None or last.kind != "plan":
    raise ValueError(
        f"Step {step_id} answers a sub-question, but no \"ret\" step stands "
        "before it.  Give the whole trajectory, in order.")
  found = of["problem"].removeprefix(_FULL.passages).rpartition(
      _FULL.asked.split("{}")[0])[0]
  passages = tuple(
      Passage(f"{step_id}/{n}", _KBS[tag], text)
      for n, (tag, text) in enumerate(_PASSAGE.findall(found)))
  return Step(
      step_id, "answer", question, history, sub_question=last.sub_question,
      answers=(answer,), passages=passages)


def _told(step: Step, response: str) -> Step:
  """The step with its teacher's response, in whose spelling it then asks."""
  said = protocol.parse(step.kind, response, routes=len(KBS))
  cure = 'Delete its "response", or take the row as it was made'
  if isinstance(said, Malformed):
    raise Fault(f"the response of step {step.id} is not of the protocol: "
                f"{said.reason}", cure)
  if step.kind == "plan":
    asked = said.sub_question
    same = (_stopping(asked.lower()), said.routes) == (
        step.sub_question, step.routes)
    step = dataclasses.replace(step, sub_question=asked)
  else:
    same = step.kind == "final" or said.text == step.answers[0]
  if not same:
    raise Fault(f'the response of step {step.id} says other than its "answer"',
                cure)
  return dataclasses.replace(step, response=response)


def _stopping(query: str) -> str:
  return protocol.NONE if query == protocol.NONE.lower() else query


def _check(step: Step, problem: str):
  """That the step says what the published prompt says."""
  ours = _problem(protocol.step_conversation(step, style=_STYLE))
  if ours != problem:
    at = len(os.path.commonprefix([ours, problem]))
    raise ValueError(
        f"Step {step.id} does not follow from the steps before it: its prompt "
        f"has {problem[at:at + 40]!r} at character {at}, where "
        f"{ours[at:at + 40]!r} was due.  Take the row as it was published.")
