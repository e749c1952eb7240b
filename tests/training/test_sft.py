"""Supervised training: its targets, its loss and its batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1router_jax.common.records import (
  Answer,
  Hop,
  Passage,
  Plan,
  Question,
  Step,
)
from r1router_jax.data import georouter
from r1router_jax.models import qwen2_5_vl
from r1router_jax.parallel import strategy
from r1router_jax.policy import policy
from r1router_jax.protocol import format, thoughts
from r1router_jax.training import sft, sft_targets
from r1router_jax.training.batch import Batch
from r1router_jax.training.sft_targets import sft_target
from tests import tiny_policy
from tests.train_runs import make_run_config

CONFIG = tiny_policy.MODEL_CONFIG

MODEL = qwen2_5_vl.QwenVL(CONFIG)

ALLOWED = jnp.arange(CONFIG.vocab) != 5

CAPITAL, ASKED = "N'Djamena", "What is the capital of Chad?"

HOPS = (Hop("capital?", ("text",), (CAPITAL,)),)

QUESTION = Question("q", ASKED, (CAPITAL,), hops=HOPS)

STOP = dict(sub_question="None", routes=("none",))


def random_batch(seed=0):
  """Four prompts of one response each; the last row is padding."""
  rng = np.random.default_rng(seed)
  prompts = [tiny_policy.random_prompt(rng, CONFIG, 3 + n) for n in range(4)]
  # [B, G, T]
  shape = 4, 1, 5
  lengths = rng.integers(1, 6, 4)
  lengths[3] = 0
  return jax.tree.map(
    jnp.asarray,
    Batch(
      tiny_policy.collate(CONFIG, prompts, length=8),
      tiny_policy.random_responses(rng, CONFIG, *shape),
      np.arange(5) < lengths[:, None, None],
      np.ones((4, 1), np.float32),
      np.zeros(shape, np.float32),
      lengths.astype(np.float32),
    ),
  )


def mean_loss(params, batch):
  total, count, metrics = sft.loss(MODEL, params, None, batch, ALLOWED)
  return total / count, (total, count, metrics)


def test_loss_is_the_mean_over_tokens():
  params, rows = tiny_policy.params(CONFIG), random_batch()
  loss, (total, count, metrics) = jax.jit(mean_loss)(params, rows)
  # The oracle: a softmax over allowed tokens only, one token at a time.
  states = jax.jit(MODEL.apply)({"params": params}, rows.prompt, rows.response)
  states = np.asarray(states, np.float64)
  head = np.asarray(params["head"], np.float64)[np.asarray(ALLOWED)]
  number = np.cumsum(np.asarray(ALLOWED)) - 1  # Of an id among the allowed.
  nll = []
  for b, g, t in np.argwhere(np.asarray(rows.mask)):
    logits = head @ states[b, g, t]
    target = number[int(rows.response[b, g, t])]
    nll.append(np.log(np.exp(logits).sum()) - logits[target])
  np.testing.assert_allclose(loss, np.mean(nll), rtol=1e-4)
  assert count == len(nll)
  assert metrics["nll"] == (total, count)


def test_three_updates_on_one_batch_lower_the_loss():
  params = tiny_policy.params(CONFIG)
  batch, optimizer = random_batch(), optax.adam(1e-2)
  opt, losses = optimizer.init(params), []

  @jax.jit
  def update(params, opt):
    loss_and_grad = jax.value_and_grad(mean_loss, has_aux=True)
    (loss, _), grads = loss_and_grad(params, batch)
    updates, opt = optimizer.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, loss

  # The fourth call gives the loss after three updates.
  for _ in range(4):
    params, opt, loss = update(params, opt)
    losses.append(float(loss))
  assert losses == sorted(losses, reverse=True)
  assert losses[-1] < 0.8 * losses[0]


# ---- Targets.


def make_step(kind, **fields):
  return Step("q/0", kind, QUESTION, **fields)


def parse_target(kind, **fields):
  """Return the target of a step, parsed."""
  parse = format.parse_plan if kind == "plan" else format.parse_answer
  return parse(sft_target(make_step(kind, **fields)))


def test_targets_follow_the_protocol():
  routes = ("table", "text")
  plan = parse_target("plan", sub_question="Which one?", routes=routes)
  assert isinstance(plan, Plan)
  assert (plan.sub_question, plan.routes) == ("Which one?", ("table",))
  # A plan that stops names no route.
  assert parse_target("plan", **STOP).routes == ()
  for kind in ("answer", "final"):
    answer = parse_target(kind, answers=(CAPITAL, "x"))
    assert isinstance(answer, Answer) and answer.text == CAPITAL


@pytest.mark.parametrize(
  "first, second, thought",
  [
    ("1,200.5", "87", "1,200.5 > 87"),
    ("9", "10", "10 > 9"),
    ("Chad", "10", thoughts.READ),
  ],
)
def test_comparison_is_written_as_a_thought(first, second, thought):
  history = (("a?", first), ("b?", second))
  answer = parse_target("final", history=history, answers=("Chad",))
  assert answer.thought == thought


def test_overask_target_repeats_the_question_to_another_kb():
  stop = make_step("plan", history=(("What is it?", CAPITAL),), **STOP)
  # Over many seeds every other knowledge base is asked.
  routes = set()
  for seed in range(20):
    rng = np.random.default_rng(seed)
    plan = format.parse_plan(sft_targets.overask_target(stop, rng))
    assert plan.sub_question == "What is it?"
    routes.update(plan.routes)
  assert routes == {"image", "table"}  # The gold route is text.


def test_target_is_the_teachers_response_if_there_is_one():
  asked = "<sub-question>Which one?</sub-question>"
  names = "<ret>Table Retriever, Text Retriever</ret>"
  fields = dict(sub_question="Which one?", routes=("table", "text"))
  response = f"<think> a\n b </think>\n{asked} {names}"
  told = make_step("plan", response=response, **fields)
  assert sft_target(told) == f"<think>a b</think>{asked}{names}"
  # Control tokens in a response are made harmless.
  response = "<think>2 and 2<|im_end|></think><answer>It is 4</answer>"
  final = make_step("final", answers=("4",), response=response)
  assert sft_target(final) == (
    "<think>2 and 2‹|im_end|></think><answer>It is 4</answer>"
  )
  with pytest.raises(ValueError, match="q/0: the response 'four' is not of"):
    sft_target(dataclasses.replace(final, response="four"))


def test_row_without_hops_gets_a_generic_thought():
  """R1-Router's rows say what a teacher answered, and not why."""
  question = dataclasses.replace(QUESTION, hops=())

  def target(kind, **fields):
    step = make_step(kind, **fields)
    return sft_target(dataclasses.replace(step, question=question))

  told = target("answer", sub_question="who? ", answers=("\nfrank  wisbar.\n",))
  answer = format.parse_answer(told)
  assert answer.text == "frank wisbar."
  assert answer.thought == thoughts.GIVEN
  told = dict(history=(("a?", "1946"), ("b?", "1899")), answers=("1899",))
  final = format.parse_answer(target("final", **told))
  # No hop says that 1946 > 1899 matters.
  assert final.thought == thoughts.GIVEN
  plan = target("plan", sub_question="who is it? ", routes=("text",))
  assert "<sub-question>who is it?</sub-question>" in plan


def test_row_without_hops_has_no_overask_target():
  question = dataclasses.replace(QUESTION, hops=())
  stop = Step("q/0", "plan", question, history=(("a?", "b"),), **STOP)
  with pytest.raises(ValueError, match="config.sft.overask_prob to 0"):
    sft_targets.overask_target(stop, np.random.default_rng(0))


# ---- Batches.


def make_algorithm(known=tiny_policy.POLICY_CONFIG, **changes):
  """Return supervised training with one row for each of eight devices."""
  options = dict(overask_prob=0.0, packed_length=0)
  options |= dict(recall_warmup_steps=0, recall_prob=0.0)
  return sft.Sft(
    policy.Policy(known, tiny_policy.TOKENIZER, {}),
    strategy.make_strategy("pmap", dict(data=-1), dict(data=-1)),
    make_run_config(
      "sft",
      total_steps=10,
      **{"data.batch_size_per_device": 1},
      **{f"sft.{name}": x for name, x in (options | changes).items()},
    ),
  )


def make_batch(algorithm, steps, iteration):
  (batch,), report = algorithm.make_batches({}, lambda i: steps, iteration)
  return batch, report


@pytest.fixture(scope="module")
def algorithm():
  # Prompts are long enough for all look-up rows.
  known = dataclasses.replace(tiny_policy.POLICY_CONFIG, prompt_tokens=(24, 96))
  return make_algorithm(known, recall_warmup_steps=1)


def make_examples():
  passage = Passage("p", "text", "The capital of Chad is N'Djamena.")
  known = dict(answers=(CAPITAL,))
  return [
    make_step("plan", sub_question="Which one is it?", routes=("text",)),
    make_step("answer", sub_question=ASKED, passages=(passage,), **known),
    make_step("final", history=(("What is it?", CAPITAL),), **known),
  ]


def test_batch_fills_every_device(algorithm):
  rows, _ = make_batch(algorithm, make_examples(), 4)
  assert {x.shape[0] for x in jax.tree.leaves(rows)} == {8}
  assert rows.mask.any((1, 2, 3)).tolist() == [True] * 3 + [False] * 5
  np.testing.assert_array_equal(rows.loss_denominator, rows.mask.sum((2, 3)))
  # A response ends with the end token unless it was too long.
  end = tiny_policy.tokenizer().eos_id
  responses = zip(rows.response[:3, 0, 0], rows.mask[:3, 0, 0], strict=True)
  for tokens, mask in responses:
    assert mask[0] and (mask.all() or tokens[mask][-1] == end)


def test_names_are_not_read_without_renaming(monkeypatch):
  monkeypatch.setattr(georouter, "FOLDER", None)
  plain = make_algorithm()
  rows, _ = make_batch(plain, make_examples(), 0)
  assert rows.mask.any((1, 2, 3)).sum() == 3


def test_batch_depends_on_seed_and_iteration_alone(algorithm):
  steps = make_examples()
  one, again, other = (make_batch(algorithm, steps, n)[0] for n in (0, 0, 5))
  jax.tree.map(np.testing.assert_array_equal, one, again)
  assert not np.array_equal(one.response, other.response)


def test_first_batches_are_look_up_rows(algorithm):
  first, report = make_batch(algorithm, make_examples(), 0)
  assert report.scalars["recall"] == 1 and first.mask.any((1, 2, 3)).all()
  _, report = make_batch(algorithm, make_examples(), 1)
  assert report.scalars["recall"] == 0


def remove_spaces(text):
  return "".join(text.split())


def test_target_overasks_only_where_a_trace_stops_after_a_search():
  lengths = dict(prompt_tokens=(96,), response_tokens=(48,))
  known = dataclasses.replace(tiny_policy.POLICY_CONFIG, **lengths)
  always = make_algorithm(known, overask_prob=1.0)
  # A stop at once, and a stop after a search.
  stop = make_step("plan", **STOP)
  asked = dataclasses.replace(stop, history=(("What is it?", CAPITAL),))
  steps = [*make_examples(), stop, asked]
  rows, _ = make_batch(always, steps, 0)
  decode = tiny_policy.tokenizer().decode
  responses = zip(rows.response[:5, 0, 0], rows.mask[:5, 0, 0], strict=True)
  targets = [remove_spaces(decode(tokens[mask])) for tokens, mask in responses]
  assert targets[:4] == [remove_spaces(sft_target(each)) for each in steps[:4]]
  assert "Whatisit?" in targets[4] and "None" not in targets[4]
