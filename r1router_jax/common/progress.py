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


def show_progress(
  items: Iterable[T], desc: str, *, total: int | None = None, every: float = 10
) -> Iterator[T]:
  """Yield from `items` and show the progress, with the time left.

  A terminal gets a bar, any other stderr a plain line after `every` seconds;
  only process 0 shows anything.  By default `total` is the length of `items`,
  if it has one.
  """
  if total is None and hasattr(items, "__len__"):
    total = len(items)
  # The other processes do the same work in silence.
  if jax.process_index() != 0:
    yield from items
  # A person watches: a bar that moves.
  elif sys.stderr.isatty():
    yield from tqdm.tqdm(items, desc=desc, total=total)
  else:
    start = last_shown = time.monotonic()
    done = 0
    for done, item in enumerate(items, 1):
      yield item
      now = time.monotonic()
      # The last item has the line after the loop.
      if now - last_shown >= every and done != total:
        last_shown = now
        _print_progress(desc, done, total, now - start)
    _print_progress(desc, done, total, time.monotonic() - start)


def show_chunks(
  items: Sequence[T], size: int, desc: str
) -> Iterator[Sequence[T]]:
  """Yield `items` in chunks of `size`, with the progress by chunk."""
  if items:
    starts = range(0, len(items), size)
    yield from show_progress([items[i : i + size] for i in starts], desc)


def _print_progress(
  desc: str, done: int, total: int | None, seconds: float
) -> None:
  """Print one line, e.g. "sft: 2 of 4 (50%), 12 s, 0.167/s, 12 s left"."""
  # A rate of items that took no time would be infinite.
  rate = done / max(seconds, 1e-9)
  text = f"{desc}: {done}"
  if total:
    text += f" of {total} ({done / total:.0%})"
  text += f", {_format_duration(seconds)}, {rate:.3g}/s"
  if total and 0 < done < total:
    text += f", {_format_duration((total - done) / rate)} left"
  print(text, file=sys.stderr, flush=True)


def _format_duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes} min"
  return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
