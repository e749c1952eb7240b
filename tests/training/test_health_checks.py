"""Each health check warns of its bad series, and of no good one."""

import itertools

import numpy as np
import pytest

from r1router_jax.training import health_checks


def parse_values(text):
  return [float(number) for number in text.split()]


# Values of a Step-GRPO run that learned, the quickstart's with seed 0.  The
# last ones, which it did not log, are made up.
GOOD = {
  "reward/std_in_group": parse_values(
    "0.128 0.123 0.0969 0.0669 0.0668 0.0965 0.0523 0.0627 "
    "0.0874 0.0657 0.0358 0.0513 0.0399 0.0525 0.0502 0.0378"
  ),
  "equal_groups": parse_values(
    "0.547 0.581 0.662 0.725 0.734 0.666 0.766 0.759 "
    "0.719 0.762 0.859 0.769 0.825 0.8 0.809 0.825"
  ),
  "entropy": parse_values(
    "0.121 0.161 0.185 0.152 0.168 0.221 0.113 0.23 "
    "0.156 0.112 0.211 0.131 0.146 0.113 0.161 0.0644"
  ),
  "response_tokens": parse_values(
    "16.6 14.8 14.2 14.2 15.2 14.1 15.4 14.4 "
    "14.6 16.3 13.4 14.9 14.2 14.5 13.9 17.4"
  ),
  "reward/well_formed": parse_values(
    "0.988 0.977 0.979 0.988 0.986 0.977 0.979 0.998 "
    "0.99 0.996 0.989 0.986 0.995 0.993 0.976 0.996"
  ),
  "logp_drift": [1.2e-07, 7.68e-08] * 8,
  "sampler_drift": [0.0028, 0.0031] * 8,
  "clipped": [0.0] * 16,
  "truncated": [0.01, 0.03] * 8,
  "solved_groups": [0.04, 0.3, 0.6, 1.0] * 4,
  "validation/f1": [0.2, 0.1, 0.4, 0.35] + [0.6, 0.45, 0.5, 0.55] * 3,
  "kl": [0.0, 0.002, 0.03, 0.1] * 4,
}


# A bad series of each check: name, values, part of the warning.
BAD = [
  ("reward/std_in_group", [0.1, 0.04, 0.001], "earn alike"),
  ("equal_groups", [0.5, 0.9, 1.0], "left out"),
  ("solved_groups", [0.1, 0.05, 0.0], "nothing to learn from"),
  ("entropy", [0.4, 0.2, 0.05], "same tokens"),
  ("entropy", [0.4, 0.8, 2.5], "forgets"),
  ("truncated", [0.0, 0.1, 0.8], "unfinished"),
  ("response_tokens", [60.0, 30.0, 5.0], "shrink"),
  ("reward/well_formed", [0.7, 0.95, 0.6], "well formed"),
  ("validation/f1", [0.1, 0.6, 0.3], "worse than they were"),
  ("kl", [0.0, 0.3, 4.0], "reference"),
  ("logp_drift", [1e-6, 0.01, 0.4], "as before the iteration's first"),
  ("sampler_drift", [0.003, 0.01, 0.4], "as for the sampler"),
  ("clipped", [0.0, 0.1, 0.5], "trust region"),
]


def make_lines(**series):
  """Return the lines of a log, from the values of each scalar."""
  count = len(next(iter(series.values())))
  return [
    {"step": 5 * n} | {name: values[n] for name, values in series.items()}
    for n in range(count)
  ]


def warnings_by_line(lines, after=0):
  """Return the warnings after each line, of a run that continues `after`."""
  monitor = health_checks.HealthMonitor(lines[:after])
  return list(map(monitor.find_warnings, lines[after:]))


def test_run_that_learns_gets_no_warning():
  assert not any(warnings_by_line(make_lines(**GOOD)))
  # Every check was tried.
  assert set(GOOD) == {scalar for scalar, *_ in health_checks.HEALTH_CHECKS}


@pytest.mark.parametrize("scalar, values, meaning", BAD)
def test_each_collapse_is_warned_of(scalar, values, meaning):
  # Only the last line is bad.
  *early, last = warnings_by_line(make_lines(**{scalar: values}))
  assert early == [[], []] and len(last) == 1
  assert last[0].startswith(f"{scalar} is {values[-1]:.3g}: ")
  assert meaning in last[0] and "Look at" in last[0]


def test_every_check_has_a_bad_series():
  assert [scalar for scalar, *_ in BAD] == [
    scalar for scalar, *_ in health_checks.HEALTH_CHECKS
  ]


def test_one_warning_per_spell():
  values = [0.0, 0.5, 0.6, 0.5, 0.0, 0.5]
  counts = map(len, warnings_by_line(make_lines(clipped=values)))
  assert list(counts) == [0, 1, 0, 0, 0, 1]


def test_missing_and_non_finite_values_are_ignored():
  lines = [{"step": 1}, {"step": 2, "clipped": None}]
  assert not any(warnings_by_line(lines))
  # A missing value between two bad ones.
  gap = make_lines(clipped=[0.5, None, 0.5])
  assert list(map(len, warnings_by_line(gap))) == [1, 0, 0]  # The same spell.


@pytest.mark.parametrize("scalar, values, _", BAD)
def test_resumed_run_warns_like_an_unbroken_one(scalar, values, _):
  # A spell, its end and another spell.
  lines = make_lines(**{scalar: [*values, values[1], values[-1], values[-1]]})
  whole = warnings_by_line(lines)
  assert list(map(len, whole)) == [0, 0, 1, 0, 1, 0]
  for after in range(len(lines)):
    assert warnings_by_line(lines, after) == whole[after:]


def test_falls_are_measured_from_the_highest_value_so_far():
  values = np.random.default_rng(0).random(200).tolist()
  # The definition, at each line over all values up to it.
  is_bad = [x < max(values[: n + 1]) - 0.2 for n, x in enumerate(values)]
  wanted = [bad and not was for was, bad in itertools.pairwise([0, *is_bad])]
  lines = make_lines(**{"validation/f1": values})
  assert list(map(bool, warnings_by_line(lines))) == wanted


def test_processes_that_do_not_log_are_not_warned():
  assert health_checks.HealthMonitor().find_warnings({}) == []


def test_first_line_can_be_bad():
  assert len(warnings_by_line(make_lines(equal_groups=[1.0, 1.0]))[0]) == 1
