"""Prompts of steps of each kind, from their parts."""

from r1router_jax.common.records import Question, Step
from r1router_jax.protocol import prompts


def plan_conversation(question, image, history, **options):
  step = Step("", "plan", Question("", question, image=image), tuple(history))
  return prompts.step_conversation(step, **options)


def final_conversation(question, image, history, **options):
  step = Step("", "final", Question("", question, image=image), tuple(history))
  return prompts.step_conversation(step, **options)


def answer_conversation(sub_question, passages, image, **options):
  question = Question("", "", image=image)
  fields = dict(sub_question=sub_question, passages=tuple(passages))
  step = Step("", "answer", question, **fields)
  return prompts.step_conversation(step, **options)
