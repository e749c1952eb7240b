"""OmniSearch's planner: a thought, a sub-question, and a tool for it.

  <Thought> .. <Sub-Question> .. <Search> Text Retrieval: query
  <Thought> .. <End> Final Answer: ..

Its tools are a search for texts, one for pictures by the question's picture,
and one for pictures by a text; tables it does not know.  An answer step solves
each sub-question with what was found.  The fields are the original's, the words
around them ours.

Source: arxiv.org/abs/2411.02937 (OmniSearch).
"""

import itertools
import re

from r1router_jax.common.records import Answer, Malformed, Plan, Question
from r1router_jax.protocol import format, prompts
from r1router_jax.routing.baselines.prompting import (
  COMPACT,
  answer_in,
  ask,
  search,
)
from r1router_jax.routing.baselines.search_loop import Language

_SYSTEM = """\
You plan how to answer a question with a search engine.  Look at what has been \
asked and answered so far, and write one more step, in one of two forms.

Where something is missing:
<Thought> what is known and what is missing
<Sub-Question> one question whose answer you need next
<Search> one of
  Text Retrieval: a query
  Image Retrieval with Input Image
  Image Retrieval with Text Query: a query

Where nothing is missing:
<Thought> why it is enough
<End> Final Answer: the answer in as few words as you can"""

_LAST = "\nThere is no search left.  Write <End> Final Answer: and the answer."

_FIELDS = re.compile(
  r"(?is)<(thought|sub-question|search|end)>\s*(.*?)\s*"
  r"(?=</?(?:thought|sub-question|search|end)>|\Z)"
)

_QUERY = re.compile(r"(?is)(?:text|image) retrieval[^:\n]*:\s*(.+)")


def _turn(style, question, rounds, last=False):
  history = [(done.plan.sub_question, done.answer.text) for done in rounds]
  if style == COMPACT:
    spell = prompts.final_conversation if last else prompts.plan_conversation
    return spell(question.text, question.image, history, style=style)
  told = "Question: {}\n" + "Sub-Question: {}\nAnswer: {}\n" * len(history)
  return ask(
    "final" if last else "plan",
    _SYSTEM,
    told + last * _LAST,
    question,
    texts=[question.text, *itertools.chain(*history)],
  )


def _conclude(style, question, rounds):
  return _turn(style, question, rounds, last=True)


def _read(
  style: str, question: Question, text: str
) -> Plan | Answer | Malformed:
  if style == COMPACT:
    said = format.parse_plan(text)
    if not isinstance(said, Plan) or said.route != "table":
      return said
    return search(said.sub_question, ("text",), said.thought)
  fields = {name.lower(): said for name, said in _FIELDS.findall(text)}
  if "end" in fields:
    return answer_in(fields["end"])
  tool, wanted = fields.get("search", ""), fields.get("sub-question", "")
  query = _QUERY.search(tool)
  sub_question = query[1].splitlines()[0] if query else wanted
  if not sub_question.strip() or "retrieval" not in tool.lower():
    return Malformed(
      text, "it has no <Search> with a tool and a query, and no <End>"
    )
  kb = "image" if tool.lower().startswith("image") else "text"
  return search(sub_question, (kb,), fields.get("thought", ""))


OMNISEARCH = Language(_conclude, (), _turn, _read, condense=True)
