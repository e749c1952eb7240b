import io
import json
import tracemalloc

import pytest

from r1router_jax.common.row_files import RejectedRow
from r1router_jax.retrieval.corpora import open_wikitable, sources

# Two of the tables as the published Step-GRPO rows show them.
TABLES = [
  dict(
    original_table_id="2-16335823-2",
    page_title="André Amade",
    section_title="Mixed martial arts record",
    caption="Mixed martial arts record",
    name="table_2_16335823_2",
    header=["Res_", "Record", "Opponent", "Method_", "Event", "Location_"],
    rows=[
      [
        "Win",
        "2–0",
        "Sergio Vieira",
        "KO (punch)",
        "Storm Samurai 6",
        "Curitiba , Brazil",
      ],
      [
        "Win",
        "1–0",
        "Leandro Sousa",
        "Decision",
        "Storm Samurai 4",
        "Curitiba , Brazil",
      ],
    ],
  ),
  dict(
    original_table_id="1-22771048-4",
    page_title="List of Link Light Rail stations",
    section_title="Planned or proposed stations",
    caption="Planned or proposed stations",
    name="table_1_22771048_4",
    header=[
      "Station",
      "Extension",
      "City_Neighborhood",
      "Projected_opening",
      "Park_and_ride",
      "Funded_by_ST2_",
    ],
    rows=[
      [
        "Overlake Transit Center",
        "East Link",
        "Overlake",
        "2021",
        "Yes",
        "Yes",
      ],
      ["SE Redmond", "East Link", "Redmond", "Unknown", "No", "No"],
    ],
  ),
]

FLATTENED = [
  "[Title]André Amade[Section title]Mixed martial arts record[Caption]Mixed "
  "martial arts record[Table name]table_2_16335823_2[Header]Res_[sep]Record"
  "[sep]Opponent[sep]Method_[sep]Event[sep]Location_[Rows][Row]Win[sep]2–0"
  "[sep]Sergio Vieira[sep]KO (punch)[sep]Storm Samurai 6[sep]Curitiba , "
  "Brazil[Row]Win[sep]1–0[sep]Leandro Sousa[sep]Decision[sep]Storm Samurai 4"
  "[sep]Curitiba , Brazil",
  "[Title]List of Link Light Rail stations[Section title]Planned or proposed "
  "stations[Caption]Planned or proposed stations[Table name]"
  "table_1_22771048_4[Header]Station[sep]Extension[sep]City_Neighborhood"
  "[sep]Projected_opening[sep]Park_and_ride[sep]Funded_by_ST2_[Rows][Row]"
  "Overlake Transit Center[sep]East Link[sep]Overlake[sep]2021[sep]Yes[sep]"
  "Yes[Row]SE Redmond[sep]East Link[sep]Redmond[sep]Unknown[sep]No[sep]No",
]


def by_columns(rows, **more):
  """As DataFrame.to_json writes them."""
  return {
    name: {str(i): row[name] for i, row in enumerate(rows)} for name in rows[0]
  } | more


def read(tmp_path, value):
  path = tmp_path / "splitted_tables.json"
  path.write_text(value if isinstance(value, str) else json.dumps(value))
  return list(sources.read_passages("table", f"open_wikitable:{path}"))


def test_tables_are_composed_as_the_published_ones(tmp_path):
  found = read(tmp_path, by_columns(TABLES))
  assert [(p.id, p.kb, p.text) for p in found] == [
    (str(i), "table", text) for i, text in enumerate(FLATTENED)
  ]


def test_flattened_is_kept_to_the_letter(tmp_path):
  rows = [
    table | dict(flattened=text + end)
    for table, text, end in zip(
      TABLES, FLATTENED, ("\n", ' "[]{}:,\\" \u2028 '), strict=True
    )
  ]
  for indent in (None, 1):
    found = read(tmp_path, json.dumps(by_columns(rows), indent=indent))
    assert [p.text for p in found] == [row["flattened"] for row in rows]


def test_columns_are_found_whatever_they_hold(tmp_path):
  odd = [
    None,
    True,
    -1.5e3,
    "",
    '"',
    "\\",
    "a]}",
    [],
    {},
    [[]],
    {"a": [{}]},
    [{"b": ","}, "]"],
  ]
  rows = [dict(odd=value, flattened=f"text {i}") for i, value in enumerate(odd)]
  assert [p.text for p in read(tmp_path, by_columns(rows))] == [
    f"text {i}" for i in range(len(odd))
  ]
  text = json.dumps(by_columns(rows, last={str(i): i for i in range(len(odd))}))
  spans = open_wikitable._find_columns("x", text.encode())
  for name, values in json.loads(text).items():
    starts, stops = spans[name][::2], spans[name][1::2]
    assert [
      json.loads(text.encode()[a:b]) for a, b in zip(starts, stops, strict=True)
    ] == list(values.values())


def test_a_bad_chunk_is_named_and_ids_stay_those_of_the_file(tmp_path):
  rows = [dict(flattened=text) for text in ("a", "", None, 3, "b\x00", "c")]
  found = read(tmp_path, by_columns(rows))
  assert [getattr(p, "id", "bad") for p in found] == [
    "0",
    "bad",
    "bad",
    "bad",
    "bad",
    "5",
  ]
  assert isinstance(found[1], RejectedRow) and found[1].where.endswith(": row 1")


@pytest.mark.parametrize(
  "text",
  [
    "",
    "[1, 2]",
    "{}",
    '{"flattened": ["a"]}',
    '[{"flattened": "a"}]',
    '{"flattened": {"0": "a"}, "rows": {"1": []}}',
    '{"flattened": {"0": "a", "1": "b"}, "rows": {"0": []}}',
    '{"flattened": {"0": "a"}',
    '{"page_title": {"0": "a"}}',
    '{"header": {"0": ["a"]}}',
    '{"flattened": "a"}',
  ],
)
def test_what_is_no_table_is_refused(tmp_path, text):
  with pytest.raises(ValueError, match="Open-WikiTable's splitted_tables.json"):
    read(tmp_path, text)


def test_memory_is_that_of_the_bytes():
  row = dict(header=["a"] * 9, rows=[["cell"] * 9] * 20, flattened="x" * 900)
  data = json.dumps(by_columns([row] * 3000)).encode()
  tracemalloc.start()
  count = sum(1 for _ in open_wikitable.read_rows("x", lambda _: io.BytesIO(data)))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert count == 3000 and peak < 2.2 * len(data)
