"""Results of an evaluation as tables, summary lines and learning curves.

The summary lines are written from the numbers, whatever they turn out to be.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1router_jax.common import run_log
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Answer, Trajectory
from r1router_jax.metrics import answers, official, trajectories
from r1router_jax.metrics.answers import Interval
from r1router_jax.metrics.trajectories import Columns
from r1router_jax.report.scalar_notes import SCALAR_NOTES
from r1router_jax.report.table import Table
from r1router_jax.routing.baselines.registry import ROUTER

_HEADINGS = dict(
  judge="Judge accuracy %",
  recall="F1-Recall %",
  f1="F1 %",
  exact="Exact %",
  default_recall="Default recall %",
  default_f1="Default F1 %",
  default_exact="Default exact %",
  official_exact="Official exact %",
  official_f1="Official F1 %",
  route="Route %",
  retrieval="Evidence %",
  format="Well formed %",
  retrievals="Retrievals",
  tokens="Tokens",
  cut="Truncated tokens",
)


@dataclasses.dataclass(frozen=True)
class MethodResult:
  """Trajectories and scores of one method with one policy."""

  policy: str  # Name of the policy that plans and reads.
  method: str  # A key of `routing.baselines.registry.METHODS`.
  trajectories: tuple[Trajectory, ...]  # One of each question.
  scores: Columns  # A number per question, by column.
  seconds: float  # Time per question.
  # pass@k and majority scores, if each question was answered several times.
  sample_scores: Columns = dataclasses.field(default_factory=dict)

  @property
  def display_name(self) -> str:
    """The policy where it routes for itself, else the method."""
    return self.policy if self.method == ROUTER else self.method


MethodResults = Sequence[MethodResult]
# Rewards of gold steps, by policy and by the way of sampling.
StepRewards = Mapping[str, Mapping[str, np.ndarray]]


def aggregate_samples(samples: Sequence[MethodResult]) -> MethodResult:
  """Combine several samples of each question into one result.

  Scores are means over the samples, trajectories are those of the first sample,
  and pass@k and majority votes are added as `sample_scores`.
  """
  first = samples[0]
  if len(samples) == 1:
    return first
  stacked = {
    name: np.stack([r.scores[name] for r in samples], axis=1)
    for name in first.scores
  }
  by_question = zip(*(r.trajectories for r in samples), strict=True)
  votes = [list(map(_vote, of_question)) for of_question in by_question]
  voted = np.arange(len(votes)), answers.majority_vote(votes)
  sample_scores = {
    f"pass@{k}": answers.pass_at_k(stacked["default_exact"], k)
    for k in sorted({1, len(samples)})
  }
  for name in ("recall", "default_f1", "default_exact"):
    sample_scores[f"majority {name}"] = stacked[name][voted]
  return dataclasses.replace(
    first,
    scores={name: x.mean(axis=1) for name, x in stacked.items()},
    seconds=float(np.mean([r.seconds for r in samples])),
    sample_scores=sample_scores,
  )


def _vote(trajectory: Trajectory) -> tuple[str, ...]:
  """Return the normalised words of an answer; a malformed one has none."""
  final = trajectory.final
  return answers.reference_tokens(final.text * isinstance(final, Answer))


def paired_differences(
  results: MethodResults, step_rewards: StepRewards
) -> dict[str, dict[str, Interval]]:
  """Return the last policy minus every other one, and minus each baseline.

  Mean differences over the same questions or gold steps come with their
  intervals, by pair ("a minus b") and by score.
  """
  # Differences of scores: each pair is compared question by question.
  routers = [r for r in results if r.method == ROUTER]
  others = routers[:-1] + [r for r in results if r.method != ROUTER]
  found = {}
  for other in others if routers else ():
    row = found[f"{routers[-1].display_name} minus {other.display_name}"] = {}
    for name in _shared_rates(results):
      apart = routers[-1].scores[name] - other.scores[name]
      if interval := _mean_interval(apart):
        row[name] = interval
  # Differences of step rewards: paired by gold step.
  *names, last = step_rewards or [""]
  for name in names:
    row = found.setdefault(f"{last} minus {name}", {})
    for way, rewards in step_rewards[last].items():
      apart = rewards - step_rewards[name][way]
      row[f"{way} step reward"] = answers.bootstrap_interval(apart, 0)
  return found


def summarize_results(
  results: MethodResults, step_rewards: StepRewards
) -> dict[str, Any]:
  """Return all means with their intervals, ready for JSON."""
  rows = []
  for r in results:
    row = dict(policy=r.policy, method=r.method, seconds=r.seconds)
    row |= _mean_dicts(r.scores | r.sample_scores)
    if found := _infoseek_score(r):
      row["infoseek"] = found._asdict()
    families = _columns_by_family(r)
    row["families"] = {name: _mean_dicts(by) for name, by in families.items()}
    rows.append(row)
  rewards = {name: _mean_dicts(by) for name, by in step_rewards.items()}
  apart = {
    pair: {name: value._asdict() for name, value in row.items()}
    for pair, row in paired_differences(results, step_rewards).items()
  }
  return dict(results=rows, step_rewards=rewards, differences=apart)


def make_tables(
  results: MethodResults, step_rewards: StepRewards
) -> dict[str, Table]:
  """Return the tables of a report by heading, without the empty ones."""
  samples = [(r.display_name, r.sample_scores) for r in results]
  rewards = [
    (name, {way.capitalize(): x for way, x in ways.items()})
    for name, ways in step_rewards.items()
  ]
  differences = paired_differences(results, step_rewards)
  by_family = {
    f"{_HEADINGS[name]} by family": _family_table(results, name)
    for name in ("judge", "recall", "official_exact", "route")
  }
  tables = {
    "Methods": _method_table(results),
    "Several samples, %": _interval_table("Method", samples),
    **by_family,
    f"{_HEADINGS['recall']} by family, differences": _family_differences(
      results, "recall"
    ),
    "Mean step reward x 100": _interval_table("Policy", rewards),
    "Differences, x 100": _difference_table(differences),
  }
  return {heading: table for heading, table in tables.items() if table.rows}


def _method_table(results: MethodResults) -> Table:
  rates, counts = _shared_rates(results), trajectories.COUNTS
  headings = (_HEADINGS[name] for name in (*rates, *counts))
  rows = []
  for r in results:
    means = (_mean_interval(r.scores[name]) for name in rates)
    numbers = (float(r.scores[name].mean()) for name in counts)
    rows.append((r.display_name, *means, *numbers, r.seconds))
  return Table(("Method", *headings, "Seconds"), tuple(rows))


def _interval_table(
  corner: str, named_columns: Sequence[tuple[str, Columns]]
) -> Table:
  """Return a row of means for each name that has columns of numbers."""
  named_columns = [each for each in named_columns if each[1]]
  headings = named_columns[0][1] if named_columns else ()
  rows = ((name, *map(_mean_interval, x.values())) for name, x in named_columns)
  return Table((corner, *headings), tuple(rows))


def _family_table(results: MethodResults, name: str) -> Table:
  """Return a column of each result by question family."""
  # Without a judge there are no verdicts.
  if any(name not in r.scores for r in results):
    return Table((), ())
  by_result, rows = [_columns_by_family(r) for r in results], []
  for family, columns in by_result[0].items():
    # Questions without gold hops count for no route.
    if number := trajectories.drop_nan(columns[name]).size:
      counted = [trajectories.drop_nan(by[family][name]) for by in by_result]
      means = [100 * float(x.mean()) if x.size else None for x in counted]
      rows.append((family, number, *means))
  names = (r.display_name for r in results)
  return Table(("Family", "Questions", *names), tuple(rows))


def _family_differences(results: MethodResults, name: str) -> Table:
  """Return the last policy minus every other one by family of questions."""
  *others, last = [r for r in results if r.method == ROUTER] or [None]
  if not others:
    return Table((), ())
  by_other, rows = [_columns_by_family(r) for r in others], []
  for family, columns in _columns_by_family(last).items():
    number = trajectories.drop_nan(columns[name]).size
    apart = (columns[name] - by[family][name] for by in by_other)
    rows.append((family, number, *map(_mean_interval, apart)))
  pairs = (f"{last.display_name} minus {r.display_name}" for r in others)
  return Table(("Family", "Questions", *pairs), tuple(rows))


def _difference_table(differences: dict[str, dict[str, Interval]]) -> Table:
  names = list(dict.fromkeys(n for row in differences.values() for n in row))
  headings = (_HEADINGS.get(name, name).removesuffix(" %") for name in names)
  rows = ((pair, *map(row.get, names)) for pair, row in differences.items())
  return Table(("Difference", *headings), tuple(rows))


def summary_lines(
  results: MethodResults, step_rewards: StepRewards, where: str
) -> list[str]:
  """Say in sentences what the numbers show, a line each.

  `where` names the questions, such as "unseen countries".
  """
  routers = [r for r in results if r.method == ROUTER]
  lines = [line for r in routers for line in _router_lines(r, where)]
  for name, ways in step_rewards.items():
    means = [f"{way} {_format_mean(x, 1, 3)}" for way, x in ways.items()]
    lines.append(f"Mean step reward of {name}: {', '.join(means)}.")
  for pair, row in paired_differences(results, step_rewards).items():
    if "recall" in row:
      shown = _format_difference(row["recall"], 100, 1, " points")
      lines.append(f"F1-Recall, {pair}: {shown}.")
    for name, value in row.items():
      if name.endswith("reward"):
        shown = _format_difference(value, 1, 3)
        lines.append(f"{name.capitalize()}, {pair}: {shown}.")
  counts = [(r.display_name, r.scores["retrievals"].mean()) for r in results]
  shown = ", ".join(f"{name} {count:.2f}" for name, count in counts)
  return [*lines, f"Retrievals per question: {shown}."]


def _router_lines(r: MethodResult, where: str) -> list[str]:
  """Return the sentences on one policy that routes for itself."""
  lines, name = [], r.display_name
  # Questions without a gold trace say nothing about routes.
  if trajectories.drop_nan(r.scores["route"]).size:
    shown = _format_mean(r.scores["route"], 1, 2)
    lines.append(f"Route accuracy of {name} on {where}: {shown}.")
  if _mean_interval(r.scores.get("judge", np.array([]))):
    shown = _format_mean(r.scores["judge"], 100, 1)
    lines.append(f"Judge accuracy of {name}: {shown}.")
  recall = _format_mean(r.scores["recall"], 100, 1)
  exact = _format_mean(r.scores["exact"], 100, 1)
  lines.append(f"F1-Recall of {name}: {recall}, exact match {exact}.")
  if found := _infoseek_score(r):
    score, question, entity = (f"{100 * x:.1f}" for x in found)
    lines.append(
      f"InfoSeek's score of {name}: {score}, the harmonic mean of unseen "
      f"questions {question} and unseen entities {entity}."
    )
  return lines


def load_curves(runs: Mapping[str, str]) -> dict[str, dict[str, list[tuple]]]:
  """Read the scalars that training runs logged, all but their timings.

  The runs are working directories by name; returned are (step, value) points by
  scalar and run, those of known scalars first.  A run that has logged nothing
  is a UserError.
  """
  found = {}
  for run, workdir in runs.items():
    lines = run_log.read_metrics(workdir)
    if not lines:
      fault = f"{workdir} has no {run_log.METRICS_FILE}"
      cure = "--curves wants the --workdir of a training run."
      raise UserError(f"{fault}: {cure}")
    for line in lines:
      for scalar, value in line.items():
        # Timings are noise of the machine, and no learning curve.
        if scalar != "step" and not scalar.startswith(("seconds/", "speed/")):
          points = found.setdefault(scalar, {}).setdefault(run, [])
          points.append((line["step"], value))
  order = dict.fromkeys([*SCALAR_NOTES, *found])
  return {scalar: found[scalar] for scalar in order if scalar in found}


def _shared_rates(results: MethodResults) -> list[str]:
  """Return the columns of rates that all results have numbers in."""
  # What a judge says is the main column where there is one.
  names = "judge", *trajectories.RATES
  shared = [n for n in names if all(n in r.scores for r in results)]
  # Without gold hops no method has numbers of routes and evidence.
  first = results[0].scores
  return [n for n in shared if trajectories.drop_nan(first[n]).size]


def _infoseek_score(result: MethodResult) -> official.InfoseekScore | None:
  """Return InfoSeek's score of a method if it was asked for both splits."""
  questions = [each.question for each in result.trajectories]
  return official.infoseek_score(questions, result.scores["official_exact"])


def _mean_interval(column: np.ndarray) -> Interval | None:
  """Return the mean with its interval, or None if no question counts."""
  counted = trajectories.drop_nan(column)
  return answers.bootstrap_interval(counted, 0) if counted.size else None


def _mean_dicts(columns: Mapping[str, np.ndarray]) -> dict[str, dict]:
  """Return the mean and interval of each column that has any number."""
  means = {name: _mean_interval(column) for name, column in columns.items()}
  return {name: mean._asdict() for name, mean in means.items() if mean}


def _columns_by_family(result: MethodResult) -> dict[str, Columns]:
  names = np.array([t.question.family for t in result.trajectories])
  found = {}
  for family in np.unique(names):
    chosen = {k: x[names == family] for k, x in result.scores.items()}
    found[str(family)] = chosen
  return found


def _format_mean(column: np.ndarray, scale: int, digits: int) -> str:
  found = _mean_interval(column)
  mean, low, high = (f"{scale * x:.{digits}f}" for x in found)
  return f"{mean} ({low} to {high})"


def _format_difference(
  value: Interval, scale: int, digits: int, unit: str = ""
) -> str:
  mean, low, high = (f"{scale * x:+.{digits}f}" for x in value)
  return f"{mean}{unit} (95 % interval {low} to {high})"
