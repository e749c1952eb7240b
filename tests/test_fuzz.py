"""Every file that we open, damaged at random.

A reader opens a folder and returns what it makes of it.  After a damage of one
of its files it may refuse it, by an error for the user, or return the same.
Files of a reader that is `editable` have no digest, as people edit them, or
others wrote them: what is damaged to a legal file is read as that.

  pytest -m fuzz tests/test_fuzz.py     # 2,000 damages, and the figures.

A case has ten seconds of this process's own time, and a gigabyte more than the
process has.  What cannot be interrupted, and what ends the process, ends the
tests with its traceback.
"""

import bz2
import collections
import contextlib
import dataclasses
import faulthandler
import functools
import gzip
import json
import pathlib
import random
import resource
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from r1router_jax import build_kb
from r1router_jax.common import cli, files, images, jsonl, run_log
from r1router_jax.common.records import Query
from r1router_jax.data import (
  benchmark_formats,
  benchmark_images,
  benchmark_schema,
  question_files,
  r1_router_rows,
)
from r1router_jax.inputs.tokenizer import Tokenizer
from r1router_jax.models import (
  bert,
  hf_checkpoint,
  peft_adapter,
  qwen3,
  siglip,
  torch_checkpoint,
)
from r1router_jax.policy import config as config_lib
from r1router_jax.policy import policy as policy_lib
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.corpora import sources
from r1router_jax.retrieval.encoders import (
  batched_encoder,
  hf_folder,
  registry,
)
from r1router_jax.retrieval.index import scann_index
from r1router_jax.rewards import llm_judge
from r1router_jax.training import checkpoints
from tests import damage, tiny_gguf, tiny_pdf, tiny_policy
from tests.data import mmqa_rows, published_files
from tests.data.shared_rows import world_rows, write_rows
from tests.evaluation import census
from tests.retrieval.fakes import WordEmbedder
from tests.tiny_encoders import (
  BERT,
  QWEN3,
  SIGLIP,
  random_tensors,
  write_tensors,
)

MAX_CPU_SECONDS, MAX_SECONDS, MAX_MEMORY = 10, 120, 1 << 30
QUERIES = [Query(f"number{n} of many") for n in (0, 3, 17)]


@dataclasses.dataclass(frozen=True)
class Reader:
  """A folder, and a function that opens it, in the tests of one kind of file.

  Attributes:
    make: writes good files into a folder.
    read: opens them, and returns what can be compared.
    editable: whether a damaged file may be a legal other one.
    accept: returns whether a result is as good as the good one.
  """

  make: Callable[[pathlib.Path], None]
  read: Callable[[pathlib.Path], Any]
  editable: bool = False
  accept: Callable[[Any, Any], bool] = lambda found, good: found == good


def make_kb(folder, index="exact", shards=1, hybrid=True):
  rows = [dict(id=f"r{n}", text=f"number{n} of many") for n in range(40)]
  source = folder.parent / "rows.jsonl"
  write_rows(source, rows)
  options = dict(index_kind=index, shards=shards, hybrid=hybrid)
  build_kb.build(build_kb.KbSpec(str(folder), "text", str(source), **options))


def read_kb(folder):
  kb = local_kb.open_kb(str(folder))
  found = [[(p.id, p.text) for p in found] for found in kb.search(QUERIES, 3)]
  return found, [passage.text for passage in kb.stack.passages]


def make_policy(folder):
  config = tiny_policy.POLICY_CONFIG
  params = tiny_policy.params(config.model)
  policy_lib.Policy(config, tiny_policy.TOKENIZER, params).save(folder)


def read_policy(folder):
  config = config_lib.read_config(folder)
  coder = Tokenizer(config_lib.find_tokenizer(folder), config.style)
  params = hf_checkpoint.load_params(folder, config.model)
  leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(params)]
  return config, coder.encode_response("who is it? é"), leaves


def make_shards(folder):
  params = tiny_policy.params(tiny_policy.MODEL_CONFIG)
  options = tiny_policy.MODEL_CONFIG, {"shard_bytes": 20_000}
  hf_checkpoint.save_params(folder, params, options[0], **options[1])


def read_shards(folder):
  params = hf_checkpoint.load_params(folder, tiny_policy.MODEL_CONFIG)
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(params)]


def make_adapter(folder):
  folder.mkdir()
  peft_adapter.write_config(folder, "base", 2, ["q_proj"])


def make_encoder(folder):
  folder.mkdir()
  tree = dict(model_type="bert", hidden_act="gelu", layer_norm_eps=BERT.eps)
  tree |= {name: getattr(BERT, x) for x, name in bert._SIZE_FIELDS.items()}
  (folder / "config.json").write_text(json.dumps(tree))
  tensors = random_tensors(bert.weight_map(BERT), bert.axis_sizes(BERT))
  write_tensors(folder, tensors)
  shutil.copy(tiny_policy.TOKENIZER, folder / "tokenizer.json")


def read_encoder(folder):
  config = bert.read_config(str(folder))
  coder = batched_encoder.load_tokenizer(str(folder))
  params = bert.load_params(str(folder), config)
  leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(params)]
  return config, coder.encode("who is it?").ids, leaves


def make_encoder_settings(folder):
  """Write what sentence-transformers keeps beside a model, and configs."""
  dense = dict(in_features=3, out_features=2, activation_function="nn.Tanh")
  dense |= dict(bias=False)
  kinds = "Transformer", "Pooling", "Dense", "Normalize"
  paths = "", "1_Pooling", "2_Dense", "3_Normalize"
  pairs = zip(kinds, paths, strict=True)
  trees = {
    "modules.json": [dict(type=f"a.{kind}", path=path) for kind, path in pairs],
    "sentence_bert_config.json": dict(max_seq_length=64, do_lower_case=False),
    "config_sentence_transformers.json": dict(prompts=dict(query="ask: ")),
    "1_Pooling/config.json": dict(pooling_mode_cls_token=True),
    "2_Dense/config.json": dense,
    "qwen3/config.json": QWEN3,
    "siglip/config.json": SIGLIP,
  }
  for name, tree in trees.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(tree))
  kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
  write_tensors(folder / "2_Dense", {"linear.weight": kernel})


def read_encoder_settings(folder):
  modules = hf_folder.read_modules(str(folder))
  encoder, dense = hf_folder.read_encoder(str(folder), modules)
  configs = qwen3.read_config(str(folder / "qwen3"))
  configs = configs, siglip.read_config(str(folder / "siglip"))
  layers = [(x.kernel.tobytes(), x.bias.tobytes(), *x[2:]) for x in dense]
  return encoder, layers, configs


def make_gguf(folder):
  folder.mkdir()
  tiny_gguf.write_gguf(folder / "model.gguf")


def read_gguf(folder):
  path = folder / "model.gguf"
  config = config_lib.read_config(path)
  coder = Tokenizer(path, "compact")
  params = hf_checkpoint.load_params(path, config.model)
  leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(params)]
  return config, coder.encode_response("the rr 2020"), leaves


def make_predictions(folder):
  folder.mkdir()
  census.evaluate(folder / "predictions.jsonl")


def read_predictions(folder):
  result, _ = census.evaluate(folder / "predictions.jsonl")
  return result.trajectories


def make_verdicts(folder):
  folder.mkdir()
  rows = [dict(asked=f"k{n}", verdict=[1.0, 0.0][n % 2]) for n in range(6)]
  jsonl.append_rows(folder / "judge.jsonl", rows)


def read_verdicts(folder):
  judge = llm_judge.Judge(
    "openai:http://127.0.0.1:9/v1#m", folder / "judge.jsonl"
  )
  return judge._known


def make_log(folder):
  log = run_log.RunLog(folder)
  group = dict(id="q", kind="plan", question="Who?", history=[], gold=["a"])
  group |= dict(sub_question="", responses=["a"], rewards=[0.5])
  for step in range(1, 6):
    log.write_scalars(step, {"loss": step / 7, "reward/f1": 0.25})
    log.write_samples(step, [group | dict(advantages=[0.0])])
  shutil.rmtree(folder / "tensorboard")


def read_log(folder):
  return run_log.read_metrics(folder), run_log.read_samples(folder)


def are_some_lines(found, good):
  """Damaged lines are left out, and a warning names them."""
  pairs = zip(found, good, strict=True)
  return all(line in lines for part, lines in pairs for line in part)


def make_state(step):
  return dict(w=jax.numpy.arange(12.0) + step, step=np.int32(step))


def make_states(folder):
  with checkpoints.Checkpoints(folder) as saved:
    for step in (1, 2):
      saved.save(step, make_state(step), dict(data=dict(rows=3), best=0.5))


def read_states(folder):
  shapes = jax.eval_shape(lambda: make_state(1))
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.tree.map(lambda x: x.update(sharding=device), shapes)
  with checkpoints.Checkpoints(folder) as saved:
    state, about = saved.restore(shapes)
  return int(state["step"]), np.asarray(state["w"]).tolist(), about


def is_whole_state(found, good):
  """The state before is as good, and said by a warning."""
  step, numbers, about = found
  wanted = np.asarray(make_state(step)["w"]).tolist()
  return step in (1, 2) and numbers == wanted and about == good[2]


def make_questions(folder):
  folder.mkdir()
  rows = [dict(question=f"Who is {n}?", answer=str(n)) for n in range(5)]
  write_rows(folder / "questions.jsonl", rows)


def read_questions(folder):
  return list(question_files.read_rows(str(folder / "questions.jsonl")))


def make_corpus(folder):
  folder.mkdir()
  text = "# Chad\n\nA country.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
  (folder / "chad.md").write_text(text)
  (folder / "rows.csv").write_text('id,text\na,"One, two"\nb,Three\n')
  line = json.dumps(dict(id="c", title="C", text="Four")) + "\n"
  (folder / "more.jsonl").write_text(line * 3)
  (folder / "more.jsonl.gz").write_bytes(gzip.compress(line.encode() * 3))
  (folder / "more.jsonl.bz2").write_bytes(bz2.compress(line.encode() * 3))
  image = Image.new("RGB", (20, 30), "red")
  for ending in ("png", "jpg", "webp"):
    image.save(folder / f"red.{ending}")
  page = "<title>T</title><h2>A</h2>b<table><tr><td>1<td>2<tr><td>3<td>4"
  (folder / "page.html").write_text(page)
  (folder / "report.pdf").write_bytes(tiny_pdf.make_pdf(["One.", "Two."], "T"))
  table = pa.table(dict(id=["d", "e"], contents=['"D"\nfive', "six"]))
  parquet.write_table(table, folder / "rows.parquet")
  with pa.ipc.new_stream(folder / "rows.arrow", table.schema) as stream:
    stream.write_table(table)


def read_corpus(folder):
  paths = [str(folder)] + [str(x) for x in folder.glob("more*")]
  opened = [sources.open_source("text", path) for path in paths]
  opened += [sources.open_source(kb, str(folder)) for kb in ("image", "table")]
  return [
    sources.parse_row(each, where.rpartition("/")[2], row)
    for each in opened
    for where, row in sources.read_raw_rows(each)
  ]


def make_benchmark(folder):
  folder.mkdir()
  row = dict(question="What?", answer=["x"], answer_eval=["x", "y"])
  rows = [row | dict(data_id=id, image_id=f"oven_{id}") for id in "abc"]
  write_rows(folder / "infoseek.jsonl", rows)
  kinds = zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA
  with zipfile.ZipFile(folder / "images.zip", "w") as archive:
    for id, kind in zip("abc", kinds, strict=True):
      Image.new("L", (30, 30), 9).save(folder / f"oven_{id}.jpg")
      path = folder / f"oven_{id}.jpg"
      archive.write(path, path.name, compress_type=kind)


def read_benchmark(folder):
  parse = functools.partial(benchmark_schema.parse_question, "infoseek")
  rows = benchmark_schema.parse_rows(str(folder / "infoseek.jsonl"), parse)
  stems = [f"oven_{id}" for id in "abc"]
  found = benchmark_images.find_images(str(folder / "images.zip"), stems)
  pixels = [images.load_image(folder / f"{stem}.jpg").sum() for stem in stems]
  questions = [question for _, question in rows]
  return questions, {stem: x.read() for stem, x in found.items()}, pixels


def make_published(folder):
  folder.mkdir()
  for name, row in published_files.ROWS.items():
    published_files.write(folder, name, row, row)
  line = json.dumps(mmqa_rows.COMPOSED).encode() + b"\n"
  (folder / "MMQA_dev.jsonl.gz").write_bytes(gzip.compress(line * 3))


def read_published(folder):
  found = {}
  for name in (*published_files.ROWS, "multimodalqa"):
    path = str(folder / benchmark_schema.find_spec(name).file)
    parse = functools.partial(parse_published, name)
    rows = benchmark_formats.read_rows(name, path)
    found[name] = [
      row for _, row in benchmark_schema.parse_rows(path, parse, rows)
    ]
  return found


def parse_published(name, row, number):
  row = benchmark_formats.to_own(name, row)
  return benchmark_schema.parse_question(name, row, number)


def make_training_rows(folder):
  folder.mkdir()
  write_rows(folder / "rows.jsonl", world_rows())


def read_training_rows(folder):
  found = r1_router_rows.load_rows(str(folder / "rows.jsonl"), "")
  return [each.steps for each in found]


def make_torch(folder, is_zip):
  torch = pytest.importorskip("torch")
  folder.mkdir()
  weights = {f"w{n}": torch.arange(600.0).reshape(20, 30) + n for n in range(3)}
  # As published: beside the state of their training.
  saved = dict(model=weights, epoch=3, names=["a"], optimizer=dict(lr=0.5))
  options = dict(_use_new_zipfile_serialization=is_zip)
  torch.save(saved, folder / "model.pth", **options)


def read_torch(folder):
  with torch_checkpoint.open_tensors(f"{folder}/model.pth", "model") as found:
    return {name: tensor.read_raw().tolist() for name, tensor in found.items()}


IN_SHARDS = "knowledge base in shards"
READERS = {
  "knowledge base": Reader(make_kb, read_kb),
  IN_SHARDS: Reader(lambda folder: make_kb(folder, "scann", 2, False), read_kb),
  "policy": Reader(make_policy, read_policy, editable=True),
  "weights in shards": Reader(make_shards, read_shards, editable=True),
  "config of an adapter": Reader(
    make_adapter, peft_adapter.read_adapter, editable=True
  ),
  "encoder": Reader(make_encoder, read_encoder, editable=True),
  "settings of an encoder": Reader(
    make_encoder_settings, read_encoder_settings, editable=True
  ),
  "GGUF file": Reader(make_gguf, read_gguf, editable=True),
  "predictions": Reader(make_predictions, read_predictions),
  "verdicts": Reader(
    make_verdicts,
    read_verdicts,
    accept=lambda found, good: found.items() <= good.items(),
  ),
  "log of a run": Reader(
    make_log, read_log, editable=True, accept=are_some_lines
  ),
  "checkpoints": Reader(make_states, read_states, accept=is_whole_state),
  "own questions": Reader(make_questions, read_questions, editable=True),
  "corpus": Reader(make_corpus, read_corpus, editable=True),
  "benchmark": Reader(make_benchmark, read_benchmark, editable=True),
  "published benchmarks": Reader(make_published, read_published, editable=True),
  "training rows": Reader(
    make_training_rows, read_training_rows, editable=True
  ),
}

# Each reading starts a process that imports PyTorch.
TORCH_READERS = {
  "file of torch": Reader(
    functools.partial(make_torch, is_zip=True), read_torch
  ),
  # Of PyTorch before 1.6, without checksums.
  "old file of torch": Reader(
    functools.partial(make_torch, is_zip=False), read_torch, editable=True
  ),
}

# Files that nothing reads again, or that any content is right for.
UNREAD = (".lock", "skipped.txt", "source.json")


@pytest.fixture
def good(tmp_path, monkeypatch):
  """Return what `make_good` makes, with an embedder that needs no weights."""
  fake = WordEmbedder()
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", lambda weights: fake)
  monkeypatch.setattr(files, "LOADED", {})
  return make_good(READERS, tmp_path)


def make_good(readers, tmp_path):
  """Return a folder of good files for each reader, and what it reads there."""
  found = {}
  for name, reader in readers.items():
    if name == IN_SHARDS and not scann_index.is_scann_installed():
      continue
    folder = tmp_path / "good" / name
    folder.parent.mkdir(exist_ok=True)
    reader.make(folder)
    # What is read changes journals, which are completed.
    copied = tmp_path / "first"
    shutil.copytree(folder, copied)
    found[name] = folder, reader.read(copied)
    shutil.rmtree(copied)
  return found


class TookTooLong(BaseException):
  """What no code under test catches."""


@contextlib.contextmanager
def limited():
  """Raise TookTooLong or a MemoryError at the limits of a case."""

  def give_up(*_):
    raise TookTooLong

  before = signal.signal(signal.SIGPROF, give_up)
  signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)
  terminal = sys.__stderr__  # pytest captures the other one.
  faulthandler.dump_traceback_later(MAX_SECONDS, exit=True, file=terminal)
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
  room = pages * resource.getpagesize() + MAX_MEMORY
  old, most = resource.getrlimit(resource.RLIMIT_AS)
  resource.setrlimit(resource.RLIMIT_AS, (room, most))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, (old, most))
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def apply_damage(good, folder, rng):
  """Damage a file of a folder; return its name and the kind of damage."""
  paths = sorted(x for x in folder.rglob("*") if x.is_file())
  path = rng.choice([x for x in paths if x.name not in UNREAD])
  others = [x for place, _ in good.values() for x in place.rglob("*")]
  same = [x for x in others if x.is_file() and x.name == path.name]
  functions = damage.OF_BYTES | damage.OF_FIELDS
  data, kind = path.read_bytes(), rng.choice([*functions, "gone", "another's"])
  if kind == "gone":
    path.unlink()
    return path.name, kind
  if kind == "another's":
    changed = rng.choice(sorted(same)).read_bytes()
  else:
    changed = functions[kind](data, rng)
  if changed is None:  # No JSON.
    kind = "a bit"
    changed = damage.OF_BYTES[kind](data, rng)
  # Replaced, since it may be a link to a file of the good folder.
  path.unlink()
  path.write_bytes(changed)
  return path.name, kind


def read_damaged(reader, folder, wanted):
  """Return the outcome: refused, the same, another, or how it failed."""
  try:
    with limited():
      found = reader.read(folder)
  except cli._USER_ERRORS as error:
    # A line that names the file.
    is_line = str(folder) in str(error) and "\n" not in str(error)
    return "refused" if is_line else f"UNCLEAR {error}"
  except KeyboardInterrupt:
    raise
  except BaseException as error:  # A panic of a library is no `Exception`.
    return f"{type(error).__name__} {error!s:.200}"
  if reader.accept(found, wanted):
    return "same"
  return "legal" if reader.editable else f"SILENTLY OTHER: {found!r:.300}"


def damage_files(readers, good, tmp_path, count):
  """Read damaged files; return counts of (kind, outcome), and the faults."""
  names, outcomes, faults = list(good), collections.Counter(), []
  for number in range(count):
    rng = random.Random(number)  # Each damage can be made again alone.
    name = names[number % len(names)]
    folder, wanted = good[name]
    copied = tmp_path / "damaged"
    shutil.copytree(folder, copied)
    file, kind = apply_damage(good, copied, rng)
    outcome = read_damaged(readers[name], copied, wanted)
    shutil.rmtree(copied)
    outcomes[name, outcome.split(" ")[0]] += 1
    if outcome not in ("refused", "same", "legal"):
      faults.append(f"{number}: {name}, {file}, {kind}: {outcome}")
  return outcomes, faults


def print_outcomes(outcomes, capsys):
  """Print rows of the table of docs/reliability.md."""
  with capsys.disabled():
    for name in dict.fromkeys(name for name, _ in outcomes):
      seen = [outcomes[name, x] for x in ("refused", "same", "legal")]
      total = sum(n for (kind, _), n in outcomes.items() if kind == name)
      print("|", name, *(f"| {n}" for n in (total, *seen)), "|")


@pytest.mark.parametrize(
  "count", [90, pytest.param(2000, marks=pytest.mark.fuzz)]
)
def test_damaged_files_are_refused_or_read_as_they_were(
  good, tmp_path, capsys, count
):
  outcomes, faults = damage_files(READERS, good, tmp_path, count)
  if count == 2000:
    print_outcomes(outcomes, capsys)
  assert not faults, "\n".join(faults)


@pytest.mark.fuzz
def test_damaged_files_of_torch_are_refused_or_read_as_they_were(
  tmp_path, capsys
):
  good = make_good(TORCH_READERS, tmp_path)
  outcomes, faults = damage_files(TORCH_READERS, good, tmp_path, 60)
  print_outcomes(outcomes, capsys)
  assert not faults, "\n".join(faults)
