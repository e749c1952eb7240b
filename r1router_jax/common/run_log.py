"""The log of a training run: scalars and samples in files and on dashboards.

Only process 0 writes.  `metrics.jsonl` holds one JSON object per logged step,
so that it can be followed while the run goes on; `samples.jsonl` holds some
groups of sampled responses.  A run that continues from a checkpoint drops the
lines of later steps, and a torn one, so that each step is logged once.  JSON
has no NaN: a number that is not finite is written as null, with a warning.

TensorBoard reads the scalars below `tensorboard`, in one file for each time
that the run was started.  Each file begins with a mark at the first step that
it holds, and TensorBoard drops what older files say of this step and later.
"""

import collections
import contextlib
import json
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import msgspec
from absl import logging
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from r1router_jax.common import jsonl
from r1router_jax.common.errors import UserError
from r1router_jax.common.files import atomic_write, write_json
from r1router_jax.common.schema import Count, Finite
from r1router_jax.common.text import sanitize_text

METRICS_FILE, SAMPLES_FILE = "metrics.jsonl", "samples.jsonl"

# Characters of a question or response that a line on the screen shows.
EXCERPT = 120


class _Line(msgspec.Struct):
  step: Count


# Schemas of a line of scalars: they are numbers, or null.
_SCALARS = _Line, dict[str, Finite | None]


class _Sample(_Line):
  id: str
  kind: str
  question: str
  history: list[tuple[str, str]]
  sub_question: str
  gold: list[str]
  responses: list[str]
  rewards: list[Finite]
  advantages: list[Finite]

  def __post_init__(self):
    if not len(self.responses) == len(self.rewards) == len(self.advantages):
      raise ValueError("wanted as many rewards and advantages as responses")


class RunLog:
  """Writes the scalars and samples of a run below its `workdir`.

  The run continues from the step `after`.  A project of Weights & Biases,
  `wandb`, gets the scalars, too; a UserError says if wandb is not installed.
  In a bucket nothing is written for TensorBoard, whose files have to grow.

  Attributes:
    kept_lines: the lines of scalars that the run continues from, on process 0;
      empty elsewhere.
  """

  def __init__(
    self, workdir: epath.PathLike, *, after: int = 0, wandb: str = ""
  ):
    self.kept_lines: list[dict[str, Any]] = []
    # One process writes for all of them.
    self._writes = jax.process_index() == 0
    self._seconds = collections.defaultdict(float)
    self._tensorboard = self._wandb = None
    if self._writes:
      self._folder = folder = epath.Path(workdir)
      folder.mkdir(parents=True, exist_ok=True)
      self._metrics = _JsonLinesFile(folder / METRICS_FILE, after, *_SCALARS)
      self._samples = _JsonLinesFile(folder / SAMPLES_FILE, after, _Line)
      self.kept_lines = self._metrics.kept
      if wandb:
        self._wandb = _open_wandb(wandb, folder, after)
      if "://" not in str(workdir):
        self._tensorboard = _TensorBoardFile(folder / "tensorboard", after)

  def write_options(self, options: Mapping[str, Any]) -> None:
    """Write the options of the run, to `config.json` and the dashboard."""
    if self._writes:
      write_json(self._folder / "config.json", options)
    if self._wandb is not None:
      self._wandb.config.update(options, allow_val_change=True)

  def finish(self, error: type | None, *_: object) -> None:
    """Send the last lines to the dashboard: the exit of a context."""
    if self._wandb is not None:
      self._wandb.finish(exit_code=int(error is not None))

  def write_scalars(
    self, step: int, scalars: Mapping[str, Any]
  ) -> dict[str, Any]:
    """Append one line of scalars, with the seconds timed since the last one.

    Scalars are numbers, or arrays of one element; others raise UserError.
    Returns the line as the file has it; nothing on processes that do not write.
    """
    numbers = {name: _to_number(name, x) for name, x in scalars.items()}
    numbers |= {f"seconds/{name}": x for name, x in self._seconds.items()}
    self._seconds.clear()
    if not self._writes:
      return {}
    line = {"step": step} | numbers
    self._metrics.append([line])
    # The dashboards know no null.
    finite = {name: x for name, x in numbers.items() if x is not None}
    if self._tensorboard is not None:
      self._tensorboard.append(step, finite)
    if self._wandb is not None:
      self._wandb.log(finite, step=step, commit=True)
    return line

  def write_samples(self, step: int, groups: Sequence[dict[str, Any]]) -> None:
    """Append a line for each group of samples, and show excerpts on the screen.

    Groups are JSON objects with `kind`, `question`, `responses` and their
    `rewards`, and any other keys.
    """
    if not self._writes:
      return
    self._samples.append([{"step": step} | group for group in groups])
    for group in groups:
      # The best and the worst response; ties by text, so that logs are equal.
      pairs = sorted(zip(group["rewards"], group["responses"], strict=True))
      shown = [sanitize_text(group["question"], EXCERPT)]
      for reward, text in (pairs[-1], pairs[0]):
        shown.append(f"{reward:.2f} for {sanitize_text(text, EXCERPT)}")
      logging.info("%d, %s, %s: %s; %s", step, group["kind"], *shown)

  @contextlib.contextmanager
  def time_phase(self, name: str) -> Iterator[None]:
    """Add the seconds spent in the context to `seconds/<name>`."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self._seconds[name] += time.perf_counter() - start

  def attribute_seconds(self, seconds: dict[str, float], within: str) -> None:
    """Move seconds of the phase `within` to the phases that it is made of."""
    for name, part in seconds.items():
      self._seconds[name] += part
      self._seconds[within] -= part


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Return the logged lines of a run in order of step; empty if none."""
  path = epath.Path(workdir) / METRICS_FILE
  # Of several lines of one step the last one counts.
  lines = {line["step"]: line for line in jsonl.read_rows(path, *_SCALARS)}
  return [lines[step] for step in sorted(lines)]


def read_samples(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Return the groups of samples of a run, oldest first; empty if none."""
  return jsonl.read_rows(epath.Path(workdir) / SAMPLES_FILE, _Sample)


def _to_number(name: str, value: Any) -> float | int | None:
  """Return a scalar as a number of Python's, or None if it is not finite."""
  try:
    number = value if isinstance(value, int) else float(value)
  except (TypeError, ValueError) as error:
    fault = f"scalar {name!r} is not one number: {value!r:.80}"
    raise UserError(fault) from error
  # JSON has neither NaN nor infinity.
  if math.isfinite(number):
    return number
  logging.warning("%s is %s; written as null.", sanitize_text(name), number)
  return None


class _JsonLinesFile:
  """A file of JSON lines, from which those of steps after `after` are dropped.

  Those that do not fit `kinds` are, too; `kept` are the others.
  """

  def __init__(self, path: epath.Path, after: int, *kinds: Any):
    lines = jsonl.read_rows(path, *kinds)
    self.kept = [line for line in lines if line["step"] <= after]
    self._path, self._in_bucket = path, "://" in str(path)
    self._text = _format_lines(self.kept)
    # Drop later and torn lines on the disk, too.
    if path.exists():
      with atomic_write(path, "w") as file:
        file.write(self._text)

  def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
    text = _format_lines(lines)
    # Objects in a bucket cannot grow: write all of it again.
    if self._in_bucket:
      self._text += text
      self._path.write_text(self._text)
    else:
      with self._path.open("a") as file:
        file.write(text)


class _TensorBoardFile:
  """An event file of TensorBoard that is complete after each `append`.

  (The library's `SummaryWriter` writes in a thread, which may be killed.)
  """

  def __init__(self, folder: epath.Path, after: int):
    folder.mkdir(exist_ok=True)
    # TensorBoard reads files in the order of their names, which otherwise begin
    # with a time: two starts may fall into one second, or a clock go back.
    start = f"events.start{len(list(folder.iterdir())):06d}"
    self._file = EventsWriter(str(folder / start))
    # The mark from which TensorBoard drops the points of older files.
    mark = SessionLog(status=SessionLog.START)
    self._write_event(after + 1, session_log=mark)

  def append(self, step: int, scalars: Mapping[str, float | int]) -> None:
    summary = Summary()
    for name, x in scalars.items():
      summary.value.add(tag=name, simple_value=x)
    self._write_event(step, summary=summary)

  def _write_event(self, step: int, **content: Any) -> None:
    event = Event(wall_time=time.time(), step=step, **content)
    self._file.write_event(event)
    self._file.flush()


def _format_lines(lines: Iterable[Mapping[str, Any]]) -> str:
  return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def _open_wandb(project: str, folder: epath.Path, after: int) -> Any:
  """Start a run of Weights & Biases, or resume the one of this folder."""
  try:
    import wandb
  except ImportError as error:
    raise UserError(
      f"config.wandb is {project!r}, and wandb is not installed: pip install "
      "'r1router_jax[wandb]', or set config.wandb to \"\"."
    ) from error
  id_file = folder / "wandb.id"
  # A run that starts anew in the same folder gets an id of its own.
  if not (after and id_file.exists()):
    id_file.write_text(secrets.token_hex(8))
  run = dict(project=project, name=folder.name, id=id_file.read_text())
  return wandb.init(**run, dir=str(folder), resume="allow")
