"""The nouns of the house: plain frozen records that every floor shares.

A question is answered in rounds.  A round is two steps, a *plan* (thought,
sub-question, route) and an *answer* read off the passages that the route's
knowledge base returned.  A plan with route "none" ends the rounds; a last
*final* step answers the question.  What a policy really did is a `Trajectory`
of `Round`s; what it should have done is a `Question` with its gold `Hop`s.

Routes are named by their knowledge base, `"text"`, `"image"`, `"table"`, and
`"none"`; how a prompt spells them is the business of `protocol.py`.
"""

import dataclasses

import numpy as np

MAX_HOPS = 3  # Rounds that the loop allows.


KBS = ("text", "image", "table")  # Knowledge bases, in the order of a prompt.

ROUTES = (*KBS, "none")

KINDS = ("plan", "answer", "final")  # Kinds of step.


@dataclasses.dataclass(frozen=True)
class Passage:
  """One entry of a knowledge base, as a prompt shows it.

  Attributes:
    id: unique within the house, e.g. `"text/chad/3"`.
    kb: one of `KBS`.
    text: the passage, the picture's caption, or the flattened table.
    image: path of the picture that the caption describes, or "".
    score: similarity to the query that fetched it, NaN where none did.
  """

  id: str
  kb: str
  text: str
  image: str = ""
  score: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Query:
  """What is asked of a knowledge base.

  Attributes:
    text: the sub-question.
    image: path of the question's picture, or "".
  """

  text: str
  image: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a plan step says: reasoning, the next sub-question, where to ask.

  Attributes:
    thought: the reasoning.
    sub_question: what to ask next.
    route: one of `ROUTES`.
    also: further routes that are asked the same, where a policy may name some.
  """

  thought: str
  sub_question: str
  route: str
  also: tuple[str, ...] = ()

  @property
  def routes(self) -> tuple[str, ...]:
    """All of them, in the order in which they were named."""
    return self.route, *self.also


@dataclasses.dataclass(frozen=True)
class Answer:
  """What an answer or final step says."""

  thought: str
  text: str


@dataclasses.dataclass(frozen=True)
class Malformed:
  """A response that is not of the protocol: ordinary data, with the reason."""

  text: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Hop:
  """One gold round: what to ask, where it can be asked, what comes out.

  Attributes:
    sub_question: the canonical wording.
    routes: every knowledge base that can answer it, the preferred one first.
    answers: accepted answers, the canonical one first.
    evidence: ids of passages that hold the answer.
  """

  sub_question: str
  routes: tuple[str, ...]
  answers: tuple[str, ...]
  evidence: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Question:
  """A question with its gold trace.

  Attributes:
    id: unique within its benchmark.
    text: as the user asks it.
    answers: accepted final answers, the canonical one first.
    image: path of the question's picture, or "".
    family: the kind of question, for reports, e.g. "image_table_2hop".
    benchmark: the published benchmark that the family mirrors, or "".
    subjects: ids of the entities it is about; splits are disjoint in these.
    hops: gold rounds, in order; empty where no retrieval is needed, None where
      nobody knows.
    interval: lowest and highest accepted number, where the answer may be any
      number between, whatever `answers` say; else empty.
  """

  id: str
  text: str
  answers: tuple[str, ...] = ()
  image: str = ""
  family: str = ""
  benchmark: str = ""
  subjects: tuple[str, ...] = ()
  hops: tuple[Hop, ...] | None = ()
  interval: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Response:
  """One sampled text with its tokens `T` and their log-probabilities (nats).

  `tokens` includes the end token where one was drawn; `text` does not.
  """

  text: str
  tokens: np.ndarray
  logp: np.ndarray


@dataclasses.dataclass(frozen=True)
class Round:
  """One executed round; `answer` is Malformed where the reading failed."""

  plan: Plan
  passages: tuple[Passage, ...]
  answer: Answer | Malformed


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """Everything a policy did for one question.

  Attributes:
    question: what was asked.
    rounds: the executed rounds, at most the loop's `max_steps`.
    final: the last step.
    faults: what went wrong, in order, as "<kind>: <reason>"; see router.py.
    tokens: response tokens written in all.
    cut: tokens that passages lost so that answer prompts fitted.
  """

  question: Question
  rounds: tuple[Round, ...]
  final: Answer | Malformed
  faults: tuple[str, ...] = ()
  tokens: int = 0
  truncated_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Step:
  """One prompt of a gold trajectory, and what counts as right: a training row.

  Attributes:
    id: "<question id>/<position>".
    kind: one of `KINDS`.
    question: the question it belongs to.
    history: (sub-question, answer) of the rounds before it.
    sub_question: what an answer step answers, or what a plan step should ask;
      "None" for a plan that should stop, "" for the final step.
    routes: accepted routes of a plan step, the preferred first; else empty.
    answers: accepted answers of an answer or final step; else empty.
    passages: what an answer step reads.
    response: what a teacher wrote, where it is kept; of the protocol.
  """

  id: str
  kind: str
  question: Question
  history: tuple[tuple[str, str], ...] = ()
  sub_question: str = ""
  routes: tuple[str, ...] = ()
  answers: tuple[str, ...] = ()
  passages: tuple[Passage, ...] = ()
  response: str = ""


# Kinds of fault, see router.py.
CUT_SHORT = ("stuck", "repeated", "input")  # They end planning.

FORMAT = ("plan", "answer", "final")  # Responses not of the protocol.
