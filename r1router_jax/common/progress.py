"""Progress of long loops, with their rate and the time left."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import tqdm
from etils import epy

# Commands check their flags before JAX is imported.
with epy.lazy_imports():
  import jax

T = TypeVar("T")

SECONDS_PER_LINE = 10.0


def show_progress(
  items: Iterable[T], desc: str, total: int | None = None
) -> Iterator[T]:
  """Yield from `items` and show the progress, with the time left.

  `total` is their number where `items` do not tell it themselves.  A terminal
  gets a bar, any other stderr a plain line now and then; only process 0 shows
  anything.
  """
  # The other processes do the same work in silence.
  if jax.process_index() != 0:
    yield from items
    return
  # A person watches: a bar that moves.
  if sys.stderr.isatty():
    yield from tqdm.tqdm(items, desc=desc, total=total)
    return

  if total is None and hasattr(items, "__len__"):
    total = len(items)
  start = last_shown = time.monotonic()

  def print_line(done, now):
    options = dict(ncols=0, prefix=desc)
    text = tqdm.tqdm.format_meter(done, total, now - start, **options)
    print(text, file=sys.stderr, flush=True)

  done = 0
  for done, item in enumerate(items, 1):
    yield item
    now = time.monotonic()
    # The last item has the line after the loop.
    if now - last_shown >= SECONDS_PER_LINE and done != total:
      last_shown = now
      print_line(done, now)
  print_line(done, time.monotonic())


def show_chunks(
  items: Sequence[T], size: int, desc: str
) -> Iterator[Sequence[T]]:
  """Yield `items` in chunks of `size`, with the progress by chunk."""
  if items:
    starts = range(0, len(items), size)
    yield from show_progress([items[i : i + size] for i in starts], desc)
