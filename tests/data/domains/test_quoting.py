"""Thoughts before answers quote the sentence or the cell that tells them."""

import pytest

from r1router_jax.common.records import Passage
from r1router_jax.data.domains import quoting

TEXT = (
  "Bridges. The Iron Bridge was paid for by a baker. It has nine arches, and "
  "the baker got one of them. Nobody knows which."
)

TABLE = (
  "[Title]Bridges[Section title][Caption][Table name][Header]Bridge[sep]Arches"
  "[sep]Built in[Rows][Row]Iron Bridge[sep]9[sep]1890[Row]Old Bridge[sep]1890"
  "[sep]1402"
)


@pytest.mark.parametrize(
  "kb, text, asked, answer, thought",
  [
    ("text", TEXT, "Who paid for the Iron Bridge?", "a baker", 1),
    ("text", TEXT, "How many arches has it?", "nine arches", 2),
    # Nothing tells it: no quotation.
    ("text", TEXT, "Who is the mayor?", "Mira Toll", ""),
    # A heading is no sentence about what it names.
    (
      "text",
      "Mira Toll. Her bridge has nine arches.",
      "Whose bridge has nine arches?",
      "Mira Toll",
      "Mira Toll: Her bridge has nine arches",
    ),
    # The row and the column of the sub-question, not the first equal cell.
    (
      "table",
      TABLE,
      "In which year was the Iron Bridge built?",
      "1890",
      "Iron Bridge: Built in 1890",
    ),
    (
      "table",
      TABLE,
      "How many arches has the Old Bridge?",
      "1890",
      "Old Bridge: Arches 1890",
    ),
    # A row that is asked for comes last.
    (
      "table",
      TABLE,
      "Which bridge was built in 1402?",
      "Old Bridge",
      "Built in 1402: Old Bridge",
    ),
    ("image", "Badge of the baker: a loaf.", "What is on it?", "a loaf", ""),
  ],
)
def test_quotation(kb, text, asked, answer, thought):
  if isinstance(thought, int):
    thought = text.split(". ")[thought]
  passage = Passage("p", kb, text)
  assert quoting.quote(passage, asked, answer) == thought


def test_long_sentence_is_cropped_around_the_answer():
  words = [f"word{i}" for i in range(100)]
  found = quoting.quote(
    Passage("p", "text", " ".join(words) + "."), "Which word?", "word50"
  )
  assert len(found) <= quoting.MAX_CHARACTERS
  # Whole words, in their order.
  first = words.index(found.split()[0])
  assert found.split() == words[first : first + len(found.split())]
  assert "word50" in found
