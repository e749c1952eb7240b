"""Open-WikiTable: the published texts, hostile cells, and bounded memory."""

import io
import json
import tracemalloc

import pytest

from r1router_jax.common.row_files import RejectedRow
from r1router_jax.retrieval.corpora import open_wikitable
from tests.retrieval.corpora import plain_reader
from tests.retrieval.corpora.wikitables import FLATTENED, TABLES, by_columns


def read(tmp_path, value):
  path = tmp_path / "splitted_tables.json"
  path.write_text(value if isinstance(value, str) else json.dumps(value))
  return list(plain_reader.read_passages("table", f"open_wikitable:{path}"))


def test_composed_texts_are_the_published_ones(tmp_path):
  found = read(tmp_path, by_columns(TABLES))
  assert [(p.id, p.kb, p.text) for p in found] == [
    (str(i), "table", text) for i, text in enumerate(FLATTENED)
  ]


def test_flattened_column_is_kept_to_the_letter(tmp_path):
  ends = "\n", ' "[]{}:,\\" \u2028 '
  texts = [text + end for text, end in zip(FLATTENED, ends, strict=True)]
  pairs = zip(TABLES, texts, strict=True)
  rows = [table | dict(flattened=text) for table, text in pairs]
  for indent in (None, 1):
    found = read(tmp_path, json.dumps(by_columns(rows), indent=indent))
    assert [p.text for p in found] == texts


def test_columns_with_any_json_are_found(tmp_path):
  odd = [None, True, -1.5e3, "", '"', "\\", "a]}", [], {}, [[]], {"a": [{}]}]
  odd.append([{"b": ","}, "]"])
  rows = [dict(odd=value, flattened=f"text {i}") for i, value in enumerate(odd)]
  found = read(tmp_path, by_columns(rows))
  assert [p.text for p in found] == [row["flattened"] for row in rows]


def test_bad_chunk_is_rejected_and_later_ids_stay(tmp_path):
  rows = [dict(flattened=text) for text in ("a", "", None, 3, "b\x00", "c")]
  found = read(tmp_path, by_columns(rows))
  assert [getattr(p, "id", "") for p in found] == ["0", "", "", "", "", "5"]
  assert isinstance(found[1], RejectedRow)
  assert found[1].where.endswith(": row 1")


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
    '{"flattened": {"0": NaN}}',
    '{"flattened": {"0": ' + "[" * 100_000,
  ],
)
def test_file_without_columns_is_refused(tmp_path, text):
  with pytest.raises(ValueError, match="Open-WikiTable's splitted_tables.json"):
    read(tmp_path, text)


def test_memory_is_bounded_by_the_file_size():
  row = dict(header=["a"] * 9, rows=[["cell"] * 9] * 20, flattened="x" * 900)
  data = json.dumps(by_columns([row] * 3000)).encode()
  tracemalloc.start()
  rows = open_wikitable.read_rows("table", "x", lambda _: io.BytesIO(data))
  count = sum(1 for _ in rows)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert count == 3000 and peak < 2.2 * len(data)
