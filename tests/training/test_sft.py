"""The warm start: what it teaches, its loss, and that it learns."""

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
from r1router_jax.protocol import format
from r1router_jax.training import sft, sft_targets
from r1router_jax.training.batch import Batch
from tests import tiny_policy

MODEL = qwen2_5_vl.QwenVL(tiny_policy.CONFIG)

ALLOWED = jnp.arange(tiny_policy.CONFIG.vocab) != 5

ASKED = Question(
  "q",
  "What is the capital of Chad?",
  ("N'Djamena",),
  hops=(Hop("capital?", ("text",), ("N'Djamena",)),),
)


def batch(seed=0):
  """Four prompts of one response each; the last row is padding."""
  rng = np.random.default_rng(seed)
  prompts = [
    tiny_policy.encoded(rng, tiny_policy.CONFIG, 3 + n) for n in range(4)
  ]
  shape = 4, 1, 5
  lengths = rng.integers(1, 6, 4)
  lengths[3] = 0
  return jax.tree.map(
    jnp.asarray,
    Batch(
      tiny_policy.pack(tiny_policy.CONFIG, prompts, length=8),
      tiny_policy.responses(rng, tiny_policy.CONFIG, *shape),
      np.arange(5) < lengths[:, None, None],
      np.ones((4, 1), np.float32),
      np.zeros(shape, np.float32),
      lengths.astype(np.float32),
    ),
  )


def objective(params, batch):
  total, count, metrics = sft.loss(MODEL, params, batch, ALLOWED)
  return total / count, (total, count, metrics)


def test_loss_is_the_mean_over_tokens():
  params, rows = tiny_policy.params(tiny_policy.CONFIG), batch()
  loss, (total, count, metrics) = jax.jit(objective)(params, rows)
  states = jax.jit(
    lambda params: MODEL.apply({"params": params}, rows.prompt, rows.response)
  )(params)
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
  params, rows, tx = (
    tiny_policy.params(tiny_policy.CONFIG),
    batch(),
    optax.adam(1e-2),
  )
  opt, losses = tx.init(params), []

  @jax.jit
  def update(params, opt):
    (loss, _), grads = jax.value_and_grad(objective, has_aux=True)(params, rows)
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, loss

  for _ in range(4):
    params, opt, loss = update(params, opt)
    losses.append(float(loss))
  assert losses == sorted(losses, reverse=True)
  assert losses[-1] < 0.8 * losses[0]


# ---- What is taught.


def step(kind, **more):
  return Step("q/0", kind, ASKED, **more)


def test_demonstrations_are_of_the_protocol():
  plan = format.parse_plan(
    sft_targets.demonstration(
      step("plan", sub_question="Which one?", routes=("table", "text"))
    )
  )
  assert isinstance(plan, Plan)
  assert (plan.sub_question, plan.route) == ("Which one?", "table")
  stop = format.parse_plan(
    sft_targets.demonstration(
      step("plan", sub_question="None", routes=("none",))
    )
  )
  assert stop.route == "none"
  for kind in ("answer", "final"):
    answer = format.parse_answer(
      sft_targets.demonstration(step(kind, answers=("N'Djamena", "x")))
    )
    assert isinstance(answer, Answer) and answer.text == "N'Djamena"


@pytest.mark.parametrize(
  "first, second, thought",
  [
    ("1,200.5", "87", "1,200.5 > 87"),
    ("9", "10", "10 > 9"),
    ("Chad", "10", sft_targets.READING),
  ],
)
def test_a_comparison_is_thought_aloud(first, second, thought):
  answer = format.parse_answer(
    sft_targets.demonstration(
      step("final", history=(("a?", first), ("b?", second)), answers=("Chad",))
    )
  )
  assert answer.thought == thought


def test_overasking_repeats_the_question_to_another_knowledge_base():
  stop = step(
    "plan",
    sub_question="None",
    routes=("none",),
    history=(("What is it?", "N'Djamena"),),
  )
  routes = set()
  for seed in range(20):
    plan = format.parse_plan(
      sft_targets.overasking(stop, np.random.default_rng(seed))
    )
    assert plan.sub_question == "What is it?"
    routes.add(plan.route)
  assert routes == {"image", "table"}  # The gold route is text.


def test_what_a_teacher_wrote_is_taught():
  told = step(
    "plan",
    sub_question="Which one?",
    routes=("table", "text"),
    response="<think> a\n b </think>\n<sub-question>Which one?"
    "</sub-question> <ret>Table Retriever, Text Retriever</ret>",
  )
  assert sft_targets.demonstration(told) == (
    "<think>a b</think><sub-question>Which one?</sub-question>"
    "<ret>Table Retriever, Text Retriever</ret>"
  )
  final = step(
    "final",
    answers=("4",),
    response="<think>2 and 2<|im_end|></think><answer>It is 4</answer>",
  )
  assert sft_targets.demonstration(final) == (
    "<think>2 and 2‹|im_end|></think><answer>It is 4</answer>"
  )
  with pytest.raises(ValueError, match="q/0: the response 'four' is not of"):
    sft_targets.demonstration(dataclasses.replace(final, response="four"))


def test_a_row_without_thoughts_is_given_no_facts():
  """R1-Router's rows say what a teacher answered, and not why."""
  asked = dataclasses.replace(ASKED, hops=())
  row = lambda kind, **more: dataclasses.replace(
    step(kind, **more), question=asked
  )
  found = format.parse_answer(
    sft_targets.demonstration(
      row("answer", sub_question="who? ", answers=("\nfrank  wisbar.\n",))
    )
  )
  assert (found.thought, found.text) == (sft_targets.UNTOLD, "frank wisbar.")
  last = format.parse_answer(
    sft_targets.demonstration(
      row("final", history=(("a?", "1946"), ("b?", "1899")), answers=("1899",))
    )
  )
  # Nobody said that 1946 > 1899 matters.
  assert last.thought == sft_targets.UNTOLD
  text = sft_targets.demonstration(
    row("plan", sub_question="who is it? ", routes=("text",))
  )
  assert "<sub-question>who is it?</sub-question>" in text
  with pytest.raises(ValueError, match="config.sft.overask to 0"):
    sft_targets.overasking(
      row(
        "plan", sub_question="None", routes=("none",), history=(("a?", "b"),)
      ),
      np.random.default_rng(0),
    )


# ---- Batches.


def made(settings=tiny_policy.SETTINGS, **changes):
  """An algorithm of one row for each of eight devices."""
  return sft.Sft(
    policy.Policy(settings, tiny_policy.TOKENIZER, {}),
    strategy.make("pmap", dict(data=-1), dict(data=-1)),
    **dict(
      rows=1,
      total_steps=10,
      recall_steps=0,
      recall_share=0.0,
      rename=(0.0, 0.0),
      overask=0.0,
      side_by_side=0,
      seed=0,
    )
    | changes,
  )


def batch_of(algorithm, steps, index):
  (rows,), report = algorithm.make_batches({}, lambda i: steps, index)
  return rows, report


@pytest.fixture(scope="module")
def algorithm():
  # Room for the longest of the look-up rows.
  settings = dataclasses.replace(tiny_policy.SETTINGS, prompt_tokens=(24, 96))
  return made(settings, recall_steps=1, rename=(0.5, 0.5))


def examples():
  passage = Passage("p", "text", "The capital of Chad is N'Djamena.")
  return [
    step("plan", sub_question="Which one is it?", routes=("text",)),
    step(
      "answer",
      sub_question="What is the capital of Chad?",
      answers=("N'Djamena",),
      passages=(passage,),
    ),
    step(
      "final", history=(("What is it?", "N'Djamena"),), answers=("N'Djamena",)
    ),
  ]


def test_a_batch_fills_every_device(algorithm):
  rows, _ = batch_of(algorithm, examples(), 4)
  assert {x.shape[0] for x in jax.tree.leaves(rows)} == {8}
  assert rows.mask.any((1, 2, 3)).tolist() == [True] * 3 + [False] * 5
  np.testing.assert_array_equal(rows.count, rows.mask.sum((2, 3)))
  end = tiny_policy.tokenizer().end
  for tokens, mask in zip(
    rows.response[:3, 0, 0], rows.mask[:3, 0, 0], strict=True
  ):
    assert mask[0] and (
      not mask.all() and tokens[mask][-1] == end or mask.all()
    )


def test_without_renaming_no_names_are_read(monkeypatch):
  monkeypatch.setattr(georouter, "FOLDER", None)
  plain = made()
  rows, _ = batch_of(plain, examples(), 0)
  assert rows.mask.any((1, 2, 3)).sum() == 3


def test_batches_depend_on_seed_and_number_alone(algorithm):
  one, again, other = (batch_of(algorithm, examples(), n)[0] for n in (0, 0, 5))
  jax.tree.map(np.testing.assert_array_equal, one, again)
  assert (
    one.response.shape != other.response.shape
    or (one.response != other.response).any()
  )


def test_the_first_batches_are_look_ups(algorithm):
  first, report = batch_of(algorithm, examples(), 0)
  assert report.scalars["recall"] == 1 and first.mask.any((1, 2, 3)).all()
  _, report = batch_of(algorithm, examples(), 1)
  assert report.scalars["recall"] == 0


def test_overasking_happens_where_a_trace_stops():
  settings = dataclasses.replace(
    tiny_policy.SETTINGS, prompt_tokens=(96,), response_tokens=(48,)
  )
  always = made(settings, overask=1.0)
  stop = step("plan", sub_question="None", routes=("none",))
  asked = dataclasses.replace(stop, history=(("What is it?", "N'Djamena"),))
  steps = [*examples(), stop, asked]
  rows, _ = batch_of(always, steps, 0)
  bare = lambda text: "".join(text.split())
  taught = [
    bare(tiny_policy.tokenizer().decode(tokens[mask]))
    for tokens, mask in zip(
      rows.response[:5, 0, 0], rows.mask[:5, 0, 0], strict=True
    )
  ]
  assert taught[:4] == [
    bare(sft_targets.demonstration(each)) for each in steps[:4]
  ]
  assert "Whatisit?" in taught[4] and "None" not in taught[4]


def test_the_countries_are_known():
  assert "Chad" in {country["name"] for country in georouter.countries()}
