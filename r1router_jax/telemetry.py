"""What a run says while it runs: scalars in a file, progress on the screen.

Only process 0 writes.  `metrics.jsonl` holds one JSON object per logged step,
so it can be followed.  A run that goes on from a checkpoint drops the lines of
later steps, and a torn one, so each step is there once.  JSON has no NaN: a
number that is not finite is written as null, warned of and counted.
"""

import contextlib
import json
import math
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import tqdm
from absl import logging
from etils import epath

T = TypeVar("T")

FILE = "metrics.jsonl"

# Terminal commands: ESC or its 8-bit twin, with what belongs to it.
_ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_UNSEEN = ("Cc", "Cf", "Cs")  # Control, format (with bidi) and surrogates.


class Telemetry:
  """Writes a run's scalars below `workdir`.

  Args:
    workdir: of the run.
    after: the step that the run goes on from.

  Attributes:
    not_finite: how many numbers were written as null.
  """

  def __init__(self, workdir: str | epath.PathLike, *, after: int = 0):
    self.not_finite = 0
    self._writes = jax.process_index() == 0
    self._path = epath.Path(workdir) / FILE
    self._bucket = "://" in str(workdir)
    self._seconds: dict[str, float] = {}
    self._text = ""
    if self._writes:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._text = "".join(_line(line) for line in read(workdir)
                           if line["step"] <= after)
      partial = self._path.with_name(f"{FILE}.partial")
      partial.write_text(self._text)
      partial.replace(self._path)

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Appends one line: numbers or arrays of one element, by name.

    Times taken by `timed` since the last line go with it.
    """
    numbers = {name: self._number(name, x) for name, x in scalars.items()}
    numbers |= {f"seconds/{name}": x for name, x in self._seconds.items()}
    self._seconds = {}
    if self._writes:
      self._append(_line({"step": step} | numbers))

  @contextlib.contextmanager
  def timed(self, name: str) -> Iterator[None]:
    """Adds the seconds spent inside to `seconds/<name>` of the next line."""
    start = time.perf_counter()
    try:
      yield
    finally:
      spent = time.perf_counter() - start
      self._seconds[name] = self._seconds.get(name, 0.0) + spent

  def _number(self, name: str, value: Any) -> float | int | None:
    try:
      number = value if isinstance(value, int) else float(value)
    except (TypeError, ValueError) as error:
      raise ValueError(
          f"scalar {name!r} is not one number: {value!r:.80}") from error
    if math.isfinite(number):
      return number
    self.not_finite += 1
    logging.warning("%s is %s; written as null.", clean(name), number)
    return None

  def _append(self, text: str) -> None:
    if self._bucket:  # Objects in a bucket cannot grow.
      self._text += text
      self._path.write_text(self._text)
    else:
      with self._path.open("a") as file:
        file.write(text)


def _line(scalars: Mapping[str, Any]) -> str:
  return json.dumps(scalars, allow_nan=False) + "\n"


def read(workdir: str | epath.PathLike) -> list[dict[str, Any]]:
  """The lines of a run in order of step; empty if it has written none."""
  path = epath.Path(workdir) / FILE
  lines = {}
  for text in path.read_text().split("\n") if path.exists() else ():
    try:
      line = json.loads(text)
      lines[line["step"]] = line
    except (ValueError, TypeError, KeyError):
      continue  # Torn when a run was killed.
  return [lines[step] for step in sorted(lines)]


def progress(
    items: Iterable[T], desc: str, *,
    total: int | None = None, every: float = 10.0,
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
      if now - said >= every:
        said = now
        _say(desc, done, total, now - start)
    _say(desc, done, total, time.monotonic() - start)


def clean(text: str, limit: int = 2000) -> str:
  """Text made by a model or a knowledge base as one harmless line of a log.

  Terminal commands, control, format and bidirectional characters are dropped,
  runs of white space become one space, what exceeds `limit` is cut.
  """
  text = " ".join(_ANSI.sub("", text).split())
  seen = "".join(c for c in text if unicodedata.category(c) not in _UNSEEN)
  seen = " ".join(seen.split())
  return seen if len(seen) <= limit else seen[:limit] + "…"


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
