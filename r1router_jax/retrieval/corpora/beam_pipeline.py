r"""Raw corpora to passages, by Apache Beam: on all cores, or on many machines.

  pip install 'r1router_jax[beam]'
  python -m r1router_jax.retrieval.corpora.beam_pipeline --source=wikipedia:extracted --out=DIR
  python -m r1router_jax.build_kb --kb=text --source='DIR/passages-*.jsonl'

Sources, and what is done to their rows, are those of corpora.py.  Beam's own
options follow --beam_options, with commas:

  --beam_options=--direct_running_mode=multi_processing,--direct_num_workers=8
  --beam_options=--runner=DataflowRunner,--project=P,--region=R,--temp_location=T

The corpus falls into shards, some megabytes of files or some thousand rows of
one, by names and sizes alone.  A shard is written by one pure function, in the
order of its rows, so the files have equal bits whatever the runner; one after
the other they hold what build_kb would read from the source itself.  Only ids
are shuffled: a shard with rows whose ids came before is written again without.
Files have their names once all are there.

Sources and --out may be in a bucket (gs://...), pictures may not.
"""

import collections
import dataclasses
import importlib
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, BinaryIO

from absl import flags, logging

from r1router_jax.common import cli, row_files
from r1router_jax.common.row_files import BadRow
from r1router_jax.retrieval.corpora import id_dedup, passage_writer, sources

# Names that other commands have, too, may be overridden.
_OUT = flags.DEFINE_string(
  "out", None, "Folder of the passages.", allow_override=True
)

_KB = flags.DEFINE_list(
  "kb",
  [],
  "Which knowledge base they are for; by default the only one that "
  "the source is for.",
  allow_override=True,
)

_SOURCE = flags.DEFINE_string(
  "source", sources.WORLD, "The corpus, as for build_kb.", allow_override=True
)

_IMAGES = flags.DEFINE_string(
  "images",
  "",
  "Folder that the corpus names its pictures below, where that is not its own.",
  allow_override=True,
)

_OPTIONS = flags.DEFINE_list(
  "beam_options",
  [],
  "Options of Apache Beam, with commas between them.",
  allow_override=True,
)


# The engine of Beam's DirectRunner, which would first download another.
RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"

SHARD_BYTES = 16 << 20  # Of files that share a shard.

SHARD_ROWS, SHARDS = 50_000, 64  # Rows of one, and how many of one file.


@dataclasses.dataclass(frozen=True)
class Shard:
  """A part of the corpus.

  Attributes:
    name: sorts as the rows do.
    paths: of its files.
    start: first row that it takes, of those of its files.
    stop: the row before which it ends, None for no such.
  """

  name: str
  paths: tuple[str, ...]
  start: int = 0
  stop: int | None = None


def grouped(paths: Sequence[str], sizes: Sequence[int]) -> list[Shard]:
  """Neighbouring files together, until they have `SHARD_BYTES`."""
  groups, room = [], 0
  for path, size in zip(paths, sizes, strict=True):
    if size > room:
      groups.append([])
      room = SHARD_BYTES
    groups[-1].append(path)
    room -= size
  return [
    Shard(f"{number:05d}", tuple(group)) for number, group in enumerate(groups)
  ]


def split(shard: Shard, source: sources.Source) -> Iterator[Shard]:
  """A shard of one file as shards of at least `SHARD_ROWS` rows."""
  if len(shard.paths) > 1:
    yield shard
    return
  count = sum(1 for _ in _rows(shard, source))
  step = max(SHARD_ROWS, -(-count // SHARDS))
  for number, start in enumerate(range(0, count, step)):
    yield Shard(f"{shard.name}-{number:02d}", shard.paths, start, start + step)


def write(
  shard: Shard, source: sources.Source, out: str, repeated: Collection[int] = ()
) -> Iterator[tuple[str, Any, Any]]:
  """Writes a shard.

  Args:
    shard: what is written.
    source: what it belongs to.
    out: the folder.
    repeated: rows whose ids came before in the corpus.

  Yields:
    ("id", hash, (shard's name, row)) for each good row, and at the end
    ("count", why, rows) for those left out, and for all.
  """
  turn = "second" if repeated else "first"
  repeated, counts = set(repeated), collections.Counter()
  with (
    _create(f"{out}/passages-{shard.name}.jsonl.{turn}") as passages,
    _create(f"{out}/skipped-{shard.name}.txt.{turn}") as skipped,
  ):
    for number, (where, row) in enumerate(_rows(shard, source)):
      found = sources.cut(source, where, row)
      if number in repeated:
        found = sources.repeated(where, found[0])
      if isinstance(found, BadRow):
        skipped.write(f"{found}\n".encode(errors="backslashreplace"))
        counts[found.kind] += 1
      else:
        for passage in found[1]:
          passages.write(passage_writer.line(passage, whole=True))
        yield "id", id_dedup.hashes(found[:1]).tobytes(), (shard.name, number)
      counts["rows"] += 1
  yield from (("count", why, count) for why, count in counts.items())


def _rows(shard: Shard, source: sources.Source) -> row_files.Rows:
  part = dataclasses.replace(source, paths=shard.paths)
  return sources.rows(part, shard.start, shard.stop, _open)


def run(
  source: sources.Source,
  sizes: Sequence[int],
  out: str,
  options: Sequence[str] = (),
) -> dict[str, int]:
  """Writes the passages of `source` to the folder `out`.

  Args:
    source: what is read.
    sizes: of its files, in bytes.
    out: a folder; passages that are there are replaced.
    options: of Beam.

  Returns:
    How many rows there were ("rows"), and how many were left out, by reason;
    also written to counts.json.
  """
  import apache_beam as beam
  from apache_beam.io.filesystems import FileSystems
  from apache_beam.options.pipeline_options import PipelineOptions

  if not FileSystems.exists(out):
    FileSystems.mkdirs(out)
  old = _ours(out, "")
  if old:
    FileSystems.delete(old)
  runner = [f"--runner={RUNNER}"]
  if any(option.startswith("--runner") for option in options):
    runner = []
  with beam.Pipeline(options=PipelineOptions([*runner, *options])) as pipeline:
    _pipeline(pipeline, source, sizes, out)
  # What was written again takes the place of what was written first.
  for turn in (".first", ".second"):
    found = _ours(out, turn)
    FileSystems.rename(found, [path.removesuffix(turn) for path in found])
  with _open(f"{out}/counts.json") as file:
    return json.load(file)


def _pipeline(
  pipeline: Any, source: sources.Source, sizes: Sequence[int], out: str
) -> None:
  """The steps of `run`."""
  import apache_beam as beam

  shards = (
    pipeline
    | beam.Create(grouped(source.paths, sizes))
    | "Spread files" >> beam.Reshuffle()
    | beam.FlatMap(split, source)
    | "Spread shards" >> beam.Reshuffle()
  )
  written = shards | beam.FlatMap(write, source, out)
  repeated = (
    written
    | "Ids" >> beam.FlatMap(_of_kind, "id")
    | beam.GroupByKey()
    | "All but the first" >> beam.FlatMap(lambda ids: sorted(ids[1])[1:])
  )
  named = shards | beam.Map(lambda shard: (shard.name, shard))
  _ = (
    {"shard": named, "rows": repeated}
    | beam.CoGroupByKey()
    | "Again" >> beam.Map(_write_again, source, out)
  )
  counts = written | "Counts" >> beam.FlatMap(_of_kind, "count")
  reason = sources.repeated("", "").kind
  more = repeated | "Count" >> beam.Map(lambda _: (reason, 1))
  _ = (
    (counts, more)
    | beam.Flatten()
    | beam.CombinePerKey(sum)
    | beam.combiners.ToDict()
    | "Report" >> beam.Map(_report, out)
  )


def _of_kind(found: tuple[str, Any, Any], kind: str) -> list[tuple[Any, Any]]:
  return [found[1:]] if found[0] == kind else []


def _write_again(
  group: tuple[str, dict], source: sources.Source, out: str
) -> None:
  """Writes a shard without the rows whose ids came before, if it has such."""
  (shard,), rows = (list(group[1][key]) for key in ("shard", "rows"))
  if rows:
    collections.deque(write(shard, source, out, rows), 0)


def _report(counts: dict[str, int], out: str) -> None:
  with _create(f"{out}/counts.json") as file:
    file.write(json.dumps(counts, indent=2, sort_keys=True).encode())


def _open(path: str) -> BinaryIO:
  from apache_beam.io.filesystem import CompressionTypes
  from apache_beam.io.filesystems import FileSystems

  return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def _create(path: str) -> BinaryIO:
  from apache_beam.io.filesystem import CompressionTypes
  from apache_beam.io.filesystems import FileSystems

  return FileSystems.create(
    path, compression_type=CompressionTypes.UNCOMPRESSED
  )


def _match(pattern: str) -> list[tuple[str, int]]:
  """Path and size of each file, in the order of paths."""
  from apache_beam.io.filesystems import FileSystems

  return sorted(
    (found.path, found.size_in_bytes)
    for found in FileSystems.match([pattern])[0].metadata_list
  )


def _ours(out: str, ending: str) -> list[str]:
  """The files of shards in the folder `out`."""
  return [
    path
    for kind in ("passages", "skipped")
    for path, _ in _match(f"{out}/{kind}-*{ending}")
  ]


def find(
  kb: str, source: str, pictures: str
) -> tuple[sources.Source, list[int]]:
  """`corpora.find`, also in a bucket, and the sizes of its files."""
  if "://" not in source:
    found = sources.find(kb, source, pictures)
    return found, [os.path.getsize(path) for path in found.paths]
  corpus, path = sources.asked(kb, source, pictures)
  matched = _match(path) or [
    (file, size)
    for file, size in _match(f"{path.rstrip('/')}/**")
    if re.fullmatch(sources.CORPORA[corpus].names, os.path.basename(file))
  ]
  paths = sources.checked(kb, corpus, source, [file for file, _ in matched])
  return (
    sources.Source(kb, corpus, paths, pictures),
    [size for _, size in matched],
  )


def main(_) -> None:
  asked = _KB.value or sources.feeds(_SOURCE.value)
  if len(asked) != 1:
    raise ValueError(
      f"--source={_SOURCE.value} can feed one knowledge base.  Say which, "
      "as in --kb=text."
    )
  source, sizes = find(asked[0], _SOURCE.value, _IMAGES.value)
  out = _OUT.value.rstrip("/")
  # By its name, which other processes know, and not as __main__.
  named = importlib.import_module(
    "r1router_jax.retrieval.corpora.beam_pipeline"
  )
  counts = named.run(source, sizes, out, _OPTIONS.value)
  rows = counts.pop("rows", 0)
  logging.info(
    "%s: %s rows, %s left out%s.",
    out,
    f"{rows:,}",
    f"{sum(counts.values()):,}",
    "".join(f", {count:,} ({why})" for why, count in counts.items()),
  )
  logging.info(
    "Next: python -m r1router_jax.build_kb --kb=%s --source='%s/passages-*."
    "jsonl'%s --out=...",
    source.kb,
    out,
    f" --images={source.pictures}" if source.kb == "image" else "",
  )


if __name__ == "__main__":
  flags.mark_flag_as_required("out")
  cli.run(main)
