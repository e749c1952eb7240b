"""Data types that all packages share: plain frozen records.

A question is answered in rounds.  A round is two steps: a *plan* (thought,
sub-question, routes) and an *answer*, read off the passages that the knowledge
bases of these routes returned.  A plan that needs no knowledge base ends the
rounds, and a last *final* step answers the question.  A `Trajectory` of
`Round`s records what a policy did; a `Question` with its gold `Hop`s says what
it should have done.

Routes are named by their knowledge base: `"text"`, `"image"` or `"table"`.
`protocol/format.py` knows how a prompt spells them.
"""

import dataclasses

import numpy as np

# Knowledge bases, in the order in which prompts name them.
KBS = ("text", "image", "table")

# Kinds of step.
KINDS = ("plan", "answer", "final")

# Rounds that the routing loop allows by default; no gold trace has more hops.
MAX_HOPS = 3

# Kinds of fault in `Trajectory.faults` that end planning.
TERMINAL_FAULTS = ("stuck", "repeated", "input")

# Kinds of fault that stand for a response that breaks the protocol.
FORMAT_FAULTS = ("plan", "answer", "final")


# --- Knowledge bases ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Passage:
  """One entry of a knowledge base, as a prompt shows it.

  Attributes:
    id: unique across all knowledge bases, e.g. `"text/chad/3"`.
    kb: one of `KBS`.
    text: the passage, the caption of an image, or the flattened table.
    image: path of the image that the caption describes, or "".
    score: similarity to the query that found the passage; NaN without a query.
  """

  id: str
  kb: str
  text: str
  image: str = ""
  score: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Query:
  """A query to a knowledge base.

  Attributes:
    text: the sub-question.
    image: path of the question's image, or "".
  """

  text: str
  image: str = ""


# --- Parsed responses of a policy ---------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
  """The parsed response of a plan step: the next sub-question and its routes.

  Attributes:
    thought: the reasoning.
    sub_question: the question for the knowledge bases.
    routes: the knowledge bases to search, each one of `KBS`, in the order in
      which the policy named them; empty if the policy knows enough.
  """

  thought: str
  sub_question: str
  routes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Answer:
  """The parsed response of an answer step or a final step."""

  thought: str
  text: str


@dataclasses.dataclass(frozen=True)
class Malformed:
  """A response that breaks the protocol, with the reason; not an error."""

  text: str
  reason: str


# --- Questions and their gold rounds ------------------------------------------


@dataclasses.dataclass(frozen=True)
class Hop:
  """One gold round: a sub-question, its knowledge bases and its answers.

  Attributes:
    sub_question: the canonical wording.
    routes: every knowledge base that can answer it, the preferred one first.
    answers: accepted answers, the canonical one first.
    evidence: ids of passages that hold the answer, or of documents that were
      cut into passages "id#0" and so on.
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
    text: the question in the user's words.
    answers: accepted final answers, the canonical one first.
    image: path of the question's image, or "".
    family: the kind of question, for reports, e.g. "image_table_2hop".
    benchmark: the published benchmark that the family mirrors, or "".
    subjects: ids of the entities that the question is about; data splits are
      disjoint in these.
    hops: gold rounds, in order; empty if no retrieval is needed, None if the
      gold rounds are unknown.
    interval: lowest and highest accepted number if any number between them is
      right, whatever `answers` says; else empty.
    members: the members of each of `answers`, in order, if these are lists, of
      which an answer should name all; else empty.
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
  members: tuple[tuple[str, ...], ...] = ()


# --- Records of what a policy did ---------------------------------------------


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
  """One executed round; `answer` is Malformed if no answer could be parsed."""

  plan: Plan
  passages: tuple[Passage, ...]
  answer: Answer | Malformed


# What a round is made of, one after the other.
RoundPart = Plan | tuple[Passage, ...] | Answer | Malformed


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """Everything a policy did for one question.

  Attributes:
    question: the question that was answered.
    rounds: the executed rounds, at most the loop's `max_steps`.
    final: the parsed response of the final step.
    faults: what went wrong, in order, as "<kind>: <reason>"; the kinds are
      listed in routing/router.py.
    tokens: total number of response tokens.
    truncated_tokens: tokens cut off passages so that answer prompts fitted.
  """

  question: Question
  rounds: tuple[Round, ...]
  final: Answer | Malformed
  faults: tuple[str, ...] = ()
  tokens: int = 0
  truncated_tokens: int = 0

  @property
  def fault_kinds(self) -> set[str]:
    """The kinds of all faults."""
    return {fault.partition(":")[0] for fault in self.faults}


# --- Training rows ------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
  """One prompt of a gold trajectory with its right responses: a training row.

  Attributes:
    id: "<question id>/<position>".
    kind: one of `KINDS`.
    question: the question that the step belongs to.
    history: (sub-question, answer) of each earlier round.
    sub_question: what an answer step answers, or what a plan step should ask;
      "None" for a plan that should stop, "" for the final step.
    routes: accepted routes of a plan step, the preferred first; else empty.
    answers: accepted answers of an answer or final step; else empty.
    passages: the passages that an answer step reads.
    response: the teacher's response, in the protocol's format, or "".
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
