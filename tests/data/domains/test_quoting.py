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


def test_long_cell_is_not_quoted():
  long = TABLE.replace("1402", "1402 " + "or later " * 30)
  assert quoting.quote_cell(long, "Built when, Old Bridge?", "1402") == ""
