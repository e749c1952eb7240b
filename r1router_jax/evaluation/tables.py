"""Results of an evaluation in words: tables, claims, learning curves.

Claims are written from the numbers, whatever they turn out to be.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1router_jax.common import run_log
from r1router_jax.common.records import Answer, Trajectory
from r1router_jax.metrics import answers
from r1router_jax.metrics import trajectories as trajectories_lib
from r1router_jax.metrics.answers import Interval
from r1router_jax.report import table
from r1router_jax.routing.baselines.registry import ROUTER

WANTED = 0.85  # Route accuracy.


_HEADINGS = dict(
  recall="F1-Recall %",
  f1="F1 %",
  exact="Exact %",
  default_recall="Default recall %",
  default_f1="Default F1 %",
  default_exact="Default exact %",
  route="Route %",
  retrieval="Evidence %",
  format="Well formed %",
  judge="Judged right %",
  retrievals="Retrievals",
  tokens="Tokens",
  cut="Cut tokens",
)


NOTES = (
  "F1-Recall is the recall of the final answer, as the R1-Router paper "
  "measures it; it favours answers that list much, so F1 and exact match "
  "stand beside it.  These follow R1-Router's rules.  Default recall, F1 and "
  "exact match follow ours: every article is dropped, dashes are alike, "
  '"none" is no number, a number is right within its interval, and "yes '
  'and no" is neither.',
  "Route is the share of a question's plan positions, its stop included, at "
  "which an accepted route was chosen.  always_all asks three knowledge "
  "bases, one round each.  random_route and oracle_route replace the route "
  "that the policy wrote by one of chance or of the gold trace.",
  "Evidence is the share of gold hops of which a passage with the answer was "
  "found, over questions whose gold traces name such passages.",
  "Tokens are those that were written.  Cut tokens are those that passages "
  "lost so that answer prompts fitted their limits.",
  "Small figures are 95 % bootstrap intervals.  Differences are paired by "
  "question, or by gold step.",
  'Step rewards are those that Step-GRPO trains on (preset "reference"), '
  "of responses to the gold steps of the same questions: greedy, and "
  "sampled at temperature 1.",
  "Seconds are per question, the median over chunks of questions that are "
  "answered together.",
)


@dataclasses.dataclass(frozen=True)
class Result:
  """What one method did.

  Attributes:
    policy: name of the policy that plans and reads.
    method: one of methods.named.METHODS.
    trajectories: one per question.
    columns: their scores, see scoring.py.
    seconds: per question.
    several: what several samples are worth together, see votes.py.
  """

  policy: str
  method: str
  trajectories: tuple[Trajectory, ...]
  columns: trajectories_lib.Columns
  seconds: float
  several: trajectories_lib.Columns = dataclasses.field(default_factory=dict)

  @property
  def name(self) -> str:
    return self.policy if self.method == ROUTER else self.method


def together(samples: Sequence[Result]) -> Result:
  """Several samples as one: columns are means, trajectories the first's."""
  first = samples[0]
  if len(samples) == 1:
    return first
  stacked = {
    name: np.stack([r.columns[name] for r in samples], axis=1)
    for name in first.columns
  }
  said = [
    [
      answers.tokens(t.final.text) if isinstance(t.final, Answer) else ()
      for t in of
    ]
    for of in zip(*(r.trajectories for r in samples), strict=True)
  ]
  voted = np.arange(len(said)), answers.majority(said)
  ways = {
    f"pass@{k}": answers.pass_at(stacked["default_exact"], k)
    for k in sorted({1, len(samples)})
  }
  return dataclasses.replace(
    first,
    columns={name: x.mean(axis=1) for name, x in stacked.items()},
    seconds=float(np.mean([r.seconds for r in samples])),
    several=ways
    | {
      f"majority {name}": stacked[name][voted]
      for name in ("recall", "default_f1", "default_exact")
    },
  )


Results = Sequence[Result]

Earned = Mapping[str, Mapping[str, np.ndarray]]  # By policy, by way of drawing.


def differences(
  results: Results, earned: Earned
) -> dict[str, dict[str, Interval]]:
  """The last policy minus every other one, and minus each baseline."""
  routers = [r for r in results if r.method == ROUTER]
  others = routers[:-1] + [r for r in results if r.method != ROUTER]
  found = {}
  for other in others if routers else ():
    apart = {
      name: trajectories_lib.counted(
        routers[-1].columns[name] - other.columns[name]
      )
      for name in _rates(results)
    }
    found[f"{routers[-1].name} minus {other.name}"] = {
      name: answers.interval(of, 0) for name, of in apart.items() if of.size
    }
  *names, last = earned or [""]
  for name in names:
    row = found.setdefault(f"{last} minus {name}", {})
    for way in earned[last]:
      row[f"{way} step reward"] = answers.paired_difference(
        earned[last][way], earned[name][way], 0
      )
  return found


def summary(results: Results, earned: Earned) -> dict[str, Any]:
  """All means with their intervals, for a file."""
  means = lambda columns: {
    name: mean._asdict()
    for name, column in columns.items()
    if (mean := _interval(column))
  }
  return dict(
    results=[
      dict(
        policy=r.policy,
        method=r.method,
        seconds=r.seconds,
        **means(r.columns | r.several),
        families={
          family: means(columns) for family, columns in _families(r).items()
        },
      )
      for r in results
    ],
    step_rewards={name: means(ways) for name, ways in earned.items()},
    differences={
      pair: {name: value._asdict() for name, value in row.items()}
      for pair, row in differences(results, earned).items()
    },
  )


def tables(results: Results, earned: Earned) -> dict[str, table.Table]:
  """Methods, families, step rewards, differences; by heading."""
  found = {
    "Methods": table.Table(
      (
        "Method",
        *(
          _HEADINGS[name]
          for name in (*_rates(results), *trajectories_lib.COUNTS)
        ),
        "Seconds",
      ),
      tuple(
        (
          r.name,
          *(_interval(r.columns[name]) for name in _rates(results)),
          *(float(r.columns[name].mean()) for name in trajectories_lib.COUNTS),
          r.seconds,
        )
        for r in results
      ),
      highlight=False,
    )
  }
  if results[0].several:
    found["Several samples, %"] = table.Table(
      ("Method", *results[0].several),
      tuple((r.name, *map(_interval, r.several.values())) for r in results),
      highlight=False,
    )
  by = [_families(r) for r in results]
  for name in ("recall", "route"):
    if rows := tuple(
      (
        family,
        len(by[0][family][name]),
        *(_percent(columns[family][name]) for columns in by),
      )
      for family in by[0]
      if len(trajectories_lib.counted(by[0][family][name]))
    ):
      found[f"{_HEADINGS[name]} by family"] = table.Table(
        ("Family", "Questions", *(r.name for r in results)),
        rows,
        highlight=False,
      )
  if earned:
    found["Mean step reward x 100"] = table.Table(
      ("Policy", *map(str.capitalize, next(iter(earned.values())))),
      tuple(
        (name, *map(_interval, ways.values())) for name, ways in earned.items()
      ),
    )
  if compared := differences(results, earned):
    names = list(dict.fromkeys(n for row in compared.values() for n in row))
    found["Differences, x 100"] = table.Table(
      ("Difference", *(_HEADINGS.get(n, n).removesuffix(" %") for n in names)),
      tuple(
        (pair, *(row.get(n) for n in names)) for pair, row in compared.items()
      ),
      highlight=False,
    )
  return found


def claims(results: Results, earned: Earned, where: str) -> list[str]:
  """What the numbers say of the questions `where`, a line each."""
  lines = []
  for r in results:
    if r.method == ROUTER:
      if route := _interval(r.columns["route"]):
        lines.append(
          f"Route accuracy of {r.name} on {where}: {_shown(route, 1, 2)} "
          f"(wanted: at least {WANTED})."
        )
      lines += [
        f"F1-Recall of {r.name}: "
        f"{_shown(_interval(r.columns['recall']), 100, 1)}, exact match "
        f"{_shown(_interval(r.columns['exact']), 100, 1)}."
      ]
  for name, ways in earned.items():
    shown = ", ".join(
      f"{way} {_shown(_interval(column), 1, 3)}" for way, column in ways.items()
    )
    lines.append(f"Mean step reward of {name}: {shown}.")
  for pair, row in differences(results, earned).items():
    if "recall" in row:
      lines.append(
        f"F1-Recall, {pair}: {_signed(row['recall'], 100, 1, ' points')}."
      )
    for name, value in row.items():
      if name.endswith("reward"):
        lines.append(f"{name.capitalize()}, {pair}: {_signed(value, 1, 3)}.")
  counts = ", ".join(
    f"{r.name} {r.columns['retrievals'].mean():.2f}" for r in results
  )
  return [*lines, f"Retrievals per question: {counts}."]


def curves(runs: Mapping[str, str]) -> dict[str, dict[str, list[tuple]]]:
  """The scalars that runs have logged, but times, by scalar and run.

  Raises:
    ValueError: where a run has logged nothing.
  """
  found = {}
  for run, workdir in runs.items():
    lines = run_log.read(workdir)
    if not lines:
      raise ValueError(
        f"{workdir} has no {run_log.FILE}: --curves wants the --workdir "
        "of a training run."
      )
    for line in lines:
      for scalar, value in line.items():
        if scalar != "step" and not scalar.startswith(("seconds/", "speed/")):
          points = found.setdefault(scalar, {}).setdefault(run, [])
          points.append((line["step"], value))
  return found


def _rates(results: Results) -> list[str]:
  """The columns of rates that all results have."""
  return [
    name
    for name in (*trajectories_lib.RATES, "judge")
    if all(name in r.columns for r in results)
  ]


def _percent(column: np.ndarray) -> float | None:
  """The mean, None where no question counts."""
  counted = trajectories_lib.counted(column)
  return 100 * float(counted.mean()) if counted.size else None


def _interval(column: np.ndarray) -> Interval | None:
  """Of the mean, None where no question counts."""
  counted = trajectories_lib.counted(column)
  return answers.interval(counted, 0) if counted.size else None


def _families(result: Result) -> dict[str, trajectories_lib.Columns]:
  names = np.array([t.question.family for t in result.trajectories])
  return {
    str(family): {
      name: column[names == family] for name, column in result.columns.items()
    }
    for family in np.unique(names)
  }


def _shown(value: Interval, scale: int, digits: int) -> str:
  mean, low, high = (f"{scale * x:.{digits}f}" for x in value)
  return f"{mean} ({low} to {high})"


def _signed(value: Interval, scale: int, digits: int, unit: str = "") -> str:
  mean, low, high = (f"{scale * x:+.{digits}f}" for x in value)
  return f"{mean}{unit} (95 % interval {low} to {high})"
