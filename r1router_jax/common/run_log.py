"""What a run says while it runs: scalars in files, progress on the screen.

Only process 0 writes.  `metrics.jsonl` holds one JSON object per logged step,
so it can be followed; `samples.jsonl` some groups of samples.  A run that goes
on from a checkpoint drops the lines of later steps, and a torn one, so each
step is there once.  JSON has no NaN: a number that is not finite is written as
null, warned of and counted.

TensorBoard finds the scalars below `tensorboard`, in one file for each time
that the run was started; each begins with the step from which older files are
no longer true, and TensorBoard drops their later points.
"""

import contextlib
import json
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from r1router_jax.common.text import clean

FILE, SAMPLES = "metrics.jsonl", "samples.jsonl"

EXCERPT = 120  # Characters of a text that the log shows of a sample.


class Telemetry:
  """Writes a run's scalars below `workdir`.

  Args:
    workdir: of the run; in a bucket nothing is written for TensorBoard, whose
      files have to grow.
    after: the step that the run goes on from.
    wandb: the project of Weights & Biases that gets the scalars, too, or "".

  Attributes:
    lines: all that the run has logged, by process 0.
    not_finite: how many numbers were written as null.

  Raises:
    ValueError: where wandb is wanted and not installed.
  """

  def __init__(
    self, workdir: str | epath.PathLike, *, after: int = 0, wandb: str = ""
  ):
    self.lines: list[dict[str, Any]] = []
    self.not_finite = 0
    self._writes = jax.process_index() == 0
    self._seconds: dict[str, float] = {}
    self._board = self._wandb = None
    if self._writes:
      folder = epath.Path(workdir)
      folder.mkdir(parents=True, exist_ok=True)
      self._metrics, self._samples = (
        _Lines(folder / name, after) for name in (FILE, SAMPLES)
      )
      self.lines = list(self._metrics.kept)
      if wandb:
        self._wandb = _open_wandb(wandb, folder, after)
      if "://" not in str(workdir):
        self._board = _Board(folder / "tensorboard", after)

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Appends one line: numbers or arrays of one element, by name.

    Times taken by `timed` since the last line go with it.
    """
    numbers = {name: self._number(name, x) for name, x in scalars.items()}
    numbers |= {f"seconds/{name}": x for name, x in self._seconds.items()}
    self._seconds = {}
    if not self._writes:
      return
    self.lines.append({"step": step} | numbers)
    self._metrics.append(self.lines[-1:])
    known = {name: x for name, x in numbers.items() if x is not None}
    if self._board is not None:
      self._board.append(step, known)
    if self._wandb is not None:
      self._wandb.log(known, step=step, commit=True)

  def sample(self, step: int, groups: Sequence[Mapping[str, Any]]) -> None:
    """Appends a line for each group of samples, and logs a little of it.

    Args:
      step: the iteration that drew them.
      groups: what JSON can hold; with `kind`, `question`, `responses` and
        their `rewards`.
    """
    if not self._writes:
      return
    self._samples.append([{"step": step} | group for group in groups])
    for group in groups:
      pairs = sorted(zip(group["rewards"], group["responses"], strict=True))
      ends = "; ".join(
        f"{reward:.2f} for {clean(text, EXCERPT)}"
        for reward, text in (pairs[-1], pairs[0])
      )
      logging.info(
        "%d, %s, %s: %s",
        step,
        group["kind"],
        clean(group["question"], EXCERPT),
        ends,
      )

  @contextlib.contextmanager
  def timed(self, name: str) -> Iterator[None]:
    """Adds the seconds spent inside to `seconds/<name>` of the next line."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self._spend(name, time.perf_counter() - start)

  def spent(self, seconds: Mapping[str, float], *, within: str) -> None:
    """Gives phases their part of the seconds that `within` was timed for."""
    for name, part in seconds.items():
      self._spend(name, part)
      self._spend(within, -part)

  def _spend(self, name: str, seconds: float) -> None:
    self._seconds[name] = self._seconds.get(name, 0.0) + seconds

  def _number(self, name: str, value: Any) -> float | int | None:
    try:
      number = value if isinstance(value, int) else float(value)
    except (TypeError, ValueError) as error:
      raise ValueError(
        f"scalar {name!r} is not one number: {value!r:.80}"
      ) from error
    if math.isfinite(number):
      return number
    self.not_finite += 1
    logging.warning("%s is %s; written as null.", clean(name), number)
    return None


class _Lines:
  """A file of JSON lines that grows, once those after a step are dropped."""

  def __init__(self, path: epath.Path, after: int):
    self.kept = [line for line in _rows(path) if line["step"] <= after]
    self._path, self._bucket = path, "://" in str(path)
    self._text = "".join(map(_line, self.kept))
    if path.exists():
      partial = path.with_name(f"{path.name}.partial")
      partial.write_text(self._text)
      partial.replace(path)

  def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(map(_line, lines))
    if self._bucket:  # Objects in a bucket cannot grow.
      self._text += text
      self._path.write_text(self._text)
    else:
      with self._path.open("a") as file:
        file.write(text)


class _Board:
  """A file of TensorBoard's, in which all that is appended stands at once.

  (The library's `SummaryWriter` leaves it to a thread.)
  """

  def __init__(self, folder: epath.Path, after: int):
    folder.mkdir(exist_ok=True)
    # Named by the step, too: two starts may fall into one second.
    self._file = EventsWriter(str(folder / "events"), f".{after:09d}")
    self._write(after + 1, session_log=SessionLog(status=SessionLog.START))

  def append(self, step: int, scalars: Mapping[str, float | int]) -> None:
    self._write(
      step,
      summary=Summary(
        value=[
          Summary.Value(tag=name, simple_value=x) for name, x in scalars.items()
        ]
      ),
    )

  def _write(self, step: int, **what: Any) -> None:
    self._file.write_event(Event(wall_time=time.time(), step=step, **what))
    self._file.flush()


def _line(scalars: Mapping[str, Any]) -> str:
  return json.dumps(scalars, allow_nan=False) + "\n"


def _rows(path: epath.Path) -> Iterator[dict[str, Any]]:
  for text in path.read_text().split("\n") if path.exists() else ():
    try:
      line = json.loads(text)
      line["step"]
    except (ValueError, TypeError, KeyError):
      continue  # Torn when a run was killed.
    yield line


def read(workdir: str | epath.PathLike) -> list[dict[str, Any]]:
  """The lines of a run in order of step; empty if it has written none."""
  lines = {line["step"]: line for line in _rows(epath.Path(workdir) / FILE)}
  return [lines[step] for step in sorted(lines)]


def read_samples(workdir: str | epath.PathLike) -> list[dict[str, Any]]:
  """The groups that a run has shown, oldest first; empty if none."""
  return list(_rows(epath.Path(workdir) / SAMPLES))


def _open_wandb(project: str, folder: epath.Path, after: int) -> Any:
  """The run in a project of Weights & Biases, anew or where it went on."""
  try:
    import wandb
  except ImportError as error:
    raise ValueError(
      f"config.wandb is {project!r}, and wandb is not installed: pip install "
      "'r1router_jax[wandb]', or set config.wandb to \"\"."
    ) from error
  known = folder / "wandb.id"
  if not (after and known.exists()):
    known.write_text(secrets.token_hex(8))
  return wandb.init(
    project=project,
    dir=str(folder),
    name=folder.name,
    id=known.read_text(),
    resume="allow",
  )
