"""OmniSearch's planner: a thought, a sub-question, and a tool for it.

  <Thought> .. <Sub-Question> .. <Search> Text Retrieval: query
  <Thought> .. <End> Final Answer: ..

Its tools are a search for texts, one for images by the question's image, and
one for images by a text; it does not know tables.  An answer step solves each
sub-question with the passages.  The fields are the original's, the words around
them are not.

Source: arxiv.org/abs/2411.02937 (OmniSearch).
"""

import functools
import itertools
import re

from r1router_jax.common.records import Answer, Malformed, Plan, Question
from r1router_jax.protocol import format
from r1router_jax.protocol.messages import Conversation
from r1router_jax.routing.baselines.prompting import (
  Rounds,
  SearchAgent,
  Wording,
  build_prompt,
  compact_prompt,
  extract_answer,
  make_search,
  round_texts,
)

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

_NO_SEARCH_LEFT = (
  "\nThere is no search left.  Write <End> Final Answer: and the answer."
)

# A field reaches up to the next one; closing tags are optional.
_FIELDS = re.compile(
  r"(?is)<(thought|sub-question|search|end)>\s*(.*?)\s*"
  r"(?=</?(?:thought|sub-question|search|end)>|\Z)"
)

# The query is what follows the name of the tool and a colon.
_QUERY = re.compile(r"(?is)(?:text|image) retrieval[^:\n]*:\s*(.+)")


def _build_prompt(
  kind: str, ending: str, question: Question, rounds: Rounds
) -> Conversation:
  """Return the question, with the history in the user turn, round by round."""
  user = "Question: {}\n" + "Sub-Question: {}\nAnswer: {}\n" * len(rounds)
  history = itertools.chain(*round_texts(rounds))
  return build_prompt(kind, _SYSTEM, user + ending, question, *history)


def _parse_turn(question: Question, text: str) -> Plan | Answer | Malformed:
  """Return the search of the tool that a response takes, or its answer."""
  fields = {name.lower(): value for name, value in _FIELDS.findall(text)}
  # An answer counts even if the response names a search, too.
  if "end" in fields:
    return extract_answer(fields["end"])
  tool, sub_question = fields.get("search", ""), fields.get("sub-question", "")
  # A search by the question's image has no query of its own.
  if query := _QUERY.search(tool):
    sub_question = query[1].splitlines()[0]
  if not sub_question.strip() or "retrieval" not in tool.lower():
    reason = "it has no <Search> with a tool and a query, and no <End>"
    return Malformed(text, reason)
  # Both image tools search the image knowledge base; the question's image goes
  # with every query there.
  kb = "image" if tool.lower().startswith("image") else "text"
  return make_search(sub_question, (kb,), fields.get("thought", ""))


def _parse_compact_turn(question: Question, text: str) -> Plan | Malformed:
  """Return R1-Router's plan, with texts in place of tables."""
  plan = format.parse_plan(text)
  if isinstance(plan, Plan) and plan.routes == ("table",):
    return make_search(plan.sub_question, ("text",), plan.thought)
  return plan


OMNISEARCH = SearchAgent(
  full=Wording(
    functools.partial(_build_prompt, "final", _NO_SEARCH_LEFT),
    functools.partial(_build_prompt, "plan", ""),
    _parse_turn,
  ),
  compact=Wording(
    functools.partial(compact_prompt, "final"),
    functools.partial(compact_prompt, "plan"),
    _parse_compact_turn,
  ),
  summarize=True,
)
