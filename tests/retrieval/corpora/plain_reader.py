"""A plain reader of sources, for tests: no draft, no files."""

from collections.abc import Iterator

from r1router_jax.common.records import Passage
from r1router_jax.common.row_files import RejectedRow
from r1router_jax.retrieval.corpora import sources


def read_passages(
  kb: str, source: str, image_folder: str = ""
) -> Iterator[Passage | RejectedRow]:
  """Return the passages and rejected rows of a source, in order."""
  return _parse_rows(sources.open_source(kb, source, image_folder))


def split_passages(*source: str) -> tuple[list[Passage], list[str]]:
  """Return the passages of a source, and its rejected rows as text."""
  rows = list(read_passages(*source))
  good = [row for row in rows if isinstance(row, Passage)]
  return good, [str(row) for row in rows if isinstance(row, RejectedRow)]


def _parse_rows(source):
  ids = set()
  for where, row in sources.read_raw_rows(source):
    parsed = sources.parse_row(source, where, row)
    if isinstance(parsed, RejectedRow):
      yield parsed
    elif parsed[0] in ids:
      yield sources.duplicate_id(where, parsed[0])
    else:
      ids.add(parsed[0])
      yield from parsed[1]
