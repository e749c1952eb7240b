"""Benchmarks as their authors published them, on small files of our own."""

import pyarrow as pa
import pytest
from pyarrow import parquet

from r1router_jax.common import images, row_files
from r1router_jax.common.errors import UserError
from r1router_jax.data import benchmark_schema
from r1router_jax.data.benchmarks import load_benchmark
from tests.data.published_files import (
  EVQA,
  FVQA,
  HOTPOT,
  LIVEVQA,
  MMSEARCH,
  MUSIQUE,
  ROWS,
  picture,
  write,
)


def load(folder, name, *rows, images=""):
  write(folder, name, *rows)
  return load_benchmark(name, str(folder), images)


@pytest.mark.parametrize(
  "name, row, wanted",
  [
    ("hotpotqa", HOTPOT, ("5a", "Who?", ("Ann",), "bridge")),
    ("musique", MUSIQUE, ("2hop__1_2", "Who?", ("Ann", "Anna"), "2hop")),
    ("e_vqa", EVQA, ("1", "How tall?", ("9 m", "30 ft"), "automatic")),
    ("fvqa", FVQA, ("0", "Who built it?", ("Ann", "Anna"), "fvqa")),
    ("mmsearch", MMSEARCH, ("s1", "When is it?", ("May 1", "1 May"), "news")),
    ("livevqa", LIVEVQA, ("7/level1", "What is it?", ("b", "the b"), "level1")),
  ],
)
def test_question_records(tmp_path, name, row, wanted):
  question, *more = load(tmp_path, name, row)
  found = question.id, question.text, question.answers, question.family
  assert found == (f"{name}/{wanted[0]}", *wanted[1:])
  assert question.benchmark == name and question.hops is None
  assert len(more) == (name == "livevqa")
  # The file may be named itself, and then need not have its published name.
  path = tmp_path / benchmark_schema.find_spec(name).file
  other = path.rename(tmp_path / f"other{path.suffix}")
  assert load_benchmark(name, str(other))[0] == question


def test_lists_of_evqa(tmp_path):
  row = EVQA | dict(answer="red&& blue |green", question_type="multi_answer")
  (question,) = load(tmp_path, "e_vqa", row)
  assert question.answers == ("red, blue", "green")
  assert question.members == (("red", "blue"), ("green",))


def test_images_by_stem_by_path_and_inside_of_rows(tmp_path, caplog):
  place = tmp_path / "pictures"
  (place / "1").mkdir(parents=True)
  (place / "ab12.png").write_bytes(picture(1))
  (place / "1/x1.png").write_bytes(picture(2))
  (place / "x1.png").write_bytes(picture(3))  # Another of the same stem.
  shown = {
    name: load(tmp_path, name, row, images=str(place))[0].image
    for name, row in dict(e_vqa=EVQA, livevqa=LIVEVQA).items()
  }
  shown |= {
    name: load(tmp_path, name, row)[0].image
    for name, row in dict(fvqa=FVQA, mmsearch=MMSEARCH).items()
  }
  found = {name: images.read_image_bytes(path) for name, path in shown.items()}
  shades = dict(e_vqa=1, livevqa=2, fvqa=0, mmsearch=9)
  assert found == {name: picture(shade) for name, shade in shades.items()}
  assert "miss their image" not in caplog.text
  # A question may have none, and then is one of texts.
  (plain,) = load(tmp_path, "mmsearch", MMSEARCH | dict(query_image=None))
  assert plain.image == ""


def test_images_inside_of_rows_are_prepared_with_them(tmp_path):
  path, place = write(tmp_path, "fvqa", FVQA), str(tmp_path / "tfds")
  (wanted,) = load_benchmark("fvqa", path, tfds_dir=place)
  (tmp_path / "fvqa_test.parquet").unlink()
  assert load_benchmark("fvqa", tfds_dir=place) == [wanted]


@pytest.mark.parametrize(
  "name, row, fault",
  [
    ("hotpotqa", HOTPOT | dict(answer=None), r"`\$.answer`"),
    ("hotpotqa", [], "it is no object"),
    ("hotpotqa", HOTPOT | dict(context="x" * (2 << 20)), "longer than"),
    ("musique", MUSIQUE | dict(answerable=False), "not answerable"),
    ("musique", MUSIQUE | dict(answer=" "), r"`\$.answer`"),
    ("e_vqa", EVQA | dict(answer=" | "), "none empty"),
    ("e_vqa", EVQA | dict(question_type="x"), r"'x'.*question_type"),
    ("e_vqa", EVQA | dict(dataset_image_ids="../../x"), "leads out of"),
    ("e_vqa", EVQA | dict(dataset_image_ids="a/x"), "without folders"),
    ("fvqa", FVQA | dict(prompt=[]), r"length >= 1 - at `\$.prompt`"),
    (
      "fvqa",
      FVQA | dict(reward_model=dict(ground_truth="a", candidate_answers="[")),
      "not JSON",
    ),
    (
      "fvqa",
      FVQA | dict(reward_model=dict(ground_truth="a", candidate_answers="7")),
      "candidate_answers hold no list",
    ),
    ("mmsearch", MMSEARCH | dict(gt_answer=""), r"`\$.gt_answer`"),
    ("livevqa", LIVEVQA | dict(level1_qa=None, level2_qa=None), "no level1_qa"),
    ("livevqa", LIVEVQA | dict(level1_qa="x"), "it is no object"),
    ("livevqa", LIVEVQA | dict(id=None, level2_qa=None), r"`\$.id`"),
    (
      "livevqa",
      LIVEVQA | dict(img_path="../x", level1_qa=None),
      "leads out of",
    ),
  ],
)
def test_row_of_another_form_is_refused_by_its_line(tmp_path, name, row, fault):
  path = write(tmp_path, name, ROWS[name], row)
  line = 3 if name == "e_vqa" else 2
  with pytest.raises(UserError, match=f"{path}:{line}: .*{fault}") as caught:
    load_benchmark(name, str(tmp_path))
  assert "1 of " in str(caught.value)


@pytest.mark.parametrize(
  "name, content, fault",
  [
    ("hotpotqa", b"{}", "no array of JSON"),
    ("hotpotqa", b"[" * 100_000, "no array of JSON"),
    ("hotpotqa", b"[1, 2", "no array of JSON"),
    ("hotpotqa", b"[]", "is empty"),
    (
      "e_vqa",
      b"question,answer\n",
      "no columns dataset_image_ids, question_ty",
    ),
    ("e_vqa", b'question\n"', "no columns answer"),
    ("mmsearch", b"PAR1", "is no intact Parquet file"),
  ],
)
def test_file_of_another_form_is_refused(tmp_path, name, content, fault):
  path = tmp_path / benchmark_schema.find_spec(name).file
  path.write_bytes(content)
  with pytest.raises(UserError, match=fault):
    load_benchmark(name, str(tmp_path))


def test_parquet_file_of_another_form_is_refused(tmp_path):
  parquet.write_table(pa.table(dict(query=["a"])), tmp_path / "end2end.parquet")
  with pytest.raises(UserError, match="no columns sample_id, gt_answer"):
    load_benchmark("mmsearch", str(tmp_path))


def test_missing_file_is_named_with_its_place(tmp_path):
  said = "hotpot_dev_fullwiki_v1.json.*published as hotpotqa/hotpot"
  with pytest.raises(FileNotFoundError, match=said):
    load_benchmark("hotpotqa", str(tmp_path))


def test_array_is_bounded(tmp_path, monkeypatch):
  (tmp_path / "a.json").write_text("[1, 2, 3]")
  path = str(tmp_path / "a.json")
  found = [(where.rpartition(":")[2], row) for where, row in read_array(path)]
  assert found == [("1", 1), ("2", 2), ("3", 3)]
  monkeypatch.setattr(row_files, "MAX_ARRAY_BYTES", 8)
  with pytest.raises(row_files.BrokenFile, match="over 8 bytes"):
    read_array(path)


def read_array(path):
  return list(row_files.read_json_array(path))
