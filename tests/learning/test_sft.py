"""The warm start: what it teaches, its loss, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1router_jax import policy, protocol
from r1router_jax.data import georouter
from r1router_jax.learning import sft
from r1router_jax.learning.batch import Batch
from r1router_jax.models import qwen_vl
from r1router_jax.records import Answer, Hop, Passage, Plan, Question, Step
from tests import tiny

MODEL = qwen_vl.QwenVL(tiny.CONFIG)
ALLOWED = jnp.arange(tiny.CONFIG.vocab) != 5
ASKED = Question("q", "What is the capital of Chad?", ("N'Djamena",),
                 hops=(Hop("capital?", ("text",), ("N'Djamena",)),))


def batch(seed=0):
  """Four prompts of one response each; the last row is padding."""
  rng = np.random.default_rng(seed)
  prompts = [tiny.encoded(rng, tiny.CONFIG, 3 + n) for n in range(4)]
  shape = 4, 1, 5
  return jax.tree.map(jnp.asarray, Batch(
      tiny.pack(tiny.CONFIG, prompts, length=8),
      tiny.responses(rng, tiny.CONFIG, *shape),
      np.arange(5) < rng.integers(1, 6, shape[:2])[..., None],
      np.array([[1], [1], [1], [0]], np.float32), np.zeros(shape, np.float32)))


def objective(params, batch):
  total, count, metrics = sft.loss(MODEL, params, batch, ALLOWED)
  return total / count, (total, count, metrics)


def test_loss_is_the_mean_over_tokens():
  params, rows = tiny.params(tiny.CONFIG), batch()
  loss, (total, count, metrics) = tiny.jit(objective)(params, rows)
  states = tiny.jit(lambda params: MODEL.apply(
      {"params": params}, rows.prompt, rows.response))(params)
  states = np.asarray(states, np.float64)
  head = np.asarray(params["head"], np.float64)[np.asarray(ALLOWED)]
  number = np.cumsum(np.asarray(ALLOWED)) - 1  # Of an id among the allowed.
  nll = []
  for b, g, t in np.argwhere(np.asarray(rows.mask)):
    if b < 3:
      logits = head @ states[b, g, t]
      target = number[int(rows.response[b, g, t])]
      nll.append(np.log(np.exp(logits).sum()) - logits[target])
  np.testing.assert_allclose(loss, np.mean(nll), rtol=1e-4)
  assert count == len(nll)
  assert metrics["nll"] == (total, count)


def test_three_updates_on_one_batch_lower_the_loss():
  params, rows, tx = tiny.params(tiny.CONFIG), batch(), optax.adam(1e-2)
  opt, losses = tx.init(params), []

  @tiny.jit
  def update(params, opt):
    (loss, _), grads = jax.value_and_grad(objective, has_aux=True)(
        params, rows)
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
  plan = protocol.parse_plan(sft.demonstration(step(
      "plan", sub_question="Which one?", routes=("table", "text"))))
  assert isinstance(plan, Plan)
  assert (plan.sub_question, plan.route) == ("Which one?", "table")
  stop = protocol.parse_plan(sft.demonstration(step(
      "plan", sub_question="None", routes=("none",))))
  assert stop.route == "none"
  for kind in ("answer", "final"):
    answer = protocol.parse_answer(
        sft.demonstration(step(kind, answers=("N'Djamena", "x"))))
    assert isinstance(answer, Answer) and answer.text == "N'Djamena"


@pytest.mark.parametrize("first, second, thought", [
    ("1,200.5", "87", "1,200.5 > 87"), ("9", "10", "10 > 9"),
    ("Chad", "10", sft.READING)])
def test_a_comparison_is_thought_aloud(first, second, thought):
  answer = protocol.parse_answer(sft.demonstration(step(
      "final", history=(("a?", first), ("b?", second)), answers=("Chad",))))
  assert answer.thought == thought


def test_overasking_repeats_the_question_to_another_knowledge_base():
  stop = step("plan", sub_question="None", routes=("none",),
              history=(("What is it?", "N'Djamena"),))
  routes = set()
  for seed in range(20):
    plan = protocol.parse_plan(
        sft.overasking(stop, np.random.default_rng(seed)))
    assert plan.sub_question == "What is it?"
    routes.add(plan.route)
  assert routes == {"image", "table"}  # The gold route is text.


# ---- Batches.


@pytest.fixture(scope="module")
def algorithm():
  # Room for the longest of the look-up rows.
  settings = dataclasses.replace(tiny.SETTINGS, prompt_tokens=(24, 96))
  tiny_policy = policy.Policy(settings, tiny.TOKENIZER, {})
  return sft.Sft(tiny_policy, total_steps=10, recall_steps=1, recall_share=0.0,
                 rename=(0.5, 0.5), overask=0.0, seed=0)


def examples():
  passage = Passage("p", "text", "The capital of Chad is N'Djamena.")
  return [
      step("plan", sub_question="Which one is it?", routes=("text",)),
      step("answer", sub_question="What is the capital of Chad?",
           answers=("N'Djamena",), passages=(passage,)),
      step("final", history=(("What is it?", "N'Djamena"),),
           answers=("N'Djamena",))]


def test_a_batch_fills_every_device(algorithm):
  rows, _ = algorithm.make_batch({}, examples(), 4, rows=1)
  assert {x.shape[0] for x in jax.tree.leaves(rows)} == {8}
  assert rows.weight.ravel().tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
  assert not rows.mask[3:].any()
  end = tiny.tokenizer().end
  for tokens, mask in zip(rows.response[:3, 0, 0], rows.mask[:3, 0, 0],
                          strict=True):
    assert mask[0] and (not mask.all() and tokens[mask][-1] == end
                        or mask.all())


def test_batches_depend_on_seed_and_number_alone(algorithm):
  one, again, other = (
      algorithm.make_batch({}, examples(), n, rows=1)[0] for n in (0, 0, 5))
  jax.tree.map(np.testing.assert_array_equal, one, again)
  assert one.response.shape != other.response.shape or (
      one.response != other.response).any()


def test_the_first_batches_are_look_ups(algorithm):
  first, report = algorithm.make_batch({}, examples(), 0, rows=1)
  assert report["recall"] == 1 and first.weight.all()
  assert algorithm.make_batch({}, examples(), 1, rows=1)[1]["recall"] == 0


def test_overasking_happens_where_a_trace_stops():
  settings = dataclasses.replace(
      tiny.SETTINGS, prompt_tokens=(96,), response_tokens=(48,))
  always = sft.Sft(
      policy.Policy(settings, tiny.TOKENIZER, {}), total_steps=10,
      recall_steps=0, recall_share=0.0, rename=(0.0, 0.0), overask=1.0, seed=0)
  stop = step("plan", sub_question="None", routes=("none",))
  asked = dataclasses.replace(stop, history=(("What is it?", "N'Djamena"),))
  steps = [*examples(), stop, asked]
  rows, _ = always.make_batch({}, steps, 0, rows=1)
  bare = lambda text: "".join(text.split())
  taught = [bare(tiny.tokenizer().decode(tokens[mask])) for tokens, mask in zip(
      rows.response[:5, 0, 0], rows.mask[:5, 0, 0], strict=True)]
  assert taught[:4] == [bare(sft.demonstration(each)) for each in steps[:4]]
  assert "Whatisit?" in taught[4] and "None" not in taught[4]


def test_the_countries_are_known():
  assert "Chad" in {country["name"] for country in georouter.countries()}
