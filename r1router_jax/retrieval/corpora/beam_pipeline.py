r"""Converts a raw corpus to passages by Apache Beam, on many cores or machines.

  pip install 'r1router_jax[beam]'
  python -m r1router_jax.retrieval.corpora.beam_pipeline \
      --source=wikipedia:extracted --workdir=DIR
  python -m r1router_jax.build_kb --kind=text --source='DIR/passages-*.jsonl'

Sources, and how their rows are read, are those of sources.py.  Options of Beam
itself follow --beam_options, separated by commas:

  --beam_options=--direct_running_mode=multi_processing,--direct_num_workers=8
  --beam_options=--runner=DataflowRunner,--project=P,--region=R,--temp_location=T

The corpus is cut into shards, each some megabytes of small files or some
thousand rows of one file; the cuts depend on names and sizes alone.  One pure
function writes a shard, in the order of its rows, so the files have equal bits
whatever the runner, and one after the other they hold what build_kb would read
from the source itself.  Only ids are shuffled: a shard that has rows whose ids
came before is written a second time, without them.  Files get their final names
once all of them are complete.

Sources and --workdir may be in a bucket (gs://...), images may not.
"""

import collections
import dataclasses
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, BinaryIO

from absl import flags, logging
from etils import epy

from r1router_jax.common import cli, row_files, shared_flags
from r1router_jax.common.row_files import RejectedRow
from r1router_jax.retrieval.corpora import passage_writer, sources

# An optional dependency, and slow to import.
with epy.lazy_imports():
  import apache_beam as beam
  from apache_beam.io import filesystems
  from apache_beam.options import pipeline_options

# `main` imports this module a second time, which defines its flags anew.
_WORKDIR = shared_flags.define_flag("workdir")
_KIND, _SOURCE, _IMAGES = sources.define_source_flags()
_BEAM_OPTIONS = flags.DEFINE_list(
  "beam_options", [], "Options of Apache Beam.", allow_override=True
)

# The engine inside Beam's DirectRunner, which by itself downloads another one.
RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"

# Bytes of small files that share a shard.
SHARD_BYTES = 16 << 20

# Rows of a shard that is part of a large file, and shards of such a file.
SHARD_ROWS, MAX_SHARDS_PER_FILE = 50_000, 64


@dataclasses.dataclass(frozen=True)
class Shard:
  """A part of the corpus: the rows `start` to before `stop` of some files."""

  name: str  # It sorts as the rows of the shards do.
  paths: tuple[str, ...]
  start: int = 0
  stop: int | None = None


# --- Shards -------------------------------------------------------------------


def group_files(paths: Sequence[str], sizes: Sequence[int]) -> list[Shard]:
  """Group neighboring files into shards of up to `SHARD_BYTES`."""
  groups, room = [], 0
  for path, size in zip(paths, sizes, strict=True):
    if size > room:
      groups.append([])
      room = SHARD_BYTES
    groups[-1].append(path)
    room -= size
  return [Shard(f"{i:05d}", tuple(group)) for i, group in enumerate(groups)]


def split_shard(shard: Shard, source: sources.Source) -> Iterator[Shard]:
  """Split a shard of one file into shards of at least `SHARD_ROWS` rows."""
  if len(shard.paths) > 1:
    yield shard
    return
  # Cutting a file into raw rows is cheap beside parsing them.
  count = sum(1 for _ in _shard_rows(shard, source))
  # Ceiling of the division.
  step = max(SHARD_ROWS, -(-count // MAX_SHARDS_PER_FILE))
  for number, start in enumerate(range(0, count, step)):
    yield Shard(f"{shard.name}-{number:02d}", shard.paths, start, start + step)


def _shard_rows(shard: Shard, source: sources.Source) -> row_files.Rows:
  part = dataclasses.replace(source, paths=shard.paths)
  return sources.read_raw_rows(part, shard.start, shard.stop, _open_file)


def write_shard(
  shard: Shard,
  source: sources.Source,
  workdir: str,
  repeated: Collection[int] = (),
) -> Iterator[Any]:
  """Write the passages and the rejected rows of a shard to `workdir`.

  If it is the second time, `repeated` has the positions in the shard of rows
  whose ids came before in the corpus.

  Yields (id, (name of the shard, position)) for each good row, and then, as the
  output "counts", (reason, number of rows) for each reason to leave rows out,
  and for all rows under "rows".
  """
  # Beam may repeat a step that failed late, so each time has its own file.
  turn = "second" if repeated else "first"
  repeated, counts = set(repeated), collections.Counter()
  with (
    _create_file(f"{workdir}/passages-{shard.name}.jsonl.{turn}") as passages,
    _create_file(f"{workdir}/skipped-{shard.name}.txt.{turn}") as skipped,
  ):
    for number, (where, row) in enumerate(_shard_rows(shard, source)):
      parsed = sources.parse_row(source, where, row)
      if number in repeated:
        parsed = sources.duplicate_id(where, parsed[0])
      if isinstance(parsed, RejectedRow):
        skipped.write(f"{parsed}\n".encode(errors="backslashreplace"))
        counts[parsed.kind] += 1
      else:
        for passage in parsed[1]:
          passages.write(passage_writer.passage_line(passage, whole=True))
        yield parsed[0], (shard.name, number)
      counts["rows"] += 1
  for count in counts.items():
    yield beam.TaggedOutput("counts", count)


# --- Pipeline -----------------------------------------------------------------


def run_pipeline(
  source: sources.Source,
  sizes: Sequence[int],
  workdir: str,
  options: Sequence[str] = (),
) -> dict[str, int]:
  """Write the passages of files of these sizes; replace those in `workdir`.

  Returns the number of rows ("rows"), and the number of rows left out, by
  reason; both are also written to counts.json.
  """
  # Delete what an earlier run left, complete or not.
  files = filesystems.FileSystems
  if not files.exists(workdir):
    files.mkdirs(workdir)
  if old := _shard_files(workdir, ""):
    files.delete(old)

  if not any(option.startswith("--runner") for option in options):
    options = [f"--runner={RUNNER}", *options]
  options = pipeline_options.PipelineOptions(list(options))
  with beam.Pipeline(options=options) as pipeline:
    _add_steps(pipeline, source, sizes, workdir)

  # Shards that were written twice are taken from the second time.
  for ending in (".first", ".second"):
    found = _shard_files(workdir, ending)
    files.rename(found, [path.removesuffix(ending) for path in found])
  with _open_file(f"{workdir}/counts.json") as file:
    return json.load(file)


def _add_steps(
  pipeline: Any, source: sources.Source, sizes: Sequence[int], workdir: str
) -> None:
  """Add the steps of `run_pipeline` to a Beam pipeline."""
  # Cut the corpus into shards and write each of them.
  shards = (
    pipeline
    | beam.Create(group_files(source.paths, sizes))
    | "Spread files" >> beam.Reshuffle()
    | beam.FlatMap(split_shard, source)
    | "Spread shards" >> beam.Reshuffle()
  )
  write = beam.FlatMap(write_shard, source, workdir)
  ids, counts = shards | write.with_outputs("counts", main="ids")

  # Find all rows but the first of each id, and write their shards again.
  repeated = (
    ids
    | beam.GroupByKey()
    | "All but the first" >> beam.FlatMap(lambda ids: sorted(ids[1])[1:])
  )
  named = shards | beam.Map(lambda shard: (shard.name, shard))
  _ = (
    {"shard": named, "rows": repeated}
    | beam.CoGroupByKey()
    | "Again" >> beam.Map(_write_second_time, source, workdir)
  )

  # Count the rows that were left out: while reading, and because of their ids.
  reason = sources.duplicate_id("", "").kind
  repeated_counts = repeated | "Count" >> beam.Map(lambda _: (reason, 1))
  _ = (
    (counts, repeated_counts)
    | beam.Flatten()
    | beam.CombinePerKey(sum)
    | beam.combiners.ToDict()
    | "Report" >> beam.Map(_write_counts, workdir)
  )


def _write_second_time(
  group: tuple[str, dict], source: sources.Source, workdir: str
) -> None:
  """Write a shard without the rows whose ids came before, if it has any."""
  (shard,), rows = (list(group[1][key]) for key in ("shard", "rows"))
  if rows:
    # A deque of length 0 runs the generator and keeps nothing.
    collections.deque(write_shard(shard, source, workdir, rows), 0)


def _write_counts(counts: dict[str, int], workdir: str) -> None:
  with _create_file(f"{workdir}/counts.json") as file:
    file.write(json.dumps(counts, indent=2, sort_keys=True).encode())


# --- Files, which may be in a bucket ------------------------------------------


def _open_file(path: str) -> BinaryIO:
  """Open a file as it is stored; Beam would decompress it by its name."""
  return filesystems.FileSystems.open(path, compression_type="uncompressed")


def _create_file(path: str) -> BinaryIO:
  return filesystems.FileSystems.create(path, compression_type="uncompressed")


def _match_files(pattern: str) -> list[tuple[str, int]]:
  """Return the path and size of each file that matches, in order of paths."""
  (match,) = filesystems.FileSystems.match([pattern])
  return sorted((file.path, file.size_in_bytes) for file in match.metadata_list)


def _shard_files(workdir: str, ending: str) -> list[str]:
  """Return the files of shards in a folder whose names end so."""
  return [
    path
    for kind in ("passages", "skipped")
    for path, _ in _match_files(f"{workdir}/{kind}-*{ending}")
  ]


def open_source(
  kb: str, source: str, image_folder: str
) -> tuple[sources.Source, list[int]]:
  """Find a source, as `sources.open_source` does, also if it is in a bucket.

  Returns the source, and the sizes of its files in bytes.
  """
  if "://" not in source:
    found = sources.open_source(kb, source, image_folder)
    return found, [os.path.getsize(path) for path in found.paths]
  corpus, path = sources.resolve_corpus(kb, source, image_folder)
  # The path is a file or a pattern, or else a folder.
  pattern = sources.file_pattern(kb, corpus)
  matched = _match_files(path) or [
    (file, size)
    for file, size in _match_files(f"{path.rstrip('/')}/**")
    if re.fullmatch(pattern, os.path.basename(file))
  ]
  files = [file for file, _ in matched]
  paths = sources.validate_paths(kb, corpus, source, files)
  found = sources.Source(kb, corpus, paths, image_folder)
  return found, [size for _, size in matched]


def main(_) -> None:
  """Run the command."""
  kbs = sources.choose_kbs(_SOURCE.value, _KIND.value, _IMAGES.value)
  sources.require_single_kb(_SOURCE.value, kbs)
  source, sizes = open_source(kbs[0], _SOURCE.value, _IMAGES.value)
  workdir, options = _WORKDIR.value.rstrip("/"), _BEAM_OPTIONS.value
  # Workers import this module by its name, and would not find what is __main__.
  # The import defines the flags anew, so their values are read before it.
  from r1router_jax.retrieval.corpora import beam_pipeline

  counts = beam_pipeline.run_pipeline(source, sizes, workdir, options)
  rows = counts.pop("rows", 0)
  why = "".join(f", {count:,} ({reason})" for reason, count in counts.items())
  left_out = f"{sum(counts.values()):,} left out{why}"
  logging.info("%s: %s rows, %s.", workdir, f"{rows:,}", left_out)
  images = f" --images={source.image_folder}" if source.kb == "image" else ""
  # To build_kb these are a user's own files, which are searched by words, too.
  words = "" if sources.is_own(_SOURCE.value) else " --nohybrid"
  command = f"python -m r1router_jax.build_kb --kind={source.kb} --source="
  passages = f"'{workdir}/passages-*.jsonl'{images}{words} --kb_dir=..."
  logging.info("Next: %s%s", command, passages)


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  cli.run(main)
