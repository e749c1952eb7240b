"""Baselines whose policy searches by words of its own, turn by turn.

Two search in the midst of a reply, between tags.  A response ends at the tag
that closes a query; the result is put behind it and the reply goes on, so a
policy continues from its own words:

  search_r1   <search>..</search> is answered by <information> passages
              </information>, word for word (arxiv.org/abs/2503.09516)
  search_o1   <|begin_search_query|>..<|end_search_query|> is answered by what
              an answer step reads off the passages (arxiv.org/abs/2501.05366)

One plans, with a tool for each sub-question:

  omnisearch  <Thought> .. <Sub-Question> .. <Search> Text Retrieval: query
              <Thought> .. <End> Final Answer: .. (arxiv.org/abs/2411.02937)

OmniSearch's tools are a search for texts, one for images by the question's
image, and one for images by a text; it does not know tables.  An answer step
solves each sub-question with the passages.

Tags and fields are the originals'; the words around them are not.
"""

import dataclasses
import itertools
import re

from r1router_jax.common.records import (
  Malformed,
  Plan,
  Question,
  Round,
  Step,
)
from r1router_jax.protocol import format, prompts
from r1router_jax.protocol.messages import Conversation, Segment
from r1router_jax.routing.baselines.prompting import (
  COMPACT,
  Rounds,
  SearchAgent,
  compact_prompt,
  extract_answer,
  make_prompt,
  make_search,
  round_texts,
)
from r1router_jax.routing.policy_requests import Parsed

_TAGS_SYSTEM = (
  "Answer the question.  Think inside <think> and </think> whenever you "
  "learn something.  What you do not know you can search, as often as you "
  "want: write {query}.  What is found comes back between {found}.  As soon "
  "as you know enough, write <answer>the answer in as few words as you can"
  "</answer>."
)

# Opens the answer of a policy that has no search left.
_CONCLUDE = "I know enough now.\n<answer>"

_OMNISEARCH_SYSTEM = """\
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

# The query is what follows the name of the tool and a colon.  Only the first
# name of a line is tried, which bounds the time.
_QUERY = re.compile(
  r"(?ism)^(?>[^\n]*?(?:text|image) retrieval)[^:\n]*:\s*(.+)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TagSearch(SearchAgent):
  """Search within the reply; `summarize` decides what a result is.

  Attributes:
    query: opening and closing tag of a query.
    result: opening and closing tag of its result.
  """

  query: tuple[str, str]
  result: tuple[str, str]

  def build_prompt(self, step: Step, rounds: Rounds) -> Conversation:
    """Return the question with the reply so far."""
    # The braces of `format` are filled with tags, never with untrusted text.
    system = _TAGS_SYSTEM.format(
      query="a query".join(self.query), found=" and ".join(self.result)
    )
    reply = [segment for done in rounds for segment in self._render_round(done)]
    if step.kind == "final":
      reply.append(Segment(_CONCLUDE, "template"))
    turn = system, "Question: {}", step.question
    return make_prompt(step.kind, *turn, reply_prefix=reply)

  def _render_round(self, done: Round) -> list[Segment]:
    """Return a round as a part of the reply."""
    template = "<think>{}</think>\n" + "{}".join(self.query) + "\n\n"
    texts = done.plan.thought, done.plan.sub_question
    if self.summarize:
      result = prompts.fill_template("{}", done.answer.text)
    else:
      result = prompts.render_passages(done.passages, style="full")
    return [
      *prompts.fill_template(template, *texts),
      Segment(self.result[0], "template"),
      *result,
      Segment(f"{self.result[1]}\n\n", "template"),
    ]

  def parse_turn(self, question: Question, text: str) -> Parsed:
    """Return a search with the first query, or the answer."""
    opening, closing = map(re.escape, self.query)
    query = re.search(rf"(?s){opening}(.*?)(?:{closing}|\Z)", text)
    # A closing tag may be missing: it is a stop text, and limits cut it off.
    if query and query[1].strip():
      thought = re.sub(r"</?think>", " ", text[: query.start()])
      return make_search(query[1], thought=" ".join(thought.split()))
    if "<answer>" in text.lower():
      return extract_answer(text)
    return Malformed(text, f"neither {self.query[0]} nor <answer> is in it")

  def build_compact_prompt(self, step: Step, rounds: Rounds) -> Conversation:
    """Return a compact prompt, perhaps with passages in place of answers."""
    if self.summarize:
      return super().build_compact_prompt(step, rounds)
    prompt = compact_prompt(step.kind, step.question)
    user = list(prompt.user)
    for done in rounds:
      user += prompts.fill_template("{}\n", done.plan.sub_question)
      user += prompts.render_passages(done.passages, style=COMPACT)
    return dataclasses.replace(prompt, user=tuple(user))

  def parse_compact_turn(self, question: Question, text: str) -> Parsed:
    """Return R1-Router's plan, with all knowledge bases as its routes."""
    plan = format.parse_plan(text)
    if isinstance(plan, Plan) and plan.routes:
      return make_search(plan.sub_question, thought=plan.thought)
    return plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class OmniSearch(SearchAgent):
  """Plan with a tool for each sub-question."""

  summarize: bool = True

  def build_prompt(self, step: Step, rounds: Rounds) -> Conversation:
    """Return the question and the history in the user turn."""
    user = "Question: {}\n" + "Sub-Question: {}\nAnswer: {}\n" * len(rounds)
    if step.kind == "final":
      user += _NO_SEARCH_LEFT
    texts = step.question, *itertools.chain(*round_texts(rounds))
    return make_prompt(step.kind, _OMNISEARCH_SYSTEM, user, *texts)

  def parse_turn(self, question: Question, text: str) -> Parsed:
    """Return the search of the tool that a response takes, or its answer."""
    fields = {name.lower(): value for name, value in _FIELDS.findall(text)}
    # An answer counts even if the response names a search, too.
    if "end" in fields:
      return extract_answer(fields["end"])
    tool = fields.get("search", "")
    sub_question = fields.get("sub-question", "")
    # A search by the question's image has no query of its own.
    if query := _QUERY.search(tool):
      sub_question = query[1].splitlines()[0]
    if not sub_question.strip() or "retrieval" not in tool.lower():
      reason = "it has no <Search> with a tool and a query, and no <End>"
      return Malformed(text, reason)
    # Both image tools search the image knowledge base; the question's image
    # goes with every query there.
    kb = "image" if tool.lower().startswith("image") else "text"
    return make_search(sub_question, (kb,), fields.get("thought", ""))

  def parse_compact_turn(self, question: Question, text: str) -> Parsed:
    """Return R1-Router's plan, with texts in place of tables."""
    plan = format.parse_plan(text)
    if isinstance(plan, Plan) and plan.routes == ("table",):
      return make_search(plan.sub_question, ("text",), plan.thought)
    return plan


SEARCH_R1 = TagSearch(
  query=("<search>", "</search>"),
  result=("<information>", "</information>"),
  stop=("</search>", "</answer>"),
)

SEARCH_O1 = TagSearch(
  query=("<|begin_search_query|>", "<|end_search_query|>"),
  result=("<|begin_search_result|>", "<|end_search_result|>"),
  stop=("<|end_search_query|>", "</answer>"),
  summarize=True,
)
