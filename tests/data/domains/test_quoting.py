"""Thoughts before answers quote the cell that tells them."""

import pytest

from r1router_jax.data.domains import quoting

TABLE = (
  "[Title]Bridges[Section title][Caption][Table name][Header]Bridge[sep]Arches"
  "[sep]Built in[Rows][Row]Iron Bridge[sep]9[sep]1890[Row]Old Bridge[sep]1890"
  "[sep]1402"
)


@pytest.mark.parametrize(
  "asked, answer, thought",
  [
    # The row and the column of the sub-question, not the first equal cell.
    (
      "In which year was the Iron Bridge built?",
      "1890",
      "Iron Bridge: Built in 1890",
    ),
    (
      "How many arches has the Old Bridge?",
      "1890",
      "Old Bridge: Arches 1890",
    ),
    # A row that is asked for comes last.
    (
      "Which bridge was built in 1402?",
      "Old Bridge",
      "Built in 1402: Old Bridge",
    ),
    # Nothing tells it, not even a longer number: no quotation.
    ("How many arches has the Old Bridge?", "140", ""),
    ("Who is the mayor?", "Mira Toll", ""),
  ],
)
def test_cell_of_the_answer(asked, answer, thought):
  assert quoting.quote_cell(TABLE, asked, answer) == thought


@pytest.mark.parametrize(
  "text, words, expected",
  [
    ("Built in 1890.", "9", False),
    ("It is 1,890 m high, 3.9 m wide.", "9", False),
    ("It is 1,890 m high, 3.9 m wide.", "890", False),
    ("It is 1,890 m high, 3.9 m wide.", "3", False),
    ("It has 3, no more.", "3", True),
    ("In 1890, 9 arches.", "9", True),
    ("[sep]9[sep]1890", "9", True),
    ("They settled then.", "the", False),
    ("Mira Toll's hen", "MIRA TOLL", True),
    ("At 90 %.", "90 %", True),
  ],
)
def test_whole_words(text, words, expected):
  assert quoting.has_words(text, words) == expected


def test_long_cell_is_not_quoted():
  long = TABLE.replace("1402", "1402 " + "or later " * 30)
  assert quoting.quote_cell(long, "Built when, Old Bridge?", "1402") == ""
