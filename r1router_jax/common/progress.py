"""Shows the progress of long loops with their rate and remaining time."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
import tqdm

T = TypeVar("T")


def progress(
  items: Iterable[T],
  desc: str,
  *,
  total: int | None = None,
  every: float = 10.0,
) -> Iterator[T]:
  """Passes `items` on and shows how far we are, with the time left.

  A bar on a terminal, else a plain line every `every` seconds and at the end.
  """
  if total is None and hasattr(items, "__len__"):
    total = len(items)
  if jax.process_index() != 0:
    yield from items
  elif sys.stderr.isatty():
    yield from tqdm.tqdm(items, desc=desc, total=total)
  else:
    start = said = time.monotonic()
    done = 0
    for item in items:
      yield item
      done += 1
      now = time.monotonic()
      if now - said >= every and done != total:
        said = now
        _say(desc, done, total, now - start)
    _say(desc, done, total, time.monotonic() - start)


def _say(desc: str, done: int, total: int | None, spent: float) -> None:
  rate = done / max(spent, 1e-9)
  text = f"{desc}: {done}"
  if total:
    text += f" of {total} ({done / total:.0%})"
  text += f", {_time(spent)}, {rate:.3g}/s"
  if total and 0 < done < total:
    text += f", {_time((total - done) / rate)} left"
  print(text, file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes} min"
  return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
