"""Baselines that search in the midst of a reply, between tags of their own.

  search_r1   <search>..</search> is answered by <information> passages
              </information>, word for word (arxiv.org/abs/2503.09516)
  search_o1   <|begin_search_query|>..<|end_search_query|> is answered by what
              an answer step reads off the passages (arxiv.org/abs/2501.05366)

A response ends at the tag that closes a query.  What was found is put behind
it and the reply goes on, so a policy reads on from its own words.  The tags are
the originals'; the words around them are ours.
"""

import dataclasses
import re
from collections.abc import Sequence

from r1router_jax.common.records import Answer, Malformed, Plan, Question, Round
from r1router_jax.protocol import format, prompts
from r1router_jax.protocol.messages import Conversation, Segment
from r1router_jax.routing.baselines.prompting import (
  COMPACT,
  answer_in,
  ask,
  search,
)
from r1router_jax.routing.baselines.search_loop import Language

_SYSTEM = (
  "Answer the question.  Think inside <think> and </think> whenever you "
  "learn something.  What you do not know you can search, as often as you "
  "want: write {query}.  What is found comes back between {found}.  As soon "
  "as you know enough, write <answer>the answer in as few words as you can"
  "</answer>."
)


@dataclasses.dataclass(frozen=True)
class Tags:
  """Of a query, and of what it found."""

  query: tuple[str, str]
  found: tuple[str, str]
  passages: bool  # Whether all of these are put there, or what was read there.

  def stop(self) -> tuple[str, ...]:
    """What ends a response."""
    return self.query[1], "</answer>"

  def language(self) -> Language:
    """A language with these tags."""
    system = _SYSTEM.format(
      query="a query".join(self.query), found=" and ".join(self.found)
    )

    def turn(style, question, rounds, last=""):
      if style == COMPACT:
        return self._compact(question, rounds, bool(last))
      said = [piece for done in rounds for piece in self._told(done)]
      return ask(
        "final" if last else "plan",
        system,
        "Question: {}",
        question,
        texts=[question.text],
        said=[*said, *prompts.fill(last)],
      )

    def conclude(style, question, rounds):
      return turn(style, question, rounds, "I know enough now.\n<answer>")

    return Language(conclude, (), turn, self._read, not self.passages)

  def _told(self, done: Round) -> list[Segment]:
    """A round of the reply."""
    opening, closing = self.query
    asked = prompts.fill(
      f"<think>{{}}</think>\n{opening}{{}}{closing}\n\n",
      done.plan.thought,
      done.plan.sub_question,
    )
    found = (
      prompts.shown(done.passages, style="full")
      if self.passages
      else (prompts.fill("{}", done.answer.text))
    )
    return [
      *asked,
      Segment(self.found[0], "template"),
      *found,
      Segment(f"{self.found[1]}\n\n", "template"),
    ]

  def _compact(
    self, question: Question, rounds: Sequence[Round], last: bool
  ) -> Conversation:
    """As R1-Router's steps; passages stand where answers do."""
    history = (
      []
      if self.passages
      else [(done.plan.sub_question, done.answer.text) for done in rounds]
    )
    spell = prompts.final_conversation if last else prompts.plan_conversation
    prompt = spell(question.text, question.image, history, style=COMPACT)
    if self.passages:
      told = [
        piece
        for done in rounds
        for piece in (
          *prompts.fill("{}\n", done.plan.sub_question),
          *prompts.shown(done.passages, style=COMPACT),
        )
      ]
      prompt = dataclasses.replace(prompt, user=(*prompt.user, *told))
    return prompt

  def _read(
    self, style: str, question: Question, text: str
  ) -> Plan | Answer | Malformed:
    """The first query, or the answer."""
    if style == COMPACT:
      said = format.parse_plan(text)
      asks = isinstance(said, Plan) and said.route != "none"
      return search(said.sub_question, thought=said.thought) if asks else said
    opening, closing = map(re.escape, self.query)
    asked = re.search(rf"(?s){opening}(.*?)(?:{closing}|\Z)", text)
    if asked and asked[1].strip():
      before = re.sub(r"</?think>", " ", text[: asked.start()])
      return search(asked[1], thought=" ".join(before.split()))
    if "<answer>" in text.lower():
      return answer_in(text)
    return Malformed(text, f"neither {self.query[0]} nor <answer> is in it")


SEARCH_R1 = Tags(
  ("<search>", "</search>"), ("<information>", "</information>"), True
)

SEARCH_O1 = Tags(
  ("<|begin_search_query|>", "<|end_search_query|>"),
  ("<|begin_search_result|>", "<|end_search_result|>"),
  False,
)
