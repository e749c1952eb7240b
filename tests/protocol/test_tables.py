"""Tables of passages, parsed and written with labelled cells."""

import pytest

from r1router_jax.common.records import Passage, Question, Step
from r1router_jax.policy.config import PromptOptions
from r1router_jax.protocol import tables

HEADINGS = "[Title]Bridges[Section title][Caption]Old ones[Table name]Bridges"
TEXT = (
  HEADINGS + "[Header]Bridge[sep]Arches[sep]Built in[Rows]"
  "[Row]Iron Bridge[sep]9[sep]1890[Row]Old Bridge[sep][sep]1402"
)


def test_table_is_parsed_into_its_parts():
  table = tables.parse_table(TEXT)
  assert table.headings == ["Bridges", "", "Old ones", "Bridges"]
  assert table.header == ["Bridge", "Arches", "Built in"]
  assert table.rows == [
    ["Iron Bridge", "9", "1890"],
    ["Old Bridge", "", "1402"],
  ]


def test_cells_stand_behind_their_columns():
  assert tables.label_cells(TEXT) == (
    "Bridges, Old ones\n"
    "Iron Bridge: Arches 9; Built in 1890\n"
    "Old Bridge: Built in 1402"
  )


@pytest.mark.parametrize(
  "rows, wanted",
  [
    ("[Row]a[sep]b[sep]c", "a: Y b; c"),  # More cells than columns,
    ("[Row]a", "a"),  # fewer,
    ("[Row]", ""),  # and none.
    ("", ""),
  ],
)
def test_ragged_rows_lose_no_cell(rows, wanted):
  text = f"[Header]X[sep]Y[Rows]{rows}"
  assert tables.label_cells(text) == wanted


def test_text_before_the_marks_is_kept():
  text = "Old: [Title]Bridges[Header]X[Rows][Row]a"
  assert tables.label_cells(text) == "Old:, Bridges\na"


@pytest.mark.parametrize("text", ["", "No table.", "[Header] alone", "[Rows]"])
def test_text_without_a_table_stays(text):
  assert tables.parse_table(text) is None
  assert tables.label_cells(text) == text


def test_prompts_label_cells_of_tables_if_the_policy_says_so():
  passages = Passage("a", "text", TEXT), Passage("b", "table", TEXT)
  question = Question("", "How old?")
  step = Step("", "answer", question, (), "How old?", passages=passages)

  def ask(**options):
    prompt = PromptOptions(style="compact", **options).build_prompt(step)
    return "".join(segment.text for segment in prompt.user)

  labelled = tables.label_cells(TEXT)
  # The text knowledge base is not touched, whatever it holds.
  assert ask(labels_cells=True) == f"Q: How old?\n{TEXT}\n{labelled}\n"
  assert ask() == f"Q: How old?\n{TEXT}\n{TEXT}\n"
