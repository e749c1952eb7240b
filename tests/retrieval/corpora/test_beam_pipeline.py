"""Beam writes the passages that build_kb reads from the source itself."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from r1router_jax.retrieval.corpora import beam_pipeline
from r1router_jax.retrieval.corpora import sources as sources_lib
from tests.retrieval.corpora import plain_reader, wikitables

pytest.importorskip("apache_beam", reason="pip install 'r1router_jax[beam]'")


ARTICLE = '<doc id="{}" url="u" title="{}">\n{}\n\n{}\n\n</doc>\n'


def write_lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def sources(tmp_path):
  """Write one source of each corpus, with bad rows and repeated ids."""
  folder = tmp_path / "raw"
  # Articles in six files; some ids repeat, and each file ends with stray text.
  for number in range(6):
    path = folder / f"wiki/A{number % 3}/wiki_0{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    articles = []
    for i in range(number * 9, number * 9 + 9):
      title = f"List of {i}" if i % 8 == 7 else f"T{i}"
      text = f"w{i} " * (3 + 37 * (i % 5))
      articles.append(ARTICLE.format(i % 40, title, title, text))
    path.write_text("".join(articles) + "stray\n")
  # Candidates of all modalities; some images are missing.
  (folder / "pictures").mkdir()
  Image.new("RGB", (8, 8)).save(folder / "pictures/a.png")
  kinds = "text", "image", "image,text"
  pool = [
    dict(did=f"2:{i % 45}", modality=kinds[i % 3], txt=f"text {i}")
    | dict(img_path="b.png" if i % 7 == 5 else "a.png")
    for i in range(50)
  ]
  write_lines(folder / "pool.jsonl", pool)
  # Tables, whose ids cannot repeat: they are row numbers.
  pairs = zip(wikitables.TABLES, wikitables.FLATTENED, strict=True)
  tables = [table | dict(flattened=text + "\n") for table, text in pairs]
  columns = wikitables.by_columns(tables * 9)
  write_lines(folder / "splitted_tables.json", [columns])
  # Rows of a user, some long enough for several windows.
  own = [
    dict(id=f"r{i % 53}", title="T", text=f"w{i} " * (1 + 29 * (i % 6)))
    for i in range(60)
  ]
  write_lines(folder / "own.jsonl", own)
  # Paragraphs, of which some are empty.
  (folder / "mmqa").mkdir()
  texts = [
    dict(id=f"x{i % 53}", title="T", text=f"w{i} " * (29 * (i % 6)))
    for i in range(60)
  ]
  write_lines(folder / "mmqa/MMQA_texts.jsonl", texts)
  tables = f"open_wikitable:{folder}/splitted_tables.json"
  return {
    "wikipedia": ("text", f"wikipedia:{folder}/wiki", ""),
    "mbeir": ("image", f"mbeir:{folder}/pool.jsonl", str(folder / "pictures")),
    "open_wikitable": ("table", tables, ""),
    "own": ("text", f"{folder}/own.jsonl", ""),
    "multimodalqa": ("text", f"multimodalqa:{folder}/mmqa", ""),
  }


def run_pipeline(source, out, *options):
  opened = beam_pipeline.open_source(*source)
  return beam_pipeline.run_pipeline(*opened, str(out), *options)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
  monkeypatch.setattr(beam_pipeline, "SHARD_BYTES", 3000)
  monkeypatch.setattr(beam_pipeline, "SHARD_ROWS", 7)


def read_files(out):
  return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.parametrize("corpus", sources_lib.CORPORA)
def test_passages_equal_those_of_the_plain_reader(sources, tmp_path, corpus):
  kb, source, pictures = sources[corpus]
  good, bad = plain_reader.split_passages(kb, source, pictures)
  counts = run_pipeline(sources[corpus], tmp_path / "out")
  written = f"{tmp_path}/out/passages-*.jsonl"
  again = list(plain_reader.read_passages(kb, written, pictures))
  assert [(p.id, p.kb, p.text, p.image) for p in again] == [
    (p.id, p.kb, p.text, p.image) for p in good
  ]
  # Rejected rows are listed in the same order, and counted.
  skipped = sorted((tmp_path / "out").glob("skipped-*.txt"))
  assert "".join(path.read_text() for path in skipped).splitlines() == bad
  assert len(skipped) > 1 and sum(counts.values()) == counts["rows"] + len(bad)
  assert corpus == "open_wikitable" or any("came before" in why for why in bad)


def test_bits_do_not_depend_on_the_runner(sources, tmp_path):
  threads = ["--direct_num_workers=3", "--direct_running_mode=multi_threading"]
  runner = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"
  for number, options in enumerate(([], threads, [f"--runner={runner}"])):
    run_pipeline(sources["wikipedia"], tmp_path / str(number), options)
  first, *others = (read_files(tmp_path / str(i)) for i in range(3))
  assert len(first) > 5 and all(other == first for other in others)


def test_files_of_an_earlier_run_are_deleted(sources, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  names = "passages-99.jsonl passages-00000.jsonl.second skipped-1.txt.first"
  for name in (*names.split(), "notes.txt"):
    (out / name).write_text("old")
  run_pipeline(sources["own"], out)
  found = read_files(out)
  assert found.pop("notes.txt") == b"old" and b"old" not in found.values()
  assert not [name for name in found if name.endswith(("first", "second"))]


def test_small_neighboring_files_share_a_shard():
  shards = beam_pipeline.group_files("abcde", [1000, 2000, 1, 5000, 10])
  assert [s.name for s in shards] == ["00000", "00001", "00002", "00003"]
  assert ["".join(s.paths) for s in shards] == ["ab", "c", "d", "e"]


def run_command(*flags):
  module = "r1router_jax.retrieval.corpora.beam_pipeline"
  command = [sys.executable, "-m", module, *flags]
  return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_command_with_beam_options(sources, tmp_path):
  _, source, _ = sources["wikipedia"]
  options = "--direct_running_mode=multi_processing,--direct_num_workers=2"
  flags = f"--workdir={tmp_path}/out", f"--beam_options={options}"
  done = run_command(f"--source={source}", *flags)
  assert not done.returncode, done.stderr[-2000:]
  assert "build_kb --kind=text --source=" in done.stderr
  good, _ = plain_reader.split_passages("text", source)
  paths = sorted((tmp_path / "out").glob("passages-*.jsonl"))
  lines = "".join(path.read_text() for path in paths).splitlines()
  assert [json.loads(line)["id"] for line in lines] == [p.id for p in good]
  done = run_command("--workdir=x", "--source=georouter")
  assert done.returncode == 2 and "Say which" in done.stderr
