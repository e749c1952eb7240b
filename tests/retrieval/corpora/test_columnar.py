"""Corpora in Parquet files and in folders that `datasets` saved."""

import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from r1router_jax.common import row_files
from r1router_jax.retrieval.corpora import folders, sources
from tests.retrieval.corpora import plain_reader

ROWS = [
  dict(id=i, contents=f'"T{i}"\ntext {i}', vector=[0.5, i]) for i in range(600)
]
TEXTS = [(str(i), f"T{i} text {i}") for i in range(600)]


def write_arrow(path, rows, batch_rows=250):
  """Write a file as `datasets.save_to_disk` does: a stream of batches."""
  table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
  with path.open("wb") as file, ipc.new_stream(file, table.schema) as stream:
    stream.write_table(table, max_chunksize=batch_rows)


def write_parquet(path, rows):
  table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
  parquet.write_table(table, path, row_group_size=250)


def write_feather(path, rows):
  feather.write_feather(pa.Table.from_pylist(rows), path, chunksize=250)


def write_saved(folder, rows):
  """Write a folder as `datasets.save_to_disk` does, with splits."""
  for split, part in dict(test=rows[400:], train=rows[:400]).items():
    place = folder / split
    place.mkdir(parents=True)
    write_arrow(place / "data-00000-of-00002.arrow", part[:150])
    write_arrow(place / "data-00001-of-00002.arrow", part[150:])
    # Programs that open the folder may remember results there.
    write_arrow(place / "cache-0123456789abcdef.arrow", rows)
    (place / "state.json").write_text("{}")
    (place / "dataset_info.json").write_text("{}")
  (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')


def read(path, kb="text"):
  good, bad = plain_reader.split_passages(kb, str(path))
  return [(passage.id, passage.text) for passage in good], bad


@pytest.mark.parametrize(
  "name, write",
  [
    ("a.parquet", write_parquet),
    ("a.arrow", write_arrow),
    ("a.ARROW", write_feather),
  ],
)
def test_file_is_read(tmp_path, name, write):
  write(tmp_path / name, ROWS)
  assert read(tmp_path / name) == (TEXTS, [])
  assert read(tmp_path) == (TEXTS, [])
  # Reading may begin anywhere, as after a kill.
  source = sources.open_source("text", str(tmp_path / name))
  ((where, row),) = sources.read_raw_rows(source, 299, 300)
  assert where == f"{tmp_path}/{name}:300"
  assert sources.parse_row(source, where, row)[0] == "299"
  assert "vector" not in row


def test_folder_of_parquet_files_is_read_in_order(tmp_path):
  (tmp_path / "data").mkdir()
  for part in range(3):
    path = tmp_path / f"data/train-{part:05d}-of-00003.parquet"
    write_parquet(path, ROWS[200 * part : 200 * part + 200])
  assert read(tmp_path) == (TEXTS, [])
  assert sources.choose_kbs(str(tmp_path)) == ("text",)


def test_saved_data_set_is_read(tmp_path, caplog):
  write_saved(tmp_path / "saved", ROWS)
  found, bad = read(tmp_path / "saved")
  assert sorted(found) == sorted(TEXTS) and not bad
  folders.warn_of_unread(str(tmp_path / "saved"))
  assert not caplog.text


def test_columns_say_which_knowledge_base_they_are_for(tmp_path):
  table = dict(id="t", title="T", header=["a"], rows=[["1"], ["2"]])
  write_parquet(tmp_path / "tables.parquet", [table])
  image = dict(id="i", text="a lamp", image="lamp.png", title=None)
  write_parquet(tmp_path / "images.parquet", [image])
  write_parquet(
    tmp_path / "texts.parquet", [dict(id="x", text="y", title=None)]
  )
  assert read(tmp_path) == ([("x", "y")], [])
  ((_, text),), bad = read(tmp_path, "table")
  assert text.endswith("[Header]a[Rows][Row]1[Row]2") and not bad
  _, (bad,) = read(tmp_path, "image")
  assert "images.parquet:1: " in bad and "lamp.png" in bad


def test_bad_row_costs_itself_alone(tmp_path):
  texts = [b"good", b"\xff", b"x" * (row_files.MAX_ROW_BYTES + 1), b"fine"]
  ids = pa.array(["a", "b", "c", "d"])
  raw = pa.array(texts, pa.binary()).view(pa.string())
  table = pa.table({"id": ids, "text": raw})
  for name, write in (("a.parquet", write_parquet), ("b.arrow", write_arrow)):
    write(tmp_path / name, table)
    found, bad = read(tmp_path / name)
    assert [text[:9] for _, text in found] == ["good", "fine"]
    assert [row.partition(": ")[0] for row in bad] == [
      f"{tmp_path}/{name}:{number}" for number in (2, 3)
    ]
    assert "UTF-8" in bad[0] and "longer than 1,048,576" in bad[1]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_damaged_file_is_named_and_its_neighbours_are_read(tmp_path, name):
  path = tmp_path / name
  (write_parquet if name == "a.parquet" else write_arrow)(path, ROWS)
  whole = path.read_bytes()
  (tmp_path / "b.md").write_text("good")
  for damaged in (b"", b"no rows", whole[:100], whole[: len(whole) // 2]):
    path.write_bytes(damaged)
    found, (bad,) = read(tmp_path)
    assert found[-1] == ("b.md", "b. good.")
    assert bad.startswith(f"{path}: is no intact") and "\n" not in bad
    with pytest.raises(ValueError, match="is no intact"):
      read(path)


@pytest.mark.parametrize(
  "columns, words",
  [
    ({"text": ["a"]}, "wanted id, and text or contents"),
    ({"id": ["a"]}, "wanted id, and text or contents"),
    ({"id": ["a"], "text": [b"a"]}, "'text' is of type binary"),
    ({"id": ["a"], "text": [{"a": "b"}]}, "'text' is of type struct"),
  ],
)
def test_file_of_other_columns_is_refused(tmp_path, columns, words):
  path = tmp_path / "a.parquet"
  parquet.write_table(pa.table(columns), path)
  with pytest.raises(ValueError, match=words):
    read(path)
  _, (bad,) = read(tmp_path)
  assert words in bad


def test_offsets_that_lie_are_no_texts(tmp_path):
  """A file may say that a text is where there is none, or other memory."""
  offsets = pa.py_buffer(
    b"".join(x.to_bytes(4, "little") for x in (0, 9**8, 4))
  )
  data = pa.py_buffer(b"abcd")
  lying = pa.Array.from_buffers(pa.string(), 2, [None, offsets, data])
  table = pa.table({"id": pa.array(["a", "b"]), "text": lying})
  write_arrow(tmp_path / "a.arrow", table)
  with pytest.raises(ValueError, match="a.arrow: is no intact Arrow file"):
    read(tmp_path / "a.arrow")


def test_saved_by_the_library(tmp_path):
  datasets = pytest.importorskip("datasets")
  rows = [dict(id=str(row["id"]), contents=row["contents"]) for row in ROWS]
  saved = datasets.Dataset.from_list(rows).train_test_split(100, shuffle=False)
  saved.save_to_disk(str(tmp_path / "saved"), num_shards=dict(train=3, test=1))
  found, bad = read(tmp_path / "saved")
  assert sorted(found) == sorted(TEXTS) and not bad
