"""What a run starts from: the base of its adapters, and adapters as a start."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from r1router_jax import train as train_lib
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Question
from r1router_jax.data import georouter
from r1router_jax.inputs import tokenizer as tokenizer_lib
from r1router_jax.models import lora
from r1router_jax.parallel.strategy import make_strategy
from r1router_jax.policy import policy
from r1router_jax.training import run_setup
from tests import fakes, tiny_policy, train_runs


def make_config(trainable_regex="lora_", **changes):
  start = dict(start_from="warm_start", induction=False) | changes
  start = {f"policy.{name}": value for name, value in start.items()}
  start |= {"policy.lora.rank": 1, "trainable_regex": trainable_regex}
  return train_runs.make_run_config("sft", **start)


@pytest.mark.parametrize(
  "changes, base",
  [
    ({}, "warm_start"),
    (dict(start_from="owner/model"), "owner/model"),
    # Other weights are trained, planted or new.
    (dict(trainable_regex="lora_|norm/scale"), ""),
    (dict(induction=True), ""),
    (dict(start_from=""), ""),
  ],
)
def test_base_of_adapters(changes, base):
  config = make_config(**changes)
  params = tiny_policy.params(tiny_policy.FULL_VOCAB_CONFIG)
  params = run_setup.add_adapters(config, params)
  assert run_setup.find_adapter_base(config, params) == base


def test_base_of_adapters_is_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "own").mkdir()
  config = make_config(start_from="own")
  params = tiny_policy.params(tiny_policy.FULL_VOCAB_CONFIG)
  params = run_setup.add_adapters(config, params)
  found = run_setup.find_adapter_base(config, params)
  assert found == str(tmp_path / "own")


def test_a_run_starts_from_an_adapter(tmp_path):
  params = tiny_policy.params(tiny_policy.FULL_VOCAB_CONFIG)
  config = tiny_policy.POLICY_CONFIG
  base = policy.Policy(config, tiny_policy.TOKENIZER, params)
  base.save(tmp_path / "base")
  start = make_config(start_from=str(tmp_path / "a"))
  # b of new adapters is 0, and would hide them.
  adapted = run_setup.add_adapters(start, params)
  b = adapted["layers"]["q"]["lora_b"]
  adapted["layers"]["q"]["lora_b"] = b + 0.5
  base = policy.Policy(config, tiny_policy.TOKENIZER, adapted)
  base.save_adapters(tmp_path / "a", str(tmp_path / "base"))
  devices = make_strategy(start.parallel, start.mesh, start.rollout_mesh)
  _, found = run_setup.load_start_policy(start, devices)
  # They are part of the weights, beside which new ones lie.
  wanted = lora.merge_adapters(adapted)["layers"]["q"]["w"]
  np.testing.assert_allclose(found["layers"]["q"]["w"], wanted, atol=1e-6)
  assert not np.asarray(found["layers"]["q"]["lora_b"]).any()
  assert found["layers"]["q"]["w"].dtype == np.float32
  tree = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
  assert tree["base_model_name_or_path"] == str(tmp_path / "base")


def test_vectors_of_tokens_are_those_of_their_texts(monkeypatch):
  def embed(queries):
    rows = [[len(q.text), ord(q.text[:1] or " ")] for q in queries]
    return np.array(rows, np.float32)

  monkeypatch.setattr(run_setup.registry, "get_embedder", lambda name: embed)
  tokens = tokenizer_lib.Tokenizer(georouter.tokenizer_path(), "compact")
  vectors = run_setup.embed_tokens(tokens, "minilm")
  assert len(vectors) == tokens.vocab_size
  (capital,) = tokens.encode_template("capital")
  assert vectors[capital].tolist() == [len("capital"), ord("c")]
  # Control tokens have no meaning.
  for control in ("<|answer|>", "<|im_start|>", "</answer>", "<think>"):
    (token,) = tokens.encode_template(control)
    assert not vectors[token].any()


def describe_data(passages="0a1b", text="Who?", shift=0.0, **changes):
  """Return what checkpoints record of the data of a run."""
  changes = {"policy.start_from": "warm_start", "policy.lora.rank": 1} | changes
  config = train_runs.make_run_config("step_grpo", **changes)
  params = tiny_policy.params(tiny_policy.FULL_VOCAB_CONFIG)
  params["embed"] = params["embed"].at[3, 1].add(shift)
  params = run_setup.add_adapters(config, params)
  examples = [Question("q/1", text, ("Ann",))]
  kbs = fakes.make_kbs()
  kbs["text"].meta["passages"] = passages
  return run_setup._data_metadata(config, params, kbs, examples, 8)


@pytest.mark.parametrize(
  "changes, name",
  [
    (dict(seed=1), "seed"),
    ({"step_grpo.minibatches": 2}, "minibatches"),
    (dict(text="Why?"), "digest"),
    (dict(passages="2c3d"), "kbs"),
    (dict(shift=1e-3), "start"),
    ({"policy.start_from": ""}, "start"),
    ({"total_steps": 9, "optim.lr": 1e-5, "policy.lora.rank": 2}, ""),
  ],
)
def test_run_with_other_batches_is_refused(changes, name, tmp_path):
  saved, current = (
    dict(data=json.loads(json.dumps(data)), config={}, versions={})
    for data in (describe_data(), describe_data(**changes))
  )
  if not name:  # What may change.
    return train_lib._check_same_run(saved, current, epath.Path(tmp_path))
  with pytest.raises(UserError, match=f"holds a run whose {name} was .*, and"):
    train_lib._check_same_run(saved, current, epath.Path(tmp_path))


@pytest.mark.parametrize("precision, wanted", [("bfloat16",) * 2, ("", None)])
def test_update_has_the_precision_of_the_config(precision, wanted):
  config = train_runs.make_run_config("sft", matmul_precision=precision)
  seen = []

  def loss(params, reference, batch):
    seen.append(jax.config.jax_default_matmul_precision)
    return jnp.sum(params["w"] * batch["x"]), jnp.float32(1), {}

  init_state, update = run_setup.make_update(config, loss, (32,), None)
  update(init_state({"w": jnp.ones(2)}), None, {"x": jnp.ones((1, 2))})
  assert set(seen) == {wanted}
