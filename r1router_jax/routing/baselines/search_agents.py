"""Baselines that search in the midst of a reply, between tags of their own.

  search_r1   <search>..</search> is answered by <information> passages
              </information>, word for word (arxiv.org/abs/2503.09516)
  search_o1   <|begin_search_query|>..<|end_search_query|> is answered by what
              an answer step reads off the passages (arxiv.org/abs/2501.05366)

A response ends at the tag that closes a query.  The result is put behind it and
the reply goes on, so a policy continues from its own words.  The tags are the
originals'; the words around them are not.
"""

import dataclasses
import functools
import re

from r1router_jax.common.records import (
  Answer,
  Malformed,
  Plan,
  Question,
  Round,
)
from r1router_jax.protocol import format, prompts
from r1router_jax.protocol.messages import Conversation, Segment
from r1router_jax.routing.baselines.prompting import (
  COMPACT,
  Rounds,
  SearchAgent,
  Wording,
  build_prompt,
  compact_prompt,
  extract_answer,
  make_search,
)

_SYSTEM = (
  "Answer the question.  Think inside <think> and </think> whenever you "
  "learn something.  What you do not know you can search, as often as you "
  "want: write {query}.  What is found comes back between {found}.  As soon "
  "as you know enough, write <answer>the answer in as few words as you can"
  "</answer>."
)

# Opens the answer of a policy that has no search left.
_CONCLUDE = "I know enough now.\n<answer>"


@dataclasses.dataclass(frozen=True)
class SearchTags:
  """The tags of a method that searches within its reply.

  Attributes:
    query: opening and closing tag of a query.
    result: opening and closing tag of its result.
    shows_passages: whether the result is the passages themselves, or what an
      answer step reads there.
  """

  query: tuple[str, str]
  result: tuple[str, str]
  shows_passages: bool

  def make_agent(self) -> SearchAgent:
    """Return the baseline with these tags."""
    partial = functools.partial
    return SearchAgent(
      stop=(self.query[1], "</answer>"),
      full=Wording(
        partial(self._build_prompt, "final", _CONCLUDE),
        partial(self._build_prompt, "plan", ""),
        self._parse_turn,
      ),
      compact=Wording(
        partial(self._build_compact_prompt, "final"),
        partial(self._build_compact_prompt, "plan"),
        _parse_compact_turn,
      ),
      summarize=not self.shows_passages,
    )

  def _build_prompt(
    self, kind: str, ending: str, question: Question, rounds: Rounds
  ) -> Conversation:
    """Return the question with the reply so far."""
    # The braces of `format` are filled with tags, never with untrusted text.
    system = _SYSTEM.format(
      query="a query".join(self.query), found=" and ".join(self.result)
    )
    reply = [segment for done in rounds for segment in self._render_round(done)]
    reply += prompts.fill_template(ending)
    return build_prompt(
      kind, system, "Question: {}", question, reply_prefix=reply
    )

  def _render_round(self, done: Round) -> list[Segment]:
    """Return a round as a part of the reply."""
    template = "<think>{}</think>\n" + "{}".join(self.query) + "\n\n"
    texts = done.plan.thought, done.plan.sub_question
    query = prompts.fill_template(template, *texts)
    if self.shows_passages:
      result = prompts.render_passages(done.passages, style="full")
    else:
      result = prompts.fill_template("{}", done.answer.text)
    opening = Segment(self.result[0], "template")
    closing = Segment(f"{self.result[1]}\n\n", "template")
    return [*query, opening, *result, closing]

  def _parse_turn(
    self, question: Question, text: str
  ) -> Plan | Answer | Malformed:
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

  def _build_compact_prompt(
    self, kind: str, question: Question, rounds: Rounds
  ) -> Conversation:
    """Return a compact prompt, with passages in the place of their answers."""
    if not self.shows_passages:
      return compact_prompt(kind, question, rounds)
    prompt = compact_prompt(kind, question)
    user = list(prompt.user)
    for done in rounds:
      user += prompts.fill_template("{}\n", done.plan.sub_question)
      user += prompts.render_passages(done.passages, style=COMPACT)
    return dataclasses.replace(prompt, user=tuple(user))


def _parse_compact_turn(question: Question, text: str) -> Plan | Malformed:
  """Return R1-Router's plan, with all knowledge bases as its routes."""
  plan = format.parse_plan(text)
  if isinstance(plan, Plan) and plan.routes:
    return make_search(plan.sub_question, thought=plan.thought)
  return plan


O1_TAGS = SearchTags(
  ("<|begin_search_query|>", "<|end_search_query|>"),
  ("<|begin_search_result|>", "<|end_search_result|>"),
  False,
)

SEARCH_R1 = SearchTags(
  ("<search>", "</search>"), ("<information>", "</information>"), True
).make_agent()

SEARCH_O1 = O1_TAGS.make_agent()
