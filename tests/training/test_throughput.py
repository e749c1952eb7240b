"""Counts of work, from prompts and from batches, and their rates."""

import types

import jax
import numpy as np
import pytest

from r1router_jax.common.records import Question, Step
from r1router_jax.training import flops, throughput
from r1router_jax.training.batch import Batch
from tests import tiny_policy


@pytest.mark.parametrize(
  "grids", [[()] * 4, [((4, 4),), (), ((8, 6), (2, 4)), ((16, 4),)]]
)
@pytest.mark.parametrize("devices", [1, 2])
def test_work_of_a_batch_equals_that_of_its_prompts(grids, devices):
  rng, config = np.random.default_rng(0), tiny_policy.MODEL_CONFIG
  # Prompts of different lengths, some with images.
  prompts = [
    tiny_policy.random_prompt(rng, config, 5 + n, *each)
    for n, each in enumerate(grids)
  ]
  mask = np.arange(6) < rng.integers(1, 7, (4, 3, 1))
  # Two rows of padding, over one or two shards.
  shape = devices, 6 // devices
  padded = np.concatenate([mask, np.zeros((2, 3, 6), bool)])
  batch = Batch(
    tiny_policy.processor(config, (64,)).collate(prompts, *shape),
    np.zeros((*shape, 3, 6), np.int32),
    padded.reshape(*shape, 3, 6),
    np.zeros((*shape, 3), np.float32),
    np.zeros((*shape, 3, 6), np.float32),
    np.zeros(shape, np.float32),
  )
  work = throughput.rollout_work(config, prompts, mask)
  assert work.tokens == mask.sum() + sum(len(p.ids) for p in prompts)
  assert work.samples == 12
  assert work.flops == sum(
    flops.group_flops(config, len(prompt.ids), lengths, each)
    for prompt, lengths, each in zip(prompts, mask.sum(-1), grids, strict=True)
  )
  assert throughput.update_work(config, batch) == work._replace(
    flops=3 * work.flops
  )
  assert (
    work.with_updates([throughput.update_work(config, batch)]).flops
    == 4 * work.flops
  )
  # Rows without a response are padding.
  nothing = batch._replace(mask=batch.mask & False)
  assert throughput.update_work(config, nothing) == throughput.WorkCounts()


@pytest.mark.parametrize("kind, mfu", [("cpu", None), ("TPU v4", 0.5)])
def test_rates_are_counts_per_second_and_device(monkeypatch, kind, mfu):
  # The meter looks at the clock when it is made and at each reading.
  clock = iter([100.0, 102.0, 110.0])
  monkeypatch.setattr(
    throughput, "time", types.SimpleNamespace(perf_counter=lambda: next(clock))
  )
  device = types.SimpleNamespace(device_kind=kind)
  monkeypatch.setattr(jax, "local_devices", lambda: [device] * 4)
  meter = throughput.ThroughputMeter()
  meter.add_work(throughput.WorkCounts(30, 4, 10**15))
  meter.add_work(throughput.WorkCounts(10, 2, int(0.1e15)))
  rates = {
    "speed/tokens_s": 20.0,
    "speed/samples_s": 3.0,
    "speed/tflops_s": 137.5,
  }
  assert meter.read_rates() == rates | ({"speed/mfu": mfu} if mfu else {})
  # The counts start anew.
  meter.add_work(throughput.WorkCounts(8, 0, 0))
  assert meter.read_rates()["speed/tokens_s"] == 1.0


def test_first_group_of_each_kind_is_sampled():
  asked = Question("q", "Where?", ("here",))
  steps = [
    Step(
      "q/0",
      "plan",
      asked,
      sub_question="What is here?",
      routes=("text", "table"),
    ),
    Step(
      "q/1", "answer", asked, sub_question="What is here?", answers=("a", "b")
    ),
    Step("p/0", "plan", asked, sub_question="None", routes=("none",)),
    Step(
      "q/2",
      "final",
      asked,
      history=(("What is here?", "a"),),
      answers=("here",),
    ),
  ]
  reward = np.arange(8.0).reshape(4, 2)
  groups = throughput.sample_groups(steps, list("stuvwxyz"), reward, -reward)
  assert [group["id"] for group in groups] == ["q/0", "q/1", "q/2"]
  # A plan: its gold is the sub-question with its routes.
  assert groups[0] == dict(
    id="q/0",
    kind="plan",
    question="Where?",
    history=[],
    sub_question="",
    gold=["What is here? (text or table)"],
    responses=["s", "t"],
    rewards=[0.0, 1.0],
    advantages=[0.0, -1.0],
  )
  assert groups[1]["sub_question"] == "What is here?"
  assert groups[1]["gold"] == ["a", "b"]
  # A final answer.
  assert groups[2] == dict(
    id="q/2",
    kind="final",
    question="Where?",
    sub_question="",
    history=[["What is here?", "a"]],
    gold=["here"],
    responses=["y", "z"],
    rewards=[6.0, 7.0],
    advantages=[-6.0, -7.0],
  )
